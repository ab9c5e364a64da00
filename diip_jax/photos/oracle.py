"""What stopping cost: runs that go on past their stop, measured against the truth.

Only experiments and `--reference` use this; a restoration never sees a clean image.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from diip_jax import engine, stopping
from diip_jax.config import DIIPConfig
from diip_jax.diip import DIIPState
from diip_jax.prior import Prior


class Oracle(NamedTuple):
    """The best stop in hindsight: its PSNR in dB and its iteration, from 0."""

    psnr: float
    iteration: int


def iterate(state: DIIPState, size: tuple[int, int]) -> np.ndarray:
    """Return g(z) of a state's last iteration, (H, W, 3) in [0, 1].

    At the stop this may differ from the answer, which may be an earlier peak.

    Args:
        state: on the host.
        size: height and width of the image on its canvas.
    """
    return (np.asarray(state.x)[: size[0], : size[1]] + 1) / 2


def run_on(
    prior: Prior,
    job: engine.Job,
    state: DIIPState,
    config: DIIPConfig,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[engine.LaneReport]:
    """Go on from a state to the end of the budget; report every iteration.

    Args:
        prior: the frozen model.
        job: the image.
        state: where its restoration stopped.
        config: the settings it was made with.
        should_stop: asked after every iteration; when true, the rest is left undone.
    """
    if int(state.k) >= config.max_iterations:
        return
    unstopped = state._replace(stopping=stopping.init())
    reports = engine.run(
        prior,
        [job._replace(state=unstopped)],
        dataclasses.replace(config, criterion="never"),
        chunk=1,
        should_stop=should_stop,
    )
    for report in reports:
        yield from [*report.running, *report.finished]


def best(psnrs: Mapping[int, float]) -> Oracle:
    """Return the best of the PSNRs by iteration (Table 3), the earliest of equals."""
    iteration = max(sorted(psnrs), key=lambda k: psnrs[k])
    return Oracle(psnrs[iteration], iteration)
