"""The damage against closed forms, SciPy, scikit-image, and formulas written out."""

import functools

import jax
import numpy as np
import pytest

from diip_jax import degradations
from diip_jax.metrics import psnr
from helpers import seeded

key = jax.random.key


@pytest.mark.parametrize("level", [0.0, 0.2, 0.4])
def test_noise_mixture_has_its_mean_and_deviation(level):
    x = np.full((200, 200, 3), level)
    y = degradations.noise_mixture(x, key(0))
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
    assert 14 < psnr(x, degradations.noise_mixture(x, key(0))) < 18


def test_gaussian_noise_has_its_deviation():
    x = np.full((200, 200, 3), 0.5)
    error = degradations.gaussian_noise(x, key(0), sigma=0.1) - x
    assert error.std() == pytest.approx(0.1, rel=0.012)  # four standard errors
    assert abs(error.mean()) < 4 * 0.1 / np.sqrt(error.size)


DAMAGES = [
    degradations.noise_mixture,
    degradations.gaussian_noise,
    degradations.jpeg,
    degradations.gaussian_blur,
    degradations.motion_blur,
    degradations.nonuniform_blur,
    degradations.super_resolution,
    degradations.deform,
    degradations.tilt,
    degradations.turbulence,
    degradations.elastic,
    degradations.spatter,
    degradations.water_drops,
]
DRAWS_NOTHING = {"jpeg", "gaussian_blur", "super_resolution"}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_keeps_shape_and_range_and_repeats(damage):
    x = seeded.image(24, 31)
    before = x.copy()
    y = damage(x, key(1))
    assert y.shape == x.shape
    assert y.dtype == np.float64
    assert y.min() >= 0
    assert y.max() <= 1
    np.testing.assert_array_equal(y, damage(x, key(1)))
    np.testing.assert_array_equal(x, before)
    assert not np.allclose(y, x, atol=1e-3)
    same = np.array_equal(y, damage(x, key(2)))
    assert same == (damage.__name__ in DRAWS_NOTHING)


@pytest.mark.parametrize(
    "nothing",
    [
        lambda x: degradations.noise_mixture(x, key(1), 0.0),
        lambda x: degradations.gaussian_noise(x, key(1), 0.0),
        lambda x: degradations.gaussian_blur(x, key(1), 0.0),
        lambda x: degradations.motion_blur(x, key(1), 0.0),
        lambda x: degradations.nonuniform_blur(x, key(1), 0.0),
        lambda x: degradations.deform(x, key(1), 0.0),
        lambda x: degradations.tilt(x, key(1), 0.0),
        lambda x: degradations.turbulence(x, key(1), 0.0),
        lambda x: degradations.elastic(x, key(1), 1),
        lambda x: degradations.water_drops(x, key(1), 0),
    ],
)
def test_damage_of_no_severity_changes_nothing(nothing):
    x = np.float64(seeded.image(20, 31))
    np.testing.assert_allclose(nothing(x), x, atol=1e-12)  # sums of weights that are 1


@pytest.mark.parametrize("name", sorted(DRAWS_NOTHING))
def test_a_severity_in_the_place_of_the_key_is_refused(name):
    """Earlier versions had it there; now it would count for nothing."""
    with pytest.raises(TypeError, match="key is 4; give a key or None, and name"):
        getattr(degradations, name)(seeded.image(16, 16), 4)


@pytest.mark.parametrize("damage", [degradations.elastic, degradations.spatter])
@pytest.mark.parametrize("severity", [0, 6, 1.5])
def test_a_severity_that_is_none_is_refused(damage, severity):
    with pytest.raises(ValueError, match=f"severity is {severity}; use 1 to"):
        damage(seeded.image(16, 16), key(0), severity)


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1])
def test_a_key_is_the_seed_of_numpys_generator(seed):
    """The draws of earlier versions, which took a seed, stay what they were."""
    drawn = degradations.generator(key(seed)).standard_normal(3)
    expected = np.random.default_rng(seed).standard_normal(3)
    np.testing.assert_array_equal(drawn, expected)


def test_other_keys_have_other_generators():
    keys = [*jax.random.split(key(0), 3), key(0), key(1)]
    drawn = {degradations.generator(one).integers(2**62) for one in keys}
    assert len(drawn) == len(keys)


def test_jpeg_keeps_flat_grey_and_gets_worse_with_quality():
    flat = np.full((16, 16, 3), 128 / 255)
    np.testing.assert_allclose(
        degradations.jpeg(flat, quality=95), flat, atol=1.01 / 255
    )
    x = seeded.image(64, 64)
    errors = [np.mean((degradations.jpeg(x, quality=q) - x) ** 2) for q in (95, 50, 5)]
    assert errors == sorted(errors)
    assert errors[0] < 0.3 * errors[-1]


def test_jpeg_of_quality_5_has_blocks():
    """Steps between 8x8 blocks are larger than steps inside them."""
    y = degradations.jpeg(seeded.image(64, 64), quality=5).mean(axis=-1)
    steps = abs(np.diff(y, axis=1)).mean(axis=0)
    assert steps[7::8].mean() > 1.5 * np.delete(steps, np.s_[7::8]).mean()


def test_jpeg_returns_8_bit_levels():
    y = 255 * degradations.jpeg(seeded.image(16, 24), quality=30)
    np.testing.assert_allclose(y, np.rint(y), atol=1e-9)


def test_blur_of_a_point_is_the_gaussian():
    x = np.zeros((25, 25, 3))
    x[12, 12] = 1
    offsets = np.arange(-12, 13)
    window = np.where(abs(offsets) <= 8, np.exp(-(offsets**2) / (2 * 2.0**2)), 0)
    expected = np.outer(window, window) / window.sum() ** 2
    y = degradations.gaussian_blur(x, sigma=2.0)
    np.testing.assert_allclose(y, expected[..., None].repeat(3, axis=-1), atol=1e-15)


@pytest.mark.parametrize("sigma", [0.8, 2.0, 3.5])
def test_blur_matches_scikit_image(sigma):
    filters = pytest.importorskip("skimage.filters")
    x = np.float64(seeded.image(20, 33))
    # "nearest" is its default; "reflect" (edge repeated) is ours. Cut at 4 sigma.
    expected = filters.gaussian(x, sigma, mode="reflect", truncate=4.0, channel_axis=-1)
    np.testing.assert_allclose(
        degradations.gaussian_blur(x, sigma=sigma), expected, atol=1e-12
    )


def ramps(height, width):
    """Return a picture that is its own map: rows and columns over 100, and grey."""
    rows, columns = np.indices((height, width)) / 100
    return np.stack([rows, columns, np.full((height, width), 0.5)], axis=-1)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_super_resolution_moves_nothing(factor):
    """Blur, thinning and cubic interpolation all keep a ramp, away from the edges."""
    x = ramps(60, 71)
    y = degradations.super_resolution(x, factor=factor)
    inside = np.s_[4 * factor : -4 * factor, 4 * factor : -4 * factor]
    np.testing.assert_allclose(y[inside], x[inside], atol=1e-6)  # Pillow has float32


def test_super_resolution_keeps_a_factor_of_the_detail():
    """Waves of 32 pixels pass, those above the new Nyquist frequency do not."""
    columns = np.arange(64)

    def wave(period):
        row = 0.5 + 0.4 * np.sin(2 * np.pi * columns / period)
        return np.broadcast_to(row[None, :, None], (64, 64, 3))

    def kept(period):
        y = degradations.super_resolution(wave(period), factor=4)[:, 16:48]
        return np.std(y) / np.std(wave(period)[:, 16:48])

    assert kept(32) > 0.9
    assert kept(3) < 0.2


def test_super_resolution_keeps_a_constant_picture():
    x = np.full((32, 29, 3), 0.3)
    np.testing.assert_allclose(degradations.super_resolution(x, factor=4), x, atol=1e-6)


def test_the_default_blur_grows_with_the_picture():
    for side in (64, 128):
        x = seeded.image(side, side + 10)
        expected = degradations.gaussian_blur(x, sigma=side / 40)
        np.testing.assert_array_equal(degradations.gaussian_blur(x), expected)


@pytest.mark.parametrize("sigma", [0.4, 1.6])
def test_blur_is_a_matrix_along_each_side(sigma):
    x = np.float64(seeded.image(12, 17))
    rows, columns = (degradations.blur_matrix(side, sigma) for side in (12, 17))
    expected = np.stack([rows @ x[..., c] @ columns.T for c in range(3)], axis=-1)
    np.testing.assert_allclose(
        degradations.gaussian_blur(x, sigma=sigma), expected, atol=1e-14
    )


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_downsampling_weighs_each_block_by_a_gaussian_in_its_middle(factor):
    x = np.zeros((3 * factor, 4 * factor, 3))
    x[factor : 2 * factor, 2 * factor : 3 * factor] = seeded.image(factor, factor)
    offsets = np.indices((factor, factor)) - (factor - 1) / 2
    weights = np.exp(-(offsets**2).sum(axis=0) / (2 * (factor / 4) ** 2))
    block = x[factor : 2 * factor, 2 * factor : 3 * factor]
    small = degradations.downsample(x, factor)
    assert small.shape == (3, 4, 3)
    expected = np.einsum("hw,hwc->c", weights / weights.sum(), block)
    np.testing.assert_allclose(small[1, 2], expected, atol=1e-14)
    small[1, 2] = 0
    np.testing.assert_allclose(small, 0, atol=1e-15)


def test_a_side_that_is_no_multiple_of_the_factor_is_refused():
    with pytest.raises(ValueError, match="side is 30 pixels; use a multiple of 4"):
        degradations.downsample(np.zeros((32, 30, 3)), 4)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_small_pictures_come_back_to_their_place(factor):
    x = ramps(10 * factor, 12 * factor)
    y = degradations.enlarge(degradations.downsample(x, factor), factor)
    inside = np.s_[2 * factor : -2 * factor, 2 * factor : -2 * factor]
    np.testing.assert_allclose(y[inside], x[inside], atol=1e-6)  # Pillow has float32


def test_enlarging_is_the_cubic_of_keys():
    """A point becomes the kernel of Keys (1981), a = -1/2, at quarters of a pixel."""
    small = np.full((9, 9, 3), 0.5)
    small[4, 4] = 1
    t = np.abs((np.arange(36) + 0.5) / 4 - 4.5)
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    kernel = np.where(t < 1, near, np.where(t < 2, far, 0))
    expected = 0.5 + 0.5 * np.outer(kernel, kernel)
    y = degradations.enlarge(small, 4)
    np.testing.assert_allclose(y[..., 0], np.minimum(expected, 1), atol=1e-6)


@pytest.mark.parametrize("length", [0.0, 3.0, 8.5, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_motion_is_a_kernel_that_moves_nothing(length, seed):
    kernel = degradations.motion_kernel(key(seed), length)
    assert kernel.shape[0] == kernel.shape[1] == len(kernel) // 2 * 2 + 1
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    offsets = np.indices(kernel.shape) - len(kernel) // 2
    np.testing.assert_allclose((offsets * kernel).sum(axis=(1, 2)), 0, atol=1e-12)
    # Half the path from its middle, and a pixel that a point is shared out to.
    reach = np.hypot(*offsets)[kernel > 0].max()
    assert reach <= length / 2 + np.sqrt(2)
    # A path of one radian of turns is nearly straight; a point has no extent.
    extent = np.sqrt((offsets**2 * kernel).sum())
    assert 0.7 * length / np.sqrt(12) <= extent <= length / np.sqrt(12) + 1


@pytest.mark.parametrize(("edges", "mode"), [("symmetric", "reflect"), ("wrap",) * 2])
def test_convolution_matches_scipy(edges, mode):
    ndimage = pytest.importorskip("scipy.ndimage")
    x = np.float64(seeded.image(14, 19))
    kernel = np.random.default_rng(0).uniform(size=(5, 5))
    expected = ndimage.convolve(x, kernel[..., None], mode=mode)
    y = degradations.convolve(x, kernel, edges)
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_nonuniform_blur_blends_its_copies():
    x = np.float64(seeded.image(32, 40))
    alone = degradations.nonuniform_blur(x, key(3), 6.0, count=1)
    expected = degradations.motion_blur(x, jax.random.split(key(3), 2)[1], 6.0)
    np.testing.assert_allclose(alone, expected, atol=1e-14)

    copies = np.stack(
        [
            degradations.motion_blur(x, other, 6.0)
            for other in jax.random.split(key(3), 5)[1:]
        ]
    )
    y = degradations.nonuniform_blur(x, key(3), 6.0)
    assert (y >= copies.min(axis=0) - 1e-12).all()
    assert (y <= copies.max(axis=0) + 1e-12).all()
    distances = np.abs(copies - y).mean(axis=(1, 2, 3))
    assert distances.min() > 1e-3  # it is none of them


@pytest.mark.parametrize("amplitude", [0.5, 2.0, 5.0])
def test_deform_moves_pixels_by_its_amplitude_at_most(amplitude):
    x, longest = ramps(64, 64), []
    for seed in range(5):
        y = degradations.deform(x, key(seed), amplitude)
        longest.append(100 * np.linalg.norm((y - x)[..., :2], axis=-1).max())
        np.testing.assert_allclose(y[..., 2], 0.5, atol=1e-12)
    # Repeated edges shorten displacements there, so not each picture shows the longest.
    assert max(longest) == pytest.approx(amplitude, rel=1e-9)
    assert min(longest) > 0.5 * amplitude


def test_deform_is_smooth():
    x = ramps(64, 64)

    def roughness(smoothness):
        y = degradations.deform(x, key(0), 2.0, smoothness)
        return np.abs(np.diff(100 * (y - x)[8:-8, 8:-8, :2], axis=0)).max()

    assert roughness(8.0) < 0.6 * roughness(4.0) < 0.36 * roughness(1.0)


@pytest.mark.parametrize("side", [64, 128])
def test_tilt_has_its_deviation_and_its_limit(side):
    x, patch = ramps(side, side), side // 4
    moves = [
        100 * (degradations.tilt(x, key(seed)) - x)[patch:-patch, patch:-patch, :2]
        for seed in range(2)
    ]
    limit = 2.5 * np.sqrt(side / 256)
    assert np.abs(moves).max() == pytest.approx(limit, rel=1e-9)
    # Patches over a pixel, E[U(0.1, 0.4)^2], and what a Gaussian of one pixel leaves.
    covered = 500 * patch**2 / (side - patch + 1) ** 2
    sigma = np.sqrt(covered * 0.07 / (4 * np.pi))
    # Coverage varies with the draw, and the limit takes a few per cent.
    assert np.std(moves) == pytest.approx(sigma, rel=0.15)


def test_turbulence_blurs_what_is_tilted():
    x = seeded.image(64, 80)
    expected = degradations.gaussian_blur(degradations.tilt(x, key(1)), sigma=1.0)
    np.testing.assert_array_equal(degradations.turbulence(x, key(1)), expected)


@pytest.mark.parametrize("severity", [2, 5])
def test_elastic_matches_scipy(severity):
    ndimage = pytest.importorskip("scipy.ndimage")
    x = np.float64(seeded.image(48, 56))
    amplitude, sigma = {2: (0.05 * 48, 0.3 * 48), 5: (0.16 * 48, 0.03 * 48)}[severity]
    field = np.random.default_rng(4).uniform(-1, 1, (48, 56, 2))
    moves = [
        amplitude * ndimage.gaussian_filter(field[..., i], sigma, truncate=3)
        for i in (0, 1)
    ]
    places = np.indices((48, 56)) + moves
    expected = [
        ndimage.map_coordinates(x[..., c], places, order=1, mode="nearest")
        for c in range(3)
    ]
    y = degradations.elastic(x, key(4), severity)
    np.testing.assert_allclose(y, np.stack(expected, axis=-1), atol=1e-10)


def test_sampling_matches_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    x = np.float64(seeded.image(13, 17))
    places = np.random.default_rng(0).uniform(-4, 21, (2, 30, 40))  # outside too
    expected = [
        ndimage.map_coordinates(x[..., channel], places, order=1, mode="nearest")
        for channel in range(3)
    ]
    y = degradations._sample(x, *places)
    np.testing.assert_allclose(y, np.stack(expected, axis=-1), atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_drops_change_some_pixels_and_no_others(seed):
    x = np.float64(seeded.image(64, 64))
    y = degradations.water_drops(x, key(seed))
    changed = (y != x).any(axis=-1)
    # Five drops of radius 3 to 6 cover about 0.1 of the picture; rims as much again.
    assert 0.01 < changed.mean() < 0.5
    np.testing.assert_array_equal(degradations.water_drops(x, key(seed), 0), x)


def test_a_drop_brightens_and_has_a_soft_rim():
    x = np.full((64, 64, 3), 0.5)
    change = degradations.water_drops(x, key(6), 1, (6.0, 6.0)) - x
    assert change.min() >= -1e-12
    assert change.max() == pytest.approx(0.15 * 0.5, rel=1e-3)
    soft = (change > 0.1 * change.max()) & (change < 0.9 * change.max())
    assert soft.sum() > 0.2 * (change > 0).sum()


def test_a_drop_shows_its_surroundings_upside_down():
    x = 0.2 + ramps(64, 64) / 2  # rows of channel 0, columns of channel 1
    y = degradations.water_drops(x, key(6), 1, (6.0, 6.0))
    grey = degradations.water_drops(np.full(x.shape, 0.5), key(6), 1, (6.0, 6.0)) - 0.5
    core = grey[..., 0] > 0.999 * grey.max()  # what shows nothing but the drop
    down = np.diff(y[..., 0], axis=0)[core[1:] & core[:-1]]
    right = np.diff(y[..., 1], axis=1)[core[:, 1:] & core[:, :-1]]
    # Twice the surroundings: two pixels' difference from one pixel to the next.
    np.testing.assert_allclose(down, -2 * 1.15 / 200, rtol=0.05)
    np.testing.assert_allclose(right, 2 * 1.15 / 200, rtol=0.05)


def canny(grey):
    """Return Canny's edges pixel by pixel, after the documentation of OpenCV."""
    height, width = grey.shape

    def level(i, j):
        return grey[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]

    @functools.cache
    def slopes(i, j):
        weights = ((-1, 1), (0, 2), (1, 1))
        right = sum(w * (level(i + k, j + 1) - level(i + k, j - 1)) for k, w in weights)
        down = sum(w * (level(i + 1, j + k) - level(i - 1, j + k)) for k, w in weights)
        return right, down

    def size(i, j):
        inside = 0 <= i < height and 0 <= j < width
        return sum(map(abs, slopes(i, j))) if inside else 0

    candidates = {}
    for i, j in np.ndindex(height, width):
        right, down = slopes(i, j)
        angle = np.degrees(np.arctan2(abs(down), abs(right)))
        strict = False
        if angle < 22.5:
            before, after = (i, j - 1), (i, j + 1)
        elif angle > 67.5:
            before, after = (i - 1, j), (i + 1, j)
        else:
            aside = 1 if (right < 0) == (down < 0) else -1
            before, after, strict = (i - 1, j - aside), (i + 1, j + aside), True
        here, last = size(i, j), size(*after)
        if here > size(*before) and (here > last or (here == last and not strict)):
            candidates[i, j] = here
    edges, left = (
        np.zeros(grey.shape, bool),
        [p for p, s in candidates.items() if s > 150],
    )
    while left:
        i, j = left.pop()
        if candidates.get((i, j), 0) > 50 and not edges[i, j]:
            edges[i, j] = True
            left += [(i + k, j + m) for k in (-1, 0, 1) for m in (-1, 0, 1)]
    return edges


def test_edges_are_those_of_canny():
    rng = np.random.default_rng(0)
    steps = np.kron(rng.integers(0, 256, (3, 4)), np.ones((7, 6)))
    soft = degradations.gaussian_blur(steps[..., None], sigma=1.2)[..., 0]
    for grey in (steps, np.floor(soft), np.floor(soft / 3)):
        edges = degradations._edges(grey)
        assert 0 < edges.sum() < edges.size / 2
        np.testing.assert_array_equal(edges, canny(grey))


def test_distances_match_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    edges = np.random.default_rng(0).uniform(size=(40, 70)) > 0.998
    expected = np.minimum(ndimage.distance_transform_edt(~edges), 20)
    assert expected.max() == 20
    np.testing.assert_allclose(degradations._distance(edges), expected, atol=1e-12)
    assert (degradations._distance(np.zeros((5, 5), bool)) == 20).all()


def test_equalised_levels_follow_their_shares():
    grey = np.array([[3.0, 3, 3, 7], [7, 9, 9, 9]])
    # Of the five pixels above the lowest level 2 are up to 7, 5 up to 9.
    expected = np.array([[0, 0, 0, 102], [102, 255, 255, 255]])
    np.testing.assert_array_equal(degradations._equalised(grey), expected)
    np.testing.assert_array_equal(degradations._equalised(grey * 0 + 4), 4)


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_spatter_is_the_published_recipe(severity):
    """ImageNet-C's steps by scikit-image, SciPy, and Canny's edges written out."""
    ndimage = pytest.importorskip("scipy.ndimage")
    filters = pytest.importorskip("skimage.filters")
    x = np.float64(seeded.image(64, 64))
    constants = [(0.62, 0.1, 0.7, 0.7), (0.65, 0.1, 0.8, 0.7), (0.65, 0.3, 1, 0.69)]
    mean, deviation, sigma, threshold = constants[severity - 1]
    liquid = np.random.default_rng(2).normal(mean, deviation, (64, 64))
    liquid = filters.gaussian(liquid, sigma)
    liquid[liquid < threshold] = 0
    liquid = np.uint8(255 * liquid)
    distance = ndimage.distance_transform_edt(~canny(np.float64(liquid)))
    box = {"size": 3, "mode": "mirror"}
    # The mean of whole numbers may fall short of itself by rounding.
    mean_distance = ndimage.uniform_filter(np.minimum(distance, 20), **box) + 1e-9
    distance = np.uint8(mean_distance)
    counts = np.bincount(distance.ravel())
    lowest = counts[counts > 0][0]
    table = np.rint(255 * (np.cumsum(counts) - lowest) / (64 * 64 - lowest))
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    relief = ndimage.correlate(table[distance], emboss, mode="mirror").clip(0, 255)
    water = liquid * np.rint(ndimage.uniform_filter(relief, **box))
    water = 0.6 * water / water.max()
    expected = x + water[..., None] * np.array([175, 238, 238]) / 255
    y = degradations.spatter(x, key(2), severity)
    np.testing.assert_allclose(y, expected.clip(0, 1), atol=1e-6)  # Pillow has float32


def test_spatter_is_pale_water_that_grows_with_severity_and_with_the_picture():
    x = np.full((64, 96, 3), 0.2)
    changes = [degradations.spatter(x, key(0), s) - x for s in (1, 2, 3)]
    shares = [(change > 0.01).any(axis=-1).mean() for change in changes]
    assert shares == sorted(shares)
    for change in changes:
        assert change.min() >= 0
        assert 0.5 < change.max() <= 0.6
        np.testing.assert_allclose(
            change[..., 0] * 238, change[..., 1] * 175, atol=1e-9
        )
    large = degradations.spatter(np.full((128, 192, 3), 0.2), key(0), 3) - 0.2
    np.testing.assert_allclose(degradations.halve(large), changes[2], atol=0.2)
    assert (
        np.corrcoef(degradations.halve(large).ravel(), changes[2].ravel())[0, 1] > 0.9
    )


def test_drops_grow_with_the_picture():
    small = degradations.water_drops(np.full((64, 64, 3), 0.5), key(0)) - 0.5
    large = degradations.water_drops(np.full((128, 128, 3), 0.5), key(0)) - 0.5
    # The same places up to half a pixel, which shows at the rims.
    both = np.corrcoef(degradations.halve(large).ravel(), small.ravel())
    assert both[0, 1] > 0.98


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
