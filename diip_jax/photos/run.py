"""Photos in, restored photos and their records out."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from diip_jax import engine, images, storage
from diip_jax.config import DIIPConfig
from diip_jax.diip import DIIPState, Restoration
from diip_jax.images import ImageError, Photo
from diip_jax.photos import plan, record, reference, resume, sizing
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


def restore_photos(
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
        tasks: of a `plan.Plan`.
        config: the settings.
        options: of the command.
        should_stop: asked after every chunk; when true, unfinished photos are written
            as they stand, marked "interrupted", and the rest is left undone.

    Raises:
        LPIPSError: the file named for LPIPS does not hold its weights.
        StateError: a saved state is damaged, or cannot be written.
    """
    return _Run(prior, tasks, config, options, should_stop).events()


@dataclasses.dataclass
class _PhotoInLane:
    """A photo in a lane, and what it took so far."""

    photo: Photo
    began: float
    comparison: reference.Comparison | None
    resumed_from: int
    last_saved: int
    num_iterations: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0


class _Run:
    """One run over tasks: what its steps share, and the steps in their order."""

    def __init__(
        self,
        prior: Prior,
        tasks: Sequence[Task],
        config: DIIPConfig,
        options: Options,
        should_stop: Callable[[], bool],
    ):
        self.prior, self.tasks, self.config = prior, tasks, config
        self.options, self.should_stop = options, should_stop
        self.digest = plan.digest(prior, config, options)
        self.perceptual: reference.PerceptualMetric | None = None
        if options.reference is not None:
            self.perceptual = reference.perceptual_metric(
                options.lpips, options.lpips_weights
            )
        self.in_lanes: dict[int, _PhotoInLane] = {}
        self.num_done = 0
        self.pace = math.inf  # seconds per iteration
        self.jobs = [self._job(index) for index in range(len(tasks))]

    def events(self) -> Iterator[Progress | Outcome]:
        prior, sharding = engine.spread(
            self.prior, self.options.num_lanes, len(self.tasks)
        )
        reports = engine.run(
            prior,
            self.jobs,
            self.config,
            num_lanes=self.options.num_lanes,
            chunk=self._chunk,
            sharding=sharding,
            should_stop=self.should_stop,
            traces=self.options.traces,
        )
        for report in reports:
            yield from self._after_chunk(report)

    # Before: the photo and the saved state that a lane starts from.

    def _job(self, index: int) -> engine.Job:
        task = self.tasks[index]
        state = self._saved_state(task)
        begun = 0 if state is None else int(state.k)

        def load() -> np.ndarray:
            self.in_lanes[index] = self._read(task, begun)
            photo = self.in_lanes[index].photo
            return sizing.resize(photo.rgb, task.placement.size)

        key = plan.key(self.options.seed, task.source.relative)
        return engine.Job(task.placement.size, load, key, state)

    def _read(self, task: Task, begun: int) -> _PhotoInLane:
        max_pixels = self.options.max_pixels
        photo = images.read(task.source.content(), max_pixels=max_pixels)
        if record.sha256(task.source.content()) != task.sha256:
            raise ImageError(f"{task.source.path} changed during the run; run again")
        comparison = None
        if self.perceptual is not None and task.reference is not None:
            clean = images.read(task.reference, max_pixels=max_pixels).rgb
            comparison = reference.Comparison(self.perceptual, clean, photo)
        return _PhotoInLane(photo, time.perf_counter(), comparison, begun, begun)

    def _saved_state(self, task: Task) -> DIIPState | None:
        """Return where a killed run stood, if it had the same settings and photo."""
        digest = self._state_digest(task)
        start_over = self.options.overwrite or self.perceptual is not None
        if start_over or not resume.is_saved(task.state_path, digest):
            return None
        template = engine.abstract_state(self.prior, task.placement.size, self.config)
        return resume.load(task.state_path, template, digest)

    def _chunk(self) -> int:
        """Return the number of iterations until the next report."""
        if self.perceptual is not None:
            return 1  # a comparison observes every iteration
        wanted = max(1, int(SECONDS_PER_CHUNK / self.pace))
        return min(wanted, self.options.save_every or wanted)

    # During: after every chunk of iterations.

    def _after_chunk(self, report: engine.Report) -> Iterator[Progress | Outcome]:
        if report.iterations:
            self.pace = report.seconds / report.iterations
        lanes = [*report.running, *report.finished]
        for lane in lanes:
            self._note_progress(lane, report)
        yield self._progress(lanes, self._bound(lanes))
        for failure in report.failed:
            self.in_lanes.pop(failure.job, None)
            yield self._done(Outcome(self.tasks[failure.job], error=str(failure.error)))
        for lane in report.finished:
            if self.perceptual is not None and not report.interrupted:
                yield from self._past_stop(lane)
            yield self._done(self._finish(lane))
        for lane in report.running:
            self._save_if_due(lane)
        if report.finished or report.failed:
            yield self._progress([], 0.0)

    def _note_progress(self, lane: engine.LaneReport, report: engine.Report) -> None:
        photo = self.in_lanes[lane.job]
        photo.num_iterations += report.iterations
        photo.seconds += report.seconds
        photo.compile_seconds += report.compile_seconds
        self._observe(lane, lane.job)

    def _progress(self, lanes: list[engine.LaneReport], bound: float) -> Progress:
        return Progress(lanes, self.num_done, self.pace, bound)

    def _bound(self, lanes: Sequence[engine.LaneReport]) -> float:
        """Return the seconds that the rest takes at most, by the areas of canvases."""
        if not lanes:
            return 0.0
        areas = [math.prod(task.placement.canvas) for task in self.tasks]
        started = {lane.job for lane in lanes}
        # Photos are taken canvas by canvas, so which ones wait is not told by their
        # index.
        waiting = len(self.tasks) - self.num_done - len(started)
        most = max(areas) if waiting else 0
        budget = self.config.max_iterations
        left = sum((budget - lane.iteration - 1) * areas[lane.job] for lane in lanes)
        left += waiting * budget * most
        return self.pace * left / sum(areas[job] for job in started)

    def _save_if_due(self, lane: engine.LaneReport) -> None:
        photo, done = self.in_lanes[lane.job], lane.iteration + 1
        if done - photo.last_saved >= self.options.save_every > 0:
            photo.last_saved = done
            self._save_state(lane)

    # After: the answer, its file and its record.

    def _finish(self, lane: engine.LaneReport) -> Outcome:
        """Write a restored photo and its record."""
        task, photo = self.tasks[lane.job], self.in_lanes.pop(lane.job)
        answer = lane.restoration()
        complete = record.is_complete(answer, self.config)
        if self.options.save_every and not complete:
            self._save_state(lane)
        restored = sizing.resize(np.asarray(answer.image), task.size)
        content = self._record(task, photo, answer, restored, complete)
        try:
            data = self._write(task, photo.photo, restored, content)
        except (ImageError, OSError) as error:
            return Outcome(task, error=str(error))
        if complete and not task.to_stdout:
            storage.remove(task.state_path)
        return Outcome(task, content, data=data)

    def _done(self, outcome: Outcome) -> Outcome:
        self.num_done += 1
        return outcome

    def _write(
        self, task: Task, photo: Photo, restored: np.ndarray, content: dict[str, Any]
    ) -> bytes | None:
        """Write the picture and its record; return the bytes for standard output."""
        quality = self.options.quality
        if task.to_stdout:
            kind = images.file_format(task.output)
            return images.encode(restored, photo, kind, quality=quality)
        task.output.parent.mkdir(parents=True, exist_ok=True)
        # A record must never stand beside a picture that it does not describe.
        task.record_path.unlink(missing_ok=True)
        images.write(task.output, restored, photo, quality=quality)
        record.write(task.record_path, content)
        return None

    def _save_state(self, lane: engine.LaneReport) -> None:
        task = self.tasks[lane.job]
        resume.save(task.state_path, lane.snapshot(), self._state_digest(task))

    def _state_digest(self, task: Task) -> str:
        return f"{self.digest}-{task.sha256}"

    def _record(
        self,
        task: Task,
        photo: _PhotoInLane,
        answer: Restoration,
        restored: np.ndarray,
        complete: bool,
    ) -> dict[str, Any]:
        """Return the record of a restoration as JSON-ready values."""
        mode = task.placement.mode
        change = record.change(photo.photo.rgb, restored)
        codes = record.warnings(answer, self.config, change, mode)
        timing = {
            "compile_s": photo.compile_seconds,
            "total_s": time.perf_counter() - photo.began,
            "s_per_iter": photo.seconds / max(photo.num_iterations, 1),
        }
        return {
            "schema": record.SCHEMA,
            "status": "ok" if complete else "interrupted",
            "input": record.describe_input(task.source.path, photo.photo, task.sha256),
            "output": {
                "path": "-" if task.to_stdout else str(task.output),
                "size": [task.size[1], task.size[0]],
            },
            "model": record.model(self.prior.card),
            "config": {
                **record.settings(self.config),
                "size_mode": mode,
                "canvas": list(task.placement.canvas[::-1]),
                "num_tiles": task.placement.num_tiles,
            },
            "config_hash": self.digest,
            "seed": self.options.seed,
            "resumed_from": photo.resumed_from or None,
            "stop": record.stop(answer, self.config),
            "curves": record.curves(answer),
            "metrics": self._scores(photo, restored),
            "change": change,
            "warnings": [*codes, *photo.photo.warnings],
            "timing": record.rounded(timing),
            "memory": record.memory(),
            "env": record.environment(),
        }

    # Against a clean image.

    def _past_stop(self, lane: engine.LaneReport) -> Iterator[Progress]:
        """Go on past the stop, only to learn what the best stop would have been."""
        job, photo = self.jobs[lane.job], self.in_lanes[lane.job]
        y = sizing.resize(photo.photo.rgb, job.size)
        job = job._replace(load=lambda: y)  # the job's own reads it again
        ahead = reference.past_stop(
            self.prior, job, lane.snapshot(), self.config, should_stop=self.should_stop
        )
        for later in ahead:
            later = later._replace(job=lane.job)
            self._observe(later, lane.job)
            left = self.config.max_iterations - later.iteration - 1
            yield self._progress([later], left * self.pace)

    def _observe(self, lane: engine.LaneReport, index: int) -> None:
        """Show an iteration's image, which at the stop may not be the answer."""
        task, comparison = self.tasks[index], self.in_lanes[index].comparison
        if comparison is not None:
            latest = reference.latest_image(lane.snapshot(), task.placement.size)
            comparison.observe(lane.iteration, sizing.resize(latest, task.size))

    def _scores(self, photo: _PhotoInLane, restored: np.ndarray) -> dict[str, Any]:
        """Return the scores before and after, and the best stop's; None if unknown."""
        names = reference.score_names(self.options.lpips)
        scores: dict[str, float | None] = dict.fromkeys(names)
        missing = None
        if self.perceptual is not None and photo.comparison is not None:
            scores = photo.comparison.scores(restored, self.config.max_iterations)
            missing = self.perceptual.missing or None
        return record.scores(scores, missing)
