"""The command, once its flags are read: find the photos, plan, run, tell."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from diip_jax import diip, engine, matched
from diip_jax.config import PAPER, DIIPConfig
from diip_jax.photos import find, plan, record, sizing
from diip_jax.photos.plan import Options, Plan, Task
from diip_jax.photos.run import Progress, restore_photos
from diip_jax.photos.terminal import Stopper, Terminal
from diip_jax.prior import Prior

# What each preset makes of the prior's own.
PRESETS: Mapping[str, Callable[[DIIPConfig], DIIPConfig]] = {
    "quick": lambda own: dataclasses.replace(own, num_starts=1),
    "default": lambda own: own,
    "best": lambda own: dataclasses.replace(own, num_starts=4 * own.num_starts),
    "paper": lambda own: PAPER,
    "prior": lambda own: own,  # the name that "default" had
}
MANY = 20  # photos that take a while to look at
LESS_MEMORY = "pass a smaller --tile or --batch_size, or --remat block"


class Summary(NamedTuple):
    """How a command ended.

    Attributes:
        num_done: photos restored, by this run or an earlier one.
        num_failed: photos that could not be.
        interrupted: Ctrl-C cut it short.
    """

    num_done: int
    num_failed: int
    interrupted: bool


def settings(
    prior: Prior,
    preset: str,
    changes: Mapping[str, Any],
    *,
    size_mode: str = "auto",
    tile: int | None = None,
    tile_overlap: int | None = None,
) -> DIIPConfig:
    """Return the settings that a command asks for.

    Args:
        prior: the frozen model.
        preset: a name in `PRESETS`.
        changes: settings that differ from the preset, by their names in `DIIPConfig`.
            A number of iterations is then not cut down for large photos.
        size_mode: see `sizing.settings`.
        tile: see `sizing.settings`.
        tile_overlap: see `sizing.settings`.

    Raises:
        ValueError: no restoration can use them.
    """
    unlimited = {"max_work": None} if "max_iterations" in changes else {}
    its = PRESETS[preset](prior.card.preset)
    config = dataclasses.replace(its, **unlimited, **changes)
    config = sizing.settings(prior, config, size_mode, tile, tile_overlap)
    diip.check_config(config)
    if config.start == "random" and config.num_steps == 1:
        # That step is the lowest timestep, which leaves z as it is.
        raise ValueError(
            "start is 'random' and num_steps is 1, which makes no image of noise; use "
            "num_steps 3 or more, or the preset paper"
        )
    return config


def ignored(config: DIIPConfig, changes: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that was asked for and that nothing reads.

    Args:
        config: of `settings`.
        changes: as `settings` was given them.
    """
    by_slope = config.criterion in ("paper", "robust")
    reads = {
        "k_min": by_slope,
        "epsilon": by_slope,
        "start_noise": config.start == "matched",
        "noise_level": matched.is_needed(config),
    }
    return [
        f"{name} has no effect where start is {config.start} and criterion is "
        f"{config.criterion}"
        for name in changes
        if not reads.get(name, True)
    ]


def run(
    prior: Prior,
    patterns: Sequence[str],
    config: DIIPConfig,
    options: Options,
    terminal: Terminal,
    *,
    recursive: bool = False,
    shard: tuple[int, int] = (1, 1),
    dry_run: bool = False,
    max_minutes: float | None = None,
    data: bytes = b"",
) -> Summary:
    """Restore the photos that patterns name.

    Args:
        prior: the frozen model.
        patterns: files, folders, globs; "-" for standard input.
        config: the settings.
        options: where results go, and how.
        terminal: what is told of it.
        recursive: look in subfolders too.
        shard: (i, n): only the i-th of n parts of the photos, i from 1.
        dry_run: only tell what would be done.
        max_minutes: give what is there after so long; None for no limit.
        data: what standard input gave.

    Raises:
        InputError: a folder or a glob has no images.
        OutputError: outputs collide, or fall on an input.
        ImageError: an output cannot be written.
        MemoryError: the device has too little memory.
    """
    card = prior.card
    device = jax.devices()[0].device_kind
    terminal.say(f"prior {card.name} ({card.licence}), device {device}")
    values = record.settings(config).items()
    terminal.detail(", ".join(f"{name} {value}" for name, value in values))

    photos = find.sources(patterns, recursive=recursive, data=data)
    photos = find.shard(photos, *shard)
    if len(photos) > MANY:
        terminal.say(f"looking at {len(photos)} photos")
    decided = plan.decide(
        prior, photos, config, options, many=find.names_many(patterns)
    )
    _tell(decided, terminal)
    if dry_run:
        describe(prior, decided.tasks, config, options, terminal)
        summary = Summary(len(decided.tasks), 0, interrupted=False)
    else:
        ends = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        tasks, unwritable = plan.check_writable(decided.tasks)
        for photo, reason in unwritable:
            terminal.fail(photo, reason)
        decided.failed.extend(unwritable)
        summary = _restore(prior, tasks, config, options, terminal, ends)
    return summary._replace(
        num_done=summary.num_done + len(decided.finished),
        num_failed=summary.num_failed + len(decided.failed),
    )


def _tell(decided: Plan, terminal: Terminal) -> None:
    """Tell of the photos that need no work, or allow none."""
    for photo, output in decided.finished:
        terminal.say(f"{output} is finished; pass --overwrite to restore {photo} again")
        terminal.emit(record.brief("skipped", photo, output))
    for photo, reason in decided.failed:
        terminal.fail(photo, reason)


def _restore(
    prior: Prior,
    tasks: Sequence[Task],
    config: DIIPConfig,
    options: Options,
    terminal: Terminal,
    ends: float,
) -> Summary:
    """Restore photos and tell of each, until this time of `time.monotonic`."""
    for task in tasks:
        terminal.detail(_plan_line(task, config))
    if not tasks:
        return Summary(0, 0, interrupted=False)
    num_done = num_failed = num_interrupted = 0
    meter = terminal.meter(len(tasks), config)
    with Stopper(quiet=terminal.quiet) as stopper, meter, _out_of_memory_explained():

        def should_stop() -> bool:
            return stopper.asked() or time.monotonic() >= ends

        events = restore_photos(prior, tasks, config, options, should_stop=should_stop)
        for event in events:
            if isinstance(event, Progress):
                meter.show(event)
                continue
            terminal.announce(event)
            if event.record is None:
                num_failed += 1
            else:
                num_done += 1
                num_interrupted += event.record["status"] == "interrupted"
    undone = len(tasks) - num_done - num_failed
    if len(tasks) > 1:
        terminal.say(f"{num_done} restored, {num_failed} failed, {undone} left")
    # A result that a deadline cut short is what was asked for; no result is not.
    expired = time.monotonic() >= ends and not stopper.asked()
    no_best_stop = options.reference is not None and stopper.asked()
    cut = num_interrupted and not expired
    return Summary(num_done, num_failed, bool(undone or cut or no_best_stop))


def describe(
    prior: Prior,
    tasks: Sequence[Task],
    config: DIIPConfig,
    options: Options,
    terminal: Terminal,
) -> None:
    """Tell what restoring each photo would take."""
    memory: dict[tuple[int, int], int] = {}
    for task in tasks:
        canvas = task.placement.canvas
        if canvas not in memory:
            lanes = options.num_lanes or 1
            size = task.placement.size
            memory[canvas] = engine.rough_memory(prior, size, config, lanes)
        needed = memory[canvas]
        amount = f"about {needed / 1e6:.0f} MB"
        what = {
            "size": list(task.size[::-1]),
            "canvas": list(canvas[::-1]),
            "size_mode": task.placement.mode,
            "num_tiles": task.placement.num_tiles,
            "memory_bytes": needed,
            "max_unet_calls": plan.unet_calls(task, config),
        }
        content = record.brief("planned", task.source.path, task.output)
        line = f"{_plan_line(task, config)}, {amount}"
        terminal.give(line, content | {"plan": what})


def _plan_line(task: Task, config: DIIPConfig) -> str:
    """Return a line that says what is to be done to a photo."""
    placement = task.placement
    size, canvas = (
        "x".join(map(str, reversed(side))) for side in (task.size, placement.canvas)
    )
    return (
        f"{task.source.path} -> {task.output}: {size}, canvas {canvas}, "
        f"{placement.mode} in {placement.num_tiles} window(s), at most "
        f"{plan.unet_calls(task, config)} UNet calls"
    )


@contextlib.contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not engine.is_out_of_memory(error):
            raise
        raise MemoryError(f"out of memory; {LESS_MEMORY}") from error
