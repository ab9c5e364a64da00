"""The command on many machines: photos of a store through Ray Data, and back.

The driver lists, groups photos by their canvas and tells how it goes. Tasks read
photos and decide what is to be done, one actor for each device restores them in the
engine's lanes, and tasks write pictures and records. What fails is a row with an
error. A row that never came back, because its machine died too often, is tried again
alone.

Ray is imported here alone, and only when a cluster is asked for. Between machines go
Arrow tables; nothing that is read from a store is unpickled.
"""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import math
import os
import queue
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import ExifTags, Image

from diip_jax import addresses, engine, entries, images, storage
from diip_jax import prior as priors
from diip_jax.addresses import Address
from diip_jax.config import DIIPConfig
from diip_jax.images import ImageError
from diip_jax.photos import command, find, ledger, plan, record, sizing
from diip_jax.photos.command import LESS_MEMORY, Summary
from diip_jax.photos.plan import Options, Task
from diip_jax.photos.run import Outcome, restore_photos, write_files
from diip_jax.photos.terminal import Stopper, Terminal
from diip_jax.prior import Prior

LOCAL = "local"  # names a Ray of this machine's own
PHOTOS_PER_BATCH = 64  # a few times the lanes, so that they are refilled
PIXELS_PER_BATCH = 2**26  # so that a batch fits in memory
BATCHES_PER_WORKER = 4  # at least, where there are so many photos
LOOKS_PER_TASK = 2000
HEADER_BYTES = 2**16
REQUESTS = 16  # of a task, that do not wait for each other
TASK_CPUS = 0.25  # a task that reads or writes mostly waits
SMALLEST_TILE = 64
PLACED = (".json", *images.WRITERS)  # suffixes of what is written
REACH_SECONDS = 10
RETRIES = 3  # of a batch whose machine died, before its photos are tried alone


class ClusterError(RuntimeError):
    """There is no such cluster, or it has no room."""


class Cluster(NamedTuple):
    """Which machines, and how they are used.

    Attributes:
        address: of Ray, "auto" or "local".
        num_workers: actors that restore; None for one per device.
        devices_per_worker: accelerators of each.
        device: kind of device, as of --device.
        cache: folder of compiled programs and traces that the workers share, if any.
    """

    address: str
    num_workers: int | None = None
    devices_per_worker: int = 1
    device: str = "auto"
    cache: Path | None = None


class Work(NamedTuple):
    """What every worker is told.

    Attributes:
        prior: name, folder or address, as its machine finds it.
        config: the settings.
        options: of the command.
        output: the folder of all outputs.
        records: whether the driver wants the records, not only how it ended.
    """

    prior: str
    config: DIIPConfig
    options: Options
    output: Path
    records: bool


class Photo(NamedTuple):
    """A photo to restore, as the driver knows it.

    Attributes:
        source: of `find.sources`.
        stem: where its output goes, without the extension.
        version: what the listing tells of its content.
        is_free: the listing of the output has no record for it, and no picture of any
            format.
    """

    source: find.Source
    stem: Path
    version: str | None
    is_free: bool


class Layout(NamedTuple):
    """How the actors are spread.

    Attributes:
        num_workers: how many.
        demands: what Ray is asked for each of them.
    """

    num_workers: int
    demands: dict[str, Any]


def layout(resources: Mapping[str, float], num_nodes: int, cluster: Cluster) -> Layout:
    """Return how many actors there are, and what each takes, by what Ray has.

    Args:
        resources: of the whole cluster, as Ray names them.
        num_nodes: machines; on CPUs each has one actor, which uses all its cores.
        cluster: what was asked for.

    Raises:
        ClusterError: there is no room for so many.
    """
    for kind, demand in (("GPU", _gpus), ("TPU", _tpus)):
        each = cluster.devices_per_worker
        most = int(resources.get(kind, 0) // each)
        if most and cluster.device in ("auto", kind.lower()):
            count = most if cluster.num_workers is None else cluster.num_workers
            if count > most:
                raise ClusterError(
                    f"--num_workers is {count}, with {each} {kind}(s) each; the "
                    f"cluster has {resources[kind]:.0f}; pass at most {most}"
                )
            return Layout(count, demand(each))
    if cluster.device in ("gpu", "tpu"):
        raise ClusterError(f"the cluster has no {cluster.device}; drop --device")
    count = num_nodes if cluster.num_workers is None else cluster.num_workers
    # Half of the cores are left to those that read and write.
    share = min(1.0, resources.get("CPU", 0) / (2 * count))
    if share < TASK_CPUS:
        raise ClusterError(
            f"--num_workers is {count}; the cluster has {resources.get('CPU', 0):.0f} "
            "cores; pass fewer"
        )
    # Ray counts cores in hundredths. Not those of a task: tasks are not to be merged
    # with actors.
    share = max(math.floor(100 * share) / 100, TASK_CPUS + 0.01)
    return Layout(count, {"num_cpus": share})


def _gpus(each: int) -> dict[str, Any]:
    return {"num_gpus": each}


def _tpus(each: int) -> dict[str, Any]:
    return {"resources": {"TPU": each}}


def run(
    prior: str,
    card: priors.Card,
    patterns: Sequence[str],
    config: DIIPConfig,
    options: Options,
    terminal: Terminal,
    cluster: Cluster,
    *,
    recursive: bool = False,
    shard: tuple[int, int] = (1, 1),
    dry_run: bool = False,
    max_minutes: float | None = None,
    restorer: "type[Restorer] | None" = None,
) -> Summary:
    """Restore the photos that patterns name on the machines of a cluster.

    Args:
        prior: name, folder or address, as every machine finds it.
        card: of the prior.
        patterns: files, folders, globs, addresses.
        config: the settings.
        options: where results go, and how.
        terminal: what is told of it.
        cluster: which machines.
        recursive: look in subfolders too.
        shard: (i, n): only the i-th of n parts of the photos.
        dry_run: only tell what would be done.
        max_minutes: stop after so long; what is not done then is left.
        restorer: stands in for the actors, to measure everything else.

    Raises:
        ClusterError: there is no such cluster.
        InputError: a folder or a glob has no images.
        OutputError: outputs collide, are one file, or fall on an input.
        UsageError: there are many photos and one clean image.
        ImageError: the output cannot be listed or written.
    """
    terminal.say(f"prior {card.name} ({card.licence}), cluster {cluster.address}")
    plan.check_options(options, many=find.names_many(patterns))
    work = _work(prior, config, options, terminal.json)
    sources = find.shard(find.sources(patterns, recursive=recursive), *shard)
    found = survey(Prior(None, card), sources, work)
    for photo, output in found.finished:
        terminal.detail(f"{output} is finished; pass --overwrite to restore {photo}")
        terminal.emit(record.brief("skipped", photo, output))
    for photo, reason in found.failed:
        terminal.fail(photo, reason)
    count = len(found.photos)
    terminal.say(
        f"{count} photos to restore, {len(found.finished)} finished earlier, "
        f"{len(found.failed)} cannot be"
    )
    before = Summary(len(found.finished), len(found.failed), interrupted=False)
    if dry_run:
        num_failed = foretell(card, found.photos, work, terminal)
        return Summary(
            before.num_done + count - num_failed,
            before.num_failed + num_failed,
            interrupted=False,
        )
    if not count:
        return before
    _check_writable(work.output)
    ends = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
    with _connected(cluster, terminal) as spread:
        terminal.say(f"{spread.num_workers} workers, {_told(spread.demands)}")
        driver = _Driver(work, found.photos, terminal, cluster, spread, ends)
        driver.restorer = Restorer if restorer is None else restorer
        after = driver.run()
    return Summary(
        before.num_done + after.num_done,
        before.num_failed + after.num_failed,
        after.interrupted,
    )


def _work(prior: str, config: DIIPConfig, options: Options, records: bool) -> Work:
    """Return what workers are told; their working folder is another one."""
    if find.is_file_name(options.output):
        raise find.OutputError(
            f"--output {options.output} is one file; name a folder for a cluster"
        )
    output = addresses.path(options.output or "results").absolute()
    reference = options.reference and options.reference.absolute()
    options = dataclasses.replace(options, output=str(output), reference=reference)
    return Work(prior, config, options, output, records)


def _told(demands: Mapping[str, Any]) -> str:
    each = {"GPU": demands.get("num_gpus"), **demands.get("resources", {})}
    named = [f"{count} {kind}(s)" for kind, count in each.items() if count]
    return f"each with {named[0]}" if named else "on CPUs"


# What is to be done, on the driver, without a request for any photo.


class Survey(NamedTuple):
    """What is to be done, and what need not or cannot be.

    Attributes:
        photos: to restore.
        finished: inputs that earlier runs restored, and where.
        failed: inputs that cannot be restored, and why.
    """

    photos: list[Photo]
    finished: list[tuple[Path, Path]]
    failed: list[tuple[Path, str]]


def survey(prior: Prior, sources: Sequence[find.Source], work: Work) -> Survey:
    """Return what is left to do of these photos, by one listing of the output.

    Raises:
        OutputError: an output may be an input.
        ImageError: the output cannot be listed.
    """
    options = work.options
    stems = find.stems(sources, str(work.output), suffix=options.suffix, many=True)
    digest = plan.digest(prior, work.config, options)
    try:
        known = ledger.read(work.output, digest)
    except OSError as error:
        raise images.unwritable(work.output, error) from error
    result, claims = Survey([], [], []), _claims(stems)
    for source, stem in zip(sources, stems, strict=True):
        problem = source.problem or _problem(source, stem, claims)
        if problem is not None:
            result.failed.append((source.path, problem))
            continue
        try:
            version = source.version or entries.version(source.path)
        except OSError as error:
            reason = find.unreadable(source.path, error)
            result.failed.append((source.path, reason))
            continue
        name = source.relative.as_posix()
        earlier = known.outputs.get((name, version or ""))
        if earlier is not None and not options.overwrite:
            result.finished.append((source.path, work.output / earlier))
            continue
        below = stem.relative_to(work.output).as_posix()
        is_free = not any(f"{below}{suffix}" in known.there for suffix in PLACED)
        result.photos.append(Photo(source, stem, version, is_free))
    _refuse_inputs(sources, result.photos, options)
    return result


def _refuse_inputs(
    sources: Sequence[find.Source], photos: Sequence[Photo], options: Options
) -> None:
    """Raise OutputError where an output may be a photo or a clean image.

    Formats are told by the photos, and not known here: names without them are compared.
    A folder that links to another one is followed once, not for each photo in it.
    """
    inputs = [source.path for source in sources]
    clean = options.reference
    if clean is not None and find.is_folder(clean):
        inputs += [clean / source.relative for source in sources]
    elif clean is not None:
        inputs.append(clean)
    resolved = functools.cache(entries.resolved)
    plan.refuse_inputs(
        inputs,
        [_likely_output(photo, options) for photo in photos],
        place=lambda path: (resolved(path.parent), path.stem),
    )


def _likely_output(photo: Photo, options: Options) -> Path:
    """Return where a photo goes if its suffix tells its format, as it mostly does."""
    suffix = images.output_suffix(photo.source.path, options.ext)
    return photo.stem.with_name(photo.stem.name + suffix)


def _claims(stems: Sequence[Path]) -> dict[str, int]:
    """Return how many photos would be written to each place."""
    claims: dict[str, int] = {}
    for stem in stems:
        place = str(stem).casefold()
        claims[place] = claims.get(place, 0) + 1
    return claims


def _problem(source: find.Source, stem: Path, claims: Mapping[str, int]) -> str | None:
    if source.data is not None:
        return f"{source.path} can be read only here; give a cluster files"
    if claims[str(stem).casefold()] > 1:
        return (
            f"{source.path} and another photo would both be written to {stem}; rename "
            "one or restore them separately"
        )
    return None


def _check_writable(output: Path) -> None:
    folder = output / ledger.FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        storage.check_writable(folder / "writable")
    except OSError as error:
        raise images.unwritable(output, error) from error


# What it would take, on the driver, by a small request for each photo.


def foretell(
    card: priors.Card, photos: Sequence[Photo], work: Work, terminal: Terminal
) -> int:
    """Tell what restoring photos would take, as far as their headers tell it.

    Args:
        card: of the prior.
        photos: to restore.
        work: what workers would be told.
        terminal: what is told of it.

    Returns:
        How many are known to fail.
    """
    prior = Prior(priors.abstract_params(card), card)
    num_failed = 0
    for start in range(0, len(photos), LOOKS_PER_TASK):
        some = photos[start : start + LOOKS_PER_TASK]
        with warnings.catch_warnings():  # Pillow's, of headers that are cut off
            warnings.simplefilter("ignore")
            seen = _threads(functools.partial(_foreseen, prior, work), some)
        tasks = [found for found in seen if isinstance(found, Task)]
        command.describe(prior, tasks, work.config, work.options, terminal)
        for photo, found in zip(some, seen, strict=True):
            path, output = photo.source.path, _likely_output(photo, work.options)
            if isinstance(found, ImageError):
                terminal.fail(path, str(found))
                num_failed += 1
            elif found is None:
                line = f"{path} -> {output}: its header does not tell its size"
                terminal.give(line, record.brief("planned", path, output))
    return num_failed


def _foreseen(prior: Prior, work: Work, photo: Photo) -> Task | ImageError | None:
    """Return the task of a photo, or why it fails; None where its header is no help."""
    source, options = photo.source, work.options
    try:
        head = _head(source.path)
    except OSError as error:
        return ImageError(find.unreadable(source.path, error))
    try:
        size = header_size(head)
    except Exception:  # as in `_canvas`
        return None
    try:
        placed = plan.placement(prior, source, size, work.config, options)
        task = Task(source, _likely_output(photo, options), "", size, placed)
        plan.check_place(task, work.config, options, is_free=photo.is_free)
    except ImageError as error:
        return error
    return task


# The cluster.


class _connected:
    """Join a cluster for a while, unless this process has joined one already."""

    def __init__(self, cluster: Cluster, terminal: Terminal):
        self._cluster, self._terminal = cluster, terminal
        self._left = contextlib.ExitStack()

    def __enter__(self) -> Layout:
        ray = _ray()
        with contextlib.ExitStack() as left:
            # Ray prints that a machine died where results belong.
            left.enter_context(contextlib.redirect_stdout(sys.stderr))
            if not ray.is_initialized():
                self._join(ray)
                left.callback(ray.shutdown)
            nodes = [node for node in ray.nodes() if node["Alive"]]
            found = layout(ray.cluster_resources(), len(nodes), self._cluster)
            self._left = left.pop_all()
        return found

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def _join(self, ray: Any) -> None:
        address = self._cluster.address
        options: dict[str, Any] = {
            "log_to_driver": self._terminal.verbose,
            "logging_level": "WARNING" if self._terminal.verbose else "ERROR",
            "include_dashboard": False if address == LOCAL else None,
        }
        if address == LOCAL:  # logical cores: JAX uses them all in any case
            cores = max(os.cpu_count() or 1, 1 + (self._cluster.num_workers or 1))
            options |= {"num_cpus": cores, "address": "local"}
        else:
            options["address"] = address
        try:
            _reach(address)
            with warnings.catch_warnings():  # JAX's, of processes that are begun
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                ray.init(**options)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ClusterError(
                f"no Ray cluster at {address} ({reason}); start one with `ray start "
                "--head`, or pass --cluster local"
            ) from error


def _reach(address: str) -> None:
    """Raise OSError where nobody answers; Ray itself would wait for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ClusterError(
            f"--cluster needs Ray ({error}); pip install 'diip-jax[cluster]'"
        ) from error
    return ray


class _Driver:
    """One run over photos: what its passes share."""

    def __init__(
        self,
        work: Work,
        photos: Sequence[Photo],
        terminal: Terminal,
        cluster: Cluster,
        spread: Layout,
        ends: float,
    ):
        self.work, self.photos, self.terminal = work, photos, terminal
        self.cluster, self.spread, self.ends = cluster, spread, ends
        self.restorer: type[Restorer] = Restorer
        self.is_left = np.ones(len(photos), bool)
        self.failed: list[tuple[Path, str]] = []
        self.num_done = 0

    def run(self) -> Summary:
        """Do passes over what is left until nothing is, or a pass brought nothing."""
        counter = self.terminal.counter(len(self.photos))
        with Stopper(quiet=self.terminal.quiet) as stopper, counter:

            def should_stop() -> bool:
                return stopper.asked() or time.monotonic() >= self.ends

            most = PHOTOS_PER_BATCH
            while self.is_left.any() and not should_stop():
                before = self.is_left.sum()
                for rows in self._pass(most, should_stop):
                    counter.add(*self._take(rows))
                if most == 1 and self.is_left.sum() == before:
                    break
                most = 1  # alone, none is lost by the fault of another
            stopped = bool(self.is_left.any()) and should_stop()
        if not stopped:
            self._give_up()
        left = int(self.is_left.sum())
        self.terminal.say(
            f"{self.num_done} restored, {len(self.failed)} failed, {left} left"
        )
        for path, _ in self.failed:
            self.terminal.say(f"failed: {path}")
        return Summary(self.num_done, len(self.failed), interrupted=stopped)

    def _pass(
        self, most: int, should_stop: Callable[[], bool]
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of what is left, as they come."""
        left = np.flatnonzero(self.is_left)
        canvases = self._canvases(left, should_stop)
        batches = batched(left, canvases, min(most, self._fair(len(left))))
        if not should_stop():
            tables = [self._table(batch) for batch in batches]
            yield from _until(should_stop, lambda: self._restored(tables))

    def _fair(self, count: int) -> int:
        """Return photos of a batch, so that each worker has several batches."""
        return -(-count // (BATCHES_PER_WORKER * self.spread.num_workers))

    def _canvases(
        self, left: np.ndarray, should_stop: Callable[[], bool]
    ) -> np.ndarray:
        """Return height and width of each photo's canvas, (N, 2); 0 where unknown."""
        canvases = np.zeros((len(self.photos), 2), np.int64)
        starts = range(0, len(left), LOOKS_PER_TASK)
        tables = [self._table(left[i : i + LOOKS_PER_TASK]) for i in starts]

        def looked_at() -> Iterator[Any]:
            return _rows(self._mapped(_dataset(tables), look))

        for rows in _until(should_stop, looked_at):
            for row in rows:
                canvases[row["index"]] = row["height"], row["width"]
        return canvases[left]

    def _table(self, indices: np.ndarray) -> Any:
        import pyarrow

        rows = []
        for index in indices:
            source, stem, version, is_free = self.photos[index]
            rows.append(
                {
                    "index": int(index),
                    "path": str(source.path.absolute()),
                    "relative": source.relative.as_posix(),
                    "stem": str(stem),
                    "version": version or "",
                    "is_free": is_free,
                }
            )
        return pyarrow.Table.from_pylist(rows)

    def _mapped(self, dataset: Any, function: Callable[..., Any]) -> Any:
        return dataset.map_batches(
            function,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"work": self.work},
            num_cpus=TASK_CPUS,
        )

    def _restored(self, tables: Sequence[Any]) -> Iterator[Any]:
        ray, dataset = _ray(), self._mapped(_dataset(tables), read)
        with warnings.catch_warnings():
            # Ray 2.64 is to have another way to limit retries; the extra stops there.
            warnings.filterwarnings("ignore", ".*ray_remote_args.*is deprecated")
            dataset = dataset.map_batches(
                self.restorer,
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=self.spread.num_workers),
                fn_constructor_kwargs={"work": self.work},
                runtime_env={"env_vars": _environment(self.cluster)},
                ray_remote_args_fn=functools.partial(_actor_arguments, self.spread),
                **self.spread.demands,
            )
        return _rows(self._mapped(dataset, write))

    def _take(self, rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
        """Take rows of photos, once each; return how many were done, and failed."""
        done = failed = 0
        for row in rows:
            index = row["index"]
            if not self.is_left[index]:
                continue
            self.is_left[index] = False
            path = self.photos[index].source.path
            if row["error"]:
                self.failed.append((path, row["error"]))
                self.terminal.fail(path, row["error"])
                failed += 1
            else:
                self._tell(path, row)
                done += 1
        self.num_done += done
        return done, failed

    def _tell(self, path: Path, row: Mapping[str, Any]) -> None:
        if row["record"]:
            self.terminal.emit(json.loads(row["record"]))
        elif row["status"] == "finished":
            self.terminal.emit(record.brief("skipped", path, Path(row["output"])))
        self.terminal.detail(f"{row['output']}: {row['status']}")

    def _give_up(self) -> None:
        """Fail the photos that every worker died of."""
        for index in map(int, np.flatnonzero(self.is_left)):
            path = self.photos[index].source.path
            reason = f"cannot restore {path}: the worker died each time it was tried"
            self.failed.append((path, reason))
            self.terminal.fail(path, reason)
            self.is_left[index] = False


def batched(indices: np.ndarray, canvases: np.ndarray, most: int) -> list[np.ndarray]:
    """Return photos in batches of one canvas each, in the order of the canvases.

    Args:
        indices: of the photos, (N,).
        canvases: their heights and widths, (N, 2).
        most: photos of a batch, fewer where they are large.
    """
    order = np.lexsort((indices, canvases[:, 1], canvases[:, 0]))
    indices, canvases = indices[order], canvases[order]
    changes = np.flatnonzero((np.diff(canvases, axis=0) != 0).any(axis=1)) + 1
    batches = []
    for group, shape in zip(
        np.split(indices, changes), np.split(canvases, changes), strict=True
    ):
        pixels = max(1, math.prod(map(int, shape[0])) if len(shape) else 1)
        size = max(1, min(most, PIXELS_PER_BATCH // pixels))
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    return batches


def _dataset(tables: Sequence[Any]) -> Any:
    ray = _ray()
    dataset = ray.data.from_arrow(list(tables))
    context = dataset.context
    context.enable_progress_bars = False
    # Its errors are tracebacks, of what comes again or is told as a photo's error.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context.print_on_execution_start = False
    # What a dead machine took with it comes again in the next pass.
    context.max_errored_blocks = -1
    return dataset


def _actor_arguments(spread: Layout) -> dict[str, Any]:
    """Return what else Ray is asked for: actors far apart, that begin again."""
    asked = {"max_restarts": -1, "max_task_retries": RETRIES}
    on_cpus = "num_cpus" in spread.demands  # one on each machine
    return asked | ({"scheduling_strategy": "SPREAD"} if on_cpus else {})


def _rows(dataset: Any) -> Iterator[list[dict[str, Any]]]:
    batches = dataset.iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0
    )
    for batch in batches:
        yield batch.to_pylist()


def _until(
    should_stop: Callable[[], bool], begin: Callable[[], Iterator[Any]]
) -> Iterator[Any]:
    """Yield what an iterator does, but leave it when asked to stop while it waits.

    Raises:
        ClusterError: Ray gave up.
    """
    found: queue.Queue[Any] = queue.Queue(maxsize=16)
    over = object()

    def feed() -> None:
        try:
            for item in begin():
                found.put(item)
            found.put(over)
        except BaseException as error:
            found.put(error)

    threading.Thread(target=feed, daemon=True).start()
    while not should_stop():
        try:
            item = found.get(timeout=0.5)
        except queue.Empty:
            continue
        if item is over:
            return
        if isinstance(item, BaseException):
            raise _explained(item)
        yield item


def _explained(error: BaseException) -> BaseException:
    """Return one line for what Ray raises; anything else as it is."""
    if not isinstance(error, _ray().exceptions.RayError):
        return error
    lines = [line for line in str(error).splitlines() if line.strip()]
    return ClusterError(f"Ray gave up: {lines[-1].strip()}")


def _environment(cluster: Cluster) -> dict[str, str]:
    """Return the environment of an actor, in which JAX is imported."""
    found = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "1"}
    if cluster.device != "auto":
        found["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(cluster.device, cluster.device)
    if cluster.cache is not None:
        found["DIIP_CACHE"] = str(cluster.cache)
        found["JAX_COMPILATION_CACHE_DIR"] = str(cluster.cache / "xla")
        found["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return found


# Before the restoration, in tasks.


def _threads(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    with ThreadPoolExecutor(REQUESTS) as threads:
        return list(threads.map(function, items))


@functools.cache
def _card(prior: str) -> priors.Card:
    return priors.read_card(prior)


def look(table: Any, work: Work) -> Any:
    """Return height and width of the canvas of each photo, told from its header."""
    import pyarrow

    prior = Prior(None, _card(work.prior))

    def canvas_of(row: Mapping[str, Any]) -> dict[str, int]:
        height, width = _canvas(prior, addresses.path(row["path"]), work)
        return {"index": row["index"], "height": height, "width": width}

    return pyarrow.Table.from_pylist(_threads(canvas_of, table.to_pylist()))


def _canvas(prior: Prior, path: Path, work: Work) -> tuple[int, int]:
    """Return the canvas of a photo; (0, 0) where its header does not tell.

    Only which photos are restored together depends on it.
    """
    try:
        size = header_size(_head(path))
        mode = work.options.size_mode
        return sizing.placement(prior, work.config, mode, size).canvas
    except Exception:  # a damaged header; reading the photo will say what it is
        return 0, 0


def _head(path: Path) -> bytes:
    if isinstance(path, Address):
        return path.head(HEADER_BYTES)
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)


def header_size(head: bytes) -> tuple[int, int]:
    """Return height and width of the upright picture that a file begins with."""
    with Image.open(io.BytesIO(head)) as picture:
        width, height = picture.size
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if turned else (height, width)


def read(table: Any, work: Work) -> Any:
    """Read photos, and decide what is to be done to each."""
    prior = Prior(None, _card(work.prior))
    digest = plan.digest(prior, work.config, work.options)

    def read_one(row: Mapping[str, Any]) -> dict[str, Any]:
        path = addresses.path(row["path"])
        try:
            _, data = images.load(path)
            source = find.Source(path, Path(row["relative"]), data)
            decided = plan.decide_one(
                prior,
                source,
                addresses.path(row["stem"]),
                digest,
                work.config,
                work.options,
                is_free=row["is_free"],
            )
            if isinstance(decided, Task):
                plan.check_place(
                    decided, work.config, work.options, is_free=row["is_free"]
                )
        except Exception as error:
            return _to_do(row, error=reason(error))
        if isinstance(decided, Path):
            return _to_do(row, output=str(decided), status="finished")
        return _to_do(row, decided, data)

    rows = _threads(read_one, table.to_pylist())
    return _arrow(rows, {"data": "large_binary", "height": "int64", "width": "int64"})


def reason(error: Exception) -> str:
    """Return why a photo failed, as the row says it."""
    expected = (images.ImageError, find.InputError, OSError)
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, expected) else f"{type(error).__name__}: {text}"


def _to_do(
    row: Mapping[str, Any],
    task: Task | None = None,
    data: bytes | None = None,
    **known: str,
) -> dict[str, Any]:
    """Return the row of a photo that was read, or whose end is known."""
    result = {key: row[key] for key in ("index", "path", "relative", "version")}
    result |= {"error": "", "status": "failed", "output": "", "data": data}
    result |= {"sha256": "", "height": 0, "width": 0, "reference": ""}
    if task is not None:
        height, width = task.size
        result |= {"status": "read", "output": str(task.output)}
        result |= {"sha256": task.sha256, "height": height, "width": width}
        result["reference"] = "" if task.reference is None else str(task.reference)
    return result | known


def _arrow(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> Any:
    """Return rows as an Arrow table whose columns have the same type in any batch."""
    import pyarrow

    names = rows[0]
    types = {"index": "int64", **kinds}
    fields = [
        pyarrow.field(name, pyarrow.type_for_alias(types.get(name, "string")))
        for name in names
    ]
    return pyarrow.Table.from_pylist(list(rows), schema=pyarrow.schema(fields))


# The restoration, in actors.


class Restorer:
    """An actor: it loads the prior once and keeps what it compiled."""

    def __init__(self, work: Work):
        """Load the prior onto the devices that Ray gave to this actor."""
        self.work = work
        self.prior = priors.load(work.prior)
        if shared := os.environ.get("DIIP_CACHE"):
            traces = Path(shared) / "traces"
            self.options = dataclasses.replace(work.options, traces=traces)
        else:
            self.options = work.options

    def __call__(self, table: Any) -> Any:
        """Restore a batch of photos; each becomes a row with a picture or an error."""
        rows = table.to_pylist()
        config, options = self.work.config, self.options
        to_do = [row for row in rows if row["status"] == "read"]
        tasks = [task_of(self.prior, config, options, row) for row in to_do]
        results = restore(self.prior, tasks, config, options)
        return as_table([self.row(row, results) for row in rows])

    def row(
        self, row: Mapping[str, Any], results: Mapping[str, "Result"]
    ) -> dict[str, Any]:
        """Return the row of a photo with what became of it."""
        names = ("index", "path", "relative", "version", "error", "status", "output")
        result = {key: row[key] for key in names} | {"picture": None, "record": ""}
        if row["status"] != "read":
            return result
        found = results[row["output"]]
        result["status"] = "failed" if found.error else "restored"
        result["error"] = found.error
        if found.content is not None:
            result |= {"picture": found.picture, "record": json.dumps(found.content)}
        return result


def as_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return rows of `Restorer.row` as Arrow's table."""
    return _arrow(rows, {"picture": "large_binary"})


class Result(NamedTuple):
    """How the restoration of a photo ended.

    Attributes:
        picture: the file, None if there is none.
        content: of its record.
        error: why it failed or is not to be trusted, else empty.
    """

    picture: bytes | None = None
    content: Mapping[str, Any] | None = None
    error: str = ""


def task_of(
    prior: Prior, config: DIIPConfig, options: Options, row: Mapping[str, Any]
) -> Task:
    """Return the task that a row of `read` tells of."""
    path, size = addresses.path(row["path"]), (row["height"], row["width"])
    return Task(
        source=find.Source(path, Path(row["relative"]), row["data"]),
        output=addresses.path(row["output"]),
        sha256=row["sha256"],
        size=size,
        placement=sizing.placement(prior, config, options.size_mode, size),
        reference=addresses.path(row["reference"]) if row["reference"] else None,
    )


def restore(
    prior: Prior, tasks: Sequence[Task], config: DIIPConfig, options: Options
) -> dict[str, Result]:
    """Restore photos in the engine's lanes, and return how each ended, by its output.

    Where the device runs out of memory, the photos that are left are restored one by
    one, and then in smaller tiles.
    """
    results: dict[str, Result] = {}

    def keep(picture: Path, data: bytes, content: Mapping[str, Any]) -> None:
        results[str(picture)] = Result(data, content, _distrust(content))

    try:
        for event in restore_photos(prior, tasks, config, options, write=keep):
            if isinstance(event, Outcome) and event.record is None:
                results[str(event.task.output)] = Result(error=str(event.error))
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or engine.is_out_of_memory(error)):
            raise
        left = [task for task in tasks if str(task.output) not in results]
        if len(left) > 1:
            for task in left:
                results |= restore(prior, [task], config, options)
        elif left:
            results |= _in_smaller_tiles(prior, left[0], config, options)
    except Exception as error:  # a fault of ours is a row too, and names itself
        for task in tasks:
            results.setdefault(str(task.output), Result(error=reason(error)))
    return results


def _distrust(content: Mapping[str, Any]) -> str:
    if "diverged" not in content["warnings"]:
        return ""
    return f"{content['input']['path']} diverged; try a smaller --learning_rate"


def _in_smaller_tiles(
    prior: Prior, task: Task, config: DIIPConfig, options: Options
) -> dict[str, Result]:
    """Restore a photo in tiles of half the side, or fail it."""
    tile = min(config.tile or max(task.placement.canvas), max(task.placement.canvas))
    tile = tile // 2 // prior.stride * prior.stride
    if not prior.card.any_size or tile < SMALLEST_TILE:
        message = f"cannot restore {task.source.path}: out of memory; {LESS_MEMORY}"
        return {str(task.output): Result(error=message)}
    smaller = sizing.settings(prior, config, "tile", tile, None)
    placement = sizing.placement(prior, smaller, "tile", task.size)
    again = task._replace(placement=placement)
    options = dataclasses.replace(options, size_mode="tile")
    results = restore(prior, [again], smaller, options)
    return {output: _noted(result) for output, result in results.items()}


def _noted(result: Result) -> Result:
    """Return a result whose record says that tiles were made smaller."""
    if result.content is None:
        return result
    codes = [*result.content["warnings"], "tiled_for_memory"]
    unique = list(dict.fromkeys(codes))
    return result._replace(content={**result.content, "warnings": unique})


# After the restoration, in tasks.


def write(table: Any, work: Work) -> Any:
    """Write pictures and records, note what is finished, and return short rows."""
    prior = Prior(None, _card(work.prior))
    digest = plan.digest(prior, work.config, work.options)

    def write_one(row: Mapping[str, Any]) -> dict[str, Any]:
        error, told = row["error"], row["record"]
        if row["picture"] is not None:
            try:
                picture, content = row["picture"], json.loads(row["record"])
                write_files(addresses.path(row["output"]), picture, content)
            except Exception as failure:
                error = reason(failure)
        names = ("index", "relative", "version", "status", "output")
        kept = told if work.records and not error else ""
        return {key: row[key] for key in names} | {"error": error, "record": kept}

    rows = _threads(write_one, table.to_pylist())
    done = [
        ledger.Done(row["relative"], row["version"], _below(row["output"], work.output))
        for row in rows
        if row["status"] in ("restored", "finished") and row["version"]
        if not row["error"]
    ]
    ledger.write(work.output, digest, done)
    return _arrow(rows, {})


def _below(output: str, folder: Path) -> str:
    return addresses.path(output).relative_to(folder).as_posix()
