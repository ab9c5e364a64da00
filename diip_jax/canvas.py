"""Canvases: the few sizes that images are padded to, so that few programs compile."""

import jax
import jax.numpy as jnp


def canvas_side(side: int, stride: int) -> int:
    """Return the smallest canvas side that holds this many pixels.

    A multiple of the stride up to 128 pixels, of 4 strides up to 512, of 8 above: at
    most a quarter is added, and a folder of mixed photographs needs few programs.
    """
    unit = stride * (1 if side <= 128 else 4 if side <= 512 else 8)
    return -(-side // unit) * unit


def canvas_size(
    height: int, width: int, stride: int, smallest: int = 0
) -> tuple[int, int]:
    """Return the canvas of an image, both sides by `canvas_side` or `smallest`."""
    sides = (canvas_side(side, stride) for side in (height, width))
    rows, columns = (max(side, smallest) for side in sides)
    return rows, columns


def pad(y: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Extend y, (H, W, C), to the canvas by reflection at its lower right edges."""
    rows, columns = size[0] - y.shape[0], size[1] - y.shape[1]
    return jnp.pad(y, [(0, rows), (0, columns), (0, 0)], mode="reflect")
