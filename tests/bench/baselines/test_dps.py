"""DPS against its equations in NumPy, and against the prior that it samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.bench import operators
from diip_jax.bench.baselines import dps, sampling
from diip_jax.prior import Prior
from helpers import gaussian, seeded

SIZE = (6, 6)


def step_predictor(mu, s, v=-1.0):
    """Return the closed form of eps, with a variance at `v` of its range."""
    predict_noise = gaussian.predictor(mu, s)

    def predict_step(x, alpha_bar):
        return predict_noise(x, alpha_bar), jnp.full_like(x, v)

    return predict_step


def transcription(y, noises, levels, A, mu, s, zeta):
    """Sample as Algorithm 1 says, the gradient by hand, in float64.

    x_0(x_i) = mu + c (x_i - sqrt(ab) mu), so that the gradient of ||y - A x_0|| is
    -c A^T (y - A x_0) / ||y - A x_0||. Clipped entries have none.
    """
    x = noises[0]
    for (ab, ab_prev), n in zip(levels, noises[1:], strict=True):
        c = np.sqrt(ab) * s**2 / (ab * s**2 + 1 - ab)
        unclipped = mu + c * (x - np.sqrt(ab) * mu)
        x_0 = np.clip(unclipped, -1, 1)
        alpha = ab / ab_prev
        beta = 1 - alpha
        mean = (
            np.sqrt(ab_prev) * beta / (1 - ab) * x_0
            + np.sqrt(alpha) * (1 - ab_prev) / (1 - ab) * x
        )
        r = y - A @ x_0
        gradient = -c * (A.T @ r) / np.linalg.norm(r) * (np.abs(unclipped) < 1)
        x = mean + np.sqrt((1 - ab_prev) / (1 - ab) * beta) * n - zeta * gradient
    return x


@pytest.mark.parametrize("s", [0.3, 1.0])  # the latter is clipped here and there
def test_the_chain_is_the_papers(s, key):
    operator, num_steps = operators.super_resolution(SIZE, 3), 12
    y = jax.random.uniform(key, (2, 2, 3), minval=-1)
    shape = (*SIZE, 3)
    # Twice the size per side asks for twice the step: 108 entries of 196608.
    zeta = 5.0 * np.sqrt(108 / (3 * 256 * 256))
    x = dps.sample(
        step_predictor(0.2, s),
        gaussian.steps(num_steps),
        y,
        key,
        dps.Config(zeta=5.0),
        operator,
    )
    noises = [
        gaussian.columns(jax.random.normal(k, shape))
        for k in jax.random.split(key, num_steps + 1)
    ]
    expected = transcription(
        gaussian.columns(y),
        noises,
        gaussian.levels(num_steps),
        gaussian.dense(operator),
        0.2,
        s,
        zeta,
    )
    # float32, and an x_0 that is (x - eps) / 0.02 at first
    np.testing.assert_allclose(gaussian.columns(x), expected, atol=1e-3)


def test_without_guidance_the_answers_are_samples_of_the_prior(key):
    mu, s, num_steps = 0.1, 0.25, 250
    operator = operators.identity((32, 32))
    steps, y = gaussian.steps(num_steps), jnp.zeros((32, 32, 3))
    predict_step, config = step_predictor(mu, s), dps.Config(zeta=0.0)
    x = np.asarray(dps.sample(predict_step, steps, y, key, config, operator))
    # Four deviations of a mean and of a deviation of 3072 numbers; steps of 4 in place
    # of 1 leave less than 5 % of the deviation out.
    assert x.mean() == pytest.approx(mu, abs=4 * s / np.sqrt(3072))
    assert x.std() == pytest.approx(s, rel=4 / np.sqrt(2 * 3072) + 0.05)


@pytest.mark.parametrize("v", [-1.0, 0.0, 1.0])
def test_the_variance_lies_between_the_bounds_of_the_schedule(v, key):
    """Eq. (15) of Nichol & Dhariwal (2021): exp(w log beta + (1 - w) log beta~)."""
    steps, index = gaussian.steps(10), 4
    now = jax.tree.map(lambda a: a[index], steps)
    ab, ab_prev = gaussian.levels(10)[index]
    x = jnp.zeros((4, 4, 3))
    _, drawn = dps.ancestral(step_predictor(0.0, 0.5, v), x, now, key)
    beta = 1 - ab / ab_prev
    smaller = beta * (1 - ab_prev) / (1 - ab)
    w = (v + 1) / 2
    variance = np.exp(w * np.log(beta) + (1 - w) * np.log(smaller))
    expected = np.sqrt(variance) * np.asarray(jax.random.normal(key, x.shape))
    np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("v", [-1.0, 1.0])
def test_the_last_step_draws_nothing(v, key):
    now = jax.tree.map(lambda a: a[-1], gaussian.steps(10))
    x = jax.random.uniform(key, (4, 4, 3), minval=-0.5, maxval=0.5)
    x_0, drawn = dps.ancestral(step_predictor(0.0, 0.5, v), x, now, key)
    np.testing.assert_allclose(drawn, x_0, atol=1e-6)  # float32


def test_a_learned_variance_is_read_from_the_network(key):
    """With the last layer's weights zero, its biases are the channels."""
    config = dataclasses.replace(seeded.TINY, learn_sigma=True)
    prior = seeded.prior(config)
    bias = jnp.arange(6.0) / 10
    last = {"kernel": jnp.zeros_like(prior.params["out_2"]["kernel"]), "bias": bias}
    prior = Prior({**prior.params, "out_2": last}, prior.card)
    predict_step, steps = sampling.bind_variance(prior, (8, 8), 4)
    conditioning = jax.tree.map(lambda a: a[0], steps.conditioning)
    eps, v = jax.jit(predict_step)(jnp.zeros((8, 8, 3)), conditioning)
    np.testing.assert_allclose(eps, np.broadcast_to(bias[:3], (8, 8, 3)))
    np.testing.assert_allclose(v, np.broadcast_to(bias[3:], (8, 8, 3)))


def test_restores_on_a_prior(key):
    prior, y = seeded.prior(), seeded.image(4, 4)
    operator = operators.super_resolution((16, 16), 4)

    def restore(prior, y, key):
        return dps.restore(prior, y, key, dps.Config(num_steps=2), operator)

    restored = seeded.compile_quickly(restore, prior, y, key)(prior, y, key)
    assert restored.image.shape == (16, 16, 3)
    assert restored.image.min() >= 0
    assert restored.image.max() <= 1
    assert (int(restored.evaluations), int(restored.gradients)) == (2, 2)


def test_a_missing_operator_is_told_in_one_line(key):
    with pytest.raises(ValueError, match="DPS needs the degradation"):
        dps.restore(seeded.prior(), jnp.zeros((16, 16, 3)), key)


def test_measurements_may_be_batched(key):
    operator, config = operators.identity(SIZE), dps.Config()
    ys, keys = jax.random.normal(key, (2, *SIZE, 3)), jax.random.split(key)

    def sample(y, key):
        predict_step, steps = step_predictor(0.0, 0.5), gaussian.steps(4)
        return dps.sample(predict_step, steps, y, key, config, operator)

    both = jax.vmap(sample)(ys, keys)
    # float32 in another order
    np.testing.assert_allclose(both[1], sample(ys[1], keys[1]), atol=1e-4)


def test_small_pictures_have_a_step_of_their_own():
    assert dps.config_for("sr4", 256) == dps.Config()
    assert dps.config_for("sr4", 64).zeta in dps.GRID["zeta"]
    assert dps.config_for("sr4", 64) != dps.Config()
    assert dps.config_for("jpeg", 64) is None  # not linear
