"""Restore damaged photos without knowing what happened to them.

    python main.py --image photo.png            # photo_diip.png, photo_diip.json
    python main.py --image photos/ --output restored/ --recursive
    python main.py --image photo.png --reference clean.png

Pictures and their records go to files, --json to stdout, all else to stderr.
"""

import dataclasses
import gc
import json
import os
import sys
import textwrap
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
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
)
MANY = 20  # photos that take a while to look at
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
ALIASES = {
    "input": "image",
    "model": "prior",
    "max_iters": "max_iterations",
    "lr": "learning_rate",
    "eps": "epsilon",
    "steps": "num_steps",
}
_VERBOSE = {"-v": "--verbose=1", "--verbose": "--verbose=1", "-vv": "--verbose=2"}
REASONS = {
    "high_frequency": "stopped before the noise came in",
    "low_frequency": "stopped before the sharpness was lost",
    "max_iterations": "reached the budget of iterations",
    "diverged": "diverged",
    "interrupted": "interrupted",
}
WARNINGS = {
    "interrupted": "this is the restoration as it stood",
    "no_stop": "no criterion fired; --max_iterations ended the run",
    "diverged": "the loss is not finite; try a smaller --learning_rate",
    "no_peak": "no sharpness peak was seen; the sharpest late iterate was taken",
    "scaled_down": "the photo was scaled down to the prior's size and up again; "
    "--size_mode tile keeps its detail",
    "colour_shift": "the mean colour moved by more than 2 %",
}


def _flag(kind: str, *args: Any, **kwargs: Any) -> None:
    getattr(flags, f"DEFINE_{kind}")(*args, flag_values=FLAGS, **kwargs)


_OF_MEMORY = "pass a smaller --tile or --batch_size, or --remat block"
_PRESET = "the preset's"  # shown as the default of a setting
_flag("multi_string", "image", [], "file, folder, glob or - for stdin", short_name="i")
_flag(
    "string",
    "output",
    None,
    "file if it ends like an image, else folder; - for stdout; NAME_diip.png beside "
    "the image, or results/ for many",
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
_flag("bool", "overwrite", False, "restore afresh what is finished or half done")
_flag("string", "prior", "natural64", "a bundled prior, a public checkpoint, a folder")
_flag("bool", "offline", False, "never touch the network")
_flag("integer", "seed", 0, "of the random start; the same on every device", 0)
_flag("enum", "preset", "prior", ["prior", "paper"], "where unset settings come from")
_flag("string", "gradient", None, f"full, frozen or last-K; {_PRESET}")
_flag("integer", "num_steps", None, f"DDIM steps; {_PRESET}")
_flag("float", "learning_rate", None, f"of Adam; {_PRESET}")
_flag("integer", "k_min", None, f"iterations of the transient; {_PRESET}")
_flag("float", "epsilon", None, f"threshold on the decrease of the loss; {_PRESET}")
_flag("integer", "max_iterations", None, f"the budget; {_PRESET}")
_flag("string", "criterion", None, f"paper, robust or never; {_PRESET}")
_flag("string", "remat", None, f"none, step or block; {_PRESET}")
_flag("string", "dtype", None, f"float32 or bfloat16; {_PRESET}")
_flag(
    "enum",
    "size_mode",
    "auto",
    ["auto", "native", "tile", "fit"],
    "give the prior the photo whole, in tiles, or scaled down to its size",
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
_flag("integer", "save_every", 0, "iterations between states to go on from; 0: none", 0)
_flag("string", "shard", None, "I/N: only the I-th of N parts of the images, I from 1")
_flag("integer", "max_pixels", 178_956_970, "largest image accepted", 1)
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


class _UsageError(ValueError):
    """The flags ask for something impossible."""


class _DeviceError(RuntimeError):
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
    except flags.Error as error:
        return _fail(EXIT_USAGE, f"{error}; see --help")
    except OSError as error:
        return _fail(EXIT_FILE, f"cannot read --config: {error}")
    if FLAGS.version:
        print(f"diip-jax {metadata.version('diip-jax')}")
        return EXIT_OK
    traces = _prepare_runtime()
    from checkpoints_convert import download as weights
    from checkpoints_convert.tensors import ConversionError
    from diip_jax import images, prior
    from diip_jax.metrics import lpips_weights
    from diip_jax.photos import find as inputs
    from diip_jax.photos import resume as states

    codes: list[tuple[type[Exception], int]] = [
        (_DeviceError, EXIT_DEVICE),
        (inputs.OutputError, EXIT_USAGE),
        (inputs.InputError, EXIT_FILE),
        (images.ImageError, EXIT_FILE),
        (states.StateError, EXIT_FILE),
        (prior.PriorError, EXIT_WEIGHTS),
        (weights.WeightsError, EXIT_WEIGHTS),
        (lpips_weights.LPIPSError, EXIT_WEIGHTS),
        (ConversionError, EXIT_WEIGHTS),
        (MemoryError, EXIT_MEMORY),
        (_UsageError, EXIT_USAGE),
    ]
    try:
        return _run(patterns, traces)
    except Exception as error:
        for kind, code in codes:
            if isinstance(error, kind):
                return _fail(code, error)
        if "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error):
            return _fail(EXIT_MEMORY, f"out of memory; {_OF_MEMORY}")
        raise


# The command line.


def _parse(arguments: Sequence[str]) -> list[str]:
    """Set the flags, afresh at every call, and return the images named."""
    program, *given = [_canonical(argument) for argument in arguments]
    named = _set([program, *given])
    path: str | None = FLAGS.config
    if path is not None:
        try:
            from_file = _from_file(path)
            _set([program, *from_file])  # alone, so that an error is the file's
        except flags.Error as error:
            raise flags.Error(f"--config {path}: {error}") from error
        named = _set([program, *from_file, *given])  # the last one counts
    return [*FLAGS.image, *named]


def _set(arguments: Sequence[str]) -> list[str]:
    """Set the flags to their defaults, then to these; return what is no flag."""
    for name in FLAGS:
        FLAGS[name].unparse()
    return FLAGS(arguments)[1:]


def _canonical(argument: str) -> str:
    """Write a flag as absl knows it: --k-min is --k_min, --no-json is --nojson."""
    if argument in _VERBOSE:
        return _VERBOSE[argument]
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    name = name.replace("-", "_")
    if name.startswith("no_"):
        name = f"no{name.removeprefix('no_')}"
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
            text = str(item).lower() if isinstance(item, bool) else item
            arguments.append(_canonical(f"--{name}={text}"))
    return arguments


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


def _check_flags(patterns: Sequence[str], many: bool) -> None:
    """Refuse combinations that no image can make right."""
    if not patterns:
        raise _UsageError("no image given; pass --image FILE, or see --help")
    to_stdout = FLAGS.output == "-" or ("-" in patterns and FLAGS.output is None)
    if to_stdout and not FLAGS.dry_run:
        if FLAGS.json:
            raise _UsageError("--json and the picture cannot both go to stdout")
        if FLAGS.save_every:
            raise _UsageError("--save_every needs an --output beside which to save")
        if sys.stdout.isatty():
            raise _UsageError("not writing a picture to a terminal; pass --output FILE")
    if FLAGS.reference and FLAGS.save_every:
        raise _UsageError(
            "--reference takes images restored in one go, no --save_every"
        )
    if FLAGS.reference and many and not Path(FLAGS.reference).is_dir():
        raise _UsageError(
            f"--reference {FLAGS.reference} is no folder; for many images name a "
            "folder of clean ones with the same names"
        )


def _num_lanes() -> int | None:
    if FLAGS.batch_size == "auto":
        return None
    if not FLAGS.batch_size.isdecimal() or int(FLAGS.batch_size) < 1:
        raise _UsageError(f"--batch_size is {FLAGS.batch_size}; use auto, 1, 2, ...")
    return int(FLAGS.batch_size)


def _shard() -> tuple[int, int]:
    index, _, count = (FLAGS.shard or "1/1").partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise _UsageError(f"--shard is {FLAGS.shard}; use I/N, such as 2/3")
    return int(index), int(count)


# What it does.


def _run(patterns: Sequence[str], traces: Path | None) -> int:
    """Do what the flags say and return the exit code."""
    from diip_jax import prior
    from diip_jax.photos import find as inputs
    from diip_jax.photos import plan as planning
    from diip_jax.photos import record

    many = inputs.names_many(patterns)
    _check_flags(patterns, many)
    shard, options = _shard(), _options(traces)
    device = _device()
    loaded = prior.load(_locate_prior(FLAGS.prior))
    settings = _settings(loaded)
    card = loaded.card
    _say(f"prior {card.name} ({card.licence}), device {device.device_kind}")
    _detail(", ".join(f"{k} {v}" for k, v in record.settings(settings).items()))

    data = sys.stdin.buffer.read() if "-" in patterns else b""
    sources = inputs.find(patterns, recursive=FLAGS.recursive, data=data)
    sources = inputs.shard(sources, *shard)
    if len(sources) > MANY:
        _say(f"looking at {len(sources)} photos")
    plan = planning.plan(loaded, sources, settings, options, many=many)
    for source, output in plan.finished:
        _say(f"{output} is finished; pass --overwrite to restore {source} again")
        _emit(_short_record("skipped", source, output))
    for source, reason in plan.failed:
        _report_failure(source, reason)
    if FLAGS.dry_run:
        _describe(loaded, plan.tasks, settings, options)
        num_done, num_failed, interrupted = len(plan.tasks), 0, False
    else:
        planning.check_writable(plan.tasks)
        for task in plan.tasks:
            _detail(_plan_line(task, settings))
        num_done, num_failed, interrupted = _work(loaded, plan, settings, options)
    num_done += len(plan.finished)
    num_failed += len(plan.failed)
    if interrupted:
        return EXIT_INTERRUPTED
    if num_failed:
        return EXIT_SOME_FAILED if num_done else EXIT_FILE
    return EXIT_OK


def _work(prior: Any, plan: Any, settings: Any, options: Any) -> tuple[int, int, bool]:
    """Restore the plan's photos.

    Returns:
        How many were restored, how many failed, and whether Ctrl-C cut it short.
    """
    from diip_jax.photos import run as files
    from diip_jax.photos import terminal as console

    num_done = num_failed = num_interrupted = 0
    if not plan.tasks:
        return 0, 0, False
    meter = console.Meter(
        len(plan.tasks),
        settings,
        quiet=FLAGS.quiet or not FLAGS.progress,
        seconds_between_lines=0 if FLAGS.verbose else console.SECONDS_BETWEEN_LINES,
    )
    with console.Stopper(quiet=FLAGS.quiet) as stopper, meter:
        events = files.restore_files(
            prior, plan.tasks, settings, options, should_stop=stopper.asked
        )
        for event in events:
            if isinstance(event, files.Progress):
                meter.show(event)
            elif event.record is None:
                num_failed += 1
                _report_failure(event.task.source.path, str(event.error))
            else:
                num_done += 1
                num_interrupted += event.record["status"] == "interrupted"
                _announce(event)
    undone = len(plan.tasks) - num_done - num_failed
    if len(plan.tasks) > 1:
        _say(f"{num_done} restored, {num_failed} failed, {undone} left")
    no_oracle = bool(FLAGS.reference) and stopper.asked()
    return num_done, num_failed, bool(undone or num_interrupted or no_oracle)


def _announce(outcome: Any) -> None:
    """Tell of a restored photo."""
    record: dict[str, Any] = outcome.record
    stop: dict[str, Any] = record["stop"]
    if outcome.data is not None:
        sys.stdout.buffer.write(outcome.data)
        sys.stdout.buffer.flush()
    _emit(record)
    name = record["output"]["path"]
    _say(
        f"{name}: {REASONS[stop['reason']]}, after {stop['at'] + 1} iterations; the "
        f"picture is that of iteration {stop['returned']}; "
        f"{record['timing']['total_s']:.1f} s"
    )
    times = (f"{key} {_score(value, 3)}" for key, value in record["timing"].items())
    _detail(f"{name}: {', '.join(times)}")
    for code in record["warnings"]:
        _say(f"{name}: warning: {WARNINGS.get(code, code)}")
    scores = record["metrics"]
    if FLAGS.reference:
        _say(
            f"PSNR {_score(scores['psnr_before'])} -> {_score(scores['psnr'])} dB, "
            f"SSIM {_score(scores['ssim_before'], 3)} -> {_score(scores['ssim'], 3)} "
            f"({scores['convention']})"
        )
        name = f"lpips_{FLAGS.lpips}"
        _say(
            f"LPIPS ({FLAGS.lpips}) {_score(scores[f'{name}_before'], 3)} -> "
            f"{_score(scores[name], 3)} {scores['lpips_missing'] or ''}".rstrip()
        )
        _say(
            f"oracle stop: {_score(scores['oracle_psnr'])} dB at iteration "
            f"{_score(scores['oracle_iteration'], 0)}"
        )


def _score(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _describe(prior: Any, tasks: Sequence[Any], settings: Any, options: Any) -> None:
    """Print what restoring each photo would take."""
    from diip_jax import engine
    from diip_jax.photos import plan as planning

    program = engine.jitted_advance(options.traces)
    memory: dict[tuple[int, int], int | None] = {}
    for task in tasks:
        canvas = task.layout.canvas
        if canvas not in memory:
            size, lanes = task.layout.size, options.num_lanes or 1
            memory[canvas] = engine.memory(prior, size, settings, lanes, program)
        needed = memory[canvas]
        if not FLAGS.json:
            print(
                f"{_plan_line(task, settings)}, "
                f"{'memory unknown' if needed is None else f'{needed / 1e6:.0f} MB'}"
            )
            continue
        plan = {
            "size": list(task.size[::-1]),
            "canvas": list(canvas[::-1]),
            "size_mode": task.layout.mode,
            "num_tiles": task.layout.num_tiles,
            "memory_bytes": needed,
            "max_unet_calls": planning.unet_calls(task, settings),
        }
        record = _short_record("planned", task.source.path, task.output)
        _emit(record | {"plan": plan})


def _plan_line(task: Any, settings: Any) -> str:
    """Tell what is to be done to a photo."""
    from diip_jax.photos import plan as planning

    size, canvas = (
        "x".join(map(str, reversed(side))) for side in (task.size, task.layout.canvas)
    )
    return (
        f"{task.source.path} -> {task.output}: {size}, canvas {canvas}, "
        f"{task.layout.mode} in {task.layout.num_tiles} window(s), at most "
        f"{planning.unet_calls(task, settings)} UNet calls"
    )


# From flags to the library's arguments.


def _settings(prior: Any) -> Any:
    from diip_jax import config, diip
    from diip_jax.photos import sizing

    preset = config.PAPER if FLAGS.preset == "paper" else prior.card.preset
    values: dict[str, Any] = {name: FLAGS[name].value for name in SETTINGS}
    given = {name: value for name, value in values.items() if value is not None}
    windows = FLAGS.size_mode, FLAGS.tile, FLAGS.tile_overlap
    try:
        settings = dataclasses.replace(preset, **given)
        settings = sizing.settings(prior, settings, *windows)
        diip.check_config(settings)
    except ValueError as error:
        raise _UsageError(str(error)) from error
    return settings


def _options(traces: Path | None) -> Any:
    from diip_jax.photos import plan as planning

    chosen: dict[str, Any] = {name: FLAGS[name].value for name in OPTIONS}
    files: dict[str, Path | None] = {"traces": traces}
    for name in ("reference", "lpips_weights"):
        path: str | None = FLAGS[name].value
        files[name] = Path(path) if path else None
    return planning.Options(num_lanes=_num_lanes(), **files, **chosen)


def _locate_prior(name: str) -> Path:
    """Return a prior's folder, after a download and a conversion where it needs them.

    Raises:
        PriorError: nothing is called so.
        WeightsError: it is out of reach.
        ConversionError: it cannot be converted.
    """
    from checkpoints_convert import download as weights
    from diip_jax import prior

    try:
        return prior.locate(name)
    except prior.PriorError as error:
        if Path(name).is_file():
            raise prior.PriorError(
                f"{name} is a file; convert it with `python -m checkpoints_convert "
                f"{name} OUT` and pass --prior OUT"
            ) from error
        if name not in weights.registry():
            raise prior.PriorError(
                f"{error}; `python -m checkpoints_convert --list` names public ones"
            ) from error
    from checkpoints_convert import store
    from diip_jax import storage

    return store.obtain(
        name,
        cache=storage.cache_dir(),
        offline=FLAGS.offline,
        progress=FLAGS.progress and not FLAGS.quiet,
        notify=_say,
    )


def _device() -> Any:
    """Return the device to compute on.

    Raises:
        _DeviceError: there is none of the kind that --device names.
    """
    import jax

    wanted = FLAGS.device
    if wanted == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        device = jax.devices()[0]
    except RuntimeError as error:
        raise _DeviceError(str(error).splitlines()[0]) from error
    found = jax.default_backend()
    if wanted not in ("auto", found):
        raise _DeviceError(
            f"no {wanted} here, JAX sees {found} only; install {_EXTRAS[wanted]} or "
            "drop --device"
        )
    if wanted == "auto" and found == "cpu" and _gpu_is_present():
        _say(
            "warning: there is a GPU, but this jaxlib is for CPUs only; install "
            f"{_EXTRAS['gpu']} to use it"
        )
    return device


_EXTRAS = {
    "cpu": "jax",
    "gpu": "diip-jax[cuda12]",
    "tpu": "diip-jax[tpu]",
}


def _gpu_is_present() -> bool:
    return Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()


def _prepare_runtime() -> Path | None:
    """Set up JAX for a command: what a library must leave alone.

    Returns:
        A folder to keep traces in, if there can be one.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    # Tracing makes a million objects, few of them garbage: looking for it every 700
    # would take a third of its time.
    gc.set_threshold(200_000)
    import jax

    from diip_jax import storage

    if FLAGS.verbose > 1:
        jax.config.update("jax_log_compiles", True)
    folder = storage.cache_dir() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _say(f"warning: no cache for compiled programs: {error}; set DIIP_CACHE")
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Everything is kept: what compiles in a moment adds up to seconds at every start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return folder.with_name("traces")


# What it says.


def _say(text: str) -> None:
    from diip_jax.photos import terminal as console

    if not FLAGS.quiet:
        console.say(text)


def _detail(text: str) -> None:
    if FLAGS.verbose:
        _say(text)


def _fail(code: int, message: object) -> int:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    return code


def _report_failure(source: Path, reason: str) -> None:
    from diip_jax.photos import record
    from diip_jax.photos import terminal as console

    console.say(f"error: {reason}")
    _emit(record.failure(source, reason, EXIT_FILE))


def _short_record(status: str, source: Path, output: Path) -> dict[str, Any]:
    from diip_jax.photos import record

    paths = {"input": {"path": str(source)}, "output": {"path": str(output)}}
    return {"schema": record.SCHEMA, "status": status, **paths}


def _emit(record: dict[str, Any]) -> None:
    """Print a JSON object if that was asked for.

    A reader that went away does not end the run: the files are what it is for.
    """
    if not FLAGS.json:
        return
    try:
        print(json.dumps(record, allow_nan=False), flush=True)
    except BrokenPipeError:
        _abandon_stdout()


def _abandon_stdout() -> None:
    """Let what is still written to a closed pipe vanish without an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def cli() -> None:
    """Run the command as a program; no traceback reaches the user."""
    try:
        code = main(sys.argv)
    except KeyboardInterrupt:
        code = _fail(EXIT_INTERRUPTED, "stopped; nothing more was written")
    except BrokenPipeError:  # the reader of a picture went away
        _abandon_stdout()
        code = EXIT_FILE
    except Exception as error:  # the last resort, says what it is
        if os.environ.get("DIIP_DEBUG"):
            raise
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        reason = f"{type(error).__name__}: {first_line}"
        code = _fail(EXIT_UNEXPECTED, f"{reason}; DIIP_DEBUG=1 shows the traceback")
    sys.exit(code)


if __name__ == "__main__":
    cli()
