"""Train a prior on a folder of clean pictures.

    python -m diip_jax.training --images FOLDER --output priors/mine --minutes 60
    python -m diip_jax.training --images FOLDER --output priors/mine --init natural64

OUTPUT becomes a prior folder, for `python main.py --prior OUTPUT`, and is made anew at
every save. OUTPUT.training beside it holds checkpoints, log.jsonl, samples.png (samples
above real crops) and loss.png. The same command again goes on where it was stopped.
"""

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diip_jax import command_line
from diip_jax.command_line import EXIT_MEMORY, fail, positive
from diip_jax.printable import printable

EXIT_OK, EXIT_USAGE, EXIT_FILE, EXIT_WEIGHTS = 0, 2, 4, 5
EXIT_DIVERGED, EXIT_INTERRUPTED = 8, 130
SMALLER = "pass a smaller --batch_size"  # where memory does not suffice
EXIT_CODES = """exit codes:
  0  trained                        5  --init is missing or damaged
  1  unexpected error               6  out of memory
  2  wrong flags                    8  the loss is not finite; the last save is kept
  4  no pictures, or a file       130  stopped and saved; run it again to go on
     cannot be read or written"""
SHAPE = {  # of the bundled priors
    "image_size": 64,
    "num_channels": 32,
    "channel_mult": (1, 2, 3, 4),
    "num_res_blocks": 1,
    "attention_factors": (8,),
}
# Flags that are settings of the same name: of `TrainConfig`, of `Plan`.
TRAINING = ("batch_size", "learning_rate", "warm_up", "weight_decay", "ema_decay")
TRAINING += ("weighting", "band", "seed")
LENGTH = ("steps", "save_minutes", "save_steps", "log_steps", "num_validation")
LENGTH += ("num_workers", "nearest")
NEEDS = ("grain", "matplotlib")
NETWORK = ("family", *SHAPE, "schedule")


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    result = command_line.Parser(
        "python -m diip_jax.training",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=command_line.Help,
    )
    add = result.add_argument
    add("--images", type=Path, nargs="+", required=True, help="folders, or zip files")
    add("--output", type=Path, required=True, help="folder of the prior to make")
    add("--init", metavar="PRIOR", help="go on from this prior, else from nothing")
    length = result.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_above_0, help="by the clock; default 60")
    length.add_argument("--steps", type=positive, help="by steps instead")
    add("--restart", action="store_true", help="forget what was begun at --output")

    shape = result.add_argument_group("the network, without --init; as bundled")
    shape.add_argument("--family", choices=("adm", "ddpm"), help="default adm")
    shape.add_argument("--image_size", type=positive, help="side of crops; 64")
    shape.add_argument("--num_channels", type=positive, help="32")
    shape.add_argument("--channel_mult", type=_numbers, help="1,2,3,4")
    shape.add_argument("--num_res_blocks", type=positive, help="1")
    shape.add_argument("--attention_factors", type=_numbers, help="8")
    shape.add_argument("--schedule", choices=("linear", "cosine"), help="linear")

    how = result.add_argument_group("the training")
    add = how.add_argument
    add("--batch_size", type=positive, default=32, help="over all devices")
    add("--learning_rate", type=_above_0, default=2.5e-4, help="at its peak")
    add("--warm_up", type=positive, default=200, help="steps until it is there")
    add("--weight_decay", type=float, default=0.0, help="above 0: AdamW")
    add("--ema_decay", type=float, default=0.9997, help="of the averaged weights")
    add(
        "--weighting",
        choices=("level", "plain", "min-snr", "p2"),
        default="level",
        help="of the timesteps in the loss",
    )
    add("--band", type=_numbers, default=(20, 260), help="half of the timesteps")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the network; auto is bfloat16 on accelerators",
    )
    add("--seed", type=int, default=0, help="of crops and noise")
    add("--distributed", action="store_true", help="one of several processes")
    add("--num_workers", type=int, default=0, help="processes that decode; 0: threads")

    left = result.add_argument_group("what is left")
    add = left.add_argument
    add("--save_minutes", type=_above_0, default=5.0, help="between two saves")
    add("--save_steps", type=positive, help="between two saves, instead")
    add("--log_steps", type=positive, default=20, help="between two lines of the log")
    add("--num_validation", type=positive, default=32, help="crops to validate on")
    add("--nearest", action="store_true", help="below each sample, its nearest crop")
    add("--name", help="of the prior; the folder's")
    add("--licence", default="not stated", help="terms of the weights, for the card")
    add("--training_data", help="what the pictures are, for the card")
    add("--quiet", action="store_true", help="errors alone")
    return result


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parser().parse_args(arguments)
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        needed = f'training needs {missing[0]}: pip install "diip-jax[train]"'
        return fail(EXIT_USAGE, needed)
    from diip_jax.prior import PriorError
    from diip_jax.training.checkpoint import CheckpointError
    from diip_jax.training.data import DataError
    from diip_jax.training.loop import TrainingError

    try:
        return _run(given)
    except (DataError, CheckpointError, OSError) as error:
        return fail(EXIT_FILE, error)
    except PriorError as error:
        return fail(EXIT_WEIGHTS, error)
    except TrainingError as error:
        return fail(EXIT_DIVERGED, error)
    except UsageError as error:
        return fail(EXIT_USAGE, error)
    except MemoryError:
        return fail(EXIT_MEMORY, f"not enough memory; {SMALLER}")


class UsageError(ValueError):
    """Flags that do not fit together, or values that make no training."""


def _run(given: argparse.Namespace) -> int:
    from diip_jax.prior import PriorError, check_place
    from diip_jax.training import data, loop

    if given.distributed:
        import jax

        jax.distributed.initialize()
    try:
        check_place(given.output)
    except PriorError as error:
        raise UsageError(f"--output: {error}") from error
    prior = _prior(given)
    config = _config(given, prior)
    side = prior.card.architecture.image_size
    pictures = data.find(given.images, side)
    say = (lambda _: None) if given.quiet else command_line.say
    for name, reason in pictures.rejected:
        say(f"left out {name}: {reason}")
    say(
        f"{len(pictures.train)} pictures to train on, {len(pictures.validation)} to "
        f"validate on, {pictures.num_grey} of them grey; crops of {side}x{side}"
    )
    if given.restart:
        shutil.rmtree(loop.working_folder(given.output), ignore_errors=True)
    with _Interruption() as interruption:
        events = loop.run(
            prior,
            pictures,
            given.output,
            config,
            _plan(given, pictures),
            should_stop=interruption,
        )
        _tell(events, given, say)
    if interruption():
        return fail(EXIT_INTERRUPTED, "stopped and saved; run it again to go on")
    say(f"{given.output}: use it with python main.py --prior {given.output}")
    return EXIT_OK


def _prior(given: argparse.Namespace) -> Any:
    """Return the prior to start from.

    Raises:
        UsageError: flags exclude each other, or the numbers make no network.
    """
    from diip_jax.prior import load
    from diip_jax.schedule import Schedule
    from diip_jax.training import start

    chosen = [name for name in NETWORK if getattr(given, name) is not None]
    if given.init is not None:
        if chosen:
            raise UsageError(
                f"--{chosen[0]} is {getattr(given, chosen[0])}, but --init {given.init}"
                " brings its own network; leave one of the two out"
            )
        if Path(given.init).resolve() == given.output.resolve():
            raise UsageError(
                f"--init and --output are both {given.init}; give a new folder"
            )
        return load(given.init)
    shape = {name: getattr(given, name) or usual for name, usual in SHAPE.items()}
    build = start.ddpm_shape if given.family == "ddpm" else start.adm_shape
    try:
        architecture = build(**shape)
    except ValueError as error:
        raise UsageError(str(error)) from error
    schedule = Schedule(kind=given.schedule or "linear")
    return start.random_prior(given.output.name, architecture, schedule, given.seed)


def _config(given: argparse.Namespace, prior: Any) -> Any:
    """Return the settings of the training.

    Raises:
        UsageError: a value is out of range.
    """
    import jax

    from diip_jax.training.step import TrainConfig, placement

    last = prior.card.schedule.num_train_timesteps - 1
    if len(given.band) != 2 or not 0 <= given.band[0] <= given.band[1] <= last:
        text = ",".join(map(str, given.band))
        raise UsageError(f"--band is {text}; give two timesteps of 0 to {last}: 20,260")
    if not 0 <= given.ema_decay < 1:
        raise UsageError(f"--ema_decay is {given.ema_decay}; give one of [0, 1)")
    if given.weight_decay < 0:
        raise UsageError(f"--weight_decay is {given.weight_decay}; give 0 or more")
    try:
        placement(given.batch_size)
    except ValueError as error:
        raise UsageError(str(error)) from error
    dtype = given.dtype
    if dtype == "auto":  # CPUs are slower with it
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return TrainConfig(dtype=dtype, **_given(given, TRAINING))


def _plan(given: argparse.Namespace, pictures: Any) -> Any:
    from diip_jax.training.loop import Plan

    count = len(pictures.train)
    described = given.training_data or f"{count} pictures of the trainer's own"
    if pictures.num_grey:
        described += f"; {pictures.num_grey} grey pictures, their channel repeated"
    began = given.init or "random weights"
    by_clock = given.steps is None and given.minutes is None
    return Plan(
        minutes=60.0 if by_clock else given.minutes,
        name=given.name or given.output.name,
        **_given(given, LENGTH),
        facts={
            "source": f"python -m diip_jax.training, from {began}",
            "licence": given.licence,
            "training_data": described,
        },
    )


def _given(given: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(given, name) for name in names}


def _tell(events: Any, given: argparse.Namespace, say: Any) -> None:
    """Show the bar, and a line for every save."""
    from tqdm import tqdm

    from diip_jax.training import validation
    from diip_jax.training.loop import Interval

    lines = "{percentage:3.0f}% |{bar}| {elapsed} <{remaining} {postfix}"
    validated = ""
    with tqdm(total=1.0, bar_format=lines, disable=given.quiet or None) as bar:
        for event in events:
            if isinstance(event, Interval):
                for name in event.broken:
                    text = printable(f"cannot decode {name}; another one is used")
                    tqdm.write(text, sys.stderr)
                bar.set_postfix_str(
                    f"step {event.step}, loss {event.loss:.4f}{validated}, "
                    f"{event.images_per_second:.1f} images/s",
                    refresh=False,
                )
                bar.update(event.progress - bar.n)
            else:
                validated = f", validation {event.loss:.4f}"
                text = validation.line(event.psnrs)
                with tqdm.external_write_mode(file=sys.stderr):
                    say(f"step {event.step}: validation {event.loss:.4f}; {text}")


class _Interruption:
    """Hears Ctrl-C and SIGTERM, once; the second one ends the program."""

    def __init__(self):
        self._heard = False

    def __call__(self) -> bool:
        return self._heard

    def __enter__(self) -> "_Interruption":
        self._before = {
            number: signal.signal(number, self._hear)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        if self._heard:
            raise KeyboardInterrupt
        self._heard = True
        command_line.say(
            "stopping after this step; once more to stop at once, without a save"
        )


def _above_0(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a number above 0")
    return value


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 1,2") from error


def cli() -> None:
    """Run the command as a program; no traceback reaches the user."""
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        code = fail(EXIT_INTERRUPTED, "stopped; what was saved is kept")
    except Exception as error:  # the last resort, says what it is
        code = command_line.unexpected(error, SMALLER)
    sys.exit(code)


if __name__ == "__main__":
    cli()
