"""Photos in, restored photos and their records out."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diip_jax import engine, images, metrics, storage
from diip_jax.config import DIIPConfig
from diip_jax.diip import DIIPState, Restoration
from diip_jax.images import ImageError, Photo
from diip_jax.photos import (
    oracle,
    record,
    sizing,
)
from diip_jax.photos import (
    plan as planning,
)
from diip_jax.photos import (
    reference as scoring,
)
from diip_jax.photos import (
    resume as states,
)
from diip_jax.photos.plan import Options, Task
from diip_jax.prior import Prior

# Between two reports, which is when Ctrl-C is heard. Every chunk takes fresh memory,
# whose pages cost a CPU a twentieth of a second and more.
SECONDS_PER_CHUNK = 2.0


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
        lanes: the photos that the last chunk advanced, none after photos were done;
            `job` is an index into the tasks.
        num_done: photos restored or failed in this run.
        seconds_per_iteration: of the last chunk, compilation apart.
        bound: seconds that the rest takes at most, at the pace of the last chunk.
    """

    lanes: list[engine.LaneReport]
    num_done: int
    seconds_per_iteration: float
    bound: float


class Outcome(NamedTuple):
    """A photo done.

    Attributes:
        task: the photo.
        record: what there is to say of it, None if it failed.
        error: why it failed, else None.
        data: the restored file, for a task whose output is standard output.
    """

    task: Task
    record: dict[str, Any] | None = None
    error: str | None = None
    data: bytes | None = None


@dataclasses.dataclass
class _Work:
    """A photo in a lane, and what it took so far."""

    photo: Photo
    began: float
    resumed_from: int = 0
    last_saved: int = 0
    num_iterations: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    reference: np.ndarray | None = None
    psnrs: dict[int, float] = dataclasses.field(default_factory=dict)


class _Run(NamedTuple):
    """What the functions below share."""

    prior: Prior
    tasks: Sequence[Task]
    config: DIIPConfig
    options: Options
    digest: str
    judge: scoring.Judge | None  # only where there are references
    in_work: dict[int, _Work]


def restore_files(
    prior: Prior,
    tasks: Sequence[Task],
    config: DIIPConfig,
    options: Options,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Progress | Outcome]:
    """Restore photos, write them with their records, and tell how it goes.

    Args:
        prior: the frozen model.
        tasks: of a `planning.plan`.
        config: the settings.
        options: of the command.
        should_stop: asked after every chunk; when true, unfinished photos are written
            as they stand, marked "interrupted", and the rest is left undone.

    Raises:
        LPIPSError: the file named for LPIPS does not hold its weights.
        StateError: a saved state is damaged, or cannot be written.
    """
    same = planning.digest(prior, config, options)
    judge = None
    if options.reference is not None:
        judge = scoring.judge(options.lpips, options.lpips_weights)
    run = _Run(prior, tasks, config, options, same, judge, {})
    jobs = [_job(run, index) for index in range(len(tasks))]
    num_done, pace = 0, math.inf  # seconds per iteration
    spread_prior, sharding = _spread(prior, options.num_lanes, len(tasks))
    reports = engine.run(
        spread_prior,
        jobs,
        config,
        num_lanes=options.num_lanes,
        chunk=lambda: _chunk(run, pace),
        sharding=sharding,
        should_stop=should_stop,
        traces=options.traces,
    )
    for report in reports:
        pace = report.seconds / report.iterations if report.iterations else pace
        lanes = [*report.running, *report.finished]
        for lane in lanes:
            _take_note(run, lane, report)
        yield Progress(lanes, num_done, pace, _bound(run, num_done, lanes, pace))
        for failure in report.failed:
            num_done += 1
            run.in_work.pop(failure.job, None)
            yield Outcome(tasks[failure.job], error=str(failure.error))
        for lane in report.finished:
            if judge is not None and not report.interrupted:
                job = jobs[lane.job]
                yield from _look_ahead(run, job, lane, num_done, pace, should_stop)
            num_done += 1
            yield _finish(run, lane)
        for lane in report.running:
            work = run.in_work[lane.job]
            if lane.iteration + 1 - work.last_saved >= options.save_every > 0:
                work.last_saved = lane.iteration + 1
                _save_state(run, lane)
        if report.finished or report.failed:
            yield Progress([], num_done, pace, 0.0)


def _spread(
    prior: Prior, num_lanes: int | None, num_tasks: int
) -> tuple[Prior, jax.sharding.NamedSharding | None]:
    """Copy the prior to as many devices as can share the lanes evenly."""
    devices = jax.local_devices()
    count = min(len(devices), max(num_tasks, 1))
    while num_lanes is not None and num_lanes % count:
        count -= 1
    if count == 1:
        return prior, None
    mesh = jax.sharding.Mesh(np.asarray(devices[:count]), ("lanes",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    lanes = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("lanes"))
    return jax.device_put(prior, everywhere), lanes


def _job(run: _Run, index: int) -> engine.Job:
    task, options = run.tasks[index], run.options
    state = _saved_state(run, task)

    def load() -> np.ndarray:
        photo = images.read(task.source.content(), max_pixels=options.max_pixels)
        if record.sha256(task.source.content()) != task.sha256:
            raise ImageError(f"{task.source.path} changed during the run; run again")
        saved = 0 if state is None else int(state.k)
        work = _Work(photo, time.perf_counter(), saved, saved)
        if task.reference is not None:
            clean = images.read(task.reference, max_pixels=options.max_pixels)
            work.reference = clean.rgb
        run.in_work[index] = work
        return sizing.resize(photo.rgb, task.layout.size)

    key = planning.key(options.seed, task.source.relative)
    return engine.Job(task.layout.size, load, key, state)


def _chunk(run: _Run, pace: float) -> int:
    """Return the number of iterations until the next report."""
    if run.judge is not None:
        return 1  # the oracle looks at every iteration
    wanted = max(1, int(SECONDS_PER_CHUNK / pace))
    return min(wanted, run.options.save_every or wanted)


def _take_note(run: _Run, lane: engine.LaneReport, report: engine.Report) -> None:
    work = run.in_work[lane.job]
    work.num_iterations += report.iterations
    work.seconds += report.seconds
    work.compile_seconds += report.compile_seconds
    _measure(run, lane, work)


def _bound(
    run: _Run, num_done: int, lanes: Sequence[engine.LaneReport], pace: float
) -> float:
    """Return the seconds that the rest takes at most, by the areas of the canvases."""
    if not lanes:
        return 0.0
    areas = [math.prod(task.layout.canvas) for task in run.tasks]
    started = {lane.job for lane in lanes}
    # Photos are taken canvas by canvas, so which ones wait is not told by their index.
    waiting = len(run.tasks) - num_done - len(started)
    most = max(areas) if waiting else 0
    left = sum(
        (run.config.max_iterations - lane.iteration - 1) * areas[lane.job]
        for lane in lanes
    )
    left += waiting * run.config.max_iterations * most
    return pace * left / sum(areas[job] for job in started)


def _state_digest(run: _Run, task: Task) -> str:
    return f"{run.digest}-{task.sha256}"


def _saved_state(run: _Run, task: Task) -> DIIPState | None:
    """Return where a killed run stood, if it had the same settings and photo."""
    digest = _state_digest(run, task)
    afresh = run.options.overwrite or run.judge is not None
    if afresh or not states.is_saved(task.state, digest):
        return None
    template = engine.abstract_state(run.prior, task.layout.size, run.config)
    return states.load(task.state, template, digest)


def _save_state(run: _Run, lane: engine.LaneReport) -> None:
    task = run.tasks[lane.job]
    states.save(task.state, lane.snapshot(), _state_digest(run, task))


def _finish(run: _Run, lane: engine.LaneReport) -> Outcome:
    """Write a restored photo and its record."""
    task, work = run.tasks[lane.job], run.in_work.pop(lane.job)
    answer = lane.restoration()
    complete = record.is_complete(answer, run.config)
    if run.options.save_every and not complete:
        _save_state(run, lane)
    restored = sizing.resize(np.asarray(answer.image), task.size)
    content = _record(run, task, work, answer, restored, complete)
    try:
        quality = run.options.quality
        if task.to_stdout:
            kind = images.file_format(task.output)
            data = images.encode(restored, work.photo, kind, quality=quality)
            return Outcome(task, content, data=data)
        task.output.parent.mkdir(parents=True, exist_ok=True)
        # A record must never stand beside a picture that it does not describe.
        task.record.unlink(missing_ok=True)
        images.write(task.output, restored, work.photo, quality=quality)
        record.write(task.record, content)
    except (ImageError, OSError) as error:
        return Outcome(task, error=str(error))
    if complete:
        storage.remove(task.state)
    return Outcome(task, content)


def _record(
    run: _Run,
    task: Task,
    work: _Work,
    answer: Restoration,
    restored: np.ndarray,
    complete: bool,
) -> dict[str, Any]:
    """Return the record of a restoration as JSON-ready values."""
    change = record.change(work.photo.rgb, restored)
    height, width = task.size
    codes = record.warnings(answer, run.config, change, task.layout.mode)
    timing = {
        "compile_s": work.compile_seconds,
        "total_s": time.perf_counter() - work.began,
        "s_per_iter": work.seconds / max(work.num_iterations, 1),
    }
    return {
        "schema": record.SCHEMA,
        "status": "ok" if complete else "interrupted",
        "input": record.source(task.source.path, work.photo, task.sha256),
        "output": {
            "path": "-" if task.to_stdout else str(task.output),
            "size": [width, height],
        },
        "model": record.model(run.prior.card),
        "config": {
            **record.settings(run.config),
            "size_mode": task.layout.mode,
            "canvas": list(task.layout.canvas[::-1]),
            "num_tiles": task.layout.num_tiles,
        },
        "config_hash": run.digest,
        "seed": run.options.seed,
        "resumed_from": work.resumed_from or None,
        "stop": record.stop(answer, run.config),
        "curves": record.curves(answer),
        "metrics": _scores(run, work, restored),
        "change": change,
        "warnings": [*codes, *work.photo.warnings],
        "timing": record.rounded(timing),
        "memory": record.memory(),
        "env": record.environment(),
    }


# Against a reference.


def _look_ahead(
    run: _Run,
    job: engine.Job,
    lane: engine.LaneReport,
    num_done: int,
    pace: float,
    should_stop: Callable[[], bool],
) -> Iterator[Progress]:
    """Go on past the stop, only to learn what the best stop would have been."""
    work = run.in_work[lane.job]
    y = sizing.resize(work.photo.rgb, job.size)
    job = job._replace(load=lambda: y)  # its own would begin the work anew
    ahead = oracle.run_on(
        run.prior, job, lane.snapshot(), run.config, should_stop=should_stop
    )
    for later in ahead:
        later = later._replace(job=lane.job)
        _measure(run, later, work)
        left = run.config.max_iterations - later.iteration - 1
        yield Progress([later], num_done, pace, left * pace)


def _measure(run: _Run, lane: engine.LaneReport, work: _Work) -> None:
    """Note the PSNR of an iteration, which at the stop is not always the answer's."""
    if work.reference is None:
        return
    task = run.tasks[lane.job]
    latest = oracle.iterate(lane.snapshot(), task.layout.size)
    seen = _as_written(sizing.resize(latest, task.size), work.photo)
    work.psnrs[lane.iteration] = metrics.psnr(work.reference, seen)


def _scores(run: _Run, work: _Work, restored: np.ndarray) -> dict[str, Any]:
    """Return the scores before and after, and the oracle's; None where unknown."""
    names = [*scoring.names(run.options.lpips), "oracle_psnr", "oracle_iteration"]
    scores: dict[str, float | None] = dict.fromkeys(names)
    missing = None
    if run.judge is not None and work.reference is not None:
        seen = _as_written(restored, work.photo)
        scores |= scoring.compare(run.judge, work.reference, work.photo.rgb, seen)
        missing = run.judge.missing or None
        if len(work.psnrs) == run.config.max_iterations:  # else it was cut short
            best = oracle.best(work.psnrs)
            scores |= {"oracle_psnr": best.psnr, "oracle_iteration": best.iteration}
    return {
        **record.rounded(scores),
        "convention": metrics.CONVENTION,
        "lpips_missing": missing,
    }


def _as_written(image: np.ndarray, photo: Photo) -> np.ndarray:
    """Return an image as a reader of its lossless file sees it, in [0, 1]."""
    if photo.grey:
        image = np.broadcast_to(image.mean(axis=2, keepdims=True), image.shape)
    return images.to_uint(image, photo.bits) / (2**photo.bits - 1)
