"""The tasks: what was measured is the operator's answer and the noise that is said."""

import jax
import numpy as np
import pytest
from PIL import Image

from diip_jax.bench import tasks
from diip_jax.bench.tasks import TASKS
from helpers import seeded

SIDE = 64


def picture(height=SIDE, width=SIDE):
    """Return a picture without black and white, where noise would be clipped."""
    return 0.4 + 0.2 * np.float64(seeded.image(height, width))


def applied(operator, x):
    """Return what an observation's operator makes of a picture, channel by channel."""
    channels = np.moveaxis(x, -1, 0)
    if isinstance(operator, tasks.Separable):
        seen = [operator.rows @ channel @ operator.columns.T for channel in channels]
    else:
        height, width = x.shape[:2]
        padded = np.zeros((height, width))
        side = len(operator.kernel)
        padded[:side, :side] = operator.kernel
        padded = np.roll(padded, (-(side // 2), -(side // 2)), (0, 1))
        spectra = np.fft.fft2(channels) * np.fft.fft2(padded)
        seen = list(np.fft.ifft2(spectra).real)
    return np.stack(seen, axis=-1)


def test_the_tables_of_the_paper_have_their_tasks():
    assert [TASKS[name].title for name in tasks.TABLE4] == [
        "Denoising",
        "Super-resolution (×4)",
        "Super-resolution (×8)",
    ]
    assert [TASKS[name].title for name in tasks.TABLE5] == [
        "JPEG de-artifacting",
        "Non-uniform deformation",
        "Water-drop removal",
    ]
    assert all(task.name == name for name, task in TASKS.items())
    groups = (tasks.TABLE4, tasks.TABLE5, tasks.STRUCTURED, tasks.UNSTRUCTURED)
    assert sorted(name for group in groups for name in group) == sorted(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_an_observation_is_a_picture_on_the_grid_and_a_pure_function(name):
    x = seeded.image(SIDE, 72)
    before = x.copy()
    seen = TASKS[name].observe(x, jax.random.key(1))
    assert seen.y.shape == x.shape
    for image in (seen.y, seen.measurement):
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1
    again = TASKS[name].observe(x, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, seen, again)
    np.testing.assert_array_equal(x, before)
    other = TASKS[name].observe(x, jax.random.key(2))
    assert not np.array_equal(seen.measurement, other.measurement)
    if name not in ("sr4", "sr8"):
        np.testing.assert_array_equal(seen.measurement, seen.y)


@pytest.mark.parametrize(
    "name", ["sr4", "sr8", "gaussian_blur", "motion_blur", "gaussian_noise"]
)
def test_linear_tasks_add_noise_of_their_deviation_to_what_the_operator_says(name):
    x = picture(128, 136)
    seen = TASKS[name].observe(x, jax.random.key(0))
    noise = seen.measurement - applied(seen.operator, x)
    assert seen.sigma == (0.12 if name == "gaussian_noise" else 0.02)
    four = 4 / np.sqrt(2 * noise.size)  # standard errors
    assert noise.std() == pytest.approx(seen.sigma, rel=four)
    assert abs(noise.mean()) < 4 * seen.sigma / np.sqrt(noise.size)
    neighbours = (noise[1:] * noise[:-1]).mean() / noise.var()
    assert abs(neighbours) < 4 / np.sqrt(noise.size)  # white


def test_the_mixture_says_how_large_its_noise_is():
    x = picture()
    seen = TASKS["denoise"].observe(x, jax.random.key(0))
    np.testing.assert_array_equal(applied(seen.operator, x), x)
    expected = np.sqrt(np.mean((0.32 * x) ** 2 + 0.03**2))
    # 12,288 values, and a few that are clipped.
    assert seen.sigma == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("factor", [4, 8])
def test_small_pictures_are_enlarged_by_pillows_bicubic(factor):
    seen = TASKS[f"sr{factor}"].observe(picture(64, 80), jax.random.key(0))
    assert seen.measurement.shape == (64 // factor, 80 // factor, 3)
    for channel in range(3):
        small = Image.fromarray(seen.measurement[..., channel])
        large = np.asarray(small.resize((80, 64), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(seen.y[..., channel], large, atol=1e-6)


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="side is 60 pixels; use a multiple of 8"):
        TASKS["sr8"].observe(picture(64, 60), jax.random.key(0))


def test_jpeg_is_what_was_stored_last():
    """Noise comes before the compression: the levels are 8-bit, smooth areas flat."""
    seen = TASKS["jpeg"].observe(np.full((32, 32, 3), 0.5), jax.random.key(0))
    levels = 255 * seen.y
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert np.std(seen.y) < 0.5 * 0.02
    assert seen.operator is None


@pytest.mark.parametrize("name", ["deformation", "water", "drops", "nonuniform_blur"])
def test_what_no_method_knows_comes_before_the_noise(name):
    seen = TASKS[name].observe(np.full((SIDE, SIDE, 3), 0.5), jax.random.key(0))
    assert seen.operator is None
    assert seen.sigma == 0.02
    if name in ("deformation", "nonuniform_blur"):  # they keep a constant picture
        noise = seen.y - 0.5
    else:  # water brightens: what is darker than the picture is dry, and its noise
        noise = seen.y[seen.y < 0.5] - 0.5
    rms = np.sqrt(np.mean(np.square(noise)))
    assert rms == pytest.approx(0.02, rel=4 / np.sqrt(2 * noise.size))
