"""How near a restoration came to a clean image that somebody has: all metrics at once.

Only experiments and `--reference` use this; a restoration never sees a clean image.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diip_jax import metrics
from diip_jax.metrics import lpips, lpips_weights
from diip_jax.metrics.lpips import Weights


class Judge(NamedTuple):
    """What it takes to compare images.

    Attributes:
        network: that of LPIPS, one of `lpips.NETWORKS`.
        weights: its weights; None where there are none.
        missing: why there are none, else empty.
    """

    network: str
    weights: Weights | None
    missing: str = ""


def judge(network: str, weights_path: Path | None = None) -> Judge:
    """Read the weights of LPIPS, where they are installed or named.

    Raises:
        LPIPSError: a file of weights was named and is not one.
    """
    try:
        return Judge(network, lpips_weights.load(network, weights_path))
    except lpips_weights.LPIPSError as error:
        if weights_path is not None:
            raise
        return Judge(network, None, str(error))


def names(network: str) -> list[str]:
    """Return the names of all scores of `compare`."""
    scores = ("psnr", "ssim", f"lpips_{network}")
    return [name for score in scores for name in (f"{score}_before", score)]


def compare(
    judge: Judge, reference: np.ndarray, before: np.ndarray, after: np.ndarray
) -> dict[str, float | None]:
    """Return the scores of the degraded and of the restored image.

    Args:
        judge: of `judge`.
        reference: the clean image, (H, W, 3) in [0, 1].
        before: the degraded image.
        after: the restored image.

    Returns:
        One number per name; None for what so small an image, or a machine without
        weights for LPIPS, does not allow.
    """
    scores: dict[str, float | None] = dict.fromkeys(names(judge.network))
    side = min(reference.shape[:2])
    for ending, image in (("_before", before), ("", after)):
        scores[f"psnr{ending}"] = metrics.psnr(reference, image)
        if side >= metrics.SMALLEST_SIDE:
            scores[f"ssim{ending}"] = metrics.ssim(reference, image)
        if judge.weights is not None and side >= lpips.SMALLEST_SIDE[judge.network]:
            distance = _lpips(judge.network, judge.weights, reference, image)
            scores[f"lpips_{judge.network}{ending}"] = float(distance)
    return scores


@functools.partial(jax.jit, static_argnums=0)
def _lpips(network: str, weights: Weights, x: jax.Array, y: jax.Array) -> jax.Array:
    return lpips.lpips(network, weights, x, y)
