"""What the compared methods share: their answer, and which settings are for what.

A method's `config_for` is one of the functions below, given its settings for small
pictures and its source's.
"""

import dataclasses
from typing import Any, NamedTuple, TypeVar

import jax

DENOISING = ("denoise", "gaussian_noise")  # names of tasks, as the next two
BLURS = ("gaussian_blur", "motion_blur")
LINEAR = (*DENOISING, "sr4", "sr8", *BLURS)
SMALL_SIDE = 64  # pixels, up to which settings are those tuned for small pictures
SOURCE_SIDE = 256  # pixels, of the pictures that the sources' settings are for
Config = TypeVar("Config")


class Restored(NamedTuple):
    """The answer of a compared method.

    Attributes:
        image: restored image, (H, W, 3) float32 in [0, 1].
        evaluations: evaluations of the prior's network, int32; 0 for a method that
            has a network of its own.
        gradients: how many of them were differentiated, int32.
    """

    image: jax.Array
    evaluations: jax.Array
    gradients: jax.Array


def for_any(small: Config, large: Config, task: str, side: int) -> Config:
    """Return the settings of a method that takes any damage, the same for all.

    Args:
        small: settings for pictures of up to `SMALL_SIDE`.
        large: for others.
        task: its name.
        side: of the pictures in pixels.
    """
    del task
    return small if side <= SMALL_SIDE else large


def for_linear(small: Config, large: Config, task: str, side: int) -> Config | None:
    """Return the settings of a method for linear damage; None for other damage.

    Arguments as of `for_any`.
    """
    return for_any(small, large, task, side) if task in LINEAR else None


def for_unknown_kernel(small: Any, large: Any, task: str, side: int) -> Any | None:
    """Return the settings of a method that finds a kernel; otherwise as `for_linear`.

    That of noise is known: one pixel. A large kernel grows with the pictures.
    """
    config = for_linear(small, large, task, side)
    if config is None:
        return None
    size = config.kernel_size
    if task in DENOISING:
        size = 1
    elif side > SMALL_SIDE:
        size = odd(size * side / SOURCE_SIDE)
    return dataclasses.replace(config, kernel_size=size)


def odd(pixels: float) -> int:
    """Return the odd number next to a length, 3 at least: the side of a kernel."""
    return max(2 * round((pixels - 1) / 2) + 1, 3)
