"""Tiling against what needs no tiling: predictors that act on each pixel alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import canvas, engine, load_prior, tiling

SIZES = [(64, 64, 64, 16), (96, 64, 64, 16), (200, 136, 64, 16), (128, 128, 32, 0)]


def pixelwise(x_t, conditioning):
    return conditioning * x_t + x_t**2


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), SIZES)
def test_a_pixelwise_predictor_is_unchanged(key, height, width, tile, overlap):
    x = jax.random.normal(key, (height, width, 3))
    predict = tiling.tiled(pixelwise, (height, width), tile, overlap)
    # Shares of a pixel sum to 1 up to float32 rounding of a few additions.
    np.testing.assert_allclose(predict(x, 0.5), pixelwise(x, 0.5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_gradient_is_that_of_the_whole(key, at_once):
    x = jax.random.normal(key, (96, 80, 3))
    predict = tiling.tiled(pixelwise, (96, 80), 32, 8, windows_at_once=at_once)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(predict(x, 0.5))))(x)
    expected = jax.grad(lambda x: jnp.sum(jnp.sin(pixelwise(x, 0.5))))(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), SIZES)
def test_windows_cover_the_canvas_and_overlap_enough(height, width, tile, overlap):
    corners = tiling.window_corners((height, width), tile, overlap)
    for axis, side in enumerate((height, width)):
        starts = np.unique(corners[:, axis])
        assert starts[0] == 0
        assert starts[-1] == side - tile
        assert (np.diff(starts) <= tile - overlap).all()


def test_a_window_sees_only_its_own_pixels(key):
    seen = []

    def spy(x_t, conditioning):
        seen.append(x_t.shape)
        return x_t

    tiling.tiled(spy, (96, 96), 32, 8)(jax.random.normal(key, (96, 96, 3)), 0.0)
    assert set(seen) == {(32, 32, 3)}


def test_impossible_windows_are_refused():
    with pytest.raises(ValueError, match="tile_overlap is 64"):
        tiling.window_corners((128, 128), 64, 64)
    with pytest.raises(ValueError, match="smaller than a 64 tile"):
        tiling.window_corners((32, 128), 64, 16)


def test_one_window_is_the_prior_itself(tiny_prior, key):
    config = tiny_prior.card.preset
    z = jax.random.normal(key, (16, 16, 3))
    whole = canvas.generator(tiny_prior, config, (16, 16))(z)
    tiled_config = config.replace(tile=16, tile_overlap=4)
    fixed = tiny_prior.replace(card=_fixed(tiny_prior.card))
    one = canvas.generator(fixed, tiled_config, (16, 16))(z)
    # The same network on the same pixels; only the order of additions may differ.
    np.testing.assert_allclose(one, whole, atol=1e-5)


@pytest.mark.slow
def test_memory_depends_on_the_tile_not_on_the_picture(tiny_prior):
    config = tiny_prior.card.preset.replace(
        tile=16, tile_overlap=4, remat="step", max_iterations=3
    )

    def needed(side: int, config) -> int:
        size = engine.memory(tiny_prior, (side, side), config)
        assert size is not None
        return size

    plain = config.replace(tile=0)
    growth = needed(128, config) - needed(64, config)
    growth_whole = needed(128, plain) - needed(64, plain)
    # What grows is a few images of the canvas's size (z, Adam's moments, y, x, the
    # windows and their blend, with their cotangents), not the network's features.
    images = (128 * 128 - 64 * 64) * 3 * 4
    assert growth < 40 * images
    assert growth < 0.5 * growth_whole


def largest_jumps(image: np.ndarray, borders: np.ndarray) -> tuple[float, float]:
    """Return the largest step between rows at the borders and elsewhere."""
    steps = np.abs(np.diff(image, axis=0)).mean(axis=(1, 2))
    inside = np.ones(len(steps), bool)
    inside[borders - 1] = False
    return float(steps[~inside].max()), float(steps[inside].max())


def borders_of(side: int, tile: int, overlap: int) -> np.ndarray:
    starts = np.unique(tiling.window_corners((side, tile), tile, overlap)[:, 0])
    return np.concatenate([starts[1:], starts[:-1] + tile])


@pytest.mark.slow
def test_a_flat_gradient_has_no_seams():
    prior = load_prior("natural64")
    config = prior.card.preset.replace(
        tile=64, tile_overlap=16, gradient="frozen", num_steps=2, max_iterations=12
    )
    ramp = np.linspace(0.3, 0.7, 112, dtype=np.float32)
    y = np.broadcast_to(ramp[:, None, None], (112, 64, 3))
    answer = engine.restore_many(prior, [y], jax.random.key(0), config)[0]
    at_borders, inside = largest_jumps(answer.image, borders_of(112, 64, 16))
    assert at_borders <= inside


@pytest.mark.slow
def test_a_large_photo_has_no_seams():
    data = pytest.importorskip("skimage.data")
    transform = pytest.importorskip("skimage.transform")
    photo = transform.resize(data.coffee(), (500, 700)).astype(np.float32)
    prior = load_prior("natural64")
    config = prior.card.preset.replace(tile=256, tile_overlap=64, max_iterations=4)
    answer = engine.restore_many(prior, [photo], jax.random.key(0), config)[0]
    height = canvas.canvas_size(prior, config, 500, 700)[0]
    borders = borders_of(height, 256, 64)
    at_borders, inside = largest_jumps(answer.image, borders[borders < 500])
    assert at_borders <= inside


def _fixed(card):
    import dataclasses

    architecture = dataclasses.replace(card.architecture, image_size=16)
    return dataclasses.replace(card, any_size=False, architecture=architecture)
