"""Turn a PyTorch checkpoint into a prior.

    python -m checkpoints_convert 256x256_diffusion_uncond.pt priors/adm256
    python -m checkpoints_convert --download dps-ffhq-10m
    python -m checkpoints_convert --list

A known file is recognised by its hash or its name, and a diffusers model brings its
config.json. Of your own file, say what its weights do not reveal:

    python -m checkpoints_convert ema_0.9999_100000.pt priors/mine --like dps-ffhq-10m
    python -m checkpoints_convert ema_0.9999_100000.pt priors/mine --image_size 64
        --num_head_channels 64 --no-new_attention_order --schedule linear
        --num_train_timesteps 1000

The bundled priors are made, and refreshed when better weights are there, with

    python -m checkpoints_convert natural64.pt diip_jax/priors/natural64
    python -m checkpoints_convert faces64.pt diip_jax/priors/faces64
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

EXIT_OK, EXIT_UNEXPECTED, EXIT_USAGE, EXIT_INPUT, EXIT_WEIGHTS = 0, 1, 2, 4, 5
EXIT_MEMORY, EXIT_INTERRUPTED = 6, 130

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODES = """exit codes:
  0  done
  1  unexpected error
  2  wrong or too few flags, or a place where no prior can be written
  4  not a checkpoint that can be converted
  5  weights unknown, out of reach or of another hash
  6  out of memory
130  interrupted; nothing was written"""
ARCHITECTURE = (
    "image_size",
    "num_heads",
    "num_head_channels",
    "num_heads_upsample",
    "new_attention_order",
)
SCHEDULE = ("num_train_timesteps", "rescale_timesteps", "beta_start", "beta_end")
CARD = ("name", "licence", "training_data", "source", "any_size")


class _Parser(argparse.ArgumentParser):
    """A parser that repeats no flag to the terminal as it was given."""

    def error(self, message: str) -> NoReturn:
        super().error(_printable(message))


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    result = _Parser(
        "python -m checkpoints_convert",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    switch = {"action": argparse.BooleanOptionalAction, "default": None}
    add("input", nargs="?", type=Path, help=".pt, .pth, .ckpt, .bin or .safetensors")
    add("output", nargs="?", type=Path, help="folder for the prior")
    add("--list", action="store_true", help="show the public checkpoints")
    add("--download", metavar="NAME", help="fetch and convert a public checkpoint")
    add("--offline", action="store_true", help="never touch the network")
    add("--as", dest="known_as", metavar="NAME", help="the file is this checkpoint")
    add("--like", metavar="NAME", help="the file was trained like this checkpoint")
    add("--image_size", type=_positive, help="side of the training images")
    add("--num_heads", type=_positive, help="heads of an attention layer")
    add(
        "--num_head_channels",
        type=_positive,
        help="width of a head; wins over --num_heads",
    )
    add("--num_heads_upsample", type=_positive, help="heads on the way up")
    add("--new_attention_order", help="qkv before heads", **switch)
    add("--schedule", dest="kind", choices=("linear", "cosine"))
    add("--num_train_timesteps", type=_positive, help="T")
    add("--rescale_timesteps", help="the network saw t * 1000 / T", **switch)
    add("--beta_start", type=float, help="of a linear schedule")
    add("--beta_end", type=float, help="of a linear schedule")
    add("--config", type=Path, help="config.json of a diffusers model")
    add("--scheduler_config", type=Path, help="its scheduler_config.json")
    add("--name", help="what the prior is called")
    add("--licence", help="terms of the weights")
    add("--training_data", help="what it was trained on")
    add("--source", help="where it comes from")
    add("--any_size", help="it was trained on crops of many scales", **switch)
    return result


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    grammar = parser()
    given = grammar.parse_args([_underscored(a) for a in arguments])
    chosen = [given.list, given.download is not None, given.input is not None]
    if sum(chosen) != 1 or (given.input is None) != (given.output is None):
        grammar.error("give INPUT and OUTPUT, or --download NAME, or --list")

    from checkpoints_convert.registry import WeightsError
    from checkpoints_convert.tensors import ConversionError, FactsError
    from diip_jax.prior import PriorError

    try:
        return _run(given)
    except (FactsError, PriorError) as error:
        return _fail(EXIT_USAGE, error)
    except ConversionError as error:
        return _fail(EXIT_INPUT, error)
    except WeightsError as error:
        return _fail(EXIT_WEIGHTS, error)
    except MemoryError:
        return _fail(EXIT_MEMORY, "not enough memory to hold the weights")
    except OSError as error:
        if error.filename is None:  # no place, but standard output
            raise
        what = f"cannot write {error.filename}: {error.strerror or error}"
        return _fail(EXIT_USAGE, f"{what}; give another folder")


def _run(given: argparse.Namespace) -> int:
    from checkpoints_convert import convert, registry, store
    from checkpoints_convert.tensors import ConversionError
    from diip_jax import storage

    if given.list:
        print(registry.table())
        return EXIT_OK
    if given.download is not None:
        cache = storage.cache_dir()
        folder = store.obtain(
            given.download, cache=cache, offline=given.offline, notify=_say
        )
        print(folder)
        return EXIT_OK
    store.check_output(given.output)
    try:
        prior = convert.convert(given.input, _request(given))
    except OSError as error:
        reason = error.strerror or error
        raise ConversionError(f"cannot read {given.input}: {reason}") from error
    store.write(prior, given.output)
    card = prior.card
    _say(
        f"{given.output}: {card.name}, {card.parameters} parameters, "
        f"{card.architecture.image_size} pixels; licence: {card.licence}"
    )
    return EXIT_OK


def _request(given: argparse.Namespace) -> Any:
    from checkpoints_convert.convert import Request

    return Request(
        known_as=given.known_as,
        like=given.like,
        architecture=_given(given, ARCHITECTURE),
        schedule=_given(given, ("kind", *SCHEDULE)),
        card=_given(given, CARD),
        fallback_name=given.output.name,
        config=given.config,
        scheduler_config=given.scheduler_config,
    )


def _given(given: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(given, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _underscored(argument: str) -> str:
    """Write a flag's hyphens as underscores: --image-size is --image_size."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    negated = name.startswith(("no-", "no_"))
    stem = (name[3:] if negated else name).replace("-", "_")
    return f"--{'no-' if negated else ''}{stem}{equals}{value}"


def _printable(text: str) -> str:
    from diip_jax.printable import printable  # with JAX, which --help does not need

    return printable(text)


def _say(text: str) -> None:
    print(_printable(text), file=sys.stderr, flush=True)


def _fail(code: int, message: object) -> int:
    _say(f"error: {message}")
    return code


def _interrupt(*_: object) -> None:
    """End the work as Ctrl-C does, at the first signal; the clean-up is not ended."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def cli() -> None:
    """Run the command as a program; no traceback reaches the user."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        code = _fail(EXIT_INTERRUPTED, "stopped; nothing was written")
    except Exception as error:  # the last resort, says what it is
        if os.environ.get("DIIP_DEBUG"):
            raise
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        reason = f"{type(error).__name__}: {first_line}"
        code = _fail(EXIT_UNEXPECTED, f"{reason}; DIIP_DEBUG=1 shows the traceback")
    sys.exit(code)


if __name__ == "__main__":
    cli()
