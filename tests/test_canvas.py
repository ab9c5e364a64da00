"""Canvas sizes by hand and by what is promised of them; padding by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import canvas
from diip_jax import prior as priors
from diip_jax.unets import ops
from helpers import diffusers_unet, seeded

STRIDE_8 = dataclasses.replace(
    seeded.TINY, channel_mult=(1, 1, 1, 1), num_res_blocks=(0,) * 4, image_size=32
)


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


def test_size_is_height_then_width(tiny_prior):
    prior = with_card(tiny_prior, architecture=STRIDE_8)
    assert canvas.canvas_size(prior, seeded.PRESET, 9, 130) == (16, 160)


@pytest.mark.parametrize(
    ("any_size", "tile", "size", "tiled", "expected"),
    [
        (True, 0, (40, 300), False, (40, 320)),  # whole at any size
        (True, 64, (64, 64), False, (64, 64)),
        (True, 64, (40, 60), False, (40, 64)),
        (True, 64, (40, 65), True, (64, 72)),  # a window must fit
        (False, 32, (32, 32), True, (32, 32)),  # a prior of one size
        (False, 32, (20, 32), True, (32, 32)),
    ],
)
def test_windows_and_their_canvas_by_hand(
    tiny_prior, any_size, tile, size, tiled, expected
):
    prior = with_card(tiny_prior, architecture=STRIDE_8, any_size=any_size)
    config = seeded.PRESET.replace(tile=tile)
    padded = canvas.canvas_size(prior, config, *size)
    assert padded == expected
    assert canvas.is_tiled(prior, config, padded) == tiled


def with_card(prior, **changes):
    """Return a prior of another card."""
    return prior.replace(card=dataclasses.replace(prior.card, **changes))


@pytest.mark.parametrize("library", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(("shape", "size"), [((8, 8), (8, 8)), ((9, 20), (16, 24))])
def test_placing_reflects_at_the_lower_right(shape, size, library):
    y = seeded.image(*shape)
    placed = canvas.place(library(y), size)
    assert type(placed) is type(library(y))
    assert placed.dtype == np.float32
    placed = np.asarray(placed)
    assert placed.shape == (*size, 3)
    np.testing.assert_array_equal(placed[: shape[0], : shape[1]], 2 * y - 1)
    for row in range(size[0] - shape[0]):
        mirrored = 2 * y[shape[0] - 2 - row] - 1
        np.testing.assert_array_equal(placed[shape[0] + row, : shape[1]], mirrored)
    for column in range(size[1] - shape[1]):
        mirrored = placed[:, shape[1] - 2 - column]
        np.testing.assert_array_equal(placed[:, shape[1] + column], mirrored)


def test_cutting_undoes_placing():
    y = seeded.image(9, 20)
    # Twice the range and back: one rounding each way.
    back = canvas.cut(canvas.place(y, (16, 24)), (9, 20))
    np.testing.assert_allclose(back, y, atol=2e-7)


@pytest.mark.parametrize(
    ("remat", "features", "tile", "recomputed"),
    [
        ("none", 10**9, 0, False),
        ("step", 1, 0, True),
        ("block", 1, 0, True),
        ("auto", canvas.KEPT_FEATURES, 0, False),
        ("auto", canvas.KEPT_FEATURES + 1, 0, True),
        ("auto", canvas.KEPT_FEATURES + 1, 16, False),  # windows are recomputed anyway
    ],
)
def test_what_is_recomputed(tiny_prior, remat, features, tile, recomputed):
    architecture = dataclasses.replace(STRIDE_8, num_channels=1)
    prior = with_card(tiny_prior, architecture=architecture)
    config = seeded.PRESET.replace(remat=remat, num_steps=1, tile=tile)
    assert canvas.recomputes_steps(prior, config, (1, features)) == recomputed


CARDS = {
    **{name: seeded.card(config) for name, config in seeded.ADM_CASES.items()},
    **{name: diffusers_unet.card(name) for name in diffusers_unet.CONFIGS},
}


@pytest.mark.parametrize("name", CARDS)
def test_the_finest_attention_has_the_most_weights_of_all_that_are_called(
    name, monkeypatch
):
    called, attention = [], ops.attention

    def recorded(qkv, num_heads, **options):
        called.append(num_heads * qkv.shape[1] ** 2)
        return attention(qkv, num_heads, **options)

    monkeypatch.setattr(ops, "attention", recorded)
    priors.abstract_params(CARDS[name])  # applies the network to the smallest canvas
    architecture = CARDS[name].architecture
    expected = max(called, default=0)
    assert canvas.attention_weights(architecture, architecture.stride**2) == expected
