"""DDNM+ against the released code in NumPy, DDRM, and what they promise of y."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.bench import operators
from diip_jax.bench.baselines import ddnm, ddrm
from helpers import gaussian, seeded

SIZE = (6, 6)
OPERATORS = {
    "identity": operators.identity(SIZE),
    "pooled": operators.separable(
        np.kron(np.eye(3), [0.5, 0.5]), np.kron(np.eye(3), [0.5, 0.5])
    ),
    "blurred": operators.gaussian_blur(SIZE, 1.0),
}


def transcription(predict_noise, y, noises, levels, sigma_y, eta, A):
    """Sample as the released code does, one singular value at a time; float64."""
    U, S, V_T = np.linalg.svd(A)
    S = np.pad(S, (0, len(V_T) - len(S)))
    U_T_y = np.pad(U.T @ y, [(0, len(V_T) - len(U)), (0, 0)])
    x = noises[0]
    for (ab, ab_prev), n in zip(levels, noises[1:], strict=True):
        eps = predict_noise(x, ab)
        x_0 = V_T @ ((x - np.sqrt(1 - ab) * eps) / np.sqrt(ab))
        a, sigma_t, spectrum = np.sqrt(ab_prev), np.sqrt(1 - ab_prev), []
        for i, s in enumerate(S):
            # of its correction, of its fresh noise and of eps
            weights = 1, sigma_t * eta, sigma_t * np.sqrt(1 - eta**2)
            if s < 1e-4:
                weights = 0, *weights[1:]
            elif sigma_y > 0 and sigma_t >= a * sigma_y / s:
                weights = 1, np.sqrt(sigma_t**2 - (a * sigma_y / s) ** 2), 0
            elif sigma_y > 0:
                correction = s * sigma_t * np.sqrt(1 - eta**2) / (a * sigma_y)
                weights = correction, sigma_t * eta, 0
            corrected = x_0[i]
            if weights[0]:
                corrected = x_0[i] - weights[0] * (x_0[i] - U_T_y[i] / s)
            noise = weights[1] * (V_T @ n)[i] + weights[2] * (V_T @ eps)[i]
            spectrum.append(a * corrected + noise)
        x = V_T.T @ np.array(spectrum)
    return x


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_the_chain_is_the_released_codes(name, sigma, key):
    operator, num_steps = OPERATORS[name], 8
    rng = np.random.default_rng(1)
    truth = np.float32(rng.uniform(-1, 1, (*SIZE, 3)))
    y = operator.apply(truth)
    y += 2 * sigma * rng.standard_normal(y.shape)
    config = ddnm.Config(sigma=sigma, eta=0.8)
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
    )
    # x_0 is of size 100 at first, and the smallest singular value of the blur is 0.02
    np.testing.assert_allclose(gaussian.columns(x), expected, atol=1e-3)


@pytest.mark.parametrize("name", OPERATORS)
def test_with_noise_a_step_is_ddrms(name):
    """Both are given the same predictions and the same noise."""
    operator, eta, sigma_y = OPERATORS[name], 0.85, 0.1
    x_0, eps, y, n = np.random.default_rng(2).standard_normal((4, *SIZE, 3))
    inverse, is_measured = operator.inverse_singulars(), operator.singulars > 0
    for _, ab_prev in gaussian.levels(20):
        a_t, s_t = np.sqrt(ab_prev), np.sqrt(1 - ab_prev)
        sigma = sigma_y * inverse
        lambda_t, fresh, kept = ddnm.weights(a_t, s_t, sigma, is_measured, eta)
        actual = a_t * (x_0 - lambda_t * (x_0 - inverse * y)) + fresh * n + kept * eps
        config = ddrm.Config(eta=eta, eta_b=1.0)
        expected = a_t * ddrm.update(
            x_0, eps, y, n, s_t / a_t, sigma_y, config, operator
        )
        np.testing.assert_allclose(actual, expected, atol=1e-4)  # float32, 50 / 0.1


def test_without_noise_the_answer_measures_as_y_does(key):
    operator = OPERATORS["pooled"]
    y = jax.random.uniform(key, (3, 3, 3), minval=-1)
    config, steps = ddnm.Config(sigma=0.0), gaussian.steps(10)
    x = ddnm.sample(gaussian.predictor(0.0, 0.5), steps, y, key, config, operator)
    np.testing.assert_allclose(operator.apply(x), y, atol=1e-5)  # float32
    assert np.asarray(x).std() > 0.1  # the null space is not left empty


@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0])
def test_the_weights_keep_the_variance(sigma):
    sigma, is_measured = np.float32([sigma, 3 * sigma, 0]), np.array([1, 1, 0], bool)
    for _, ab_prev in gaussian.levels(20):
        a_t, s_t = np.sqrt(ab_prev), np.sqrt(1 - ab_prev)
        lambda_t, fresh, kept = ddnm.weights(a_t, s_t, sigma, is_measured, 0.85)
        total = (a_t * lambda_t * sigma) ** 2 + fresh**2 + kept**2
        np.testing.assert_allclose(total, s_t**2, atol=1e-6)
        assert np.all((lambda_t >= 0) & (lambda_t <= 1))
        assert lambda_t[2] == 0


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
