"""How a photo of any size is given to a prior: whole, in windows, or scaled down."""

import dataclasses
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from diip_jax import canvas, tiling
from diip_jax.config import DIIPConfig
from diip_jax.prior import Prior

SizeMode = Literal["auto", "native", "tile", "fit"]
LARGEST_WHOLE = 512  # canvas side up to which a prior of any size is given the whole


class Placement(NamedTuple):
    """How a photo of some size is given to a prior.

    Attributes:
        mode: "native" (whole), "tile" (windows) or "fit" (scaled down and up again).
        size: height and width given to the prior, before padding.
        canvas: height and width after padding.
        num_tiles: windows that each DDIM step predicts.
    """

    mode: str
    size: tuple[int, int]
    canvas: tuple[int, int]
    num_tiles: int


def settings(
    prior: Prior, config: DIIPConfig, mode: str, tile: int | None, overlap: int | None
) -> DIIPConfig:
    """Return the settings with the windows that a mode asks for.

    Args:
        prior: the frozen model.
        config: the settings without windows.
        mode: a `SizeMode`; "auto" and "tile" give a prior of any size canvases up to
            `tile` whole, and a prior of one size windows of that size.
        tile: side of a window, and of the largest canvas given whole; None for 512, or
            the size of a prior that has only one.
        overlap: pixels that windows share; None for a quarter.

    Raises:
        ValueError: there is no such mode, the prior has no such windows, or the mode
            has none at all.
    """
    if mode not in get_args(SizeMode):
        allowed = ", ".join(get_args(SizeMode))
        raise ValueError(f"size_mode is {mode!r}; use one of {allowed}")
    card = prior.card
    side: int = card.architecture.image_size
    if mode == "native":
        if tile is not None or overlap is not None:
            raise ValueError(
                "size_mode native has no tiles; give no tile, no tile_overlap"
            )
        return dataclasses.replace(config, tile=0, tile_overlap=0)
    if tile is None:
        tile = LARGEST_WHOLE if card.any_size else side
    if tile < 1 or tile % prior.stride:
        raise ValueError(f"tile is {tile}; use a multiple of {prior.stride}")
    if not card.any_size and tile != side:
        raise ValueError(f"tile is {tile}, but prior {card.name} works on {side} only")
    overlap = tile // 4 if overlap is None else overlap
    return dataclasses.replace(config, tile=tile, tile_overlap=overlap)


def placement(
    prior: Prior, config: DIIPConfig, mode: str, size: tuple[int, int]
) -> Placement:
    """Return how a photo of this height and width is given to a prior.

    Raises:
        ValueError: the prior cannot restore it in this way; says the remedy.
    """
    if mode == "fit":
        scale = min(1, config.tile / max(size))
        scaled = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        if scaled != size and min(scaled) < canvas.SMALLEST_SIDE:
            raise ValueError(
                f"image is {size[1]}x{size[0]}, and {scaled[1]}x{scaled[0]} when it is "
                "fitted; too narrow; use size_mode tile"
            )
        mode, size = ("native" if scaled == size else "fit"), scaled
    canvas.check_size(prior, config, *size)
    padded = canvas.canvas_size(prior, config, *size)
    num_tiles = 1
    if canvas.is_tiled(prior, config, padded):
        num_tiles = len(tiling.window_corners(padded, config.tile, config.tile_overlap))
    if mode != "fit":
        mode = "tile" if num_tiles > 1 else "native"
    return Placement(mode, size, padded, num_tiles)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image at another height and width, both (H, W, 3) in [0, 1]."""
    if image.shape[:2] == tuple(size):
        return image
    height, width = size
    channels = np.moveaxis(np.asarray(image, np.float32), 2, 0)
    scaled = [
        Image.fromarray(channel).resize((width, height), Image.Resampling.LANCZOS)
        for channel in channels
    ]
    return np.clip(np.stack([np.asarray(c) for c in scaled], axis=-1), 0, 1)
