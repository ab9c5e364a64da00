"""DDRM against its equations in NumPy, and on a prior whose posterior is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.bench import operators
from diip_jax.bench.baselines import ddrm
from helpers import gaussian, seeded

SIZE = (6, 5)
KERNEL = np.outer([0.3, 0.5, 0.2], [0.1, 0.6, 0.3])
OPERATORS = {
    "identity": operators.identity(SIZE),
    "shrunk": operators.super_resolution((6, 6), 2),
    "blurred": operators.gaussian_blur(SIZE, 1.0),
    "convolution": operators.convolution(jnp.asarray(KERNEL), SIZE),
}


def transcription(predict_noise, y, noises, levels, sigma_y, eta, eta_b, H):
    """Sample as Sec. 3.2 says, with the decomposition of a matrix, in float64.

    `noises` holds standard normal images, (H W, 3), one for x_T and one for each step.
    """
    U, s, Vt = np.linalg.svd(H)
    s = np.append(s, np.zeros(len(Vt) - len(s)))
    s[s < operators.RANK * s[0]] = 0
    UTy = np.zeros((len(Vt), 3))
    UTy[: len(U)] = U.T @ y
    noises = iter(noises)

    def entries(sigma_t, rule):
        n = Vt @ next(noises)
        return np.stack([rule(i, s[i], n[i], sigma_t) for i in range(len(s))])

    def first(i, s_i, n_i, sigma_T):
        if s_i > 0 and sigma_T >= sigma_y / s_i:
            return UTy[i] / s_i + np.sqrt(sigma_T**2 - (sigma_y / s_i) ** 2) * n_i
        return sigma_T * n_i

    ab = levels[0][0]
    x = np.sqrt(ab) * Vt.T @ entries(np.sqrt(1 / ab - 1), first)
    for ab, ab_prev in levels:
        eps = predict_noise(x, ab)
        x_0 = (x - np.sqrt(1 - ab) * eps) / np.sqrt(ab)
        xs, es = Vt @ x_0, Vt @ eps

        def rule(i, s_i, n_i, sigma_t, xs=xs, es=es):
            if s_i == 0:
                drawn = eta * sigma_t * n_i
                return xs[i] + np.sqrt(1 - eta**2) * sigma_t * es[i] + drawn
            if sigma_t < sigma_y / s_i:
                towards = (UTy[i] / s_i - xs[i]) / (sigma_y / s_i)
                drawn = eta * sigma_t * n_i
                return xs[i] + np.sqrt(1 - eta**2) * sigma_t * towards + drawn
            deviation = np.sqrt(sigma_t**2 - (sigma_y / s_i * eta_b) ** 2)
            return (1 - eta_b) * xs[i] + eta_b * UTy[i] / s_i + deviation * n_i

        x = np.sqrt(ab_prev) * Vt.T @ entries(np.sqrt(1 / ab_prev - 1), rule)
    return x


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.5])
def test_the_chain_is_the_papers(name, sigma, key):
    operator, num_steps = OPERATORS[name], 8
    rng = np.random.default_rng(1)
    truth = np.float32(rng.uniform(-1, 1, (*operator.size, 3)))
    y = operator.apply(truth) + 2 * sigma * rng.standard_normal(3)
    config = ddrm.Config(sigma=sigma, eta=0.8, eta_b=0.9, num_steps=num_steps)
    predict_noise = gaussian.predictor(0.2, 0.5)
    x = ddrm.sample(predict_noise, gaussian.steps(num_steps), y, key, config, operator)
    noises = [
        gaussian.columns(jax.random.normal(k, (*operator.size, 3)))
        for k in jax.random.split(key, num_steps + 1)
    ]
    expected = transcription(
        predict_noise,
        gaussian.columns(y),
        noises,
        gaussian.levels(num_steps),
        2 * sigma,
        0.8,
        0.9,
        gaussian.dense(operator),
    )
    # x_T holds numbers of size 100, and 1 / s of a blur reaches 100: a rounding of
    # 1e-7 becomes at most 1e-3.
    np.testing.assert_allclose(gaussian.columns(x), expected, atol=2e-3)


def deviation(num_steps, eta, s):
    """Return the deviation of an unmeasured entry, by recursion from step to step.

    DDRM draws a part of the noise anew but not of x_0, so that less than s is left.
    """
    variance = 1.0
    for ab, ab_prev in gaussian.levels(num_steps):
        kept = (1 - ab) / (ab * s**2 + 1 - ab)  # of x_t / sqrt(1 - ab), in eps
        of_x_0 = (1 - kept) / np.sqrt(ab)
        of_eps = np.sqrt(1 - eta**2) * kept / np.sqrt(1 - ab)
        factor = np.sqrt(ab_prev) * of_x_0 + np.sqrt(1 - ab_prev) * of_eps
        variance = factor**2 * variance + eta**2 * (1 - ab_prev)
    return np.sqrt(variance)


def test_unmeasured_entries_are_drawn_from_the_prior(key):
    mu, s, eta, num_steps = 0.3, 0.4, 0.6, 30
    half = operators.separable(np.eye(32)[:16], np.eye(32))
    config = ddrm.Config(sigma=0.0, eta=eta)
    steps, y = gaussian.steps(num_steps), jnp.zeros((16, 32, 3))
    x = ddrm.sample(gaussian.predictor(mu, s), steps, y, key, config, half)
    np.testing.assert_allclose(x[:16], 0, atol=1e-5)  # no noise: y itself
    unmeasured = np.asarray(x[16:])
    expected = deviation(num_steps, eta, s)
    assert expected == pytest.approx(s, rel=0.2)
    # Four deviations of a mean and of a deviation of 1536 numbers.
    assert unmeasured.mean() == pytest.approx(mu, abs=4 * expected / np.sqrt(1536))
    assert unmeasured.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * 1536))


def test_noise_goes_and_the_image_stays(key):
    """Denoising errs less than y, and no less than the mean of the posterior."""
    mu, s, sigma = 0.0, 0.3, 0.15  # sigma in [0, 1]: 0.3 in the prior's range
    rng = np.random.default_rng(2)
    truth = mu + s * rng.standard_normal((32, 32, 3))
    y = truth + 2 * sigma * rng.standard_normal(truth.shape)
    config = ddrm.Config(sigma=sigma)
    operator = operators.identity((32, 32))
    predict_noise, steps = gaussian.predictor(mu, s), gaussian.steps(20)
    x = ddrm.sample(predict_noise, steps, jnp.float32(y), key, config, operator)
    error = np.mean((np.asarray(x) - truth) ** 2)
    posterior = s**2 * (2 * sigma) ** 2 / (s**2 + (2 * sigma) ** 2)
    # A sample of the posterior errs by twice its variance, y's noise by the same here.
    # 3072 entries leave 2.6 % of chance.
    assert posterior * 0.9 < error < 2 * posterior * 1.1


def test_measurements_may_be_batched(key):
    operator, config = OPERATORS["blurred"], ddrm.Config()
    ys, keys = jax.random.normal(key, (2, *SIZE, 3)), jax.random.split(key)

    def sample(y, key):
        predict_noise, steps = gaussian.predictor(0.0, 0.5), gaussian.steps(4)
        return ddrm.sample(predict_noise, steps, y, key, config, operator)

    both = jax.vmap(sample)(ys, keys)
    # float32 in another order, on numbers that were of size 100
    np.testing.assert_allclose(both[1], sample(ys[1], keys[1]), atol=1e-3)


def test_restores_on_a_prior(key):
    prior, y = seeded.prior(), seeded.image(4, 4)
    operator = operators.super_resolution((16, 16), 4)

    def restore(prior, y, key):
        return ddrm.restore(prior, y, key, ddrm.Config(num_steps=2), operator)

    restored = seeded.compile_quickly(restore, prior, y, key)(prior, y, key)
    assert restored.image.shape == (16, 16, 3)
    assert restored.image.min() >= 0
    assert restored.image.max() <= 1
    assert (int(restored.evaluations), int(restored.gradients)) == (2, 0)


def test_bad_input_is_told_in_one_line(key):
    prior, y = seeded.prior(), jnp.zeros((16, 16, 3))
    with pytest.raises(ValueError, match="operator is None"):
        ddrm.restore(prior, y, key)
    odd = operators.identity((16, 15))
    with pytest.raises(ValueError, match="15x16; crop its sides to multiples of 2"):
        ddrm.restore(prior, y[:, :15], key, operator=odd)
    square = seeded.prior(any_size=False)
    with pytest.raises(ValueError, match="8x8; prior seeded takes 16x16"):
        ddrm.restore(square, y[:8, :8], key, operator=operators.identity((8, 8)))


def test_small_pictures_have_settings_of_their_own():
    small = ddrm.config_for("motion_blur", 64)
    assert ddrm.config_for("motion_blur", 65) == ddrm.Config() != small
    assert all(getattr(small, name) in values for name, values in ddrm.GRID.items())
    assert ddrm.config_for("water", 64) is None  # not linear
