"""GibbsDDRM: its kernel against regression, its image against DDRM and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.bench import operators
from diip_jax.bench.baselines import blind_dps, ddrm, gibbs_ddrm
from diip_jax.bench.baselines.gibbs_ddrm import Config
from helpers import gaussian, seeded

KERNEL = np.float32([[0, 0.1, 0], [0.2, 0.4, 0.1], [0, 0.2, 0]])


def photo(size, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (*size, 3)).astype(np.float32)


def test_shifts_are_the_convolution():
    x, kernel = photo((7, 6)), np.random.default_rng(1).random((5, 5))
    a = gibbs_ddrm.shifts(jnp.asarray(x), 5)
    expected = blind_dps.blur(x, jnp.float32(kernel))  # tested apart
    # float32 in sums of 25 terms of size 1
    actual = (kernel.ravel() @ np.asarray(a)).reshape(x.shape)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_the_canvas_holds_the_same_convolution():
    """Circular on the wider canvas, with edges reflected on the photo."""
    x = photo((7, 6))
    operator = gibbs_ddrm.operator_of(KERNEL, x.shape, Config(rank=0.0))
    assert operator.size == (9, 8)
    inside = gibbs_ddrm.cut(operator.apply(gibbs_ddrm.extend(x, 1)), 1)
    expected = blind_dps.blur(x, jnp.asarray(KERNEL))
    np.testing.assert_allclose(inside, expected, atol=1e-5)  # float32


def test_y_is_filled_up_outside_and_kept_inside(key):
    x, y, config = photo((7, 6)), photo((7, 6), 1), Config(sigma=0.05, rank=0.0)
    operator = gibbs_ddrm.operator_of(KERNEL, y.shape, config)
    filled = gibbs_ddrm.fill(jnp.asarray(y), x, operator, key, config)
    np.testing.assert_array_equal(filled[1:-1, 1:-1], y)
    outside = np.ones((9, 8), bool)
    outside[1:-1, 1:-1] = False
    measured = operator.apply(gibbs_ddrm.extend(x, 1))
    noise = np.asarray(filled - measured)[outside]  # 90 numbers of deviation 0.1
    assert noise.std() == pytest.approx(0.1, rel=4 / np.sqrt(2 * 90))


def langevin_transcription(phi, y, x_0, noises, xi, gamma, sigma_phi):
    """Take the Langevin steps on the residual itself, in float64."""
    padded = np.pad(np.float64(x_0), [(1, 1), (1, 1), (0, 0)], mode="symmetric")
    height, width = y.shape[:2]
    phi = np.float64(phi)
    for n in noises:
        r = np.float64(y).copy()
        for a, b in np.ndindex(3, 3):
            r -= phi[a, b] * padded[2 - a :, 2 - b :][:height, :width]
        gradient = gamma * np.sign(phi)
        for a, b in np.ndindex(3, 3):
            window = padded[2 - a :, 2 - b :][:height, :width]
            gradient[a, b] -= np.sum(window * r) / sigma_phi**2
        phi = phi - xi / 2 * gradient + np.sqrt(xi) * n
    return phi / phi.sum()


def test_langevin_steps_are_the_sources(key):
    x_0 = photo((8, 8))
    y = np.asarray(blind_dps.blur(x_0, jnp.asarray(KERNEL)))
    xi, gamma = 1e-11, 2e5  # not so long that the step is bounded
    config = Config(xi=xi, gamma=gamma, langevin_steps=20)
    first = gibbs_ddrm.first_kernel(3)
    phi = gibbs_ddrm.langevin(first, jnp.asarray(y), jnp.asarray(x_0), key, config)
    noises = np.asarray(jax.random.normal(key, (20, 9))).reshape(20, 3, 3)
    part = 8 * 8 * 3 / (256 * 256 * 3)  # the source's photos have 256 x 256 pixels
    xi, gamma = xi / (part * (3 / 64) ** 2), gamma * part
    expected = langevin_transcription(first, y, x_0, noises, xi, gamma, 0.04)
    # float32; the Gram matrix is a sum of 192 terms
    np.testing.assert_allclose(phi, expected, atol=1e-4)


def test_the_kernel_is_a_sample_of_its_posterior(key):
    """Without the 1-norm, the posterior is that of a linear regression."""
    x_0, sigma = photo((16, 16)), 0.04
    noise = sigma * np.random.default_rng(3).standard_normal(x_0.shape)
    y = np.asarray(blind_dps.blur(x_0, jnp.asarray(KERNEL))) + noise
    a = np.asarray(gibbs_ddrm.shifts(jnp.asarray(x_0), 3), np.float64)
    mean = np.linalg.lstsq(a.T, y.ravel(), rcond=None)[0]
    by_sum = np.eye(9) - np.outer(mean / mean.sum(), np.ones(9))  # of phi / sum(phi)
    covariance = sigma**2 * by_sum @ np.linalg.inv(a @ a.T) @ by_sum.T
    deviation = np.sqrt(np.diag(covariance))
    first, y = gibbs_ddrm.first_kernel(3), jnp.float32(y)

    def sample(key):
        config = Config(gamma=0.0, xi=2e-11)
        return gibbs_ddrm.langevin(first, y, x_0, key, config).ravel()

    samples = np.asarray(jax.vmap(sample)(jax.random.split(key, 200)))
    # Four deviations of the mean and of the deviation of 200 samples, which steps of
    # finite length make a tenth wider at most.
    error = np.abs(samples.mean(0) - mean / mean.sum())
    assert (error < 4 * 1.1 * deviation / np.sqrt(200)).all()
    ratio = samples.std(0) / deviation
    assert (np.abs(ratio - 1.05) < 0.05 + 4 / np.sqrt(2 * 200)).all()


def test_large_steps_do_not_diverge(key):
    x_0 = jnp.ones((8, 8, 3))
    phi = gibbs_ddrm.langevin(
        gibbs_ddrm.first_kernel(3), x_0, x_0, key, Config(xi=1.0, gamma=0.0)
    )
    assert np.isfinite(np.asarray(phi)).all()
    assert float(phi.sum()) == pytest.approx(1, abs=1e-4)


def test_a_kernel_of_one_pixel_is_ddrm(key):
    """For H = I and DDRM's etas, the two chains are one; and phi stays 1."""
    y, eta, sigma = photo((8, 8)), 0.6, 0.1
    steps, predict_noise = gaussian.steps(8), gaussian.predictor(0.1, 0.4)
    config = Config(
        sigma=sigma,
        eta_a=0.0,
        eta_b=1.0,
        eta_c=np.sqrt(1 - eta**2),
        eta_d=eta,
        kernel_size=1,
    )
    early = jnp.zeros(8, bool)
    x, phi = gibbs_ddrm.sample(predict_noise, steps, early, y, key, config)
    known = ddrm.Config(sigma=sigma, eta=eta, eta_b=1.0)
    identity = operators.identity((8, 8))
    expected = ddrm.sample(predict_noise, steps, y, key, known, identity)
    np.testing.assert_allclose(phi, [[1.0]])
    # float32, Fourier transforms of numbers that are of size 100 at first
    np.testing.assert_allclose(x, expected, atol=2e-3)


def test_the_update_is_the_sources_entry_by_entry():
    rng = np.random.default_rng(4)
    shape, q, sigma_0 = (4, 4, 3), 0.3, 0.15
    x_0, eps, y, n = rng.standard_normal((4, *shape))
    s = np.float32(rng.choice([0.0, 0.2, 0.9], (4, 4, 1)))
    config = Config(eta_a=0.3, eta_b=0.7, eta_c=0.5, eta_d=0.6)
    operator = operators.Convolution(jnp.asarray(s), jnp.ones_like(s))
    actual = gibbs_ddrm.update(
        *map(jnp.float32, (x_0, eps, y, n, q)), sigma_0, config, operator
    )
    everywhere = np.broadcast_to(s, shape)
    less = (everywhere > 0) & (q * everywhere < sigma_0)
    a, c = eps[less], ((y - s * x_0) / sigma_0)[less]
    rho = abs(a @ c) / np.linalg.norm(a) / np.linalg.norm(c)
    drawn = np.sqrt(1 - 0.3**2 - 0.5**2 - 2 * 0.3 * 0.5 * rho)
    expected = np.zeros(shape)
    for i in np.ndindex(shape):
        value = everywhere[i]
        if value == 0:
            expected[i] = x_0[i] + np.sqrt(1 - 0.6**2) * q * eps[i] + 0.6 * q * n[i]
        elif q * value < sigma_0:
            towards = (y[i] - value * x_0[i]) / sigma_0
            expected[i] = x_0[i] + q * (0.3 * eps[i] + 0.5 * towards + drawn * n[i])
        else:
            deviation = np.sqrt(q**2 - (0.7 * sigma_0 / value) ** 2)
            expected[i] = 0.3 * x_0[i] + 0.7 * y[i] / value + deviation * n[i]
    np.testing.assert_allclose(actual, expected, atol=1e-5)  # float32


def test_the_kernel_is_found_where_the_prior_knows_the_photo(key):
    truth = photo((16, 16))
    y = blind_dps.blur(truth, jnp.asarray(KERNEL))
    steps, predict_noise = gaussian.steps(10), gaussian.predictor(truth, 1e-3)
    late = jnp.arange(10) >= 7
    config = Config(kernel_size=3, gamma=0.0, xi=1e-10)
    x, phi = gibbs_ddrm.sample(predict_noise, steps, late, y, key, config)
    # The posterior of an entry has a deviation of 0.04 / sqrt(768 0.27) = 0.003.
    np.testing.assert_allclose(phi, KERNEL, atol=0.02)
    np.testing.assert_allclose(x, truth, atol=0.01)  # the prior's deviation, and more


@pytest.mark.slow
def test_photos_may_be_batched(key):
    ys, keys = jnp.stack([photo((6, 6)), photo((6, 6), 1)]), jax.random.split(key)
    config = Config(kernel_size=3, langevin_steps=5, xi=1e-12)
    late = jnp.arange(4) >= 2

    def sample(y, key):
        predict_noise, steps = gaussian.predictor(0.0, 0.5), gaussian.steps(4)
        return gibbs_ddrm.sample(predict_noise, steps, late, y, key, config)[0]

    both = jax.vmap(sample)(ys, keys)
    # float32 in another order, on numbers that were of size 100
    np.testing.assert_allclose(both[1], sample(ys[1], keys[1]), atol=2e-3)


def test_restores_on_a_prior(key):
    prior, y = seeded.prior(), seeded.image(8, 8)
    config = Config(num_steps=4, kernel_size=3, langevin_steps=2, start=0.5)

    def restore(prior, y, key):
        return gibbs_ddrm.restore(prior, y, key, config)

    restored = seeded.compile_quickly(restore, prior, y, key)(prior, y, key)
    assert restored.image.shape == (8, 8, 3)
    assert restored.image.min() >= 0
    assert restored.image.max() <= 1
    # t = 750, 500, 250, 0: three rounds at 500 and at 250
    assert (int(restored.evaluations), int(restored.gradients)) == (4 + 6, 0)


def test_the_source_evaluates_the_network_310_times():
    late = gibbs_ddrm.late_steps(Config(), 1000)
    assert 100 + 3 * late[:-1].sum() == 310
    assert not gibbs_ddrm.late_steps(Config(kernel_size=1), 1000).any()  # phi is known


def test_bad_input_is_told_in_one_line(key):
    prior, y = seeded.prior(), jnp.zeros((8, 8, 3))
    even = Config(kernel_size=4)
    with pytest.raises(ValueError, match="kernel_size is 4; use an odd number"):
        gibbs_ddrm.restore(prior, y, key, even)
    operator = operators.identity((8, 8))
    with pytest.raises(ValueError, match="estimates the degradation; give no operator"):
        gibbs_ddrm.restore(prior, y, key, operator=operator)


def test_the_kernel_of_noise_is_known():
    assert gibbs_ddrm.config_for("denoise", 64) == Config(kernel_size=1, start=0.45)
    assert gibbs_ddrm.config_for("denoise", 256) == Config(kernel_size=1)
    assert gibbs_ddrm.config_for("jpeg", 64) is None  # not linear


def test_large_pictures_have_the_sources_settings():
    assert gibbs_ddrm.config_for("motion_blur", 256) == Config()
    assert gibbs_ddrm.config_for("motion_blur", 128) == Config(kernel_size=33)
    small = gibbs_ddrm.config_for("motion_blur", 64)
    grid = gibbs_ddrm.GRID
    assert all(getattr(small, name) in values for name, values in grid.items())
