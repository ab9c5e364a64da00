"""Make the paper's tables and figures on a prior and a folder of clean pictures.

    python -m diip_jax.bench table4 table5 --prior natural64 --images FOLDER
    python -m diip_jax.bench all --images FOLDER --quick

Results are cells in OUTPUT/cells.jsonl, with their pictures; the same command again
computes what is missing and makes the tables from all. A table is a Markdown and a CSV
file in OUTPUT.
"""

import argparse
import importlib
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from diip_jax import command_line
from diip_jax.command_line import EXIT_MEMORY, fail, positive

EXIT_OK, EXIT_USAGE, EXIT_SOME_FAILED = 0, 2, 3
EXIT_FILE, EXIT_WEIGHTS, EXIT_INTERRUPTED = 4, 5, 130
SMALLER = "give a smaller --prior"  # where memory does not suffice
EXIT_CODES = """exit codes:
  0  all made                       4  no pictures, or a file cannot be read or written
  1  unexpected error               5  the prior is missing or damaged
  2  wrong flags, or a package      6  out of memory
     is missing                   130  stopped; run it again to go on
  3  some cells failed; the tables
     say which"""
ALL = "all"
QUALITY = ("table4", "table5")
# Made by another module's function of the same name: its pictures by default, and the
# gradients of the network that it takes for each.
RUN = 300 * 10  # iterations and steps of a run that is followed
OTHERS = {
    "table1": ("stops", 3, 2 * RUN),
    "table2": ("stops", 3, 2 * RUN),
    "table3": ("stops", 3, 0),  # of the runs of tables 1 and 2
    "fig3": ("figures", 1, 2 * RUN),
    "fig4": ("figures", 1, 4 * RUN),
    "fig6": ("figures", 1, 3 * RUN),
    "grids": ("figures", 4, 0),  # of the pictures that tables 4 and 5 left
}
NAMES = ("table1", "table2", "table3", *QUALITY, "table6")
NAMES += ("fig3", "fig4", "fig6", "grids")
QUICK_COUNT = 1  # pictures


class UsageError(ValueError):
    """A flag that names what there is not."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    result = command_line.Parser(
        "python -m diip_jax.bench",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=command_line.Help,
    )
    add = result.add_argument
    add(
        "what",
        nargs="+",
        choices=(*NAMES, ALL),
        metavar="WHAT",
        help=f"of {', '.join(NAMES)}, or {ALL}",
    )
    add("--images", type=Path, required=True, help="folder of clean pictures")
    add("--prior", default="natural64", help="bundled prior, or a prior's folder")
    add("--output", type=Path, default=Path("bench"), help="folder of the results")
    add("--count", type=positive, help="pictures; a number for each table by default")
    add("--first", type=_count, default=0, help="skip so many pictures")
    add("--seeds", type=positive, default=1, help="how often each is damaged")
    add("--methods", type=_names, help="rows, as A,B; all that are installed")
    add("--tasks", type=_names, help="columns, as A,B; all of a table")
    add(
        "--quick",
        action="store_true",
        help="one picture, few iterations: 15 minutes for all tables on two cores",
    )
    add("--quiet", action="store_true", help="errors alone")
    return result


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parser().parse_args(arguments)
    from diip_jax.bench.cells import CellsError
    from diip_jax.images import ImageError
    from diip_jax.photos.find import InputError
    from diip_jax.prior import PriorError

    _keep_programs()
    try:
        return _run(given, arguments)
    except (InputError, ImageError, CellsError, OSError) as error:
        return fail(EXIT_FILE, error)
    except PriorError as error:
        return fail(EXIT_WEIGHTS, error)
    except UsageError as error:
        return fail(EXIT_USAGE, error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("diip_jax"):
            raise
        needed = f'this needs {error.name}: pip install "diip-jax[report]"'
        return fail(EXIT_USAGE, needed)
    except MemoryError:
        return fail(EXIT_MEMORY, f"not enough memory; {SMALLER}")


def _keep_programs() -> None:
    """Keep compiled programs where `main.py` does: a run that goes on needs them."""
    import jax

    from diip_jax import storage

    # Processes share this folder, and one may read what another just writes.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        folder = storage.cache_dir() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        command_line.say(
            f"warning: no cache for compiled programs: {error}; set DIIP_CACHE"
        )
    else:
        jax.config.update("jax_compilation_cache_dir", str(folder))


class _Setting(NamedTuple):
    """What all tables of one command share."""

    given: argparse.Namespace
    prior: Any
    speed: Any  # of its network; None for --quick
    images: Sequence[tuple[str, Any]]
    options: Any
    say: Callable[[str], None]

    def taken(self, count: int) -> Sequence[tuple[str, Any]]:
        """Return the pictures of a table that has so many by default."""
        if self.given.count is not None:
            count = self.given.count
        elif self.given.quick:
            count = QUICK_COUNT
        return self.images[:count]


def _run(given: argparse.Namespace, arguments: Sequence[str]) -> int:
    from diip_jax.bench import run
    from diip_jax.bench.tables import TABLES
    from diip_jax.photos.find import InputError
    from diip_jax.prior import load

    say = (lambda _: None) if given.quiet else command_line.say
    what = NAMES if ALL in given.what else tuple(dict.fromkeys(given.what))
    _check_names(given)
    prior = load(given.prior)
    counts = [TABLES[n].count if n in TABLES else OTHERS[n][1] for n in what]
    most = given.count or (QUICK_COUNT if given.quick else max(counts))
    side = prior.card.architecture.image_size
    images, rejected = run.pictures(given.images, side, given.first, most)
    for name, reason in rejected:
        say(f"left out {name}: {reason}")
    if not images:
        raise InputError(
            f"no picture of {given.images} can be used; give clean pictures of at "
            f"least {side}x{side}, and a --first below their number"
        )
    options = run.Options(
        command=shlex.join(["python", "-m", "diip_jax.bench", *arguments]),
        seeds=tuple(range(given.seeds)),
        quick=given.quick,
        progress=_progress(given.quiet),
    )
    given.output.mkdir(parents=True, exist_ok=True)
    speed = None if given.quick else run.speed(prior)
    setting = _Setting(given, prior, speed, images, options, say)
    say(
        f"{len(images)} pictures, their largest centre squares at {side}x{side}; "
        f"results in {given.output}"
    )
    if speed is not None:
        say(
            f"one evaluation of the network takes {speed.forward:.3g} s, with its "
            f"gradient {speed.gradient:.3g} s"
        )
    failed = 0
    for name in what:
        failed += _table(name, setting) if name in TABLES else _other(name, setting)
    if failed:
        return fail(EXIT_SOME_FAILED, f"{failed} cells failed; run it again to retry")
    return EXIT_OK


def _check_names(given: argparse.Namespace) -> None:
    """Raise UsageError for a method or a task that there is not."""
    from diip_jax.bench.methods import METHODS
    from diip_jax.bench.tables import TABLES

    tasks = [task for table in TABLES.values() for task in table.tasks]
    known = {"methods": list(METHODS), "tasks": list(dict.fromkeys(tasks))}
    for flag, allowed in known.items():
        for name in getattr(given, flag) or ():
            if name not in allowed:
                listed = ", ".join(allowed)
                raise UsageError(f"--{flag}: {name!r} is not one of {listed}")


def _table(name: str, setting: _Setting) -> int:
    """Make table 4, 5 or 6 and return how many of its cells failed."""
    from diip_jax.bench import run, tables
    from diip_jax.bench.cells import Store
    from diip_jax.photos import reference

    given, options, say = setting.given, setting.options, setting.say
    whole = tables.TABLES[name]
    table = tables.chosen(whole, given.methods, given.tasks, given.quick)
    if not table.tasks:
        say(f"{name} has no column of --tasks {','.join(given.tasks)}; left out")
        return 0
    plan, left_out = _plan(name, table, setting)
    store = Store(given.output)
    for line in left_out:
        say(line)
    say(f"{name}: {run.forecast(setting.prior, plan, store, setting.speed)}")
    perceptual = reference.perceptual_metric("alex")
    if perceptual.missing:
        say(f"no LPIPS: {perceptual.missing}")
    tally = run.run(setting.prior, plan, store, perceptual, options, name)
    cells = store.chosen(tally.names)
    top = tables.head(options, setting.prior, len(plan.images))
    text = tables.markdown(name, table, cells, [*top, *(f"- {x}" for x in left_out)])
    _tell(tables.write(given.output, name, text, tables.to_csv(cells)), say)
    for (method, task), reason in tally.errors.items():
        command_line.say(f"failed: {method} on {task}: {reason}")
    return sum(cell.error is not None for cell in cells)


def _plan(name: str, table: Any, setting: _Setting) -> tuple[Any, list[str]]:
    """Return what to compute for a table, and a line for each row that cannot be."""
    from diip_jax.bench import methods, run, tables

    quick, side = setting.given.quick, setting.prior.card.architecture.image_size
    settings = [methods.Setting(task, side, quick) for task in table.tasks]
    found, left_out = methods.available(table.methods, settings)
    are_times = name == tables.TIMES
    plan = run.Plan(
        tasks={task: methods.pose(task) for task in table.tasks},
        methods=found,
        images=setting.taken(table.count),
        seeds=setting.options.seeds,
        quick=quick,
        context=("times", tables.machine()) if are_times else None,
        by_image=are_times,
    )
    return plan, left_out


def _other(name: str, setting: _Setting) -> int:
    """Make a table or figure of another module."""
    from diip_jax.bench import run

    module, count, gradients = OTHERS[name]
    make = getattr(importlib.import_module(f"diip_jax.bench.{module}"), name)
    images = setting.taken(count)
    if setting.speed is not None and gradients:
        cells = len(images) * len(setting.options.seeds)
        seconds = gradients * cells * setting.speed.gradient
        setting.say(f"{name}: up to about {run.duration(seconds)}, less what is there")
    files = make(setting.prior, images, setting.given.output, setting.options)
    _tell(files, setting.say)
    return 0


def _tell(files: Iterable[Path], say: Callable[[str], None]) -> None:
    for path in files:
        say(f"wrote {path}")


def _progress(quiet: bool) -> Callable[[Iterable[Any], str], Iterable[Any]]:
    from tqdm import tqdm

    def progress(items: Iterable[Any], what: str) -> Iterable[Any]:
        return tqdm(items, what, disable=quiet or None, smoothing=0)

    return progress


def _count(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def cli() -> None:
    """Run the command as a program; no traceback reaches the user."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        fail(EXIT_INTERRUPTED, "stopped; run it again to go on with the next cell")
        os._exit(EXIT_INTERRUPTED)  # what is being computed is not waited for
    except Exception as error:  # the last resort, says what it is
        code = command_line.unexpected(error, SMALLER)
    sys.exit(code)


if __name__ == "__main__":
    cli()
