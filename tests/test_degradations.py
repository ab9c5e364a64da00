"""The damage against closed forms and scikit-image's Gaussian blur."""

import numpy as np
import pytest

from diip_jax import degradations
from diip_jax.metrics import psnr
from helpers import seeded


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("level", [0.0, 0.2, 0.4])
def test_noise_mixture_has_its_mean_and_deviation(level):
    x = np.full((200, 200, 3), level)
    y = degradations.noise_mixture(x, rng())
    # y = x + 0.32 x n + 0.03 n': speckle and Gaussian noise add in squares.
    sigma = np.hypot(0.32 * level, 0.03)
    inside = (y > 0) & (y < 1)
    assert inside.mean() > (0.45 if level == 0 else 0.95)
    error = np.where(y > level, y - level, 0)  # the upper half is never cut here
    # 60,000 samples: the deviation is known to 0.4 %, four of those are allowed.
    assert np.sqrt(2 * np.mean(error**2)) == pytest.approx(sigma, rel=0.016)


def test_noise_mixture_reaches_the_levels_that_were_measured():
    """Noisy photos lie at 15.1 to 17.3 dB (baselines.md 3.1)."""
    x = np.stack([np.linspace(0, 1, 96)] * 96)[..., None].repeat(3, axis=-1)
    assert 14 < psnr(x, degradations.noise_mixture(x, rng())) < 18


def test_gaussian_noise_has_its_deviation():
    x = np.full((200, 200, 3), 0.5)
    error = degradations.gaussian_noise(x, rng(), sigma=0.1) - x
    assert error.std() == pytest.approx(0.1, rel=0.012)  # four standard errors
    assert abs(error.mean()) < 4 * 0.1 / np.sqrt(error.size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda x: degradations.noise_mixture(x, rng(1)),
        lambda x: degradations.gaussian_noise(x, rng(1), 0.5),
        lambda x: degradations.jpeg(x, 5),
        lambda x: degradations.gaussian_blur(x, 1.5),
        lambda x: degradations.super_resolution(x, 4),
        lambda x: degradations.deform(x, rng(1)),
        lambda x: degradations.water_drops(x, rng(1)),
    ],
)
def test_damage_keeps_shape_and_range_and_repeats(damage):
    x = seeded.image(24, 31)
    y = damage(x)
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1
    np.testing.assert_array_equal(y, damage(x))
    assert not np.allclose(y, x, atol=1e-3)


def test_jpeg_keeps_flat_grey_and_gets_worse_with_quality():
    flat = np.full((16, 16, 3), 128 / 255)
    np.testing.assert_allclose(degradations.jpeg(flat, 95), flat, atol=1.01 / 255)
    x = seeded.image(64, 64)
    errors = [np.mean((degradations.jpeg(x, q) - x) ** 2) for q in (95, 50, 5)]
    assert errors == sorted(errors)
    assert errors[0] < 0.3 * errors[-1]


def test_jpeg_of_quality_5_has_blocks():
    """Steps between 8x8 blocks are larger than steps inside them."""
    y = degradations.jpeg(seeded.image(64, 64), 5).mean(axis=-1)
    steps = abs(np.diff(y, axis=1)).mean(axis=0)
    assert steps[7::8].mean() > 1.5 * np.delete(steps, np.s_[7::8]).mean()


def test_jpeg_returns_8_bit_levels():
    y = 255 * degradations.jpeg(seeded.image(16, 24), 30)
    np.testing.assert_allclose(y, np.rint(y), atol=1e-9)


def test_blur_of_a_point_is_the_gaussian():
    x = np.zeros((25, 25, 3))
    x[12, 12] = 1
    offsets = np.arange(-12, 13)
    window = np.where(abs(offsets) <= 8, np.exp(-(offsets**2) / (2 * 2.0**2)), 0)
    expected = np.outer(window, window) / window.sum() ** 2
    y = degradations.gaussian_blur(x, 2.0)
    np.testing.assert_allclose(y, expected[..., None].repeat(3, axis=-1), atol=1e-15)


@pytest.mark.parametrize("sigma", [0.8, 2.0, 3.5])
def test_blur_matches_scikit_image(sigma):
    filters = pytest.importorskip("skimage.filters")
    x = np.float64(seeded.image(20, 33))
    # "nearest" is its default; "reflect" (edge repeated) is ours. Cut at 4 sigma.
    expected = filters.gaussian(x, sigma, mode="reflect", truncate=4.0, channel_axis=-1)
    np.testing.assert_allclose(
        degradations.gaussian_blur(x, sigma), expected, atol=1e-12
    )


def ramps(height, width):
    """Return a picture that is its own map: rows and columns over 100, and grey."""
    rows, columns = np.indices((height, width)) / 100
    return np.stack([rows, columns, np.full((height, width), 0.5)], axis=-1)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_super_resolution_moves_nothing(factor):
    """Blur, thinning and cubic interpolation all keep a ramp, away from the edges."""
    x = ramps(60, 71)
    y = degradations.super_resolution(x, factor)
    inside = np.s_[4 * factor : -4 * factor, 4 * factor : -4 * factor]
    np.testing.assert_allclose(y[inside], x[inside], atol=1e-6)  # Pillow has float32


def test_super_resolution_keeps_a_factor_of_the_detail():
    """Waves of 32 pixels pass, those above the new Nyquist frequency do not."""
    columns = np.arange(64)

    def wave(period):
        row = 0.5 + 0.4 * np.sin(2 * np.pi * columns / period)
        return np.broadcast_to(row[None, :, None], (64, 64, 3))

    def kept(period):
        y = degradations.super_resolution(wave(period), 4)[:, 16:48]
        return np.std(y) / np.std(wave(period)[:, 16:48])

    assert kept(32) > 0.9
    assert kept(3) < 0.2


def test_super_resolution_keeps_a_constant_picture():
    x = np.full((32, 29, 3), 0.3)
    np.testing.assert_allclose(degradations.super_resolution(x, 4), x, atol=1e-6)


@pytest.mark.parametrize("amplitude", [0.5, 2.0, 5.0])
def test_deform_moves_pixels_by_its_amplitude_at_most(amplitude):
    x, longest = ramps(64, 64), []
    for seed in range(5):
        y = degradations.deform(x, rng(seed), amplitude)
        longest.append(100 * np.linalg.norm((y - x)[..., :2], axis=-1).max())
        np.testing.assert_allclose(y[..., 2], 0.5, atol=1e-12)
    # Repeated edges shorten displacements there, so not each picture shows the longest.
    assert max(longest) == pytest.approx(amplitude, rel=1e-9)
    assert min(longest) > 0.5 * amplitude


def test_deform_is_smooth():
    x = ramps(64, 64)

    def roughness(smoothness):
        y = degradations.deform(x, rng(), 2.0, smoothness)
        return np.abs(np.diff(100 * (y - x)[8:-8, 8:-8, :2], axis=0)).max()

    assert roughness(8.0) < 0.6 * roughness(4.0) < 0.36 * roughness(1.0)


def test_deform_of_amplitude_0_changes_nothing():
    x = seeded.image(20, 31)
    np.testing.assert_array_equal(degradations.deform(x, rng(), 0.0), x)


def test_sampling_matches_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    x = np.float64(seeded.image(13, 17))
    places = rng().uniform(-4, 21, (2, 30, 40))  # outside too
    expected = [
        ndimage.map_coordinates(x[..., channel], places, order=1, mode="nearest")
        for channel in range(3)
    ]
    y = degradations._sample(x, *places)
    np.testing.assert_allclose(y, np.stack(expected, axis=-1), atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_drops_change_some_pixels_and_no_others(seed):
    x = np.float64(seeded.image(64, 64))
    y = degradations.water_drops(x, rng(seed))
    changed = (y != x).any(axis=-1)
    # Five drops of radius 3 to 6 cover about 0.1 of the picture; rims as much again.
    assert 0.01 < changed.mean() < 0.5
    np.testing.assert_array_equal(degradations.water_drops(x, rng(seed), 0), x)


def test_a_drop_brightens_and_has_a_soft_rim():
    x = np.full((64, 64, 3), 0.5)
    change = degradations.water_drops(x, rng(6), 1, (6.0, 6.0)) - x
    assert change.min() >= -1e-12
    assert change.max() == pytest.approx(0.15 * 0.5, rel=1e-3)
    soft = (change > 0.1 * change.max()) & (change < 0.9 * change.max())
    assert soft.sum() > 0.2 * (change > 0).sum()


def test_a_drop_shows_its_surroundings_upside_down():
    x = 0.2 + ramps(64, 64) / 2  # rows of channel 0, columns of channel 1
    y = degradations.water_drops(x, rng(6), 1, (6.0, 6.0))
    grey = degradations.water_drops(np.full(x.shape, 0.5), rng(6), 1, (6.0, 6.0)) - 0.5
    core = grey[..., 0] > 0.999 * grey.max()  # what shows nothing but the drop
    down = np.diff(y[..., 0], axis=0)[core[1:] & core[:-1]]
    right = np.diff(y[..., 1], axis=1)[core[:, 1:] & core[:, :-1]]
    # Twice the surroundings: two pixels' difference from one pixel to the next.
    np.testing.assert_allclose(down, -2 * 1.15 / 200, rtol=0.05)
    np.testing.assert_allclose(right, 2 * 1.15 / 200, rtol=0.05)


def test_halve_averages_blocks_and_cuts_the_odd_edge():
    x = np.arange(15.0).reshape(3, 5)[..., None]
    assert degradations.halve(x)[..., 0].tolist() == [[3.0, 5.0]]


@pytest.mark.parametrize(("shape", "side"), [((8, 8), 4), ((9, 12), 3), ((5, 5), 5)])
def test_centre_crop_is_in_the_middle(shape, side):
    rows, columns = np.indices(shape)
    crop = degradations.centre_crop(np.stack([rows, columns], axis=-1), side)
    assert crop.shape == (side, side, 2)
    for axis in (0, 1):
        before, after = crop[0, 0, axis], shape[axis] - 1 - crop[-1, -1, axis]
        assert 0 <= after - before <= 1
