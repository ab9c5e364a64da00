"""What `python -m diip_jax.bench` and `python -m diip_jax.bench.tune` share.

Flags, the pictures and the prior that they name, the computation of cells with what is
said about it, and an exit code with one line for each error.
"""

import argparse
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np

from diip_jax import command_line, prior, storage
from diip_jax.bench import run
from diip_jax.bench.cells import Cell, CellsError, Store
from diip_jax.bench.run import Options, Plan, Speed
from diip_jax.command_line import EXIT_MEMORY, fail, positive
from diip_jax.images import ImageError
from diip_jax.photos import reference
from diip_jax.photos.find import InputError
from diip_jax.prior import Prior, PriorError

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
QUICK_COUNT = 1  # pictures

Main = Callable[[Sequence[str]], int]  # flags, exit code


class UsageError(ValueError):
    """A flag that names what there is not."""


def parser(
    program: str, description: str, count: str, quick: str
) -> argparse.ArgumentParser:
    """Return the flags of both commands.

    Args:
        program: as it is called.
        description: what it does.
        count: the default of `--count` in words.
        quick: how long `--quick` takes.
    """
    result = command_line.Parser(
        program,
        description=description,
        epilog=EXIT_CODES,
        formatter_class=command_line.Help,
    )
    add = result.add_argument
    add("--images", type=Path, required=True, help="folder of clean pictures")
    add("--prior", default="natural64", help="bundled prior, or a prior's folder")
    add("--output", type=Path, default=Path("bench"), help="folder of the results")
    add("--count", type=positive, help=f"pictures; {count}")
    add("--first", type=_count, default=0, help="skip so many pictures")
    add("--seeds", type=positive, default=1, help="how often each is damaged")
    add("--tasks", type=names, help="columns, as A,B; the paper's by default")
    add(
        "--quick",
        action="store_true",
        help=f"one picture, few iterations: {quick}",
    )
    add("--quiet", action="store_true", help="errors alone")
    return result


def _count(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def names(text: str) -> tuple[str, ...]:
    """Read names with commas between them, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def check(flag: str, given: Iterable[str] | None, allowed: Sequence[str]) -> None:
    """Find out whether a flag names what there is.

    Args:
        flag: without its dashes.
        given: names; None where the flag was not given.
        allowed: names.

    Raises:
        UsageError: there is none of such a name.
    """
    for name in given or ():
        if name not in allowed:
            raise UsageError(f"--{flag}: {name!r} is not one of {', '.join(allowed)}")


class Setup(NamedTuple):
    """What all that one command makes shares.

    Attributes:
        given: the flags.
        prior: the frozen model.
        images: names and clean pictures, (H, W, 3) in [0, 1].
        options: how tables and figures are to be made.
        say: is given each line that is no error.
    """

    given: argparse.Namespace
    prior: Prior
    images: Sequence[tuple[str, np.ndarray]]
    options: Options
    say: Callable[[str], None]

    def taken(self, count: int) -> Sequence[tuple[str, np.ndarray]]:
        """Return the pictures of what has so many by default."""
        return self.images[: _number(self.given, count)]


def _number(given: argparse.Namespace, count: int) -> int:
    return given.count or (QUICK_COUNT if given.quick else count)


def start(
    program: str, given: argparse.Namespace, arguments: Sequence[str], count: int
) -> Setup:
    """Return what the flags name: the prior and the pictures.

    Args:
        program: as it is called.
        given: the flags, read.
        arguments: the flags, as they were typed.
        count: pictures by default.

    Raises:
        InputError: there is no picture.
        PriorError: there is no such prior.
        OSError: the folder of the results cannot be made.
    """
    say = (lambda _: None) if given.quiet else command_line.say
    model = prior.load(given.prior)
    side = model.card.architecture.image_size
    most = _number(given, count)
    images, rejected = run.pictures(given.images, side, given.first, most)
    for name, reason in rejected:
        say(f"left out {name}: {reason}")
    if not images:
        raise InputError(
            f"no picture of {given.images} can be used; give clean pictures of at "
            f"least {side}x{side}, and a --first below their number"
        )
    options = Options(
        command=shlex.join([*program.split(), *arguments]),
        seeds=tuple(range(given.seeds)),
        quick=given.quick,
        progress=_progress(given.quiet),
    )
    given.output.mkdir(parents=True, exist_ok=True)
    say(
        f"{len(images)} pictures, their largest centre squares at {side}x{side}; "
        f"results in {given.output}"
    )
    return Setup(given, model, images, options, say)


def _progress(quiet: bool) -> Callable[[Iterable[Any], str], Iterable[Any]]:
    from tqdm import tqdm

    def progress(items: Iterable[Any], what: str) -> Iterable[Any]:
        return tqdm(items, what, disable=quiet or None, smoothing=0)

    return progress


def compute(
    name: str, plan: Plan, setup: Setup, speed: Speed | None = None
) -> list[Cell]:
    """Return the cells of a plan; those that are not there yet are computed.

    Args:
        name: of the table, for what is said.
        plan: what is to be computed.
        setup: what the command was given.
        speed: of the network; None says nothing of how long it takes.

    Raises:
        CellsError: the file of cells holds something else.
        OSError: a file cannot be read or written.
    """
    store = Store(setup.given.output)
    perceptual = reference.perceptual_metric("alex")
    if perceptual.missing:
        setup.say(f"no LPIPS: {perceptual.missing}")
    side = setup.prior.card.architecture.image_size
    plan = plan._replace(needs_lpips=reference.has_lpips(perceptual, side))
    setup.say(f"{name}: {run.forecast(setup.prior, plan, store, speed)}")
    tally = run.run(setup.prior, plan, store, perceptual, setup.options, name)
    for (method, task), reason in tally.errors.items():
        command_line.say(f"failed: {method} on {task}: {reason}")
    return store.chosen(tally.names)


def tell(files: Iterable[Path], setup: Setup) -> None:
    """Say which files were written."""
    for path in files:
        setup.say(f"wrote {path}")


def ended(work: Callable[[], int]) -> int:
    """Do the work of a command and return its exit code.

    Args:
        work: returns how many cells failed.
    """
    _keep_programs()
    try:
        failed = work()
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
    if failed:
        return fail(EXIT_SOME_FAILED, f"{failed} cells failed; run it again to retry")
    return EXIT_OK


def _keep_programs() -> None:
    """Keep compiled programs where `main.py` does: a run that goes on needs them."""
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


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def cli(main: Main) -> None:
    """Run a command as a program; no traceback reaches the user."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        fail(EXIT_INTERRUPTED, "stopped; run it again to go on with the next cell")
        os._exit(EXIT_INTERRUPTED)  # what is being computed is not waited for
    except Exception as error:  # the last resort, says what it is
        code = command_line.unexpected(error, SMALLER)
    sys.exit(code)
