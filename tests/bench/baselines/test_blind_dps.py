"""BlindDPS without its kernel prior: the blur, the kernel it finds, its known case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import degradations
from diip_jax.bench import operators
from diip_jax.bench.baselines import blind_dps, dps
from helpers import gaussian, seeded


def step_predictor(mu, s):
    """Return the closed form of eps, with the schedule's variance."""
    predict_noise = gaussian.predictor(mu, s)

    def predict_step(x, alpha_bar):
        return predict_noise(x, alpha_bar), -jnp.ones_like(x)

    return predict_step


def photo(size, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (*size, 3)).astype(np.float32)


def test_blur_is_the_sum_written_out():
    x, kernel = photo((7, 6)), np.random.default_rng(1).random((5, 5))
    padded = np.pad(x, [(2, 2), (2, 2), (0, 0)], mode="symmetric")
    expected = np.zeros(x.shape)
    for i, j in np.ndindex(7, 6):
        for a, b in np.ndindex(5, 5):
            expected[i, j] += kernel[a, b] * padded[i + 4 - a, j + 4 - b]
    # float32 in sums of 25 terms of size 1
    actual = blind_dps.blur(x, jnp.float32(kernel))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_blur_knows_the_edges_of_the_degradation():
    x, window = photo((9, 8)), np.exp(-0.5 * (np.arange(-3, 4) / 0.8) ** 2)
    window /= window.sum()
    actual = blind_dps.blur(x, jnp.float32(np.outer(window, window)))
    # the degradation has a radius of 3 at a deviation of 0.8
    expected = degradations.gaussian_blur(x, sigma=0.8)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_the_kernel_is_found_where_the_prior_knows_the_photo(key):
    """A prior that is certain of the photo leaves the kernel alone to be explained."""
    truth, num_steps = photo((16, 16)), 300
    kernel = np.zeros((5, 5), np.float32)
    kernel[1, 1:4] = [0.2, 0.5, 0.3]
    y = blind_dps.blur(truth, jnp.asarray(kernel))
    config = blind_dps.Config(zeta=0.0, kernel_size=5)
    steps = gaussian.steps(num_steps)
    predict_step = step_predictor(truth, 1e-3)
    _, found = blind_dps.sample(predict_step, steps, y, key, config)
    # 300 steps of Adam by at most 0.1: exp(-30) is no limit, Adam's ripple of a
    # few steps of 0.1 on logits is, about a tenth of an entry.
    np.testing.assert_allclose(found, kernel, atol=0.05)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


def test_a_kernel_of_one_pixel_is_dps_of_the_identity(key):
    y, steps = photo((8, 8)), gaussian.steps(6)
    predict_step = step_predictor(0.1, 0.3)
    config = blind_dps.Config(zeta=5.0, kernel_size=1)
    x, kernel = blind_dps.sample(predict_step, steps, y, key, config)
    identity = operators.identity((8, 8))
    known = dps.Config(zeta=5.0)
    expected = dps.sample(predict_step, steps, y, key, known, identity)
    np.testing.assert_allclose(kernel, [[1.0]])
    # float32, and an x_0 that is (x - eps) / 0.02 at first
    np.testing.assert_allclose(x, expected, atol=1e-3)


def test_photos_may_be_batched(key):
    ys, keys = jnp.stack([photo((6, 6)), photo((6, 6), 1)]), jax.random.split(key)
    config, steps = blind_dps.Config(kernel_size=3), gaussian.steps(4)

    def sample(y, key):
        return blind_dps.sample(step_predictor(0.0, 0.5), steps, y, key, config)[0]

    both = jax.vmap(sample)(ys, keys)
    # float32 in another order, and Adam's division by what is near zero
    np.testing.assert_allclose(both[1], sample(ys[1], keys[1]), atol=1e-3)


def test_restores_on_a_prior(key):
    prior, y = seeded.prior(), seeded.image(8, 8)
    config = blind_dps.Config(num_steps=2, kernel_size=3)

    def restore(prior, y, key):
        return blind_dps.restore(prior, y, key, config)

    restored = seeded.compile_quickly(restore, prior, y, key)(prior, y, key)
    assert restored.image.shape == (8, 8, 3)
    assert restored.image.min() >= 0
    assert restored.image.max() <= 1
    assert (int(restored.evaluations), int(restored.gradients)) == (2, 2)


def test_bad_input_is_told_in_one_line(key):
    prior, y = seeded.prior(), jnp.zeros((8, 8, 3))
    even = blind_dps.Config(kernel_size=4)
    with pytest.raises(ValueError, match="kernel_size is 4; use an odd number"):
        blind_dps.restore(prior, y, key, even)
    operator = operators.identity((8, 8))
    with pytest.raises(ValueError, match="estimates the degradation; give no operator"):
        blind_dps.restore(prior, y, key, operator=operator)


@pytest.mark.parametrize(
    ("task", "side", "kernel_size"),
    [
        ("denoise", 64, 1),
        ("denoise", 256, 1),
        ("gaussian_blur", 64, 13),
        ("gaussian_blur", 128, 33),
        ("gaussian_blur", 256, 65),
    ],
)
def test_the_kernel_grows_with_the_picture_and_that_of_noise_is_known(
    task, side, kernel_size
):
    assert blind_dps.config_for(task, side).kernel_size == kernel_size


def test_small_pictures_have_settings_of_their_own():
    small = blind_dps.config_for("sr4", 64)
    assert blind_dps.config_for("sr4", 256) == blind_dps.Config() != small
    grid = blind_dps.GRID
    assert all(getattr(small, name) in values for name, values in grid.items())
    assert blind_dps.config_for("jpeg", 64) is None  # not linear
