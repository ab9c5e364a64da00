"""A noise predictor on a canvas of any size, from overlapping windows of one size.

The windows are predicted at every DDIM step and blended there, so the optimisation
stays one problem with one z, one loss and one stop: no tile can stop before another.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diip_jax.ddim import PredictNoise


def tiled(
    predict_noise: PredictNoise,
    size: tuple[int, int],
    tile: int,
    overlap: int,
    *,
    windows_at_once: int = 1,
) -> PredictNoise:
    """Return a noise predictor for a canvas, made of predictions on square windows.

    Memory for the network depends on the window, not on the canvas: windows are
    evaluated `windows_at_once` at a time and recomputed in the backward pass.

    Args:
        predict_noise: noise predictor on (tile, tile, 3).
        size: height and width of the canvas, each at least `tile`.
        tile: side of a window in pixels.
        overlap: pixels that neighbouring windows share at least.
        windows_at_once: windows evaluated together.
    """
    corners = window_corners(size, tile, overlap)
    weights = _blending_weights(corners, size, tile, overlap)

    def predict(x_t: jax.Array, conditioning: Any) -> jax.Array:
        def one(corner: jax.Array) -> jax.Array:
            window = lax.dynamic_slice(x_t, (*corner, jnp.int32(0)), (tile, tile, 3))
            return predict_noise(window, conditioning)

        # Without the checkpoint the backward pass would hold every window's network.
        windows = lax.map(
            jax.checkpoint(one),
            jnp.asarray(corners, jnp.int32),
            batch_size=windows_at_once,
        )
        rows = corners[:, 0, None, None] + np.arange(tile)[:, None]
        columns = corners[:, 1, None, None] + np.arange(tile)
        blended = jnp.zeros((*size, 3), windows.dtype)
        return blended.at[rows, columns].add(windows * weights[..., None])

    return predict


def window_corners(size: tuple[int, int], tile: int, overlap: int) -> np.ndarray:
    """Return the upper left corners of the windows that cover a canvas, (K, 2) int.

    Windows are spread evenly, so that all overlaps of a side are about equal.

    Raises:
        ValueError: a window does not fit the canvas, or the overlap not the window.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tile_overlap is {overlap}; use 0 to {tile - 1} for {tile}")
    if min(size) < tile:
        raise ValueError(f"canvas is {size[1]}x{size[0]}, smaller than a {tile} tile")
    starts = []
    for side in size:
        count = 1 if side == tile else -(-(side - overlap) // (tile - overlap))
        starts.append(np.rint(np.linspace(0, side - tile, count)).astype(np.int32))
    return np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)


def _blending_weights(
    corners: np.ndarray, size: tuple[int, int], tile: int, overlap: int
) -> np.ndarray:
    """Return each window's share of every pixel, (K, tile, tile), summing to 1."""
    distance = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5
    ramp = np.minimum(distance / max(overlap, 1), 1)
    profile = np.sin(np.pi / 2 * ramp) ** 2  # cosine-shaped, flat where alone
    window = np.outer(profile, profile)
    total = np.zeros(size)
    for top, left in corners:
        total[top : top + tile, left : left + tile] += window
    shares = [window / total[t : t + tile, s : s + tile] for t, s in corners]
    return np.stack(shares).astype(np.float32)
