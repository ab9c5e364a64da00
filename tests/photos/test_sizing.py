"""How a photo of any size is given to a prior.

The partners are numbers written out, and the arithmetic of windows on one axis.
"""

import math

import numpy as np
import pytest

from diip_jax.photos import sizing
from helpers import seeded
from helpers.photos import CONFIG


def sized(prior, mode, size, tile=None, overlap=None):
    config = sizing.settings(prior, CONFIG, mode, tile, overlap)
    return sizing.placement(prior, config, mode, size)


@pytest.fixture(scope="module")
def fixed_prior():
    """Return a prior for 16x16 pixels and nothing else."""
    return seeded.prior(any_size=False)


@pytest.mark.parametrize(
    ("mode", "tile", "overlap", "expected"),
    [
        ("native", None, None, (0, 0)),
        ("auto", None, None, (512, 128)),
        ("tile", None, None, (512, 128)),
        ("auto", 64, None, (64, 16)),
        ("tile", 64, 0, (64, 0)),
        ("fit", 64, 10, (64, 10)),
    ],
)
def test_settings_of_the_windows(tiny_prior, mode, tile, overlap, expected):
    config = sizing.settings(tiny_prior, CONFIG, mode, tile, overlap)
    assert (config.tile, config.tile_overlap) == expected
    assert config.replace(tile=0, tile_overlap=0) == CONFIG  # the rest is as it was


def test_a_prior_of_one_size_has_windows_of_that_size(fixed_prior):
    config = sizing.settings(fixed_prior, CONFIG, "auto", None, None)
    assert (config.tile, config.tile_overlap) == (16, 4)


# Windows of 16 that share at least 4 pixels: 24 pixels take 2, 40 take 3 of them.
@pytest.mark.parametrize(
    ("mode", "size", "tile", "expected"),
    [
        ("auto", (24, 24), None, ("native", (24, 24), (24, 24), 1)),
        ("auto", (23, 9), None, ("native", (23, 9), (24, 10), 1)),
        ("auto", (24, 40), 16, ("tile", (24, 40), (24, 40), 6)),
        ("auto", (16, 16), 16, ("native", (16, 16), (16, 16), 1)),
        ("tile", (24, 24), 16, ("tile", (24, 24), (24, 24), 4)),
        ("tile", (12, 24), 16, ("tile", (12, 24), (16, 24), 2)),
        ("native", (700, 600), None, ("native", (700, 600), (704, 608), 1)),
        ("fit", (24, 48), 16, ("fit", (8, 16), (8, 16), 1)),
        ("fit", (12, 12), 16, ("native", (12, 12), (12, 12), 1)),
    ],
)
def test_placement_of_a_prior_of_any_size(tiny_prior, mode, size, tile, expected):
    assert sized(tiny_prior, mode, size, tile) == expected


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("auto", (16, 16), ("native", (16, 16), (16, 16), 1)),
        ("auto", (24, 24), ("tile", (24, 24), (24, 24), 4)),
        ("auto", (10, 12), ("native", (10, 12), (16, 16), 1)),
        ("native", (16, 16), ("native", (16, 16), (16, 16), 1)),
        ("fit", (32, 16), ("fit", (16, 8), (16, 16), 1)),
    ],
)
def test_placement_of_a_prior_of_one_size(fixed_prior, mode, size, expected):
    assert sized(fixed_prior, mode, size) == expected


def test_auto_gives_canvases_up_to_512_whole(tiny_prior):
    assert sized(tiny_prior, "auto", (512, 512)).num_tiles == 1
    placement = sized(tiny_prior, "auto", (513, 100))
    assert placement.mode == "tile"
    assert placement.num_tiles == 2  # of 512, sharing a quarter


def windows(side, tile, overlap):
    """Return how many windows in a row cover a side: one, and more until it is full."""
    return 1 + math.ceil((side - tile) / (tile - overlap))


def test_every_canvas_holds_its_picture_and_is_covered(tiny_prior):
    """Sides from 8 to 70, in windows of 16 that share 4; the prior's stride is 2."""
    rng = np.random.default_rng(0)
    for height, width in rng.integers(8, 71, (200, 2)).tolist():
        tiled = sized(tiny_prior, "tile", (height, width), 16, 4)
        assert tiled.size == (height, width)
        for side, canvas in zip(tiled.size, tiled.canvas, strict=True):
            assert side <= canvas < max(side + 2, 17)
            assert canvas % 2 == 0
        assert tiled.num_tiles == math.prod(windows(s, 16, 4) for s in tiled.canvas)
        whole = sized(tiny_prior, "native", (height, width))
        assert whole.canvas == (height + height % 2, width + width % 2)
        assert whole.num_tiles == 1


@pytest.mark.parametrize(
    ("mode", "size", "tile", "message"),
    [
        ("native", (24, 24), None, "works on 16x16 only; set tile"),
        ("auto", (24, 24), 32, "works on 16 only"),
        ("native", (16, 16), 16, "has no tiles"),
        ("tile", (24, 24), 15, "multiple of 2"),
        ("fit", (160, 16), None, "too narrow"),
        ("auto", (7, 16), None, "at least 8"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(
    fixed_prior, mode, size, tile, message
):
    with pytest.raises(ValueError, match=message):
        sized(fixed_prior, mode, size, tile)


def test_resize_down_and_up():
    image = seeded.image(32, 48)
    smaller = sizing.resize(image, (16, 24))
    assert smaller.shape == (16, 24, 3)
    assert smaller.dtype == np.float32
    # Four pixels become one: about their mean, as far as a picture is smooth.
    means = image.reshape(16, 2, 24, 2, 3).mean(axis=(1, 3))
    assert np.abs(smaller - means).mean() < 0.05
    assert sizing.resize(image, (32, 48)) is image
    edge = np.zeros((8, 8, 3), np.float32)
    edge[:, 4:] = 1  # Lanczos rings beyond [0, 1] here
    larger = sizing.resize(edge, (32, 32))
    assert larger.min() >= 0
    assert larger.max() <= 1


def test_resize_keeps_a_ramp_a_ramp_on_its_own_axis():
    rows = np.linspace(0.2, 0.8, 32, dtype=np.float32)[:, None, None]
    ramp = np.broadcast_to(rows, (32, 12, 3))
    smaller = sizing.resize(ramp, (16, 6))
    assert smaller.shape == (16, 6, 3)
    means = rows.reshape(16, 2, 1, 1).mean(axis=1)
    # Away from the ends, where the filter finds nothing beyond the picture.
    np.testing.assert_allclose(
        smaller[3:-3], np.broadcast_to(means, (16, 6, 3))[3:-3], atol=1e-5
    )
