"""The estimators of damage: on noise of known level, on pictures of known formula.

Truths are the levels of the noise that was added, and closed forms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import degradations, noise
from helpers import seeded

# As programs: each operation by itself would be compiled for every size.
white_noise, noise_map, blockiness, floor_of = (
    jax.jit(f)
    for f in (noise.white_noise, noise.noise_map, noise.blockiness, noise.floor_of)
)

SIDE = 64
# 64x64x3 values: the two medians have standard errors of 1.3 and 2.5 %, which the
# difference of their squares enlarges by 1.5.
WHITE = 0.08


def white(sigma, seed=0, side=SIDE):
    rng = np.random.default_rng(seed)
    return jnp.asarray(sigma * rng.standard_normal((side, side, 3)), jnp.float32)


def smooth(side=SIDE):
    """Return a picture without texture, (side, side, 3), brightness from -1 to 1."""
    ramp = jnp.linspace(-1, 1, side, dtype=jnp.float32)
    return jnp.broadcast_to(ramp[None, :, None], (side, side, 3))


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5])
def test_white_noise_on_a_smooth_picture_is_measured(sigma):
    found = white_noise(smooth() + white(sigma))
    assert found == pytest.approx(sigma, rel=WHITE)


def test_texture_of_the_same_size_at_two_levels_is_no_noise():
    """Noise whose means of four deviate as much as itself: halved, then enlarged."""
    y = jnp.kron(white(0.1, side=SIDE // 2), jnp.ones((2, 2, 1)))
    assert white_noise(y) == 0  # constant 2x2 blocks have no diagonal detail
    y = y + white(0.05, seed=1)
    assert white_noise(y) < 0.05


@pytest.mark.parametrize("side", [8, 9, 16, 31])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_flat_pictures_of_any_size_have_no_damage(side, value):
    y = jnp.full((side, side, 3), value, jnp.float32)
    assert white_noise(y) == 0
    np.testing.assert_array_equal(noise_map(y), np.zeros((side, side, 1)))
    assert blockiness(y) == 0
    assert floor_of(y - y) == 0


def test_equal_noise_has_a_constant_map():
    found = noise_map(smooth() + white(0.2))
    assert found.shape == (SIDE, SIDE, 1)
    np.testing.assert_allclose(found, 0.2, rtol=2 * WHITE)


def test_noise_that_grows_with_brightness_is_mapped():
    """Speckle: the deviation is proportional to brightness, 0 to 0.4."""
    x = (smooth() + 1) / 2
    found = noise_map(x + 0.4 * x * white(1.0))[:, :, 0].mean(axis=0)
    truth = 0.4 * np.linspace(0, 1, SIDE)
    # Eight bins: within one of them the deviation is taken as constant.
    np.testing.assert_allclose(found, truth, atol=0.05)


def test_a_map_has_the_level_of_the_mixture():
    x = seeded.image(SIDE, SIDE)
    y = degradations.noise_mixture(x, jax.random.key(0))
    found = jnp.sqrt(jnp.mean(jnp.square(noise_map(jnp.float32(y)))))
    assert found == pytest.approx(np.sqrt(np.mean((y - x) ** 2)), rel=0.3)


@pytest.mark.parametrize("phase", [(0, 0), (3, 5)])
def test_a_grid_of_blocks_is_found_in_any_phase(phase):
    steps = jnp.kron(white(0.3, side=SIDE // 8 + 1), jnp.ones((8, 8, 1)))
    y = steps[phase[0] : phase[0] + SIDE, phase[1] : phase[1] + SIDE]
    luma = np.asarray(y) @ np.array([0.299, 0.587, 0.114], np.float32)
    columns, rows = (
        np.abs(np.diff(luma, axis=axis)).sum() / (luma.shape[0] * n)
        for axis, n in ((1, 7), (0, 7))
    )
    truth = np.sqrt(columns * rows)  # mean height of the steps; seven periods are whole
    assert blockiness(y) == pytest.approx(truth, rel=0.25)


def test_noise_and_edges_are_no_blocks():
    assert blockiness(white(0.3)) < 0.02
    edge = jnp.where(jnp.arange(SIDE)[None, :, None] < 32, -1.0, 1.0)
    assert blockiness(jnp.broadcast_to(edge, (SIDE, SIDE, 3))) == 0


def test_stronger_compression_has_higher_steps():
    x = seeded.image(SIDE, SIDE)
    heights = [
        blockiness(jnp.float32(degradations.jpeg(x, quality=quality)))
        for quality in (5, 20, 80)
    ]
    assert heights[0] > heights[1] > heights[2]


def test_the_floor_is_of_the_quiet_places():
    """Noise everywhere, texture in half of the picture: the quarter sees the noise."""
    residual = white(0.1).at[:, 32:].multiply(5)
    assert floor_of(residual) == pytest.approx(0.1, rel=0.1)


def test_estimates_scale_with_the_picture_and_map_over_many():
    y = (smooth() + white(0.1))[None].repeat(2, axis=0)
    for estimate in (white_noise, noise_map, blockiness):
        many = jax.vmap(estimate)(y)
        np.testing.assert_array_equal(many[0], many[1])
        np.testing.assert_allclose(
            estimate(3 * y[0]), 3 * estimate(y[0]), rtol=1e-4, atol=1e-6
        )  # float32, and a median between two values
