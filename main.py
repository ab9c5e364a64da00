"""Restore damaged photos without knowing what happened to them.

    python main.py --image photo.png            # photo_diip.png, photo_diip.json
    python main.py --image photos/ --output restored/ --recursive
    python main.py --image photo.png --reference clean.png

Pictures and their records go to files, --json to stdout, all else to stderr.
"""

import contextlib
import gc
import io
import os
import sys
import textwrap
import tomllib
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

FLAGS = flags.FlagValues()  # our own, free of the flags that other libraries define
FLAGS.set_gnu_getopt()  # flags may come after images

EXIT_OK, EXIT_UNEXPECTED, EXIT_USAGE, EXIT_SOME_FAILED = 0, 1, 2, 3
EXIT_FILE, EXIT_WEIGHTS, EXIT_MEMORY, EXIT_DEVICE, EXIT_INTERRUPTED = 4, 5, 6, 7, 130
EXIT_CODES = """exit codes:
  0  all done                       5  weights missing, damaged or out of reach
  1  unexpected error               6  out of memory
  2  wrong flags                    7  no such device
  3  some images failed           130  interrupted; the best so far is saved
  4  a file cannot be read or written"""
SETTINGS = (
    "gradient",
    "num_steps",
    "learning_rate",
    "k_min",
    "epsilon",
    "max_iterations",
    "criterion",
    "remat",
    "dtype",
    "start",
    "num_starts",
    "start_noise",
    "noise_level",
    "clip_gradient",
)
WINDOWS = ("size_mode", "tile", "tile_overlap")
OPTIONS = (
    "output",
    "suffix",
    "ext",
    "quality",
    "seed",
    "size_mode",
    "max_pixels",
    "overwrite",
    "save_every",
    "lpips",
)
PATHS = ("reference", "lpips_weights")
ALIASES = {
    "input": "image",
    "model": "prior",
    "max_iters": "max_iterations",
    "lr": "learning_rate",
    "eps": "epsilon",
    "steps": "num_steps",
}
_VERBOSE = {"-v": "1", "--verbose": "1", "-vv": "2"}  # what they say without a value
# How warnings begin that JAX and `compilation` give for each program.
CACHE_WARNINGS = (
    "Error reading persistent compilation cache",
    "Error writing persistent compilation cache",
    "cannot keep a trace",
)
# Errors by the names of their classes, which are not imported for --help.
ERRORS = {
    "UsageError": EXIT_USAGE,
    "OutputError": EXIT_USAGE,
    "InputError": EXIT_FILE,
    "ImageError": EXIT_FILE,
    "StateError": EXIT_FILE,
    "PriorError": EXIT_WEIGHTS,
    "WeightsError": EXIT_WEIGHTS,
    "LPIPSError": EXIT_WEIGHTS,
    "ConversionError": EXIT_WEIGHTS,
    "MemoryError": EXIT_MEMORY,
    "DeviceError": EXIT_DEVICE,
    "ClusterError": EXIT_DEVICE,
}


def _flag(kind: str, *args: Any, **kwargs: Any) -> None:
    getattr(flags, f"DEFINE_{kind}")(*args, flag_values=FLAGS, **kwargs)


_PRIOR = "a bundled or public prior, a folder, an address"
_IMAGE = "file, folder, glob, address such as s3://bucket/scans/, or - for stdin"
_PRESET = "the preset's"  # shown as the default of a setting
_flag("multi_string", "image", [], _IMAGE, short_name="i")
_flag(
    "string",
    "output",
    None,
    "file if it ends like an image, else folder, or the address of one; - for stdout; "
    "NAME_diip.png beside the image, or results/ for many",
    short_name="o",
)
_flag("bool", "recursive", False, "look in subfolders too", short_name="r")
_flag("string", "suffix", "diip", "added to the name of an output file")
_flag(
    "enum",
    "ext",
    "auto",
    ["auto", "png", "jpg", "tiff", "webp"],
    "output format; auto is lossless, so that a JPEG gives a PNG",
)
_flag("integer", "quality", 95, "of JPEG output", 1, 100)
_flag(
    "bool",
    "overwrite",
    False,
    "restore again what is finished or half done, and replace a picture or JSON file "
    "that this program did not write: its pictures have a record beside them",
)
_flag("string", "prior", "natural64", _PRIOR)
_flag("bool", "offline", False, "never touch the network")
_flag("integer", "seed", 0, "of the random start; the same on every device", 0)
_flag(
    "enum",
    "preset",
    "default",
    ["quick", "default", "best", "paper", "prior"],
    "where unset settings come from: one start, the prior's own, four times as many "
    "starts, or the paper's method; prior is the old name of default",
)
_flag("string", "gradient", None, f"full, frozen or last-K; {_PRESET}")
_flag("integer", "num_steps", None, f"DDIM steps; {_PRESET}")
_flag("float", "learning_rate", None, f"of Adam; {_PRESET}")
_flag("integer", "k_min", None, f"iterations of the transient; {_PRESET}")
_flag("float", "epsilon", None, f"threshold on the decrease of the loss; {_PRESET}")
_flag(
    "integer",
    "max_iterations",
    None,
    f"the budget, of a photo of any size; {_PRESET}, less for large photos",
)
_flag("string", "criterion", None, f"paper, robust, discrepancy or never; {_PRESET}")
_flag("string", "start", None, f"random or matched to the photo; {_PRESET}")
_flag("integer", "num_starts", None, f"restorations that are averaged; {_PRESET}", 1)
_flag("float", "start_noise", None, "noise level of a matched start; told by the photo")
_flag("float", "noise_level", None, "of the photo, in [0, 1]; told by the photo")
_flag("string", "clip_gradient", None, f"zero or straight-through; {_PRESET}")
_flag("string", "remat", None, f"auto, none, step or block; {_PRESET}")
_flag("string", "dtype", None, f"float32 or bfloat16; {_PRESET}")
_flag(
    "string",
    "size_mode",
    "auto",
    "give the prior the photo whole (native), in tiles (tile), or scaled down to its "
    "size (fit); auto tiles what is too large",
)
_flag(
    "integer",
    "tile",
    None,
    "side of a tile, and of the largest canvas given whole; 512, or the prior's size",
    short_name="t",
)
_flag("integer", "tile_overlap", None, "pixels that tiles share; a quarter of --tile")
_flag("enum", "device", "auto", ["auto", "cpu", "gpu", "tpu"], "where to compute")
_flag("string", "batch_size", "auto", "images restored at the same time")
_flag("float", "max_minutes", None, "give what is there after so long", 0)
_flag("integer", "save_every", 0, "iterations between states to go on from; 0: none", 0)
_flag(
    "string",
    "shard",
    None,
    "I/N: only the I-th of N parts of the images, the same at every run, I from 1 to N "
    "or from 0 to N-1; auto takes both from a SLURM job array, auto/N the index from "
    "SLURM or from a Kubernetes indexed Job",
)
_flag(
    "bool",
    "distributed",
    False,
    "join the processes of a pod slice (jax.distributed); each restores its own part "
    "of the images on its own devices",
)
_flag(
    "string",
    "cluster",
    None,
    "address of a Ray cluster, auto for the one of this machine, or local for one that "
    "lives as long as the command: restore on all its devices. Whoever reaches Ray's "
    "ports can run code, so keep them inside a trusted network. Extra [cluster]",
)
_flag("integer", "num_workers", None, "of a cluster; one for each device", 1)
_flag("integer", "devices_per_worker", 1, "GPUs or TPU chips of each of them", 1)
_flag("integer", "max_pixels", None, "largest image accepted; 179 million", 1)
_flag(
    "string",
    "reference",
    None,
    "clean image, or folder of clean images of the same names: adds PSNR, SSIM and "
    "LPIPS before and after, and the best PSNR of any iteration; for that the run goes "
    "on past its stop",
)
_flag("enum", "lpips", "alex", ["alex", "vgg"], "network of LPIPS")
_flag("string", "lpips_weights", None, "file of its weights; that of [lpips]")
_flag("bool", "dry_run", False, "only tell what would be done, and what it takes")
_flag("bool", "json", False, "print one JSON object per image on stdout")
_flag("bool", "quiet", False, "say nothing but errors", short_name="q")
_flag(
    "integer",
    "verbose",
    0,
    "1 (-v) also tells the settings, what is done to each photo, and times; 2 (-vv) "
    "what is compiled",
    0,
    2,
    short_name="v",
)
_flag("bool", "progress", True, "show how far a run is; --no_progress does not")
_flag(
    "string",
    "config",
    None,
    "TOML file of flags, such as num_steps = 5; those of the command line count more",
)
_flag("bool", "version", False, "print the version")
for _alias, _name in ALIASES.items():
    flags.DEFINE_alias(_alias, _name, flag_values=FLAGS)


class UsageError(ValueError):
    """The flags ask for something impossible."""


class DeviceError(RuntimeError):
    """JAX has no such device."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: the program's name and what follows it, as in `sys.argv`.
    """
    if {"--help", "-h", "-help"} & set(arguments[1:]):
        print(_help())
        return EXIT_OK
    try:
        patterns = _parse(arguments)
    except (flags.Error, ValueError) as error:  # the latter for --no_json=1
        return _fail(EXIT_USAGE, f"{error}; see --help")
    except OSError as error:
        return _fail(EXIT_FILE, f"cannot read --config: {error}")
    if FLAGS.version:
        print(f"diip-jax {metadata.version('diip-jax')}")
        return EXIT_OK
    try:
        return _run(patterns)
    except BrokenPipeError:
        raise
    except OSError as error:  # a file is named that one may not even ask about
        return _fail(EXIT_FILE, _refusal(error))
    except Exception as error:
        codes = [ERRORS.get(kind.__name__) for kind in type(error).__mro__]
        code = next((code for code in codes if code is not None), None)
        if code is None:
            raise
        return _fail(code, str(error) or type(error).__name__)


def _run(patterns: Sequence[str]) -> int:
    """Do what the flags say and return the exit code.

    JAX and the package are imported here, once the flags are right: --help and a
    mistyped flag need not wait for them.
    """
    _check_flags(patterns)
    shard, chosen = _shard(), _options()
    _prepare_process()
    import jax

    from checkpoints_convert import store
    from diip_jax import addresses, load_prior, storage
    from diip_jax import prior as priors
    from diip_jax.photos import cluster, command

    terminal = command.Terminal(
        quiet=FLAGS.quiet,
        verbose=FLAGS.verbose > 0,
        json=FLAGS.json,
        progress=FLAGS.progress,
        failure_code=EXIT_FILE,
    )
    cache = _cache(storage, terminal.say)
    chosen |= {name: addresses.path(path) for name, path in _given(PATHS).items()}
    if FLAGS.cluster is None:
        chosen["traces"] = _keep_programs(jax, cache, terminal.say)
        _choose_device(jax, terminal.say)
        shard = _own_shard(shard, jax.process_index(), jax.process_count())
    folder = store.locate(
        FLAGS.prior,
        cache=cache or Path(os.devnull),  # where nothing can be kept
        offline=FLAGS.offline,
        progress=FLAGS.progress and not FLAGS.quiet,
        notify=terminal.say,
    )
    if FLAGS.cluster is None:
        prior = load_prior(folder)
    else:  # whose workers load its weights
        prior = priors.Prior(None, priors.read_card(folder))
    try:
        settings = command.settings(
            prior, FLAGS.preset, _given(SETTINGS), **_given(WINDOWS)
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    for line in command.ignored(settings, _given(SETTINGS)):
        terminal.say(f"warning: {line}")
    how: dict[str, Any] = {
        "recursive": FLAGS.recursive,
        "shard": shard,
        "dry_run": FLAGS.dry_run,
        "max_minutes": FLAGS.max_minutes,
    }
    if FLAGS.cluster is None:
        data = sys.stdin.buffer.read() if "-" in patterns else b""
        options = command.Options(**chosen)
        summary = command.run(
            prior, patterns, settings, options, terminal, data=data, **how
        )
    else:
        everywhere = FLAGS.prior in priors.bundled() or addresses.is_address(
            FLAGS.prior
        )
        summary = cluster.run(
            FLAGS.prior if everywhere else str(folder.absolute()),
            prior.card,
            patterns,
            settings,
            command.Options(**chosen),
            terminal,
            cluster.Cluster(
                FLAGS.cluster,
                FLAGS.num_workers,
                FLAGS.devices_per_worker,
                FLAGS.device,
                _shared_cache(cache),
            ),
            **how,
        )
    return _exit_code(summary, terminal.lost_output)


def _exit_code(summary: Any, lost_output: bool) -> int:
    if summary.interrupted:
        return EXIT_INTERRUPTED
    if summary.num_failed:
        return EXIT_SOME_FAILED if summary.num_done else EXIT_FILE
    return EXIT_FILE if lost_output else EXIT_OK


def _shared_cache(cache: Path | None) -> Path | None:
    """Return the cache if the workers of the cluster are to use it too."""
    shared = FLAGS.cluster == "local" or "DIIP_CACHE" in os.environ
    return cache.absolute() if cache is not None and shared else None


# The command line.


def _parse(arguments: Sequence[str]) -> list[str]:
    """Set the flags and return the images named; nothing of an earlier call stays."""
    program, given = arguments[0], _canonical(arguments[1:])
    named = _set([program, *given])
    path: str | None = FLAGS.config
    if path is not None:
        try:
            from_file = _from_file(path)
            _set([program, *from_file])  # alone, so that an error is the file's
        except (flags.Error, ValueError) as error:
            raise flags.Error(f"--config {path}: {error}") from error
        named = _set([program, *from_file, *given])  # the last one counts
    return [*FLAGS.image, *named]


def _set(arguments: Sequence[str]) -> list[str]:
    """Set the flags to their defaults, then to these; return what is no flag."""
    for name in FLAGS:
        FLAGS[name].unparse()
    return FLAGS(arguments)[1:]


def _canonical(arguments: Sequence[str]) -> list[str]:
    """Write flags as absl knows them; what is behind "--" is no flag."""
    left, found = list(arguments), []
    while left:
        argument = left.pop(0)
        if argument == "--":
            return [*found, argument, *left]
        if argument in _VERBOSE:
            has_value = bool(left) and left[0] in ("0", "1", "2")
            argument = f"--verbose={left.pop(0) if has_value else _VERBOSE[argument]}"
        found.append(_with_underscores(argument))
    return found


def _with_underscores(argument: str) -> str:
    """Write --k-min as --k_min, --no-json as --nojson, where there are such flags."""
    name, equals, value = argument.removeprefix("--").partition("=")
    name = name.replace("-", "_")
    if name.startswith("no_"):
        name = f"no{name.removeprefix('no_')}"
    is_flag = name in FLAGS or name.removeprefix("no") in FLAGS
    if not (argument.startswith("--") and is_flag):
        return argument
    return f"--{name}{equals}{value}"


def _from_file(path: str) -> list[str]:
    """Return the flags that a TOML file sets, as the command line would have them.

    Raises:
        flags.Error: it is no TOML, or not of flags.
        OSError: it cannot be read.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise flags.Error(f"not a TOML file: {error}") from error
    arguments = []
    for name, value in content.items():
        if not isinstance(value, str | int | float | list):
            raise flags.Error(f"{name} is {value!r}; give it the value of a flag")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool):
                positive = name.removeprefix("no_").removeprefix("no-")
                truth = item == (positive == name)  # no_json = true is json = false
                arguments.append(f"--{positive}={str(truth).lower()}")
            else:
                arguments.append(f"--{name}={item}")
    return _canonical(arguments)


def _help() -> str:
    """Return the examples, then the flags with their defaults, then the exit codes."""
    lines = []
    for flag in [f for group in FLAGS.flags_by_module_dict().values() for f in group]:
        if flag.name in ALIASES:
            continue
        others = [f"--{alias}" for alias, name in ALIASES.items() if name == flag.name]
        short = [f"-{flag.short_name}"] if flag.short_name else []
        text = (flag.help or "").partition(";\n")[0]  # absl's own remark on lists
        if flag.default not in (None, False, []):
            text = f"{text} (default: {flag.default})"
        lines.append(f"  {', '.join([*short, f'--{flag.name}', *others])}")
        lines.append(textwrap.indent(textwrap.fill(text, 72), " " * 6))
    return "\n".join([__doc__ or "", *lines, "", EXIT_CODES])


# From flags to the library's arguments.


def _check_flags(patterns: Sequence[str]) -> None:
    """Refuse combinations that no image can make right."""
    if not patterns:
        raise UsageError("no image given; pass --image FILE, or see --help")
    to_stdout = FLAGS.output == "-" or ("-" in patterns and FLAGS.output is None)
    if to_stdout and not FLAGS.dry_run:
        if FLAGS.json:
            raise UsageError("--json and the picture cannot both go to stdout")
        if FLAGS.save_every:
            raise UsageError("--save_every needs an --output beside which to save")
        if sys.stdout.isatty():
            raise UsageError("not writing a picture to a terminal; pass --output FILE")
    if FLAGS.cluster is not None:
        _check_cluster_flags(patterns)
    if FLAGS.reference and FLAGS.save_every:
        raise UsageError("--reference takes images restored in one go, no --save_every")


def _check_cluster_flags(patterns: Sequence[str]) -> None:
    if "-" in patterns or FLAGS.output == "-":
        raise UsageError(
            "--cluster takes files and addresses, no standard input, output"
        )
    if FLAGS.save_every:
        raise UsageError("--save_every is for one machine; --cluster goes on by photos")
    if FLAGS.distributed:
        raise UsageError("--cluster and --distributed are two ways; take one")


def _given(names: Sequence[str]) -> dict[str, Any]:
    """Return the flags among these that were given or have a default, by name."""
    values = {name: FLAGS[name].value for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _options() -> dict[str, Any]:
    """Return the fields of `plan.Options` that are flags, but for the paths."""
    return {**_given(OPTIONS), "num_lanes": _num_lanes()}


def _num_lanes() -> int | None:
    if FLAGS.batch_size == "auto":
        return None
    if not FLAGS.batch_size.isdecimal() or int(FLAGS.batch_size) < 1:
        raise UsageError(f"--batch_size is {FLAGS.batch_size}; use auto, 1, 2, ...")
    return int(FLAGS.batch_size)


def _shard() -> tuple[int, int]:
    """Return the part of the images to restore: its index from 1, and how many.

    0/N is another name of N/N, so that both ways to count name all parts.
    """
    index, _, count = (FLAGS.shard or "1/1").partition("/")
    if index == "auto":
        index, count = _array_index(count)
    numbers = index.isdecimal() and count.isdecimal()
    if not (numbers and int(index) <= int(count) and int(count) >= 1):
        given = FLAGS.shard if "auto" not in FLAGS.shard else f"auto: {index}/{count}"
        raise UsageError(f"--shard is {given}; use I/N, such as 2/3")
    return int(index) or int(count), int(count)


def _array_index(count: str) -> tuple[str, str]:
    """Return the index of this task of an array of jobs, and how many there are.

    Args:
        count: how many, where the flag says it, else empty.

    Raises:
        UsageError: the environment does not tell.
    """
    slurm = os.environ.get("SLURM_ARRAY_TASK_ID")
    index = slurm or os.environ.get("JOB_COMPLETION_INDEX")
    if index is None:
        raise UsageError(
            "--shard auto needs SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX; pass I/N"
        )
    if count:
        return index, count
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    found = [os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names]
    if not all(number.isdecimal() for number in found):
        raise UsageError("--shard auto cannot tell how many parts; pass auto/N")
    number, first, last, step, whole = map(int, found)
    if last - first != step * (whole - 1):
        raise UsageError(
            "--shard auto: the indices of the array have gaps; pass auto/N"
        )
    return str((number - first) // step + 1), str(whole)


def _own_shard(shard: tuple[int, int], process: int, count: int) -> tuple[int, int]:
    """Return the part of a shard that one of `count` processes restores, from 0."""
    index, shards = shard
    return index + shards * process, shards * count


# What a command may set for its whole process, and a library must leave alone.


def _prepare_process() -> None:
    """Set what must be set before JAX is imported."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    # Tracing makes a million objects, few of them garbage: looking for it every 700
    # would take a third of its time.
    gc.set_threshold(200_000)


def _cache(storage: ModuleType, say: Callable[[str], None]) -> Path | None:
    """Return the folder of what can be made again, if the system has a place for it."""
    try:
        return storage.cache_dir()
    except OSError as error:
        say(f"warning: no cache: {error.strerror}; set DIIP_CACHE to a folder")
        return None


def _keep_programs(
    jax: ModuleType, cache: Path | None, say: Callable[[str], None]
) -> Path | None:
    """Keep compiled programs for the next start.

    Returns:
        A folder to keep traces in, if there can be one.
    """
    if FLAGS.verbose > 1:
        jax.config.update("jax_log_compiles", True)
    if cache is None:
        return None
    folder = cache / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        say(f"warning: no cache for compiled programs: {error}; set DIIP_CACHE")
        return None
    _warn_once(CACHE_WARNINGS, f"the cache {cache} cannot be used", say)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Everything is kept: what compiles in a moment adds up to seconds at every start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return cache / "traces"


def _warn_once(
    beginnings: tuple[str, ...], what: str, say: Callable[[str], None]
) -> None:
    """Say one line for all the warnings that begin so; there is one per program."""
    show, told = warnings.showwarning, []

    def say_once(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if not str(message).startswith(beginnings):
            show(message, *args, **kwargs)
        elif not told:
            told.append(message)
            reason = " ".join(str(message).split())
            say(f"warning: {what}: {reason}; set DIIP_CACHE to another folder")

    warnings.showwarning = say_once


def _choose_device(jax: ModuleType, say: Callable[[str], None]) -> None:
    """Compute on the kind of device that --device names.

    Raises:
        DeviceError: there is none.
    """
    wanted = FLAGS.device
    if wanted == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        if FLAGS.distributed and not jax.distributed.is_initialized():
            # Nothing is gathered; Gloo would print on standard output on CPUs.
            jax.config.update("jax_cpu_collectives_implementation", None)
            jax.distributed.initialize()
        found = jax.default_backend()
    except (RuntimeError, ValueError) as error:  # ValueError: no such processes
        raise DeviceError(str(error).splitlines()[0]) from error
    if wanted not in ("auto", found):
        raise DeviceError(
            f"no {wanted} here, JAX sees {found} only; install {_EXTRAS[wanted]} or "
            "drop --device"
        )
    if wanted == "auto" and found == "cpu" and _gpu_is_present():
        say(
            "warning: there is a GPU, but this jaxlib is for CPUs only; install "
            f"{_EXTRAS['gpu']} to use it"
        )


_EXTRAS = {
    "cpu": "jax",
    "gpu": "diip-jax[cuda12]",
    "tpu": "diip-jax[tpu]",
}


def _gpu_is_present() -> bool:
    return Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()


# How it ends.


def _refusal(error: OSError) -> str:
    """Return what the system refused, and where."""
    reason = error.strerror or str(error) or type(error).__name__
    where = "" if error.filename is None else f"cannot use {error.filename}: "
    return f"{where}{reason}"


def _fail(code: int, message: object) -> int:
    with contextlib.suppress(OSError):  # if nobody can be told, the code tells
        text = " ".join(str(message).split())
        if not text.isprintable():  # a name of a file or flag could steer the terminal
            text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        print(f"error: {text}", file=sys.stderr, flush=True)
    return code


def _prepare_streams() -> None:
    """Let no closed stream and no odd name in what is printed end the work."""
    # A closed one is None. The files that are opened here take its number: a picture
    # that had it would get what others write there. Printing still fails.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            number = os.open(os.devnull, flags)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Let what was not printed yet vanish without an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def cli() -> None:
    """Run the command as a program; no traceback reaches the user."""
    _prepare_streams()
    try:
        code = main(sys.argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _fail(EXIT_INTERRUPTED, "stopped; nothing more was written")
    except BrokenPipeError:  # the reader of a picture went away
        _discard_stdout()
        code = EXIT_FILE
    except OSError as error:  # of --help, which is printed outside of `_run`
        _discard_stdout()
        reason = error.strerror or error
        code = _fail(EXIT_FILE, f"cannot write to standard output: {reason}")
    except Exception as error:  # the last resort, says what it is
        if os.environ.get("DIIP_DEBUG"):
            raise
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        reason = f"{type(error).__name__}: {first_line}"
        code = _fail(EXIT_UNEXPECTED, f"{reason}; DIIP_DEBUG=1 shows the traceback")
    sys.exit(code)


if __name__ == "__main__":
    cli()
