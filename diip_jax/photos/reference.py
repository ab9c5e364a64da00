"""How near a restoration came to a clean image that somebody has, and the best stop.

Only experiments and `--reference` use this; a restoration never sees a clean image.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diip_jax import canvas, diip, engine, images, metrics, stopping
from diip_jax.config import DIIPConfig
from diip_jax.diip import DIIPState
from diip_jax.images import Photo
from diip_jax.metrics import lpips, lpips_weights
from diip_jax.prior import Prior


class PerceptualMetric(NamedTuple):
    """LPIPS, as far as this machine has it.

    Attributes:
        network: one of `lpips.NETWORKS`.
        weights: its weights; None where there are none.
        missing: why there are none, else empty.
    """

    network: str
    weights: lpips.Weights | None
    missing: str = ""


def perceptual_metric(
    network: str, weights_path: Path | None = None
) -> PerceptualMetric:
    """Read the weights of LPIPS, where they are installed or named.

    Raises:
        LPIPSError: a file of weights was named and is not one.
    """
    try:
        return PerceptualMetric(network, lpips_weights.load(network, weights_path))
    except lpips_weights.LPIPSError as error:
        if weights_path is not None:
            raise
        return PerceptualMetric(network, None, str(error))


class BestStop(NamedTuple):
    """The best stop in hindsight (Table 3).

    Attributes:
        psnr: its PSNR in dB.
        iteration: counted from 0.
    """

    psnr: float
    iteration: int


class Comparison:
    """The restoration of one photo against its clean image."""

    def __init__(self, perceptual: PerceptualMetric, clean: np.ndarray, photo: Photo):
        """Start to compare.

        Args:
            perceptual: of `perceptual_metric`.
            clean: the clean image, (H, W, 3) in [0, 1].
            photo: the degraded photo of the same size.
        """
        self._perceptual, self._clean, self._photo = perceptual, clean, photo
        self._sums: dict[int, np.ndarray] = {}  # of the starts' images
        self._seen: set[tuple[int, int]] = set()

    def observe(self, iteration: int, image: np.ndarray, start: int = 0) -> None:
        """Note a start's image of an iteration, (H, W, 3) in [0, 1]."""
        if (start, iteration) in self._seen:  # an iteration begins with the first look
            return
        self._seen.add((start, iteration))
        self._sums[iteration] = self._sums.get(iteration, 0) + image

    def _psnrs(self, num_starts: int) -> dict[int, float]:
        """Return the PSNR of the mean of the starts at each iteration."""
        means = {k: total / num_starts for k, total in self._sums.items()}
        return {
            k: metrics.psnr(self._clean, as_written(mean, self._photo))
            for k, mean in means.items()
        }

    def scores(
        self, restored: np.ndarray, budget: int, num_starts: int = 1
    ) -> dict[str, float | None]:
        """Return all scores by name, as in `score_names`.

        Args:
            restored: the answer, (H, W, 3) in [0, 1].
            budget: iterations of a whole start; the best stop is unknown unless each of
                them was observed, of each start.
            num_starts: how many starts there are.
        """
        seen = as_written(restored, self._photo)
        found = compare(self._perceptual, self._clean, self._photo.rgb, seen)
        whole = len(self._seen) == max(budget, 1) * num_starts
        best = best_stop(self._psnrs(num_starts)) if whole else None
        return found | {
            "oracle_psnr": None if best is None else best.psnr,
            "oracle_iteration": None if best is None else best.iteration,
        }


def score_names(network: str) -> list[str]:
    """Return the names of all scores of a `Comparison`."""
    names = ("psnr", "ssim", f"lpips_{network}")
    pairs = [name for score in names for name in (f"{score}_before", score)]
    return [*pairs, "oracle_psnr", "oracle_iteration"]


def compare(
    perceptual: PerceptualMetric,
    reference: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> dict[str, float | None]:
    """Return PSNR, SSIM and LPIPS of the degraded and of the restored image.

    Args:
        perceptual: of `perceptual_metric`.
        reference: the clean image, (H, W, 3) in [0, 1].
        before: the degraded image.
        after: the restored image.

    Returns:
        One number per name; None for what so small an image, or a machine without
        weights for LPIPS, does not allow.
    """
    pairs = [score(perceptual, reference, image) for image in (before, after)]
    return {
        name + ending: scores[name]
        for name in pairs[0]
        for ending, scores in zip(("_before", ""), pairs, strict=True)
    }


def score(
    perceptual: PerceptualMetric, reference: np.ndarray, image: np.ndarray
) -> dict[str, float | None]:
    """Return "psnr", "ssim" and "lpips_NETWORK" of one image, as `compare` does.

    Args:
        perceptual: of `perceptual_metric`.
        reference: the clean image, (H, W, 3) in [0, 1].
        image: the other one.
    """
    network, side = perceptual.network, min(reference.shape[:2])
    found: dict[str, float | None] = {"psnr": metrics.psnr(reference, image)}
    can = side >= metrics.SMALLEST_SIDE
    found["ssim"] = metrics.ssim(reference, image) if can else None
    distance = None
    if has_lpips(perceptual, side):
        assert perceptual.weights is not None
        distance = float(_lpips(network, perceptual.weights, reference, image))
    return {**found, f"lpips_{network}": distance}


def has_lpips(perceptual: PerceptualMetric, side: int) -> bool:
    """Tell whether LPIPS can be had of images whose shorter side has so many pixels."""
    is_large = side >= lpips.SMALLEST_SIDE[perceptual.network]
    return perceptual.weights is not None and is_large


@functools.partial(jax.jit, static_argnums=0)
def _lpips(
    network: str, weights: lpips.Weights, x: jax.Array, y: jax.Array
) -> jax.Array:
    return lpips.lpips(network, weights, x, y)


def as_written(image: np.ndarray, photo: Photo) -> np.ndarray:
    """Return an image as a reader of its lossless file sees it, in [0, 1].

    Args:
        image: (H, W, 3) in [0, 1].
        photo: the photo that it restores, which decides greyness and depth.
    """
    if photo.grey:
        image = np.broadcast_to(image.mean(axis=2, keepdims=True), image.shape)
    return images.to_uint(image, photo.bits) / (2**photo.bits - 1)


def best_stop(psnrs: Mapping[int, float]) -> BestStop:
    """Return the best of the PSNRs by iteration, the earliest of equals."""
    iteration = max(sorted(psnrs), key=lambda k: psnrs[k])
    return BestStop(psnrs[iteration], iteration)


def latest_image(state: DIIPState, size: tuple[int, int]) -> np.ndarray:
    """Return g(z) of a state's last iteration, (H, W, 3) in [0, 1].

    At the stop this may differ from the answer, which may be an earlier peak.

    Args:
        state: on the host.
        size: height and width of the image on its canvas.
    """
    return canvas.cut(np.asarray(state.x), size)


def past_stop(
    prior: Prior,
    job: engine.Job,
    state: DIIPState,
    config: DIIPConfig,
    start: int = 0,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[engine.LaneReport]:
    """Go on from a stop to the end of the budget; report every iteration.

    Args:
        prior: the frozen model.
        job: the image.
        state: where its restoration stopped.
        config: the settings that it was made with.
        start: index of the start that the state is of.
        should_stop: asked after every iteration; when true, the rest is left undone.
    """
    budget = diip.budget(config, canvas.canvas_size(prior, config, *job.size))
    if int(state.k) >= budget:
        return
    judged = stopping.init()
    # Its last loss tells that it has not diverged.
    loss = state.stopping.verdict.loss
    judged = judged._replace(verdict=judged.verdict._replace(loss=loss))
    unstopped = state._replace(stopping=judged)
    reports = engine.run(
        prior,
        [job._replace(states={start: unstopped}, starts=[start])],
        dataclasses.replace(config, criterion="never"),
        chunk=1,
        should_stop=should_stop,
    )
    for report in reports:
        for lane in [*report.running, *report.finished]:
            yield lane
            if lane.num_iterations >= budget:
                return
