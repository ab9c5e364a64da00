"""Many images at once: lanes that advance together and are refilled as they finish.

`lax.while_loop` under `vmap` runs until its slowest lane is done. Here one jitted
function advances all lanes by a chunk of iterations, and a lane whose image is
finished takes the next one waiting. One image is the case of one lane.
"""

import collections
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diip_jax import canvas, diip
from diip_jax.compilation import cache_traces, compiler_options
from diip_jax.config import DIIPConfig
from diip_jax.prior import Prior
from diip_jax.signals import decrease


class Job(NamedTuple):
    """An image to restore.

    Attributes:
        size: its height and width.
        load: returns it, (H, W, 3) in [0, 1]; called when a lane takes the job, so
            that a folder need not fit in memory.
        key: key of its random start.
        state: where to go on, from `LaneReport.snapshot`; None for a new start.
    """

    size: tuple[int, int]
    load: Callable[[], np.ndarray]
    key: jax.Array
    state: diip.DIIPState | None = None


class Lanes(NamedTuple):
    """What the device holds: arrays with a leading axis of lanes.

    Attributes:
        y: degraded images on their canvas, (L, H, W, 3) in [-1, 1].
        state: a `diip.DIIPState`, stacked.
        alive: lanes that hold an unfinished image, (L,) bool.
    """

    y: jax.Array
    state: diip.DIIPState
    alive: jax.Array


class LaneReport(NamedTuple):
    """Where an image stands after a chunk.

    Attributes:
        job: index of the job.
        iteration: last iteration done, counted from 0.
        loss: its loss.
        decrease: its normalised decrease of the loss.
        sharpness: its variance of the Laplacian.
        restoration: returns the answer as it stands, on the host.
        snapshot: returns the whole state, on the host, to go on from later. Both are
            valid until the next report.
    """

    job: int
    iteration: int
    loss: float
    decrease: float
    sharpness: float
    restoration: Callable[[], diip.Restoration]
    snapshot: Callable[[], diip.DIIPState]


class Failure(NamedTuple):
    """A job that could not be started: its index and the reason."""

    job: int
    error: ValueError


class Report(NamedTuple):
    """What happened in a chunk.

    Attributes:
        running: one entry per image that goes on.
        finished: one entry per image that does not.
        failed: one entry per image that was not readable or not acceptable.
        interrupted: `should_stop` ended the run; unfinished images are in `finished`.
        iterations: iterations of the chunk, the same for every lane.
        seconds: time that they took, without compilation.
        compile_seconds: time to compile for these lanes, 0 if that was done before.
        lane_iterations: iterations computed so far, idle lanes included.
        useful_iterations: those that advanced an unfinished image.
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


def advance(
    prior: Prior,
    lanes: Lanes,
    config: DIIPConfig,
    num_iterations: jax.Array,
    min_alive: jax.Array,
) -> tuple[Lanes, jax.Array]:
    """Advance every unfinished lane until one of two things happens.

    Args:
        prior: the frozen model.
        lanes: the lanes.
        config: the settings.
        num_iterations: the chunk ends after so many iterations, ...
        min_alive: ... or as soon as fewer lanes than this are unfinished.

    Returns:
        The lanes and the number of iterations done.
    """
    _, height, width, _ = lanes.y.shape
    generate = canvas.generator(prior, config, (height, width))

    def step(y: jax.Array, state: diip.DIIPState, alive: jax.Array):
        algorithm = diip.build(generate, y, config)
        stepped = algorithm.step(state)
        state = jax.tree.map(
            lambda new, old: jnp.where(alive, new, old), stepped, state
        )
        return state, alive & algorithm.should_continue(state)

    def body(carry: tuple[Lanes, jax.Array]) -> tuple[Lanes, jax.Array]:
        lanes, done = carry
        state, alive = jax.vmap(step)(*lanes)
        return Lanes(lanes.y, state, alive), done + 1

    def should_continue(carry: tuple[Lanes, jax.Array]) -> jax.Array:
        lanes, done = carry
        return (done < num_iterations) & (lanes.alive.sum() >= min_alive)

    return lax.while_loop(should_continue, body, (lanes, jnp.int32(0)))


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
    options = compiler_options()
    return jax.jit(function, donate_argnames="lanes", compiler_options=options)


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
        sharding: of the lanes' leading axis over devices; the prior must be
            replicated over the same devices.
        should_stop: asked after every chunk; when true, unfinished jobs are reported
            as they stand and the rest is left undone.
        traces: folder that keeps what was traced for the next process; unused where
            there is a sharding.
    """
    config = prior.card.preset if config is None else config
    program = jitted_advance(traces if sharding is None else None)
    queues: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
    for index, job in enumerate(jobs):
        queues[canvas.canvas_size(prior, config, *job.size)].append(index)
    total = useful = 0
    for size, queue in queues.items():
        bucket = _Bucket(prior, jobs, config, size, queue, sharding, program, num_lanes)
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
    devices = jax.local_devices()
    count = min(len(devices), max(num_jobs, 1))
    while num_lanes is not None and num_lanes % count:
        count -= 1
    if count == 1:
        return prior, None
    mesh = jax.sharding.Mesh(np.asarray(devices[:count]), ("lanes",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    lanes = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("lanes"))
    return jax.device_put(prior, everywhere), lanes


class _Bucket:
    """The jobs of one canvas size: those waiting, and those in lanes."""

    def __init__(
        self,
        prior: Prior,
        jobs: Sequence[Job],
        config: DIIPConfig,
        size: tuple[int, int],
        queue: Sequence[int],
        sharding: jax.sharding.Sharding | None,
        program: Any,
        num_lanes: int | None,
    ):
        self.prior, self.jobs, self.config, self.size = prior, jobs, config, size
        self.waiting = collections.deque(queue)
        self.sharding, self.program = sharding, program
        self.num_devices = 1 if sharding is None else len(sharding.device_set)
        self.may_shrink = num_lanes is None  # where memory runs out
        if num_lanes is None:
            most = min(_largest_batch(), len(queue))
            num_lanes = fitting_lanes(prior, size, config, most, program)
        # Whose job each lane holds, and the lanes themselves.
        self.owners, self.lanes = self._empty_lanes(min(num_lanes, len(queue)))
        self.compiled = False  # for so many lanes

    def run(
        self, chunk: int | Callable[[], int], should_stop: Callable[[], bool]
    ) -> Iterator[Report]:
        """Restore all jobs; the counts of a report are those of its chunk."""
        failed: list[Failure] = []
        while self.waiting or self._busy():
            failed += self._refill()
            self._shrink()
            length = chunk() if callable(chunk) else chunk
            try:
                iterations, useful, seconds, compile_seconds = self._advance(length)
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
                compile_seconds=compile_seconds,
                lane_iterations=iterations * len(self.owners),
                useful_iterations=useful,
            )
            if interrupted:
                return
            failed = []

    def _busy(self) -> list[int]:
        return [lane for lane, owner in enumerate(self.owners) if owner is not None]

    def _empty_lanes(self, num_lanes: int) -> tuple[list[int | None], Lanes]:
        """Return empty lanes, a multiple of the number of devices, and no owners."""
        count = -(-num_lanes // self.num_devices) * self.num_devices
        lanes = _empty(self.size, self.config, count)
        # Committed to their device, as what a cached trace returns is: otherwise the
        # second chunk would be compiled again.
        return [None] * count, jax.device_put(lanes, lanes.alive.sharding)

    def _refill(self) -> list[Failure]:
        """Put waiting jobs into empty lanes; return those that cannot be started."""
        failed = []
        for lane in range(len(self.owners)):
            while self.owners[lane] is None and self.waiting:
                index = self.waiting.popleft()
                try:
                    start = _start(self.prior, self.jobs[index], self.size, self.config)
                except ValueError as error:  # one bad image must not stop the others
                    failed.append(Failure(index, error))
                    continue
                self.lanes = _insert(self.lanes, lane, *start)
                self.owners[lane] = index
        return failed

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
        self.compiled = False

    def _advance(self, length: int) -> tuple[int, int, float, float]:
        """Do a chunk; return iterations, useful ones, seconds, seconds to compile."""
        busy = self._busy()
        if not busy:
            return 0, 0, 0.0, 0.0
        if self.sharding is not None:
            self.lanes = jax.device_put(self.lanes, self.sharding)
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
        self.lanes, done = self.program(
            self.prior, self.lanes, self.config, length, min_alive
        )
        return int(done), time.perf_counter() - began  # int() waits for the device

    def _report(self, interrupted: bool) -> tuple[list[LaneReport], list[LaneReport]]:
        """Return the running and the finished lanes, and vacate the latter."""
        alive, now = jax.device_get((self.lanes.alive, _latest_numbers(self.lanes)))
        running, finished = [], []
        for lane in self._busy():
            index = self.owners[lane]
            assert index is not None  # busy
            size = self.jobs[index].size
            report = _lane_report(self.lanes, now, lane, index, size)
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
        self.compiled = False


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a device could not hold what it was to hold."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def _largest_batch() -> int:
    """Return how many lanes are worth having: more do not make a device busier."""
    return 4 if jax.default_backend() == "cpu" else 16


@functools.partial(jax.jit, static_argnames=("size", "num_lanes"))
def _empty(size: tuple[int, int], config: DIIPConfig, num_lanes: int) -> Lanes:
    """Return lanes without images, for canvases of this size."""
    blank = jnp.zeros((*size, 3), jnp.float32)
    state = diip.start(blank, jax.random.key(0), config)
    lane = Lanes(blank, state, jnp.bool_(False))
    return jax.tree.map(lambda a: jnp.repeat(a[None], num_lanes, axis=0), lane)


_begin = jax.jit(diip.start)


def abstract_state(
    prior: Prior, size: tuple[int, int], config: DIIPConfig
) -> diip.DIIPState:
    """Return shapes and dtypes of the state of an image of this height and width."""
    height, width = canvas.canvas_size(prior, config, *size)
    y = jax.ShapeDtypeStruct((height, width, 3), jnp.float32)
    return jax.eval_shape(_begin, y, jax.random.key(0), config)


def _start(
    prior: Prior, job: Job, size: tuple[int, int], config: DIIPConfig
) -> tuple[np.ndarray, diip.DIIPState]:
    """Return a job's image on its canvas, in [-1, 1], and its first state."""
    y = np.asarray(job.load(), np.float32)
    diip.check(prior, y, config)
    y = canvas.place(y, size)
    state = _begin(y, job.key, config) if job.state is None else job.state
    return y, state


@functools.partial(jax.jit, donate_argnames="lanes")
def _insert(lanes: Lanes, lane: int, y: jax.Array, state: diip.DIIPState) -> Lanes:
    """Put an image into a lane."""
    new = Lanes(y, state, jnp.bool_(True))
    return jax.tree.map(lambda a, b: a.at[lane].set(b), lanes, new)


@jax.jit
def _latest_numbers(lanes: Lanes) -> tuple[jax.Array, ...]:
    """Return iteration, loss, decrease and sharpness of each lane, each (L,)."""
    state = lanes.state
    last = jnp.maximum(state.k - 1, 0)[:, None]
    before = jnp.maximum(state.k - 2, 0)[:, None]

    def at(trace: jax.Array, k: jax.Array) -> jax.Array:
        return jnp.take_along_axis(trace, k, axis=1)[:, 0]

    loss, loss_before = at(state.losses, last), at(state.losses, before)
    sharpness = at(state.sharpnesses, last)
    return last[:, 0], loss, decrease(loss_before, loss), sharpness


def _lane_report(
    lanes: Lanes, now: tuple, lane: int, job: int, size: tuple[int, int]
) -> LaneReport:
    def restoration() -> diip.Restoration:
        answer = jax.device_get(_result(lanes, lane))
        return answer._replace(image=answer.image[: size[0], : size[1]])

    def snapshot() -> diip.DIIPState:
        return jax.device_get(jax.tree.map(lambda a: a[lane], lanes.state))

    k, loss, decrease, sharpness = (float(number[lane]) for number in now)
    return LaneReport(
        job=job,
        iteration=int(k),
        loss=loss,
        decrease=decrease,
        sharpness=sharpness,
        restoration=restoration,
        snapshot=snapshot,
    )


@jax.jit
def _result(lanes: Lanes, lane: int) -> diip.Restoration:
    state = jax.tree.map(lambda a: a[lane], lanes.state)
    _, height, width, _ = lanes.y.shape
    return diip.result(state, (height, width))


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
) -> Iterator[Moment]:
    """Restore one image and yield it as it develops; the last one is the answer.

    Args:
        prior: the frozen model.
        y: degraded image, (H, W, 3) in [0, 1].
        key: key of the random start, as for `diip.restore`.
        config: the settings; the prior's preset if None.
        every: iterations between two images.

    Raises:
        ValueError: the image cannot be restored.
    """
    job = Job((y.shape[0], y.shape[1]), lambda: y, key)
    for report in run(prior, [job], config, chunk=every):
        for failure in report.failed:
            raise failure.error
        for lane in [*report.running, *report.finished]:
            answer = lane.restoration()
            yield Moment(int(answer.iteration), lane.loss, np.asarray(answer.image))


def restore_many(
    prior: Prior,
    images: Sequence[np.ndarray],
    key: jax.Array,
    config: DIIPConfig | None = None,
    **options: Any,
) -> list[diip.Restoration]:
    """Restore images of any sizes; image i starts from `fold_in(key, i)`.

    Args:
        prior: the frozen model.
        images: degraded images, each (H, W, 3) in [0, 1].
        key: key of the random starts.
        config: the settings; the prior's preset if None.
        **options: `num_lanes`, `chunk` and `sharding` of `run`.

    Returns:
        Restorations in the order of the images, on the host.

    Raises:
        ValueError: an image cannot be restored.
    """
    jobs = [
        Job((y.shape[0], y.shape[1]), lambda y=y: y, jax.random.fold_in(key, i))
        for i, y in enumerate(images)
    ]
    done: dict[int, diip.Restoration] = {}
    for report in run(prior, jobs, config, **options):
        for failure in report.failed:
            raise failure.error
        done |= {lane.job: lane.restoration() for lane in report.finished}
    return [done[i] for i in range(len(jobs))]


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
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    lanes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device),
        jax.eval_shape(lambda c: _empty(side, c, num_lanes), config),
    )
    program = jitted_advance() if program is None else program
    plan = program.lower(prior, lanes, config, 0, 0).compile().memory_analysis()
    if plan is None:
        return None
    used = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return used + plan.temp_size_in_bytes - plan.alias_size_in_bytes


def fitting_lanes(
    prior: Prior,
    size: tuple[int, int],
    config: DIIPConfig,
    most: int,
    program: Any = None,
) -> int:
    """Return how many images of this size fit the device at once, at least 1.

    Halves from `most` until the compiled program's memory, as `memory` says it, is
    under nine tenths of what the device has.
    """
    available = _available_bytes()
    while most > 1 and available is not None:
        needed = memory(prior, size, config, most, program)
        if needed is None or needed <= 0.9 * available:
            break
        most //= 2
    return most


def _available_bytes() -> int | None:
    """Return the memory of the first device, None where it is not known."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats.get("bytes_limit")
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
