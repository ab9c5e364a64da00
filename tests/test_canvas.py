"""Canvas sizes by hand and by what is promised of them; padding against NumPy."""

import numpy as np
import pytest
import seeded

from diip_jax import canvas


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (8, 8),
        (9, 16),
        (64, 64),
        (127, 128),
        (128, 128),
        (129, 160),  # units of 32 from here
        (256, 256),
        (500, 512),
        (512, 512),
        (513, 576),  # units of 64 from here
        (1024, 1024),
        (1025, 1088),
    ],
)
def test_sides_by_hand(side, expected):
    assert canvas.canvas_side(side, 8) == expected


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_sides_hold_the_image_are_multiples_and_add_little(stride):
    for side in range(8, 2000):
        padded = canvas.canvas_side(side, stride)
        assert padded >= side
        assert padded % stride == 0
        if side >= 4 * stride:  # below, a single stride is more than a quarter
            assert padded <= 1.25 * side


def test_a_side_that_is_a_canvas_stays():
    for side in range(8, 2000):
        padded = canvas.canvas_side(side, 8)
        assert canvas.canvas_side(padded, 8) == padded


def test_a_mixed_folder_needs_few_programs():
    sides = {canvas.canvas_side(side, 8) for side in range(129, 1025)}
    assert len(sides) <= 20


def test_size_is_height_then_width():
    assert canvas.canvas_size(9, 130, 8) == (16, 160)


@pytest.mark.parametrize(("shape", "size"), [((8, 8), (8, 8)), ((9, 20), (16, 24))])
def test_padding_reflects_at_the_lower_right(shape, size):
    y = seeded.image(*shape)
    padded = np.asarray(canvas.pad(y, size))
    assert padded.shape == (*size, 3)
    np.testing.assert_array_equal(padded[: shape[0], : shape[1]], y)
    for row in range(size[0] - shape[0]):
        mirrored = y[shape[0] - 2 - row]
        np.testing.assert_array_equal(padded[shape[0] + row, : shape[1]], mirrored)
    for column in range(size[1] - shape[1]):
        mirrored = padded[:, shape[1] - 2 - column]
        np.testing.assert_array_equal(padded[:, shape[1] + column], mirrored)
