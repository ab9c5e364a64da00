"""GDP against closed forms and its pseudocode in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import prior as priors
from diip_jax.bench.baselines import forms, gdp, sampling
from diip_jax.bench.baselines.gdp import Config
from diip_jax.unets.adm import ADMConfig
from helpers import gaussian, seeded

SHAPE = (8, 8, 3)
SCALE = 8 * 8 * 3 / (256 * 256 * 3)  # of s, for pictures of this shape


def with_posterior_variance(predict_noise):
    return lambda x, ab: (predict_noise(x, ab), jnp.full_like(x, -1))


def run(predict, y, key, config, form=None, shape=SHAPE):
    form = form or forms.identity()
    return gdp.sample(predict, gaussian.short_steps(), form, y, shape, key, config)


def test_a_prior_of_one_picture_leaves_one_step_towards_y(key):
    """At t = 0 mu is x0hat, here the picture, and dL/dx0hat = (x0hat - y) / (2 N)."""
    rng = np.random.default_rng(0)
    mean, y = rng.uniform(-0.9, 0.9, (2, *SHAPE)).astype(np.float32)
    predict = with_posterior_variance(gaussian.predictor(mean))
    x = run(predict, y, key, Config(s=8e4)).x
    step = 8e4 * SCALE / (2 * mean.size)
    assert step == pytest.approx(0.2, rel=0.02)  # as at 256x256
    np.testing.assert_allclose(x, mean - step * (mean - y), atol=1e-5)  # float32


def test_the_distribution_of_a_gaussian(key):
    """Every step is a line plus noise: mean and variance follow by recursion."""
    shape, (mean, variance, y) = (64, 64, 3), (0.2, 0.02, -0.1)
    s = 4e4
    predict_noise = gaussian.predictor(mean, variance**0.5)
    expected, spread = 0.0, 1.0
    for ab, ab_prev in gaussian.short_levels():
        root, root_prev = np.sqrt(ab), np.sqrt(ab_prev)
        alpha, beta = ab / ab_prev, 1 - ab / ab_prev
        weight = beta * root_prev / (1 - ab)  # of x0hat in mu, Ho et al.'s Eq. (7)

        def mu(x, ab=ab, ab_prev=ab_prev, root=root, alpha=alpha, weight=weight):
            x_0 = (x - np.sqrt(1 - ab) * predict_noise(x, ab)) / root
            mu = weight * x_0 + (1 - ab_prev) * np.sqrt(alpha) / (1 - ab) * x
            return mu - s / (2 * gdp.NUMBERS) * (x_0 - y)

        slope = mu(1.0) - mu(0.0)
        expected = mu(expected)
        spread = slope**2 * spread + beta * (1 - ab_prev) / (1 - ab)
    predict = with_posterior_variance(predict_noise)
    x = run(predict, jnp.full(shape, y), key, Config(s=s), shape=shape).x
    # twelve thousand samples; five standard errors
    assert np.mean(x) == pytest.approx(expected, abs=5 * np.sqrt(spread / x.size))
    assert np.var(x) == pytest.approx(spread, rel=5 * np.sqrt(2 / x.size))


def test_the_factor_of_the_light_is_found(key):
    """The factor f descends to the least squares where the prior knows the picture."""
    x = np.random.default_rng(1).uniform(-0.9, 0.9, SHAPE).astype(np.float32)
    predict = with_posterior_variance(gaussian.predictor(x))
    y = 2 * (0.4 * (x + 1) / 2) - 1
    config = Config(form="affine", s=0.0)
    phi = run(predict, y, key, config, forms.affine(SHAPE)).phi
    assert phi["f"] == pytest.approx(0.4, abs=1e-3)  # M is up to 1e-4 of that
    assert np.max(np.abs(phi["M"])) < 2e-3


def pseudocode(predict, alphas_cumprod, timesteps, y, x, noise, s):
    """Follow the listing in float64, with a learnt variance and D = pooling."""

    def pool(image):
        means = image.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
        return means.repeat(2, axis=0).repeat(2, axis=1)  # H^+ H, as released

    for i, t in enumerate(timesteps):
        ab = alphas_cumprod[t]
        ab_prev = alphas_cumprod[timesteps[i + 1]] if i + 1 < len(timesteps) else 1.0
        beta = 1 - ab / ab_prev
        eps, v = predict(x, ab)
        x_0 = np.clip((x - np.sqrt(1 - ab) * eps) / np.sqrt(ab), -1, 1)
        mu = np.sqrt(ab_prev) * beta / (1 - ab) * x_0
        mu = mu + np.sqrt(ab / ab_prev) * (1 - ab_prev) / (1 - ab) * x
        # L = mean((D((x_0 + 1) / 2) - D((y + 1) / 2))^2); D^T = D here
        gradient = 2 / x.size * 0.5 * pool(pool((x_0 + 1) / 2) - pool((y + 1) / 2))
        x = mu - s * SCALE * gradient
        if i + 1 < len(timesteps):
            smallest = beta * (1 - ab_prev) / (1 - ab)
            log = (v + 1) / 2 * np.log(beta) + (1 - v) / 2 * np.log(smallest)
            x = x + np.exp(0.5 * log) * noise[i]
    return x


def test_the_pseudocode_with_a_learnt_variance(key):
    timesteps = (18, 12, 6, 0)

    def predict(x, ab):
        return gaussian.wavy(x, ab), 0.9 * gaussian.wavy(0.5 * x, -ab)

    y = np.random.default_rng(2).uniform(-1, 1, SHAPE)
    x_key, _, n_key = jax.random.split(key, 3)
    noise = [jax.random.normal(k, SHAPE) for k in jax.random.split(n_key, 4)]
    start = np.float64(jax.random.normal(x_key, SHAPE))
    expected = pseudocode(
        predict,
        gaussian.SHORT_ALPHAS_CUMPROD,
        timesteps,
        y,
        start,
        np.float64(noise),
        6e4,
    )
    form, steps = forms.downsample(2), gaussian.short_steps(timesteps)
    measurement = form.apply((), jnp.asarray(y, jnp.float32))
    config = Config(s=6e4)
    x = gdp.sample(predict, steps, form, measurement, SHAPE, key, config).x
    np.testing.assert_allclose(x, expected, atol=2e-5)  # float32, magnified up to 6


def test_the_variance_is_the_networks_last_channels(key):
    """Where the last layer's halves change places, so do eps and v."""
    small = ADMConfig(16, 32, (1,), (1,), (), learn_sigma=True)
    prior = seeded.prior(small)
    out = prior.params["out_2"]
    swapped = {name: np.roll(leaf, 3, axis=-1) for name, leaf in out.items()}
    twin = prior.replace(params=prior.params | {"out_2": swapped})
    x = jax.random.normal(key, (16, 16, 3))

    @jax.jit
    def predicted(prior):
        predict, steps = sampling.step_predictor(prior, np.array([700]))
        return predict(x, jax.tree.map(lambda leaf: leaf[0], steps.conditioning))

    (eps, v), (v_again, eps_again) = predicted(prior), predicted(twin)
    np.testing.assert_allclose(eps, eps_again, atol=1e-6)  # the same sums
    np.testing.assert_allclose(v, v_again, atol=1e-6)
    assert seeded.relative_error(v, eps) > 0.1
    np.testing.assert_allclose(
        eps, seeded.predicted(prior, x, 700, priors.PAPER), atol=1e-5
    )


def test_without_a_learnt_variance_it_is_the_posteriors(tiny_prior, monkeypatch):
    bound = gaussian.bound(gaussian.wavy)
    monkeypatch.setattr(sampling, "noise_predictor", bound)
    predict, steps = sampling.step_predictor(tiny_prior, np.array([500, 250, 0]))
    _, v = predict(jnp.zeros(SHAPE), steps.conditioning[0])
    now = jax.tree.map(lambda leaf: leaf[0], steps)
    _, variance, beta = sampling.posterior(jnp.zeros(()), jnp.zeros(()), now)
    np.testing.assert_allclose(sampling.between(v, variance, beta), variance, rtol=1e-6)
    assert variance < beta


def test_vmap_is_one_by_one_with_an_unknown_kernel(tiny_prior, key, monkeypatch):
    bound = gaussian.bound(gaussian.wavy)
    monkeypatch.setattr(sampling, "noise_predictor", bound)
    config = Config(form="kernel", kernel_size=3, num_steps=3)
    y = jnp.stack([seeded.image(13, 16, seed) for seed in (0, 1)])
    keys = jax.random.split(key)
    together = jax.jit(jax.vmap(gdp.restore, (None, 0, 0, None)))(
        tiny_prior, y, keys, config
    )
    alone = jax.jit(gdp.restore)(tiny_prior, y[1], keys[1], config)
    assert alone.image.shape == (13, 16, 3)
    np.testing.assert_allclose(together.image[1], alone.image, atol=1e-5)  # float32
    assert (alone.evaluations, alone.gradients) == (3, 0)


def test_a_known_operator_takes_the_place_of_any_form(tiny_prior, key, monkeypatch):
    class Identity:
        size = (16, 16)

        def apply(self, x):
            return x

    bound = gaussian.bound(gaussian.wavy)
    monkeypatch.setattr(sampling, "noise_predictor", bound)
    y = jnp.asarray(seeded.image(16, 16))
    config = Config(form="affine", num_steps=3)
    told = gdp.restore(tiny_prior, y, key, config, Identity()).image
    blind = gdp.restore(tiny_prior, y, key, Config(num_steps=3)).image
    np.testing.assert_allclose(told, blind, atol=1e-6)  # float32


def test_a_task_has_its_form():
    assert gdp.config_for("denoise", 64).form == "identity"
    assert gdp.config_for("gaussian_blur", 64).form == "kernel"
    assert gdp.config_for("sr4", 64).factor == 4
    assert gdp.config_for("sr4", 64).s == 2000  # the released one
    assert gdp.config_for("jpeg", 64) is None
