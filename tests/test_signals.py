"""The variance of the Laplacian against values by hand and a loop over pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.signals import laplacian_variance

pytestmark = pytest.mark.usefixtures("strict_ranks")


def by_loop(x: np.ndarray) -> float:
    """Return the score pixel by pixel, in float64."""
    grey = [[127.5 * sum(map(float, pixel)) / len(pixel) for pixel in row] for row in x]
    values = []
    for i in range(1, len(grey) - 1):
        for j in range(1, len(grey[0]) - 1):
            around = grey[i - 1][j] + grey[i + 1][j] + grey[i][j - 1] + grey[i][j + 1]
            values.append(around - 4 * grey[i][j])
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def grey(values: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(np.repeat(values[..., None], 3, axis=-1), jnp.float32)


@pytest.mark.parametrize("shape", [(8, 8), (9, 17), (3, 3)])
def test_matches_a_loop_over_pixels(shape):
    x = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    # float32 sums of terms of order 100 against float64; 1 pixel has variance 0.
    assert float(laplacian_variance(x)) == pytest.approx(by_loop(x), rel=1e-5, abs=1e-6)


def test_constant_and_ramp_have_no_sharpness():
    ramp = np.linspace(-1, 1, 12)[:, None] + np.linspace(0, 0.5, 10)[None]
    assert float(laplacian_variance(grey(np.full((12, 10), 0.3)))) == 0
    # Second differences of rounded numbers: 255 * 2^-24, squared, is about 1e-10.
    assert float(laplacian_variance(grey(ramp))) < 1e-8


def test_checkerboard_by_hand():
    # Pixels +-1/2 are +-63.75 grey levels: the Laplacian is -+8 * 63.75 = -+510.
    board = 0.5 - np.indices((10, 10)).sum(axis=0) % 2
    assert float(laplacian_variance(grey(board))) == pytest.approx(510**2, rel=1e-6)


def test_single_bright_pixel_by_hand():
    # On 5x5 there are nine values: -4 * 255 once, 255 four times, 0 four times.
    spot = np.full((5, 5), -1.0)
    spot[2, 2] = 1
    assert float(laplacian_variance(grey(spot))) == pytest.approx(20 / 9 * 255**2)


def test_blur_lowers_and_noise_raises_it():
    rng = np.random.default_rng(1)
    x = np.kron(rng.uniform(-0.5, 0.5, (6, 6, 3)), np.ones((4, 4, 1)))
    blurred = (
        sum(np.roll(x, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    )
    noisy = x + 0.1 * rng.standard_normal(x.shape)
    low, middle, high = (float(laplacian_variance(v)) for v in (blurred, x, noisy))
    assert low < 0.5 * middle
    assert high > 1.2 * middle


def test_colours_count_by_their_mean():
    x = np.random.default_rng(2).uniform(-1, 1, (8, 8, 3)).astype(np.float32)
    assert float(laplacian_variance(x)) == pytest.approx(
        float(laplacian_variance(x[..., ::-1])), rel=1e-5
    )
