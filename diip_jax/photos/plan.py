"""What a command will do to each photo, decided before the minutes of optimisation."""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diip_jax import addresses, diip, entries, images, matched, storage
from diip_jax.addresses import Address
from diip_jax.config import DIIPConfig
from diip_jax.images import ImageError, Photo
from diip_jax.photos import find, record, sizing
from diip_jax.prior import Prior


class UsageError(ValueError):
    """A command asks for something impossible."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a command may ask for beyond the settings of the restoration.

    Attributes:
        output: file or folder, "-" for standard output; None for the default of
            `find.stems`.
        suffix: added to the name of an output.
        ext: output format, as in `images.output_suffix`.
        quality: of JPEG output.
        seed: of the random starts.
        size_mode: a `sizing.SizeMode`.
        max_pixels: largest image accepted.
        num_lanes: images restored at the same time; None for what fits.
        overwrite: restore again what is finished or half done.
        save_every: iterations between two saved states; 0 for none. A run goes on
            from a state that is there in any case.
        reference: clean image of a single input, or a folder with one for each input,
            of its name.
        lpips: network of LPIPS, one of `metrics.lpips.NETWORKS`.
        lpips_weights: file of its weights; None for those of the extra [lpips].
        traces: folder that keeps traced programs for the next start, if any.
    """

    output: str | None = None
    suffix: str = "diip"
    ext: str = "auto"
    quality: int = 95
    seed: int = 0
    size_mode: str = "auto"
    max_pixels: int = images.MAX_PIXELS
    num_lanes: int | None = None
    overwrite: bool = False
    save_every: int = 0
    reference: Path | None = None
    lpips: str = "alex"
    lpips_weights: Path | None = None
    traces: Path | None = None


class Task(NamedTuple):
    """One photo to restore.

    Attributes:
        source: where from.
        output: where to; its suffix names the format. "-.png" is standard output.
        sha256: digest of the input.
        size: height and width of the upright photo.
        placement: how it is given to the prior.
        reference: its clean image, where there is one.
    """

    source: find.Source
    output: Path
    sha256: str
    size: tuple[int, int]
    placement: sizing.Placement
    reference: Path | None = None

    @property
    def to_stdout(self) -> bool:
        """Whether the picture goes to standard output, and its record nowhere."""
        return self.output.stem == find.STANDARD

    @property
    def keeps_states(self) -> bool:
        """Whether there is a folder for `state_path`; a store has none."""
        return not isinstance(self.output, Address)

    @property
    def record_path(self) -> Path:
        """Where the JSON record goes."""
        return self.output.with_suffix(".json")

    def state_path(self, start: int = 0) -> Path:
        """Return where the state of a start of an unfinished restoration is kept."""
        which = f".{start}" if start else ""
        return self.output.with_name(f".{self.output.name}{which}.state")


class Plan(NamedTuple):
    """What a command will do.

    Attributes:
        tasks: photos to restore.
        finished: inputs that earlier runs restored with the same settings, and where.
        failed: inputs that cannot be restored, and why.
    """

    tasks: list[Task]
    finished: list[tuple[Path, Path]]
    failed: list[tuple[Path, str]]


def decide(
    prior: Prior,
    sources: Sequence[find.Source],
    config: DIIPConfig,
    options: Options,
    *,
    many: bool,
) -> Plan:
    """Look at every input and decide what is to be done, without doing it.

    Args:
        prior: the frozen model.
        sources: of `find.sources`.
        config: the settings.
        options: of the command.
        many: the command named more than one file; then finished ones are passed over.

    Raises:
        OutputError: an output is an input, or there is one output for all photos.
        UsageError: there are many photos and one clean image, or states would have to
            be kept in a store.
        ImageError: nobody may look at the folder of clean images.
    """
    check_options(options, many=many)
    settings_digest = digest(prior, config, options)
    result = Plan([], [], [])
    for source, stem in zip(sources, _stems(sources, options, many), strict=True):
        if source.problem is not None:
            result.failed.append((source.path, source.problem))
            continue
        try:
            decided = decide_one(
                prior, source, stem, settings_digest, config, options, many=many
            )
            if isinstance(decided, Task):
                result.tasks.append(decided)
            else:
                result.finished.append((source.path, decided))
        except (ImageError, find.InputError) as error:
            result.failed.append((source.path, str(error)))
    result = _without_collisions(result)
    clean = [task.reference for task in result.tasks if task.reference is not None]
    refuse_inputs(
        [*(source.path for source in sources), *clean],
        [path for task in result.tasks for path in (task.output, task.record_path)],
    )
    return _without_misplaced(result, config, options)


def check_options(options: Options, *, many: bool) -> None:
    """Refuse what no photo can make right.

    Args:
        options: of the command.
        many: the command named more than one file.

    Raises:
        UsageError: there are many photos and one clean image, or states would have to
            be kept in a store.
        ImageError: nobody may look at the folder of clean images.
    """
    if options.save_every and addresses.is_address(options.output):
        raise UsageError(
            f"--save_every keeps states beside the output, and {options.output} is no "
            "folder of this machine"
        )
    reference = options.reference
    if many and reference is not None and _reference_kind(reference) != "folder":
        raise UsageError(
            f"--reference {options.reference} is no folder; for many images name a "
            "folder of clean ones with the same names"
        )


def _without_misplaced(plan: Plan, config: DIIPConfig, options: Options) -> Plan:
    """Fail the photos that cannot be written where they are to go."""
    tasks, failed = [], list(plan.failed)
    for task in plan.tasks:
        try:
            check_place(task, config, options)
            tasks.append(task)
        except ImageError as error:
            failed.append((task.source.path, str(error)))
    return Plan(tasks, plan.finished, failed)


def decide_one(
    prior: Prior,
    source: find.Source,
    stem: Path,
    settings_digest: str,
    config: DIIPConfig,
    options: Options,
    *,
    many: bool = True,
    is_free: bool = False,
) -> Task | Path:
    """Look at one input; return its task, or the output that an earlier run left.

    Args:
        prior: the frozen model, whose card is enough.
        source: the input.
        stem: where its output goes, without the extension.
        settings_digest: of `digest`.
        config: the settings.
        options: of the command.
        many: finished photos are passed over.
        is_free: no record is at the output, which then need not be asked for.

    Raises:
        ImageError: it cannot be restored, or its format cannot hold the result.
        InputError: it has no clean image.
    """
    sha256 = record.sha256(source.content())
    earlier = None
    if not is_free:
        earlier = _finished(stem, settings_digest, sha256, options)
    if many and earlier is not None and not options.overwrite:
        return earlier
    return _task(prior, source, stem, sha256, config, options)


def _without_collisions(plan: Plan) -> Plan:
    """Fail the photos that would be written over one another, and no other ones.

    Raises:
        OutputError: no photo is left.
    """
    claims = collections.defaultdict(list)
    outputs = [*plan.finished, *((t.source.path, t.output) for t in plan.tasks)]
    for photo, output in outputs:
        claims[_place(output)].append(photo)
    tasks, failed = [], []
    for task in plan.tasks:
        photo = task.source.path
        others = [other for other in claims[_place(task.output)] if other != photo]
        if others:
            reason = (
                f"{photo} and {others[0]} would both be written to {task.output}; "
                "rename one or restore them separately"
            )
            failed.append((photo, reason))
        else:
            tasks.append(task)
    if failed and not tasks and not plan.finished:
        raise find.OutputError(failed[0][1])
    return Plan(tasks, plan.finished, plan.failed + failed)


def _place(output: Path) -> str:
    return find.place(entries.resolved(output))


def _stems(sources: Sequence[find.Source], options: Options, many: bool) -> list[Path]:
    from_stdin = any(source.is_standard for source in sources)
    to_stdout = options.output == find.STANDARD
    if many and (from_stdin or to_stdout):
        raise find.OutputError("standard input and output take one image each")
    if to_stdout or (from_stdin and options.output is None):
        return [Path(find.STANDARD)]
    return find.stems(sources, options.output, suffix=options.suffix, many=many)


def _finished(
    stem: Path, settings_digest: str, sha256: str, options: Options
) -> Path | None:
    """Return the output of an earlier run with the same settings, if it is there."""
    content = record.read(stem.with_name(f"{stem.name}.json"))
    if content is None or not record.is_finished(content, settings_digest, sha256):
        return None
    if options.reference is not None and content["metrics"]["psnr"] is None:
        return None  # it was not compared with anything
    output = stem.with_name(Path(content["output"]["path"]).name)
    return output if entries.is_file(output) else None


def _task(
    prior: Prior,
    source: find.Source,
    stem: Path,
    sha256: str,
    config: DIIPConfig,
    options: Options,
) -> Task:
    photo = images.read(source.content(), max_pixels=options.max_pixels)
    size = photo.rgb.shape[0], photo.rgb.shape[1]
    placed = placement(prior, source, size, config, options)
    if find.is_file_name(options.output):
        output = addresses.path(str(options.output))
    else:
        suffix = images.output_suffix(photo, options.ext)
        output = stem.with_name(stem.name + suffix)
    _check_format(photo, output)
    reference = _reference(source, size, options)
    return Task(source, output, sha256, size, placed, reference)


def placement(
    prior: Prior,
    source: find.Source,
    size: tuple[int, int],
    config: DIIPConfig,
    options: Options,
) -> sizing.Placement:
    """Return how a photo of this height and width is given to the prior.

    Raises:
        ImageError: the prior cannot restore it.
    """
    try:
        return sizing.placement(prior, config, options.size_mode, size)
    except ValueError as error:
        raise ImageError(f"cannot restore {source.path}: {error}") from error


def check_place(
    task: Task, config: DIIPConfig, options: Options, *, is_free: bool = False
) -> None:
    """Find out whether a picture and its record may be written where they are to go.

    Args:
        task: of `decide_one`.
        config: the settings.
        options: of the command.
        is_free: a listing of the output has neither, and a store is not asked again.

    Raises:
        ImageError: a name is too long, or somebody's file is in the way.
    """
    in_store = isinstance(task.output, Address)
    if task.to_stdout or (in_store and is_free):
        return
    try:
        if not in_store:
            _check_names(task, config, options)
        if not options.overwrite:
            _refuse_foreign(task)
    except OSError as error:
        raise ImageError(
            f"cannot write {task.output}: {error.strerror or error}; choose another "
            "--output"
        ) from error


def _check_names(task: Task, config: DIIPConfig, options: Options) -> None:
    """Raise OSError where no file can have one of the names."""
    states = [task.state_path(n) for n in range(config.num_starts)]
    asides = map(storage.aside, states if options.save_every else [])
    # Where the folder is not there yet, the one above tells what names may be.
    parents = (task.output.parent, *task.output.parent.parents)
    folder = next(path for path in parents if entries.kind(path) == "folder")
    for path in (task.output, task.record_path, *asides):
        entries.kind(folder / path.name)


def _refuse_foreign(task: Task) -> None:
    """Raise ImageError where somebody's file is at the record's place or the picture's.

    Beside a record of this program the picture is its own, and is not asked for.
    """
    path = task.record_path
    if entries.kind(path) not in ("nothing", "folder"):  # a folder fails later
        if record.read(path) is None:
            raise ImageError(
                f"cannot write {path}: a file is there that is no record of this "
                "program; choose another --output, or pass --overwrite"
            )
    elif entries.kind(task.output) == "file":
        raise ImageError(
            f"cannot write {task.output}: a picture without a record is there, which "
            "this program did not write; choose another --output, or pass --overwrite"
        )


def _reference(
    source: find.Source, size: tuple[int, int], options: Options
) -> Path | None:
    """Return the clean image of a photo, after a look at it."""
    path = options.reference
    if path is None:
        return None
    kind = _reference_kind(path)
    if kind == "folder":
        path = find.namesake(source.relative, path)
    elif kind in ("pipe", "device"):
        raise ImageError(f"--reference {path} is a {kind}, and read twice; give a file")
    height, width, _ = images.read(path, max_pixels=options.max_pixels).rgb.shape
    if (height, width) != size:
        raise ImageError(
            f"reference {path} is {width}x{height}, {source.path} "
            f"{size[1]}x{size[0]}; give its clean image of the same size"
        )
    return path


def _reference_kind(path: Path) -> entries.Kind:
    try:
        return entries.kind(path)
    except OSError as error:
        raise ImageError(find.unreadable(path, error)) from error


def _check_format(photo: Photo, output: Path) -> None:
    """Find out on a row and on a column whether a format can hold a photo."""
    kind = images.file_format(output)
    height, width, _ = photo.rgb.shape
    try:
        images.check_sides(kind, height, width)
        for strip in (np.s_[:1], np.s_[:, :1]):
            alpha = None if photo.alpha is None else photo.alpha[strip]
            part = dataclasses.replace(photo, rgb=photo.rgb[strip], alpha=alpha)
            images.encode(part.rgb, part, kind)
    except ImageError as error:
        raise ImageError(f"cannot write {output}: {error}") from error


def refuse_inputs(
    inputs: Iterable[Path],
    outputs: Iterable[Path],
    place: Callable[[Path], Hashable] = entries.resolved,
) -> None:
    """Refuse to write over a photo or a clean image.

    Args:
        inputs: photos and clean images.
        outputs: what is to be written.
        place: what paths of the same file share, and no others.

    Raises:
        OutputError: an output is an input.
    """
    kept = {place(path) for path in inputs}
    for path in outputs:
        if place(path) in kept:
            raise find.OutputError(
                f"{path} is an input of this run; choose another --output"
            )


def check_writable(
    tasks: Sequence[Task],
) -> tuple[list[Task], list[tuple[Path, str]]]:
    """Make the output folders and try to write in them; leave nothing else behind.

    Returns:
        The tasks whose output can be written, and the other inputs, and why.

    Raises:
        ImageError: no output can be written.
    """
    tried: set[Path] = set()
    writable, failed = [], []
    for task in tasks:
        try:
            if not task.to_stdout:
                _try_to_write(task, tried)
            writable.append(task)
        except ImageError as error:
            failed.append((task.source.path, str(error)))
    if failed and not writable:
        raise ImageError(failed[0][1])
    return writable, failed


def _try_to_write(task: Task, tried: set[Path]) -> None:
    """Try to write a picture and its record, where their folder was not tried yet."""
    folder = task.output.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder not in tried:
            storage.sweep(folder)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"cannot write to {folder}: {reason}; choose another --output"
        ) from error
    for path in (task.output, task.record_path):
        try:
            in_store = isinstance(path, Address)  # which knows no folder in the way
            known = folder in tried and (in_store or entries.kind(path) != "folder")
            if not known:
                storage.check_writable(path)
        except OSError as error:
            raise images.unwritable(path, error) from error
    tried.add(folder)


def digest(prior: Prior, config: DIIPConfig, options: Options) -> str:
    """Return a digest of everything but the photo that decides an output's pixels."""
    names = ("seed", "ext", "quality", "size_mode")
    chosen = {name: getattr(options, name) for name in names}
    return record.config_hash(prior.card, config, **chosen)


def key(seed: int, relative: Path) -> jax.Array:
    """Return the key of a photo: the same in any batch, order or shard."""
    return jax.random.fold_in(jax.random.key(seed), find.name_hash(relative))


def unet_calls(task: Task, config: DIIPConfig) -> int:
    """Return how often the network is evaluated at most."""
    budget = diip.budget(config, task.placement.canvas)
    looks = config.criterion == "discrepancy"  # the first of each start
    calls = config.num_starts * (budget + looks) * config.num_steps
    return (calls + matched.is_needed(config)) * task.placement.num_tiles
