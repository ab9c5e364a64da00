"""Many images at once: lanes that advance together and are refilled as they finish.

`lax.while_loop` under `vmap` runs until its slowest lane is done. Here one jitted
function advances all lanes by a chunk of iterations, and a lane whose image is
finished takes the next one waiting. One image is the case of one lane.
"""

import collections
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diip_jax import canvas, devices, diip, matched
from diip_jax.compilation import cache_traces, compiler_options
from diip_jax.config import DIIPConfig
from diip_jax.prior import Prior
from diip_jax.signals import decrease

LARGE_CANVAS = 2**17  # pixels
# Of `memory`: bytes per feature of the network's first level, per weight of its finest
# attention, and per pixel of the canvas; without a gradient, and with one.
LOOK_BYTES, GRADIENT_BYTES, STATE_BYTES = 50, 250, 150
LOOK_ATTENTION, GRADIENT_ATTENTION = 5, 30


class Job(NamedTuple):
    """An image to restore.

    Attributes:
        size: its height and width.
        load: returns it, (H, W, 3) in [0, 1]; called when a lane takes its first start,
            so that a folder need not fit in memory. What it raises of `ValueError` and
            `OSError` is the failure of this job alone.
        key: key of its starts.
        states: where starts go on, by their index, from `LaneReport.snapshot`; the
            others begin. The budget may have changed since.
        starts: indices of the starts to do; all of the settings if None.
        config: settings of this image; those of the run if None. They may differ from
            those in numbers, the leaves of a `DIIPConfig`, and nothing compiles again.
    """

    size: tuple[int, int]
    load: Callable[[], np.ndarray]
    key: jax.Array
    states: Mapping[int, diip.DIIPState] = MappingProxyType({})
    starts: Sequence[int] | None = None
    config: DIIPConfig | None = None


class Lanes(NamedTuple):
    """What the device holds: arrays with a leading axis of lanes.

    Attributes:
        y: degraded images on their canvas, (L, H, W, 3) in [-1, 1].
        state: a `diip.DIIPState`, stacked.
        alive: lanes that hold an unfinished start, (L,) bool.
        seen: what the images say of themselves, without their noise maps; None where
            the settings do not ask.
        own: settings of each image, their numbers stacked; None where all have those of
            the run.
    """

    y: jax.Array
    state: diip.DIIPState
    alive: jax.Array
    seen: matched.Start | None = None
    own: DIIPConfig | None = None


class LaneReport(NamedTuple):
    """Where a start of an image stands after a chunk.

    Attributes:
        job: index of the job.
        start: index of the start.
        iteration: last iteration done, counted from 0; 0 where none is.
        num_iterations: how many are done; none where a first look sufficed.
        loss: its loss.
        decrease: its normalised decrease of the loss.
        sharpness: its variance of the Laplacian.
        damage: mean square of the image's damage, as for `diip.settle`.
        restoration: returns the answer as it stands, on the host.
        snapshot: returns the whole state, on the host, to go on from later. Both are
            valid until the next report.
    """

    job: int
    start: int
    iteration: int
    num_iterations: int
    loss: float
    decrease: float
    sharpness: float
    damage: float | None
    restoration: Callable[[], diip.Restoration]
    snapshot: Callable[[], diip.DIIPState]


class Failure(NamedTuple):
    """A job that could not be started: its index and the reason."""

    job: int
    error: ValueError | OSError


class Report(NamedTuple):
    """What happened in a chunk.

    Attributes:
        running: one entry per start that goes on.
        finished: one entry per start that does not.
        failed: one entry per image that was not readable or not acceptable.
        interrupted: `should_stop` ended the run; unfinished starts are in `finished`.
        iterations: iterations of the chunk, the same for every lane.
        seconds: time that they took, without compilation.
        compile_seconds: time to compile for these lanes, 0 if that was done before.
        lane_iterations: iterations computed so far, idle lanes included.
        useful_iterations: those that advanced an unfinished image.
        look_seconds: time of the first look at the images and at their starts.
        num_looks: how many starts had it.
    """

    running: list[LaneReport]
    finished: list[LaneReport]
    failed: list[Failure]
    interrupted: bool
    iterations: int
    seconds: float
    compile_seconds: float
    lane_iterations: int
    useful_iterations: int
    look_seconds: float = 0.0
    num_looks: int = 0


def advance(
    prior: Prior,
    lanes: Lanes,
    config: DIIPConfig,
    num_iterations: jax.Array,
    min_alive: jax.Array,
    parts: diip.Parts = diip.PARTS,
) -> tuple[Lanes, jax.Array]:
    """Advance every unfinished lane until one of two things happens.

    Args:
        prior: the frozen model.
        lanes: the lanes.
        config: the settings.
        num_iterations: the chunk ends after so many iterations, ...
        min_alive: ... or as soon as fewer lanes than this are unfinished.
        parts: generator, optimiser and criterion; static under `jit`.

    Returns:
        The lanes and the number of iterations done.
    """
    algorithm_of = _algorithms(prior, lanes, config, parts)

    def step(lane: Lanes) -> Lanes:
        algorithm = algorithm_of(lane)
        state = _where(lane.alive, algorithm.step(lane.state), lane.state)
        alive = lane.alive & algorithm.should_continue(state)
        return lane._replace(state=state, alive=alive)

    def body(carry: tuple[Lanes, jax.Array]) -> tuple[Lanes, jax.Array]:
        lanes, done = carry
        return jax.vmap(step)(lanes), done + 1

    def should_continue(carry: tuple[Lanes, jax.Array]) -> jax.Array:
        lanes, done = carry
        return (done < num_iterations) & (lanes.alive.sum() >= min_alive)

    return lax.while_loop(should_continue, body, (lanes, jnp.int32(0)))


def look(
    prior: Prior,
    lanes: Lanes,
    config: DIIPConfig,
    fresh: jax.Array,
    parts: diip.Parts = diip.PARTS,
) -> Lanes:
    """Take the first look at the starts that are fresh, (L,) bool."""
    algorithm_of = _algorithms(prior, lanes, config, parts)

    def look_at(lane: Lanes, fresh: jax.Array) -> Lanes:
        algorithm = algorithm_of(lane)
        state = _where(fresh, algorithm.look(lane.state), lane.state)
        return lane._replace(
            state=state, alive=lane.alive & algorithm.should_continue(state)
        )

    # A call without a fresh start only compiles, and is timed for that.
    return lax.cond(
        fresh.any(), jax.vmap(look_at), lambda lanes, _: lanes, lanes, fresh
    )


def _algorithms(
    prior: Prior, lanes: Lanes, config: DIIPConfig, parts: diip.Parts
) -> Callable[[Lanes], diip.Algorithm]:
    """Return what binds the algorithm to one lane."""
    _, height, width, _ = lanes.y.shape

    def settings(lane: Lanes) -> DIIPConfig:
        return config if lane.own is None else lane.own

    if lanes.seen is None:
        generate = parts.generator(prior, config, (height, width), None)
        return lambda lane: diip.build(generate, lane.y, settings(lane), parts=parts)
    return lambda lane: diip.bind(prior, lane.y, settings(lane), lane.seen, parts)


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


@functools.cache
def jitted_look(traces: Path | None = None) -> Any:
    """Return `look` jitted, as `jitted_advance` is."""
    function = look
    if traces is not None:
        function = cache_traces(look, traces, lambda prior, lanes, *_: lanes)
    return _jitted(function)


@functools.cache
def jitted_prepare(traces: Path | None = None) -> Any:
    """Return `matched.look` jitted for an image on its canvas."""
    function = matched.look
    if traces is not None:
        function = cache_traces(matched.look, traces, matched.abstract)
    return jax.jit(function, compiler_options=compiler_options())


@functools.cache
def jitted_advance(traces: Path | None = None) -> Any:
    """Return `advance` jitted for this backend; made late, as it asks for the backend.

    The buffers of the lanes that it is given are reused.

    Args:
        traces: folder that keeps its traces for other processes; for one device alone.
    """
    function = advance
    if traces is not None:
        function = cache_traces(advance, traces, lambda prior, lanes, *_: (lanes, 0))
    return _jitted(function)


def _jitted(function: Callable[..., Any]) -> Any:
    return jax.jit(
        function,
        static_argnames="parts",
        donate_argnames="lanes",
        compiler_options=compiler_options(),
    )


def run(
    prior: Prior,
    jobs: Sequence[Job],
    config: DIIPConfig | None = None,
    *,
    num_lanes: int | None = 1,
    chunk: int | Callable[[], int] = 10,
    sharding: jax.sharding.Sharding | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    traces: Path | None = None,
    parts: diip.Parts = diip.PARTS,
) -> Iterator[Report]:
    """Restore jobs, those with the same canvas together, and report every chunk.

    Args:
        prior: the frozen model.
        jobs: the images.
        config: the settings; the prior's preset if None.
        num_lanes: images worked on at the same time. None: as many as the device's
            memory holds, by the compiled program's own account; if it runs out all the
            same, half as many. A number given is never changed.
        chunk: iterations between reports, or a function that is asked for their
            number before each chunk; it never compiles again.
        sharding: of the lanes' leading axis over devices, to which the prior is copied.
            None: lanes live where the prior lives.
        should_stop: asked after every chunk; when true, unfinished jobs are reported
            as they stand and the rest is left undone.
        traces: folder that keeps what was traced for the next process; unused where
            there are several devices, or parts that are not the paper's.
        parts: generator, optimiser and criterion in the place of the paper's.

    Raises:
        ValueError: an option or a setting is not possible, or a job's settings differ
            from the run's in more than numbers.
    """
    config = prior.card.preset if config is None else config
    diip.check_config(config)
    for index, job in enumerate(jobs):
        _check_own(index, job.config, config)
    if num_lanes is not None:
        diip.check_count("num_lanes", num_lanes)
    if not callable(chunk):
        diip.check_count("chunk", chunk)
    at = devices.home(prior) if sharding is None else devices.automatic(sharding)
    prior = devices.put(prior, None if sharding is None else devices.whole(at))
    programs = _programs(traces if len(at.device_set) == 1 else None, parts)
    queues: dict[tuple[int, int], list[_Owner]] = collections.defaultdict(list)
    for index, job in enumerate(jobs):
        starts = range(config.num_starts) if job.starts is None else job.starts
        canvas_of = canvas.canvas_size(prior, config, *job.size)
        queues[canvas_of] += [_Owner(index, start) for start in starts]
    buckets = (
        _Bucket(prior, jobs, config, size, queue, at, programs, parts, num_lanes)
        for size, queue in queues.items()
    )
    return _reports(buckets, chunk, should_stop)


def _check_own(index: int, own: DIIPConfig | None, config: DIIPConfig) -> None:
    """Reject settings of a job for which the run's programs are not made."""
    if own is None:
        return
    diip.check_config(own)
    for field in dataclasses.fields(config):
        name = field.name
        if field.metadata.get("pytree_node", True):
            continue
        if (found := getattr(own, name)) != (wanted := getattr(config, name)):
            raise ValueError(
                f"job {index} has {name} {found!r}, but the run has {wanted!r}; images "
                "of one run differ in numbers alone, such as learning_rate"
            )


def _reports(
    buckets: "Iterator[_Bucket]",
    chunk: int | Callable[[], int],
    should_stop: Callable[[], bool],
) -> Iterator[Report]:
    """Restore one bucket after the other; the counts are those of the whole run."""
    total = useful = 0
    for bucket in buckets:
        for report in bucket.run(chunk, should_stop):
            total += report.lane_iterations
            useful += report.useful_iterations
            yield report._replace(lane_iterations=total, useful_iterations=useful)
            if report.interrupted:
                return


def spread(
    prior: Prior, num_lanes: int | None, num_jobs: int
) -> tuple[Prior, jax.sharding.NamedSharding | None]:
    """Copy a prior to as many local devices as can share the lanes evenly.

    Args:
        prior: the frozen model.
        num_lanes: as for `run`.
        num_jobs: no more devices than this are of use.

    Returns:
        The prior and the sharding to give to `run`; with one device, the prior as it is
        and None.
    """
    local = jax.local_devices()
    count = min(len(local), max(num_jobs, 1))
    while num_lanes is not None and num_lanes % count:
        count -= 1
    if count == 1:
        return prior, None
    mesh = jax.sharding.Mesh(np.asarray(local[:count]), ("lanes",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    lanes = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("lanes"))
    return jax.device_put(prior, everywhere), lanes


class _Owner(NamedTuple):
    """Whose start a lane holds: indices of job and start."""

    job: int
    start: int


class _Programs(NamedTuple):
    """What is compiled: the look at an image, at its starts, and their iterations."""

    prepare: Any
    look: Any
    advance: Any


def _programs(traces: Path | None, parts: diip.Parts) -> _Programs:
    if parts == diip.PARTS:
        return _Programs(
            jitted_prepare(traces), jitted_look(traces), jitted_advance(traces)
        )
    own_look, own_advance = (
        functools.partial(program(), parts=parts)
        for program in (jitted_look, jitted_advance)
    )
    return _Programs(jitted_prepare(traces), own_look, own_advance)


class _Bucket:
    """The starts of one canvas size: those waiting, and those in lanes."""

    def __init__(
        self,
        prior: Prior,
        jobs: Sequence[Job],
        config: DIIPConfig,
        size: tuple[int, int],
        queue: Sequence[_Owner],
        at: jax.sharding.Sharding,
        programs: _Programs,
        parts: diip.Parts,
        num_lanes: int | None,
    ):
        self.prior, self.jobs, self.config, self.size = prior, jobs, config, size
        self.parts = parts
        self.has_own = any(job.config is not None for job in jobs)
        self.waiting = collections.deque(queue)
        self.budget = diip.budget(config, size)
        self.at, self.programs = at, programs
        self.image: _Image | None = None  # the last one that a lane took
        # Lanes that are whole on each device need not be shared out evenly.
        self.num_devices = 1 if at.is_fully_replicated else len(at.device_set)
        self.may_shrink = num_lanes is None  # where memory runs out
        if num_lanes is None:
            most = min(_largest_batch(size), -(-len(queue) // self.num_devices))
            num_lanes = fitting_lanes(prior, size, config, most) * self.num_devices
        # Whose job each lane holds, and the lanes themselves.
        self.owners, self.lanes = self._empty_lanes(min(num_lanes, len(queue)))
        self.compiled = self.compiled_look = False  # for so many lanes

    def run(
        self, chunk: int | Callable[[], int], should_stop: Callable[[], bool]
    ) -> Iterator[Report]:
        """Restore all jobs; the counts of a report are those of its chunk."""
        failed: list[Failure] = []
        while self.waiting or self._busy():
            fresh, failures = self._refill()
            failed += failures
            self._shrink()
            length = chunk() if callable(chunk) else chunk
            diip.check_count("chunk", length)
            try:
                look_seconds, first = self._look(fresh)
                iterations, useful, seconds, second = self._advance(length)
            except jax.errors.JaxRuntimeError as error:
                least = len(self.owners) <= self.num_devices
                if least or not self.may_shrink or not is_out_of_memory(error):
                    raise
                self._start_over(len(self.owners) // 2)
                continue
            interrupted = should_stop()
            running, finished = self._report(interrupted)
            yield Report(
                running=running,
                finished=finished,
                failed=failed,
                interrupted=interrupted,
                iterations=iterations,
                seconds=seconds,
                compile_seconds=first + second,
                lane_iterations=iterations * len(self.owners),
                useful_iterations=useful,
                look_seconds=look_seconds,
                num_looks=len(fresh),
            )
            if interrupted:
                return
            failed = []

    def _busy(self) -> list[int]:
        return [lane for lane, owner in enumerate(self.owners) if owner is not None]

    def _empty_lanes(self, num_lanes: int) -> tuple[list[_Owner | None], Lanes]:
        """Return empty lanes, a multiple of the number of devices, and no owners."""
        count = -(-num_lanes // self.num_devices) * self.num_devices
        shapes = _abstract_lanes(
            self.size, self.config, count, self.parts, has_own=self.has_own
        )
        # Zeros of the host: those of the device would be a program to compile.
        lanes = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
        # Committed to their device, as what a cached trace returns is: otherwise the
        # second chunk would be compiled again.
        return [None] * count, jax.device_put(lanes, self.at)

    def _refill(self) -> tuple[list[int], list[Failure]]:
        """Put waiting starts into empty lanes; return those lanes, and failed jobs."""
        fresh, failed = [], []
        for lane in range(len(self.owners)):
            while self.owners[lane] is None and self.waiting:
                owner = self.waiting.popleft()
                try:
                    new = self._lane(self._image_of(owner.job), owner)
                # One bad image must not stop the others.
                except (ValueError, OSError) as error:
                    failed.append(Failure(owner.job, error))
                    self._forget(owner.job)
                    continue
                if owner.start not in self.jobs[owner.job].states:
                    fresh.append(lane)
                new = devices.put(new, devices.whole(self.at))
                self.lanes = _insert(self.lanes, lane, new)
                self.owners[lane] = owner
        return fresh, failed

    def _lane(self, image: "_Image", owner: _Owner) -> Lanes:
        """Return one lane with a start of an image, where it begins or goes on."""
        job, schedule = self.jobs[owner.job], self.prior.card.schedule
        config, parts = self._settings(job), self.parts
        if owner.start in job.states:
            state = diip.resumed(job.states[owner.start], self.size, config, parts)
        else:
            key = devices.put(job.key, devices.whole(self.at))
            which = schedule, owner.start, parts
            state = _begin(image.y, key, config, image.seen, *which)
        seen = None if image.seen is None else image.seen._replace(noise=None)
        alive = diip.is_unfinished(state, self.budget)
        own = _numbers(config) if self.has_own else None
        return Lanes(jnp.asarray(image.y), state, alive, seen, own)

    def _settings(self, job: Job) -> DIIPConfig:
        return self.config if job.config is None else job.config

    def _image_of(self, index: int) -> "_Image":
        """Return a job's image on its canvas, with what it says; the last one is kept.

        Raises:
            ValueError: it cannot be loaded or restored.
            OSError: it cannot be loaded.
        """
        if self.image is None or self.image.job != index:
            job = self.jobs[index]
            config = self._settings(job)
            y = np.asarray(job.load())
            diip.check(self.prior, y, config)
            if y.shape[:2] != tuple(job.size):
                raise ValueError(
                    f"image has height and width {y.shape[:2]}, but its job says "
                    f"{tuple(job.size)}; give the size of what load returns"
                )
            y, seen = canvas.place(y.astype(np.float32), self.size), None
            if matched.is_needed(config):
                seen = self.programs.prepare(self.prior, jnp.asarray(y), config)
            self.image = _Image(index, y, seen)
        return self.image

    def _forget(self, index: int) -> None:
        """Let the other starts of a job that failed wait no longer."""
        self.waiting = collections.deque(o for o in self.waiting if o.job != index)

    def _look(self, fresh: Sequence[int]) -> tuple[float, float]:
        """Take the first look at starts just put into lanes, where there is one.

        Returns:
            Seconds that it took, and seconds to compile.
        """
        if not fresh or self.config.criterion != "discrepancy":
            return 0.0, 0.0
        self._spread_lanes()
        compile_seconds = 0.0
        if not self.compiled_look:
            compile_seconds = self._timed_look([])
            self.compiled_look = True
        return self._timed_look(fresh), compile_seconds

    def _timed_look(self, fresh: Sequence[int]) -> float:
        began = time.perf_counter()
        mask = np.isin(np.arange(len(self.owners)), fresh)
        self.lanes = self.programs.look(self.prior, self.lanes, self.config, mask)
        jax.block_until_ready(self.lanes.alive)
        return time.perf_counter() - began

    def _spread_lanes(self) -> None:
        self.lanes = jax.device_put(self.lanes, self.at)

    def _shrink(self) -> None:
        """Drop idle lanes once nothing waits and half of them are idle."""
        busy = self._busy()
        count = -(-len(busy) // self.num_devices) * self.num_devices
        if not busy or self.waiting or count > len(self.owners) // 2:
            return
        idle = [lane for lane in range(len(self.owners)) if lane not in busy]
        keep = (busy + idle)[:count]
        self.lanes = jax.tree.map(lambda a: a[np.asarray(keep)], self.lanes)
        self.owners = [self.owners[lane] for lane in keep]
        self.compiled = self.compiled_look = False

    def _advance(self, length: int) -> tuple[int, int, float, float]:
        """Do a chunk; return iterations, useful ones, seconds, seconds to compile."""
        busy = self._busy()
        if not busy or not self.lanes.alive.any():
            return 0, 0, 0.0, 0.0
        self._spread_lanes()
        compile_seconds = 0.0
        if not self.compiled:  # no iteration: no chunk's time is to hold compilation
            _, compile_seconds = self._timed_advance(0, 0)
            self.compiled = True
        before = int(self.lanes.state.k.sum())
        min_alive = len(busy) if self.waiting else 1
        iterations, seconds = self._timed_advance(length, min_alive)
        useful = int(self.lanes.state.k.sum()) - before
        return iterations, useful, seconds, compile_seconds

    def _timed_advance(self, length: int, min_alive: int) -> tuple[int, float]:
        began = time.perf_counter()
        self.lanes, done = self.programs.advance(
            self.prior, self.lanes, self.config, length, min_alive
        )
        return int(done), time.perf_counter() - began  # int() waits for the device

    def _report(self, interrupted: bool) -> tuple[list[LaneReport], list[LaneReport]]:
        """Return the running and the finished lanes, and vacate the latter."""
        damage = diip.known_damage(self.config, self.lanes.seen)
        alive, now, damage = jax.device_get(
            (self.lanes.alive, _latest_numbers(self.lanes), damage)
        )
        running, finished = [], []
        for lane in self._busy():
            owner = self.owners[lane]
            assert owner is not None  # busy
            size = self.jobs[owner.job].size
            numbers = [float(number[lane]) for number in now]
            known = None if damage is None else float(damage[lane])
            place = _Lane(self.lanes, lane, self.budget)
            report = _lane_report(place, numbers, known, owner, size)
            if alive[lane] and not interrupted:
                running.append(report)
            else:
                finished.append(report)
                self.owners[lane] = None
        return running, finished

    def _start_over(self, num_lanes: int) -> None:
        """Put unfinished jobs back into the queue, for fewer lanes."""
        unfinished = [owner for owner in self.owners if owner is not None]
        self.waiting.extendleft(reversed(unfinished))
        self.owners, self.lanes = self._empty_lanes(num_lanes)
        self.compiled = self.compiled_look = False


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a device could not hold what it was to hold."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def _largest_batch(size: tuple[int, int]) -> int:
    """Return how many lanes are worth having: more do not make a device busier."""
    if jax.default_backend() != "cpu":
        return 16
    # A large canvas keeps all cores busy; alone, it gives a first result earlier.
    return 4 if math.prod(size) <= LARGE_CANVAS else 1


def _numbers(config: DIIPConfig) -> DIIPConfig:
    """Return settings with the numbers that iterations use, float32 under x64 too."""
    looked = config.replace(start_noise=None, noise_level=None)  # only of the look at y
    return jax.tree.map(jnp.float32, looked)


def _abstract_lanes(
    size: tuple[int, int],
    config: DIIPConfig,
    num_lanes: int,
    parts: diip.Parts = diip.PARTS,
    *,
    has_own: bool = False,
) -> Lanes:
    """Return shapes and dtypes of lanes for canvases of this size."""

    def lane(config: DIIPConfig) -> Lanes:
        blank, seen = jnp.zeros((*size, 3), jnp.float32), None
        if matched.is_needed(config):
            timesteps = jnp.zeros(config.num_steps, jnp.int32)
            seen = matched.Start(None, timesteps, jnp.float32(0))
        state = diip.start(blank, jax.random.key(0), config, parts=parts)
        own = _numbers(config) if has_own else None
        return Lanes(blank, state, jnp.bool_(False), seen, own)

    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((num_lanes, *a.shape), a.dtype),
        jax.eval_shape(lane, config),
    )


_begin = jax.jit(diip.start, static_argnames=("schedule", "parts"))


def abstract_state(
    prior: Prior, size: tuple[int, int], config: DIIPConfig
) -> diip.DIIPState:
    """Return shapes and dtypes of the state of an image of this height and width."""
    height, width = canvas.canvas_size(prior, config, *size)
    y = jax.ShapeDtypeStruct((height, width, 3), jnp.float32)
    return jax.eval_shape(_begin, y, jax.random.key(0), config)


class _Image(NamedTuple):
    """A job's image on its canvas, in [-1, 1], and what it says of itself."""

    job: int
    y: np.ndarray
    seen: matched.Start | None


@functools.partial(jax.jit, donate_argnames="lanes")
def _insert(lanes: Lanes, lane: int, new: Lanes) -> Lanes:
    """Put a start into a lane."""
    return jax.tree.map(lambda a, b: a.at[lane].set(b), lanes, new)


@jax.jit
def _latest_numbers(lanes: Lanes) -> tuple[jax.Array, ...]:
    """Return iterations done, loss, decrease and sharpness of each lane, each (L,)."""
    state = lanes.state
    last = jnp.maximum(state.k - 1, 0)[:, None]
    before = jnp.maximum(state.k - 2, 0)[:, None]

    def at(trace: jax.Array, k: jax.Array) -> jax.Array:
        return jnp.take_along_axis(trace, k, axis=1)[:, 0]

    loss, loss_before = at(state.losses, last), at(state.losses, before)
    sharpness = at(state.sharpnesses, last)
    return state.k, loss, decrease(loss_before, loss), sharpness


class _Lane(NamedTuple):
    """One of the lanes, and the iterations that its start may have."""

    lanes: Lanes
    index: int
    budget: int


def _lane_report(
    lane: _Lane,
    numbers: Sequence[float],
    damage: float | None,
    owner: _Owner,
    size: tuple[int, int],
) -> LaneReport:
    def restoration() -> diip.Restoration:
        answer = jax.device_get(_result(*lane))
        height, width = size
        return answer._replace(
            image=answer.image[:height, :width],
            uncertainty=answer.uncertainty[:height, :width],
        )

    def snapshot() -> diip.DIIPState:
        state = lane.lanes.state
        return jax.device_get(jax.tree.map(lambda a: a[lane.index], state))

    k, loss, decrease, sharpness = numbers
    return LaneReport(
        job=owner.job,
        start=owner.start,
        iteration=max(int(k) - 1, 0),
        num_iterations=int(k),
        loss=loss,
        decrease=decrease,
        sharpness=sharpness,
        damage=damage,
        restoration=restoration,
        snapshot=snapshot,
    )


@jax.jit
def _result(lanes: Lanes, lane: int, budget: int) -> diip.Restoration:
    state = jax.tree.map(lambda a: a[lane], lanes.state)
    _, height, width, _ = lanes.y.shape
    return diip.result(state, (height, width), budget)


class Moment(NamedTuple):
    """A restoration on its way: iteration, loss, and image (H, W, 3) in [0, 1]."""

    iteration: int
    loss: float
    image: np.ndarray


def iterate(
    prior: Prior,
    y: np.ndarray,
    key: jax.Array,
    config: DIIPConfig | None = None,
    *,
    every: int = 10,
    parts: diip.Parts = diip.PARTS,
) -> Iterator[Moment]:
    """Restore one image and yield it as it develops; the last one is the answer.

    Args:
        prior: the frozen model.
        y: degraded image, (H, W, 3) in [0, 1].
        key: key of the random start, as for `diip.restore`.
        config: the settings; the prior's preset if None.
        every: iterations between two images.
        parts: as for `run`.

    Raises:
        ValueError: the image cannot be restored so.
    """
    diip.check_count("every", every)
    job = Job((y.shape[0], y.shape[1]), lambda: y, key)
    answers: dict[int, diip.Restoration] = {}
    for report in run(prior, [job], config, chunk=every, parts=parts):
        for failure in report.failed:
            raise failure.error
        for lane in [*report.running, *report.finished]:
            answers[lane.start] = lane.restoration()
            image = combine(list(answers.values()), y, lane.damage).image
            yield Moment(lane.iteration, lane.loss, np.asarray(image))


def combine(
    starts: Sequence[diip.Restoration], y: np.ndarray, damage: float | None
) -> diip.Restoration:
    """Return the restoration that starts of one image make together, on the host.

    Args:
        starts: what their lanes report, one or more.
        y: degraded image, (H, W, 3) in [0, 1].
        damage: as a lane reports it.
    """
    if len(starts) == 1:
        (alone,) = starts
        return alone._replace(image=np.asarray(diip.settle(alone.image, y, damage)))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    return jax.device_get(diip.average(stacked, y, damage))


def restore_many(
    prior: Prior,
    images: Sequence[np.ndarray],
    key: jax.Array,
    config: DIIPConfig | Sequence[DIIPConfig] | None = None,
    *,
    num_lanes: int | None = 1,
    chunk: int | Callable[[], int] = 10,
    sharding: jax.sharding.Sharding | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    traces: Path | None = None,
    parts: diip.Parts = diip.PARTS,
) -> list[diip.Restoration]:
    """Restore images of any sizes; image i starts from `fold_in(key, i)`.

    Args:
        prior: the frozen model.
        images: degraded images, each (H, W, 3) in [0, 1].
        key: key of the random starts.
        config: the settings, or one for each image, which differ in numbers alone; the
            prior's preset if None.
        num_lanes: as for `run`, like what follows.
        chunk: iterations between two questions to `should_stop`.
        sharding: of the lanes over devices.
        should_stop: when true, images are returned as they stand, those that were not
            begun as they came, for `StopReason.INTERRUPTED`.
        traces: folder that keeps what was traced.
        parts: in the place of the paper's.

    Returns:
        Restorations in the order of the images, on the host.

    Raises:
        ValueError: an image cannot be restored; nothing was begun.
    """
    images = [np.asarray(y) for y in images]
    config, own = _run_s_and_own(prior, config, len(images))
    _check_images(prior, images, [config if c is None else c for c in own])
    jobs = [
        Job((y.shape[0], y.shape[1]), lambda y=y: y, jax.random.fold_in(key, i))
        for i, y in enumerate(images)
    ]
    jobs = [job._replace(config=c) for job, c in zip(jobs, own, strict=True)]
    done: list[dict[int, diip.Restoration]] = [{} for _ in jobs]
    damage: dict[int, float | None] = {}
    for report in run(
        prior,
        jobs,
        config,
        num_lanes=num_lanes,
        chunk=chunk,
        sharding=sharding,
        should_stop=should_stop,
        traces=traces,
        parts=parts,
    ):
        for failure in report.failed:
            raise failure.error
        for lane in report.finished:
            done[lane.job][lane.start] = lane.restoration()
            damage[lane.job] = lane.damage
    answers = []
    for i, y in enumerate(images):
        starts = [done[i][start] for start in sorted(done[i])]
        starts = starts or [_not_begun(y, jobs[i].key, config, parts)]
        answers.append(combine(starts, y, damage.get(i)))
    return answers


def _run_s_and_own(
    prior: Prior, config: DIIPConfig | Sequence[DIIPConfig] | None, count: int
) -> tuple[DIIPConfig, Sequence[DIIPConfig | None]]:
    """Return the settings of a run, and of each of its images where they have some."""
    if config is None or isinstance(config, DIIPConfig):
        config = prior.card.preset if config is None else config
        diip.check_config(config)
        return config, [None] * count
    if len(config) != count:
        raise ValueError(
            f"there are {len(config)} settings for {count} images; give one for each, "
            "or one for all"
        )
    return config[0] if config else prior.card.preset, config


def _check_images(
    prior: Prior, images: Sequence[np.ndarray], configs: Sequence[DIIPConfig]
) -> None:
    """Reject images that cannot be restored, and say which."""
    for i, (y, config) in enumerate(zip(images, configs, strict=True)):
        try:
            diip.check(prior, y, config)
        except ValueError as error:
            raise ValueError(f"image {i}: {error}") from error


def _not_begun(
    y: np.ndarray, key: jax.Array, config: DIIPConfig, parts: diip.Parts
) -> diip.Restoration:
    """Return the answer of an image that no lane took: the image itself."""
    height, width, _ = y.shape
    state = _begin(y.astype(np.float32), key, config, parts=parts)
    return jax.device_get(diip.result(state, (height, width), budget=1))._replace(
        image=y.astype(np.float32)
    )


def memory(
    prior: Prior,
    size: tuple[int, int],
    config: DIIPConfig,
    num_lanes: int = 1,
    program: Any = None,
) -> int | None:
    """Return the bytes that restoring images of this size takes on the device.

    As the compiler plans it, weights included; nothing is run, but the program is
    compiled. None where the backend does not say.

    Args:
        prior: the frozen model.
        size: height and width of the images.
        config: the settings.
        num_lanes: images restored at the same time.
        program: what advances the lanes; `jitted_advance()` if None.
    """
    side = canvas.canvas_size(prior, config, *size)
    at = devices.home(prior)
    prior = devices.put(prior)
    lanes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at),
        _abstract_lanes(side, config, num_lanes),
    )
    program = jitted_advance() if program is None else program
    plan = program.lower(prior, lanes, config, 0, 0).compile().memory_analysis()
    if plan is None:
        return None
    used = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return used + plan.temp_size_in_bytes - plan.alias_size_in_bytes


def rough_memory(
    prior: Prior, size: tuple[int, int], config: DIIPConfig, num_lanes: int = 1
) -> int:
    """Return about the bytes of `memory`, at once: nothing is compiled.

    By the features that a lane's network makes at its first level, and by the weights
    of its attention at its finest one.

    Args:
        prior: the frozen model.
        size: height and width of the images.
        config: the settings.
        num_lanes: images restored at the same time.
    """
    side = canvas.canvas_size(prior, config, *size)
    leaves = jax.tree.leaves(prior.params)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    pixels = math.prod(side)
    window = config.tile**2 if canvas.is_tiled(prior, config, side) else pixels
    steps = 1 if canvas.recomputes_steps(prior, config, side) else config.num_steps
    architecture = prior.card.architecture
    features = window * architecture.num_channels
    attention = canvas.attention_weights(architecture, window)
    network = LOOK_BYTES * features + LOOK_ATTENTION * attention
    if diip.budget(config, side) > 0 and config.gradient != "frozen":
        kept = GRADIENT_BYTES * features + GRADIENT_ATTENTION * attention
        network = kept * (1 if window < pixels else steps)
    return weights + num_lanes * (network + STATE_BYTES * pixels)


def fitting_lanes(
    prior: Prior, size: tuple[int, int], config: DIIPConfig, most: int
) -> int:
    """Return how many images of this size fit the device at once, at least 1.

    Halves from `most` until `rough_memory` is under six tenths of what the device has.
    """
    available = _available_bytes(devices.home(prior))
    while most > 1 and available is not None:
        if rough_memory(prior, size, config, most) <= 0.6 * available:
            break
        most //= 2
    return most


def _available_bytes(at: jax.sharding.Sharding) -> int | None:
    """Return the memory of one device of these, None where it is not known."""
    device = min(at.addressable_devices, key=lambda device: device.id)
    stats = device.memory_stats()
    if stats is not None:
        return stats.get("bytes_limit")
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        pages = os.sysconf("SC_AVPHYS_PAGES") // len(jax.local_devices())
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None
