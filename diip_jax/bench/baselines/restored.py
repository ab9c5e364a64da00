"""What the compared methods share: their answer, and what their settings depend on."""

from typing import NamedTuple

import jax

DENOISING = ("denoise", "gaussian_noise")  # names of tasks, as the next two
BLURS = ("gaussian_blur", "motion_blur")
LINEAR = (*DENOISING, "sr4", "sr8", *BLURS)
SMALL_SIDE = 64  # pixels, up to which settings are those tuned for small pictures


def odd(pixels: float) -> int:
    """Return the odd number next to a length, 3 at least: the side of a kernel."""
    return max(2 * round((pixels - 1) / 2) + 1, 3)


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
