"""An image of any size on a prior: its canvas, and g on that canvas.

An image is padded to one of a few sizes, so that few programs compile. A canvas that
the prior cannot take whole is predicted from windows.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax import ddim, tiling
from diip_jax.config import DIIPConfig
from diip_jax.prior import Prior, noise_predictor
from diip_jax.schedule import ddim_timesteps

SMALLEST_SIDE = 8  # pixels; below it there is nothing to restore
KEPT_FEATURES = 6 * 2**20  # of the first level; about 1.2 GB of float32 features

Array = TypeVar("Array", np.ndarray, jax.Array)


def check_size(prior: Prior, config: DIIPConfig, height: int, width: int) -> None:
    """Reject sizes that a prior cannot restore with these settings.

    Raises:
        ValueError: says the size and the remedy.
    """
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"image is {width}x{height}; sides must be at least {SMALLEST_SIDE} pixels"
        )
    side = prior.card.architecture.image_size
    fits = prior.card.any_size or (height, width) == (side, side)
    if not fits and config.tile != side:
        raise ValueError(
            f"image is {width}x{height}, but prior {prior.card.name} works on "
            f"{side}x{side} only; set tile to {side}, resize the image, or use a prior "
            "of any size"
        )
    if config.tile % prior.stride:
        raise ValueError(f"tile is {config.tile}; use a multiple of {prior.stride}")


def canvas_size(
    prior: Prior, config: DIIPConfig, height: int, width: int
) -> tuple[int, int]:
    """Return height and width of the canvas on which an image is restored."""
    rows, columns = (canvas_side(side, prior.stride) for side in (height, width))
    if is_tiled(prior, config, (rows, columns)):  # each window must fit
        rows, columns = max(rows, config.tile), max(columns, config.tile)
    return rows, columns


def canvas_side(side: int, stride: int) -> int:
    """Return the smallest canvas side that holds this many pixels.

    A multiple of the stride up to 128 pixels, of 4 strides up to 512, of 8 above: at
    most a quarter is added, and a folder of mixed photographs needs few programs.
    """
    unit = stride * (1 if side <= 128 else 4 if side <= 512 else 8)
    return -(-side // unit) * unit


def is_tiled(prior: Prior, config: DIIPConfig, size: tuple[int, int]) -> bool:
    """Tell whether a canvas of this height and width is predicted from windows."""
    return config.tile > 0 and (max(size) > config.tile or not prior.card.any_size)


def place(image: Array, size: tuple[int, int]) -> Array:
    """Put an image on its canvas, by reflection at its lower right edges.

    Args:
        image: (H, W, 3) float32 in [0, 1], NumPy's or JAX's.
        size: height and width of the canvas.

    Returns:
        (height, width, 3) in the prior's range [-1, 1], of the same library.
    """
    pad: Any = np.pad if isinstance(image, np.ndarray) else jnp.pad
    rows, columns = size[0] - image.shape[0], size[1] - image.shape[1]
    return 2 * pad(image, [(0, rows), (0, columns), (0, 0)], mode="reflect") - 1


def cut(x: Array, size: tuple[int, int]) -> Array:
    """Take an image off its canvas, the inverse of `place`.

    Args:
        x: canvas, (H, W, 3) in [-1, 1].
        size: height and width of the image.

    Returns:
        (height, width, 3) in [0, 1].
    """
    return (x[: size[0], : size[1]] + 1) / 2


def generator(
    prior: Prior,
    config: DIIPConfig,
    size: tuple[int, int],
    timesteps: jax.Array | None = None,
) -> ddim.Generate:
    """Return g, the deterministic DDIM map from noise to image, on one canvas.

    Args:
        prior: the frozen model.
        config: DDIM steps, gradient, rematerialisation, windows and dtype.
        size: height and width of the canvas; g maps (height, width, 3) to the same.
        timesteps: in the order of sampling, (num_steps,); those of the paper if None.
    """
    if timesteps is None:
        length = prior.card.schedule.num_train_timesteps
        timesteps = jnp.asarray(ddim_timesteps(config.num_steps, length), jnp.int32)
    predict_noise, steps = noise_predictor(prior, config, timesteps)
    if is_tiled(prior, config, size):
        predict_noise = tiling.tiled(
            predict_noise, size, config.tile, config.tile_overlap
        )
    return ddim.generator(
        predict_noise,
        steps,
        gradient=config.gradient,
        remat=recomputes_steps(prior, config, size),
        clip=ddim.CLIPS[config.clip_gradient],
    )


def recomputes_steps(prior: Prior, config: DIIPConfig, size: tuple[int, int]) -> bool:
    """Tell whether the backward pass recomputes each DDIM step."""
    if config.remat != "auto":
        return config.remat != "none"
    features = size[0] * size[1] * prior.card.architecture.num_channels
    small = features * config.num_steps <= KEPT_FEATURES
    # Windows are recomputed one by one as it is: nothing large is left of a step.
    return not (small or is_tiled(prior, config, size))


def attention_weights(architecture: Any, pixels: int) -> int:
    """Return how many weights the finest attention of a network has; 0 for none known.

    Args:
        architecture: of a prior's card.
        pixels: of the canvas or window that the network is given.
    """
    found = getattr(architecture, "finest_attention", None)
    if found is None:
        return 0
    factor, heads = found
    return heads * (pixels // factor**2) ** 2
