"""DDNM+ against its equations in NumPy, and what they promise of y."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.bench import operators
from diip_jax.bench.baselines import ddnm
from helpers import gaussian, seeded

SIZE = (6, 6)
OPERATORS = {
    "identity": operators.identity(SIZE),
    "pooled": operators.separable(
        np.kron(np.eye(3), [0.5, 0.5]), np.kron(np.eye(3), [0.5, 0.5])
    ),
    "blurred": operators.gaussian_blur(SIZE, 1.0),
}


def transcription(predict_noise, y, noises, levels, sigma_y, eta, A, rank):
    """Sample as the paper says, with DDIM for DDPM as its released code; float64."""
    pinv = np.linalg.pinv(A, rcond=rank / np.linalg.norm(A, 2))
    sigma = sigma_y * np.linalg.norm(pinv) / np.sqrt(len(pinv))  # of A^+ n, per pixel
    x = noises[0]
    for (ab, ab_prev), n in zip(levels, noises[1:], strict=True):
        eps = predict_noise(x, ab)
        x_0 = (x - np.sqrt(1 - ab) * eps) / np.sqrt(ab)
        a_t, sigma_t = np.sqrt(ab_prev), eta * np.sqrt(1 - ab_prev)
        if sigma_t >= a_t * sigma:
            lambda_t, gamma_t = 1, sigma_t**2 - (a_t * sigma) ** 2
        else:
            lambda_t, gamma_t = sigma_t / (a_t * sigma), 0
        x_0 = x_0 - lambda_t * pinv @ (A @ x_0 - y)
        kept = np.sqrt(1 - ab_prev - sigma_t**2)
        x = a_t * x_0 + np.sqrt(gamma_t) * n + kept * eps
    return x


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_the_chain_is_the_papers(name, sigma, key):
    operator, num_steps, rank = OPERATORS[name], 8, 0.1
    rng = np.random.default_rng(1)
    truth = np.float32(rng.uniform(-1, 1, (*SIZE, 3)))
    y = operator.apply(truth) + 2 * sigma * rng.standard_normal(3)
    config = ddnm.Config(sigma=sigma, eta=0.8, rank=rank)
    predict_noise, steps = gaussian.predictor(0.2, 0.5), gaussian.steps(num_steps)
    x = ddnm.sample(predict_noise, steps, y, key, config, operator)
    noises = [
        gaussian.columns(jax.random.normal(k, (*SIZE, 3)))
        for k in jax.random.split(key, num_steps + 1)
    ]
    expected = transcription(
        predict_noise,
        gaussian.columns(y),
        noises,
        gaussian.levels(num_steps),
        2 * sigma,
        0.8,
        gaussian.dense(operator),
        rank,
    )
    # x_0 is of size 100 at first and A^+ multiplies by 10 at most: 1e-7 becomes 1e-4.
    np.testing.assert_allclose(gaussian.columns(x), expected, atol=5e-4)


def test_without_noise_the_answer_measures_as_y_does(key):
    operator = OPERATORS["pooled"]
    y = jax.random.uniform(key, (3, 3, 3), minval=-1)
    config, steps = ddnm.Config(sigma=0.0), gaussian.steps(10)
    x = ddnm.sample(gaussian.predictor(0.0, 0.5), steps, y, key, config, operator)
    np.testing.assert_allclose(operator.apply(x), y, atol=1e-5)  # float32
    assert np.asarray(x).std() > 0.1  # the null space is not left empty


def test_the_noise_of_the_inverse_is_the_papers_for_its_operators():
    for name in ("identity", "pooled"):
        sigma = ddnm.noise_of_inverse(OPERATORS[name], 0.3)
        assert float(sigma) == pytest.approx(0.3, rel=1e-5)
    blurred = operators.truncated(OPERATORS["blurred"], 0.05)
    noise = np.random.default_rng(0).standard_normal((500, *SIZE, 3))
    inverted = jax.vmap(blurred.pseudo_inverse)(jnp.float32(noise))
    # 500 x 108 numbers, of which some are correlated: about 2 %
    expected = float(ddnm.noise_of_inverse(blurred, 1.0))
    assert float(jnp.std(inverted)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0])
def test_the_weights_keep_the_variance(sigma):
    for _, ab_prev in gaussian.levels(20):
        a_t, sigma_t = np.sqrt(ab_prev), 0.85 * np.sqrt(1 - ab_prev)
        lambda_t, gamma_t = ddnm.weights(a_t, sigma_t, sigma)
        total = (a_t * lambda_t * sigma) ** 2 + gamma_t  # Eq. (19)
        assert float(total) == pytest.approx(sigma_t**2, abs=1e-6)
        assert 0 <= float(lambda_t) <= 1
        assert float(gamma_t) >= 0


def test_measurements_may_be_batched(key):
    operator, config = OPERATORS["blurred"], ddnm.Config()
    ys, keys = jax.random.normal(key, (2, *SIZE, 3)), jax.random.split(key)

    def sample(y, key):
        predict_noise, steps = gaussian.predictor(0.0, 0.5), gaussian.steps(4)
        return ddnm.sample(predict_noise, steps, y, key, config, operator)

    both = jax.vmap(sample)(ys, keys)
    # float32 in another order, on numbers that were of size 100
    np.testing.assert_allclose(both[1], sample(ys[1], keys[1]), atol=1e-3)


def test_restores_on_a_prior(key):
    prior, y = seeded.prior(), seeded.image(4, 4)
    operator = operators.super_resolution((16, 16), 4)

    def restore(prior, y, key):
        return ddnm.restore(prior, y, key, ddnm.Config(num_steps=2), operator)

    restored = seeded.compile_quickly(restore, prior, y, key)(prior, y, key)
    assert restored.image.shape == (16, 16, 3)
    assert restored.image.min() >= 0
    assert restored.image.max() <= 1
    assert (int(restored.evaluations), int(restored.gradients)) == (2, 0)


def test_a_missing_operator_is_told_in_one_line(key):
    with pytest.raises(ValueError, match="DDNM needs the degradation"):
        ddnm.restore(seeded.prior(), jnp.zeros((16, 16, 3)), key)


def test_it_is_for_linear_damage_alone():
    assert ddnm.config_for("sr8", 64) == ddnm.config_for("sr8", 256) == ddnm.Config()
    assert ddnm.config_for("deformation", 64) is None
