"""DreamClean against closed forms and its pseudocode in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import ddim
from diip_jax.bench.baselines import dreamclean
from diip_jax.bench.baselines.dreamclean import Config
from helpers import gaussian, seeded

SHAPE = (8, 8, 3)


def entry(steps, i):
    return jax.tree.map(lambda leaf: leaf[i], steps)


def test_a_prior_of_one_picture_gives_that_picture(key):
    mean = np.random.default_rng(0).uniform(-0.9, 0.9, SHAPE).astype(np.float32)
    predict_noise = gaussian.predictor(mean)
    y = jnp.zeros(SHAPE)
    x = dreamclean.clean(predict_noise, gaussian.short_steps(), y, key, Config())
    # float32, magnified by 1 / sqrt(alpha_bar) < 6 at the highest level
    np.testing.assert_allclose(x, mean, atol=1e-5)


def test_a_vps_step_keeps_x_0_and_renews_a_share_of_the_noise():
    """Of s e, s ((1 - gamma) e + sqrt(1 - (1 - gamma)^2) n) is made."""
    rng = np.random.default_rng(0)
    x_0, e, n = rng.uniform(-1, 1, SHAPE), *rng.standard_normal((2, *SHAPE))
    now = entry(gaussian.short_steps(), 5)
    root, s = np.sqrt(now.alpha_bar), np.sqrt(1 - now.alpha_bar)
    predict_noise = gaussian.predictor(x_0)
    x = jnp.asarray(root * x_0 + s * e, jnp.float32)
    moved = dreamclean.vps_step(predict_noise, x, now, 0.3, jnp.asarray(n))
    fresh = 0.7 * e + np.sqrt(1 - 0.7**2) * n  # of variance 1, as e and n
    np.testing.assert_allclose(moved, root * x_0 + s * fresh, atol=1e-6)  # float32


def test_inversion_is_ddim_read_backwards():
    """With the noise that the way up saw, DDIM's step comes back to the start."""
    steps = gaussian.short_steps()
    now = entry(steps, 4)
    eps = jnp.asarray(np.random.default_rng(1).standard_normal(SHAPE), jnp.float32)

    def predict_noise(x_t, conditioning):
        return eps

    x = jnp.asarray(np.random.default_rng(2).uniform(-0.3, 0.3, SHAPE), jnp.float32)
    below = jnp.sqrt(now.alpha_bar_prev) * x + jnp.sqrt(1 - now.alpha_bar_prev) * eps
    up = dreamclean.invert_step(predict_noise, below, now)
    np.testing.assert_allclose(
        ddim.step(predict_noise, up, now),
        below,
        atol=1e-6,  # float32
    )
    np.testing.assert_allclose(
        dreamclean.reverse_step(predict_noise, up, now), below, atol=1e-6
    )


def pseudocode(predict, alphas_cumprod, y, noise, S, n, M, gamma):
    """Follow the listing in float64; `predict` is the network at a timestep."""
    grid = np.arange(S) * (len(alphas_cumprod) // S)
    x, s_below, ab_below = y, 0.0, 1.0
    for t in grid[:n]:
        ab = alphas_cumprod[t]
        s, e = np.sqrt(1 - ab), predict(x, t)
        x = np.sqrt(ab / ab_below) * (x - s_below * e) + s * e
        s_below, ab_below = s, ab
    for i, t in enumerate(grid[:n][::-1]):
        ab = alphas_cumprod[t]
        ab_prev = alphas_cumprod[grid[n - 2 - i]] if i < n - 1 else 1.0
        s, s_prev = np.sqrt(1 - ab), np.sqrt(1 - ab_prev)
        for m in range(M):
            x = x - gamma * s * predict(x, t)
            x = x + np.sqrt(gamma * (2 - gamma)) * s * noise[i, m]
        e = predict(x, t)
        x = np.sqrt(ab_prev) * np.clip((x - s * e) / np.sqrt(ab), -1, 1) + s_prev * e
    return x


def test_the_pseudocode(tiny_prior, key, monkeypatch):
    monkeypatch.setattr(dreamclean, "noise_predictor", gaussian.bound(gaussian.wavy))
    config = Config(S=20, n=3, M=2, gamma=0.2)
    y = seeded.image(16, 16)
    alphas_cumprod = tiny_prior.card.schedule.alphas_cumprod()
    noise = [
        [jax.random.normal(k, y.shape) for k in keys]
        for keys in jax.random.split(key, (3, 2))
    ]
    expected = pseudocode(
        lambda x, t: gaussian.wavy(x, alphas_cumprod[t]),
        alphas_cumprod,
        2.0 * y - 1,
        np.float64(noise),
        *(20, 3, 2, 0.2),
    )
    restored = jax.jit(dreamclean.restore)(tiny_prior, y, key, config)
    np.testing.assert_allclose(2 * restored.image - 1, expected, atol=1e-5)  # float32
    assert (restored.evaluations, restored.gradients) == (3 + 3 * 3, 0)


def test_defaults_make_the_reported_number_of_evaluations(tiny_prior, key):
    y = jnp.zeros((16, 16, 3))
    assert jax.eval_shape(dreamclean.restore, tiny_prior, y, key).image.shape == y.shape
    config = Config()
    assert config.n * (1 + config.M + 1) == 90  # as reviews of the paper report


def test_any_size_and_bad_settings(tiny_prior, key):
    y = jnp.zeros((13, 17, 3))
    shape = jax.eval_shape(dreamclean.restore, tiny_prior, y, key).image.shape
    assert shape == y.shape
    with pytest.raises(ValueError, match="n is 0; use 1 to S = 100"):
        dreamclean.restore(tiny_prior, y, key, Config(n=0))
    with pytest.raises(ValueError, match="blind"):
        dreamclean.restore(tiny_prior, y, key, operator=object())


def test_small_pictures_have_settings_of_their_own():
    assert dreamclean.config_for("jpeg", 65) == Config()
    assert dreamclean.config_for("jpeg", 64).n in dreamclean.GRID["n"]
    assert dreamclean.config_for("jpeg", 64) != Config()
