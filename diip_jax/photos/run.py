"""Photos in, restored photos and their records out."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diip_jax import diip, engine, ensemble, images, storage
from diip_jax.config import DIIPConfig
from diip_jax.diip import DIIPState, Restoration
from diip_jax.images import ImageError, Photo
from diip_jax.photos import plan, record, reference, resume, sizing
from diip_jax.photos.plan import Options, Task
from diip_jax.prior import Prior

# Between two reports, which is when Ctrl-C is heard. Every chunk takes fresh memory,
# whose pages cost a CPU a twentieth of a second and more.
SECONDS_PER_CHUNK = 2.0
GRADIENT_COST = 3.5  # of an iteration, in evaluations of the network


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
        lanes: the starts that the last chunk advanced, none after photos were done;
            `job` is an index into the tasks.
        num_done: photos restored or failed in this run.
        starts_done: starts of the photo of the first lane that are done.
        seconds_per_iteration: of the last chunk, compilation apart.
        left: seconds that the rest takes, at the pace of the last chunk: at most where
            every start iterates, and about where the first look was enough so far.
    """

    lanes: list[engine.LaneReport]
    num_done: int
    starts_done: int
    seconds_per_iteration: float
    left: float


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
    write: "Write | None" = None,
) -> Iterator[Progress | Outcome]:
    """Restore photos, write them with their records, and tell how it goes.

    Args:
        prior: the frozen model.
        tasks: of a `plan.Plan`.
        config: the settings.
        options: of the command.
        should_stop: asked after every chunk; when true, unfinished photos are written
            as they stand, as the mean of the starts so far, marked "interrupted", and
            the rest is left undone.
        write: what is done with a restored picture; None for `write_files`.

    Raises:
        LPIPSError: the file named for LPIPS does not hold its weights.
        StateError: a state cannot be saved.
    """
    how = write_files if write is None else write
    return _Run(prior, tasks, config, options, should_stop, how).events()


# Takes where a picture goes, its file, and its record.
Write = Callable[[Path, bytes, Mapping[str, Any]], None]


def write_files(picture: Path, data: bytes, content: Mapping[str, Any]) -> None:
    """Write a restored picture and its record, in a folder that is made if needed.

    Raises:
        ImageError: a file cannot be written.
        OSError: the folder cannot be made.
    """
    picture.parent.mkdir(parents=True, exist_ok=True)
    record.write_beside(picture, data, content)


@dataclasses.dataclass
class _PhotoInLane:
    """A photo in a lane, and what it took so far."""

    photo: Photo
    y: np.ndarray  # at the size that the prior is given
    began: float
    comparison: reference.Comparison | None
    resumed_from: int
    last_saved: dict[int, int]  # iterations done at the last saved state, by start
    mean: ensemble.Ensemble
    starts: list[Restoration] = dataclasses.field(default_factory=list)
    complete: bool = True
    damage: float | None = None
    num_iterations: int = 0
    seconds: float = 0.0
    look_seconds: float = 0.0
    compile_seconds: float = 0.0

    def add(self, lane: engine.LaneReport, budget: int) -> None:
        """Take a start's answer into the mean; its arrays of pixels are then let go."""
        answer = lane.restoration()
        self.complete &= record.is_complete(answer, budget)
        self.mean = ensemble.add(self.mean, np.asarray(answer.image))
        nothing = np.zeros(0, np.float32)
        self.starts.append(
            answer._replace(image=nothing, z=nothing, uncertainty=nothing)
        )
        self.damage = lane.damage

    def image(self) -> np.ndarray:
        """Return the restoration as it stands, (H, W, 3) in [0, 1]."""
        return np.asarray(diip.settle(self.mean.mean, self.y, self.damage))


class _Run:
    """One run over tasks: what its steps share, and the steps in their order."""

    def __init__(
        self,
        prior: Prior,
        tasks: Sequence[Task],
        config: DIIPConfig,
        options: Options,
        should_stop: Callable[[], bool],
        write: Write,
    ):
        self.prior, self.tasks, self.config = prior, tasks, config
        self.options, self.should_stop, self.write = options, should_stop, write
        self.digest = plan.digest(prior, config, options)
        self.perceptual: reference.PerceptualMetric | None = None
        if options.reference is not None:
            self.perceptual = reference.perceptual_metric(
                options.lpips, options.lpips_weights
            )
        self.in_lanes: dict[int, _PhotoInLane] = {}
        self.num_done = 0
        self.pace = math.inf  # seconds per iteration
        self.look_pace = 0.0  # seconds per first look
        self.iterates = True  # the starts of the last chunk did, or will
        self.jobs = [self._job(index) for index in range(len(tasks))]
        self.areas = [math.prod(task.placement.canvas) for task in tasks]
        self.budgets = [diip.budget(config, task.placement.canvas) for task in tasks]
        self.largest = int(np.argmax(self.areas)) if tasks else 0

    def events(self) -> Iterator[Progress | Outcome]:
        num_starts = len(self.tasks) * self.config.num_starts
        prior, sharding = engine.spread(self.prior, self.options.num_lanes, num_starts)
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
        states, damage = {}, None
        try:
            states = self._saved_states(task)
        except resume.StateError as error:
            damage = error
        begun = {start: int(state.k) for start, state in states.items()}

        def load() -> np.ndarray:
            if damage is not None:
                raise damage
            # Again after memory ran out, where starts of it may have finished.
            if index not in self.in_lanes:
                self.in_lanes[index] = self._read(task, begun)
            return self.in_lanes[index].y

        key = plan.key(self.options.seed, task.source.relative)
        return engine.Job(task.placement.size, load, key, states)

    def _read(self, task: Task, begun: dict[int, int]) -> _PhotoInLane:
        max_pixels = self.options.max_pixels
        photo = images.read(task.source.content(), max_pixels=max_pixels)
        if record.sha256(task.source.content()) != task.sha256:
            raise ImageError(f"{task.source.path} changed during the run; run again")
        comparison = None
        if self.perceptual is not None and task.reference is not None:
            clean = images.read(task.reference, max_pixels=max_pixels).rgb
            comparison = reference.Comparison(self.perceptual, clean, photo)
        y = np.asarray(sizing.resize(photo.rgb, task.placement.size), np.float32)
        return _PhotoInLane(
            photo=photo,
            y=y,
            began=time.perf_counter(),
            comparison=comparison,
            resumed_from=sum(begun.values()),
            last_saved=begun,
            mean=ensemble.empty(y.shape),
        )

    def _saved_states(self, task: Task) -> dict[int, DIIPState]:
        """Return where the starts of a killed run stood, with the same settings."""
        compares = self.perceptual is not None
        if self.options.overwrite or compares or not task.keeps_states:
            return {}
        digest, states = self._state_digest(task), {}
        size = task.placement.size
        for start in range(self.config.num_starts):
            path = task.state_path(start)
            if resume.is_saved(path, digest):
                template = engine.abstract_state(self.prior, size, self.config)
                state = resume.load(path, template, digest)
                if state is not None:
                    states[start] = state
        return states

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
        if report.num_looks:
            self.look_pace = report.look_seconds / report.num_looks
        lanes = [*report.running, *report.finished]
        if lanes:
            self.iterates = any(n.num_iterations > 0 for n in lanes) or bool(
                report.running
            )
        for job in {lane.job for lane in lanes}:
            self._note_times(job, report)
        for lane in lanes:
            self._observe(lane, lane.job)
        yield self._progress(lanes, self._left(lanes))
        for failure in report.failed:
            self.in_lanes.pop(failure.job, None)
            yield self._done(Outcome(self.tasks[failure.job], error=str(failure.error)))
        for lane in report.finished:
            if self.perceptual is not None and not report.interrupted:
                yield from self._past_stop(lane)
            yield from self._take(lane)
        if report.interrupted:
            for index in [job for job, photo in self.in_lanes.items() if photo.starts]:
                yield self._done(self._finish(index))
        for lane in report.running:
            self._save_if_due(lane)
        if report.finished or report.failed:
            yield self._progress([], 0.0)

    def _take(self, lane: engine.LaneReport) -> Iterator[Outcome]:
        """Take a start into its photo, and finish the photo if it was the last one."""
        photo = self.in_lanes[lane.job]
        photo.add(lane, self.budgets[lane.job])
        if len(photo.starts) == self.config.num_starts and photo.complete:
            yield self._done(self._finish(lane.job))
        elif self.options.save_every:
            self._save_state(lane)

    def _note_times(self, job: int, report: engine.Report) -> None:
        photo = self.in_lanes[job]
        photo.num_iterations += report.iterations
        photo.seconds += report.seconds
        photo.look_seconds += report.look_seconds
        photo.compile_seconds += report.compile_seconds

    def _progress(self, lanes: list[engine.LaneReport], left: float) -> Progress:
        starts_done = len(self.in_lanes[lanes[0].job].starts) if lanes else 0
        return Progress(lanes, self.num_done, starts_done, self.pace, left)

    def _left(self, lanes: Sequence[engine.LaneReport]) -> float:
        """Return the seconds that the rest takes, by the areas of canvases."""
        if not lanes:
            return 0.0
        in_lanes = sum(self.areas[lane.job] for lane in lanes)
        # Before any iteration was timed, it is taken for so many looks.
        known = math.isfinite(self.pace)
        pace = self.pace if known else GRADIENT_COST * self.look_pace * len(lanes)
        looks = iterations = 0.0  # times areas

        def add(job: int, starts: int) -> None:
            nonlocal looks, iterations
            looks += starts * self.areas[job]
            iterations += starts * self.iterates * self.budgets[job] * self.areas[job]

        started = {lane.job for lane in lanes} | set(self.in_lanes)
        for job in started:
            done = len(self.in_lanes[job].starts) + sum(n.job == job for n in lanes)
            add(job, self.config.num_starts - done)
        for lane in lanes:
            budget = self.iterates * self.budgets[lane.job]
            left = max(budget - lane.num_iterations, 0)
            iterations += left * self.areas[lane.job]
        # Photos are taken canvas by canvas, so which ones wait is not told by their
        # index.
        waiting = len(self.tasks) - self.num_done - len(started)
        add(self.largest, waiting * self.config.num_starts)
        seconds = pace * iterations if iterations else 0.0
        return (seconds + self.look_pace * len(lanes) * looks) / in_lanes

    def _save_if_due(self, lane: engine.LaneReport) -> None:
        photo, done = self.in_lanes[lane.job], lane.num_iterations
        saved = photo.last_saved.get(lane.start, 0)
        if done - saved >= self.options.save_every > 0:
            photo.last_saved[lane.start] = done
            self._save_state(lane)

    # After: the answer, its file and its record.

    def _finish(self, index: int) -> Outcome:
        """Write a restored photo and its record."""
        task, photo = self.tasks[index], self.in_lanes.pop(index)
        complete = photo.complete and len(photo.starts) == self.config.num_starts
        restored = sizing.resize(photo.image(), task.size)
        content = self._record(task, photo, restored, complete)
        try:
            data = self._write(task, photo.photo, restored, content)
        except (ImageError, OSError) as error:
            return Outcome(task, error=str(error))
        if complete and task.keeps_states and not task.to_stdout:
            for start in range(self.config.num_starts):
                storage.remove(task.state_path(start))
        return Outcome(task, content, data=data)

    def _done(self, outcome: Outcome) -> Outcome:
        self.num_done += 1
        return outcome

    def _write(
        self, task: Task, photo: Photo, restored: np.ndarray, content: dict[str, Any]
    ) -> bytes | None:
        """Write the picture and its record; return the bytes for standard output."""
        kind, quality = images.file_format(task.output), self.options.quality
        try:
            data = images.encode(restored, photo, kind, quality=quality)
        except ImageError as error:
            raise ImageError(f"cannot write {task.output}: {error}") from error
        if task.to_stdout:
            return data
        self.write(task.output, data, content)
        return None

    def _save_state(self, lane: engine.LaneReport) -> None:
        task = self.tasks[lane.job]
        path = task.state_path(lane.start)
        resume.save(path, lane.snapshot(), self._state_digest(task))

    def _state_digest(self, task: Task) -> str:
        return f"{self.digest}-{task.sha256}"

    def _record(
        self,
        task: Task,
        photo: _PhotoInLane,
        restored: np.ndarray,
        complete: bool,
    ) -> dict[str, Any]:
        """Return the record of a restoration as JSON-ready values."""
        mode, first = task.placement.mode, photo.starts[0]
        change = record.change(photo.photo.rgb, restored)
        codes = record.warnings(photo.starts, complete, change, mode, photo.damage)
        lost = images.unkept(photo.photo, images.file_format(task.output))
        budget = diip.budget(self.config, task.placement.canvas)
        timing = {
            "compile_s": photo.compile_seconds,
            "total_s": time.perf_counter() - photo.began,
            "look_s": photo.look_seconds,
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
            "stop": record.stop(first, budget),
            "curves": record.curves(first),
            "work": record.restored_by(photo.starts, self.config),
            "found": record.found(photo.damage, ensemble.deviation(photo.mean)),
            "metrics": self._scores(photo, restored, budget),
            "change": change,
            "warnings": [*codes, *photo.photo.warnings, *lost],
            "timing": record.rounded(timing),
            "memory": record.memory(),
            "env": record.environment(),
        }

    # Against a clean image.

    def _past_stop(self, lane: engine.LaneReport) -> Iterator[Progress]:
        """Go on past the stop, only to learn what the best stop would have been."""
        ahead = reference.past_stop(
            self.prior,
            self.jobs[lane.job],
            lane.snapshot(),
            self.config,
            lane.start,
            should_stop=self.should_stop,
        )
        for later in ahead:
            later = later._replace(job=lane.job)
            self._observe(later, lane.job)
            yield self._progress([later], self._left([later]))

    def _observe(self, lane: engine.LaneReport, index: int) -> None:
        """Show an iteration's image, which at the stop may not be the answer."""
        task, comparison = self.tasks[index], self.in_lanes[index].comparison
        if comparison is not None:
            latest = reference.latest_image(lane.snapshot(), task.placement.size)
            image = sizing.resize(latest, task.size)
            comparison.observe(lane.iteration, image, lane.start)

    def _scores(
        self, photo: _PhotoInLane, restored: np.ndarray, budget: int
    ) -> dict[str, Any]:
        """Return the scores before and after, and the best stop's; None if unknown."""
        names = reference.score_names(self.options.lpips)
        scores: dict[str, float | None] = dict.fromkeys(names)
        missing = None
        if self.perceptual is not None and photo.comparison is not None:
            scores = photo.comparison.scores(restored, budget, self.config.num_starts)
            missing = self.perceptual.missing or None
        return record.scores(scores, missing)
