"""How near a restoration came to a clean image that somebody has.

Only experiments and `--reference` use this; a restoration never sees a clean image.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diip_jax import images, lpips, lpips_weights, metrics
from diip_jax.lpips import Weights

NETWORKS = tuple(lpips.NETWORKS)


class Truth(NamedTuple):
    """A clean image, and what it takes to compare with it.

    Attributes:
        image: (H, W, 3) in [0, 1].
        network: that of LPIPS.
        weights: its weights; None where there are none.
        missing: why there are none, else empty.
    """

    image: np.ndarray
    network: str
    weights: Weights | None
    missing: str


def read(path: Path, network: str, weights_path: Path | None, max_pixels: int) -> Truth:
    """Read a clean image, and the weights of LPIPS where they are installed.

    Raises:
        ImageError: the image cannot be read.
        LPIPSError: a file of weights was named and is not one.
    """
    image = images.read(path, max_pixels=max_pixels).rgb
    try:
        return Truth(image, network, lpips_weights.load(network, weights_path), "")
    except lpips_weights.LPIPSError as error:
        if weights_path is not None:
            raise
        return Truth(image, network, None, str(error))


def names(network: str) -> list[str]:
    """Return the names of all scores of `compare`."""
    scores = ("psnr", "ssim", f"lpips_{network}")
    return [name for score in scores for name in (f"{score}_before", score)]


def compare(
    truth: Truth, before: np.ndarray, after: np.ndarray
) -> dict[str, float | None]:
    """Return the scores of the degraded and of the restored image.

    Args:
        truth: the clean image.
        before: the degraded image, (H, W, 3) in [0, 1].
        after: the restored image.

    Returns:
        One number per name; None for what so small an image, or a machine without
        weights for LPIPS, does not allow.
    """
    scores: dict[str, float | None] = dict.fromkeys(names(truth.network))
    side = min(truth.image.shape[:2])
    for ending, image in (("_before", before), ("", after)):
        scores[f"psnr{ending}"] = metrics.psnr(truth.image, image)
        if side >= metrics.SMALLEST_SIDE:
            scores[f"ssim{ending}"] = metrics.ssim(truth.image, image)
        if truth.weights is not None and side >= lpips.SMALLEST_SIDE[truth.network]:
            distance = _lpips(truth.network, truth.weights, truth.image, image)
            scores[f"lpips_{truth.network}{ending}"] = float(distance)
    return scores


@functools.partial(jax.jit, static_argnums=0)
def _lpips(network: str, weights: Weights, x: jax.Array, y: jax.Array) -> jax.Array:
    return lpips.lpips(network, weights, x, y)
