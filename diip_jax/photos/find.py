"""Which files a command names, and where their restorations go."""

import glob
import io
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from diip_jax.images import READABLE_SUFFIXES
from diip_jax.photos import record

STANDARD = "-"  # names standard input, and standard output
JUNK = frozenset({"thumbs.db", "desktop.ini"})


class InputError(ValueError):
    """No image where the command says."""


class OutputError(ValueError):
    """Outputs that would collide, or fall on an input."""


class Source(NamedTuple):
    """An input.

    Attributes:
        path: the file, or "-".
        relative: its name relative to what the command named; it decides where the
            output goes and, with the seed, the random start.
        data: the bytes of standard input, None for a file.
    """

    path: Path
    relative: Path
    data: bytes | None = None

    def content(self) -> Path | io.BytesIO:
        """Return what `images.read` can read."""
        if self.data is None:
            return self.path
        stream = io.BytesIO(self.data)
        stream.name = "standard input"
        return stream


def sources(
    patterns: Iterable[str], *, recursive: bool = False, data: bytes = b""
) -> list[Source]:
    """Return the image files that paths, folders and globs name, in a stable order.

    A file named outright is taken with any suffix, and even if it is missing: reading
    it fails later, and the other files are restored. Folders and globs pass over files
    that are not images by their suffix, dot files, the junk of file managers and
    results of this program.

    Args:
        patterns: files, folders, globs; "-" for standard input.
        recursive: look in subfolders too.
        data: what standard input gave.

    Raises:
        InputError: a folder or a glob has no images.
    """
    found: dict[Path, Source] = {}
    for pattern in patterns:
        path = Path(pattern)
        if pattern == STANDARD:
            named = [Source(path, Path("stdin"), data)]
        elif path.is_dir():
            named = _walk(path, recursive)
        elif glob.has_magic(pattern) and not path.exists():
            named = _expand(pattern)
        else:
            named = [Source(path, Path(path.name))]
        found |= {source.path: source for source in named}
    return list(found.values())


def names_many(patterns: Sequence[str]) -> bool:
    """Tell whether patterns ask for a folder's worth of images, even if it is one."""
    if len(patterns) != 1:
        return len(patterns) > 1
    path = Path(patterns[0])
    return path.is_dir() or (glob.has_magic(patterns[0]) and not path.exists())


def _expand(pattern: str) -> list[Source]:
    """Return the images that match a glob, named from its last fixed folder on."""
    parts = Path(pattern).parts
    base = Path(*parts[: next(i for i, p in enumerate(parts) if glob.has_magic(p))])
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in matches if path.is_file() and is_image(path)]
    if not files:
        raise InputError(f"no image matches {pattern}; is the glob right?")
    return [Source(path, path.relative_to(base)) for path in files]


def _walk(folder: Path, recursive: bool) -> list[Source]:
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if recursive and not n.startswith("."))
        files += [Path(parent, name) for name in sorted(names)]
    images = [path for path in files if is_image(path)]
    if not images:
        remedy = "" if recursive else "; pass --recursive to look in its subfolders"
        raise InputError(f"no images in {folder}{remedy}")
    return [Source(path, path.relative_to(folder)) for path in images]


def is_image(path: Path) -> bool:
    """Tell whether a file found in a folder is to be restored."""
    name = path.name.lower()
    hidden = name.startswith(".") or name in JUNK
    return (
        not hidden and path.suffix.lower() in READABLE_SUFFIXES and not is_result(path)
    )


def is_result(path: Path) -> bool:
    """Tell whether the record beside a picture says that this program made it."""
    content = record.read(path.with_suffix(".json"))
    output = (content or {}).get("output")
    made = output.get("path") if isinstance(output, dict) else None
    return isinstance(made, str) and Path(made).name == path.name


def namesake(relative: Path, folder: Path) -> Path:
    """Return the image of the same name in another folder, of any format.

    Raises:
        InputError: there is none, or there are several.
    """
    if (folder / relative).is_file():
        return folder / relative
    parent = (folder / relative).parent
    others = sorted(parent.iterdir()) if parent.is_dir() else []
    found = [path for path in others if path.stem == relative.stem and is_image(path)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "nothing"
        raise InputError(
            f"{parent} has {names} for {relative}; it takes one image of that name"
        )
    return found[0]


def shard(sources: Sequence[Source], index: int, count: int) -> list[Source]:
    """Return the inputs of shard `index` (1 to `count`): each is in exactly one.

    The choice depends on the name alone, so that machines agree without talking.
    """
    return [s for s in sources if name_hash(s.relative) % count == index - 1]


def name_hash(relative: Path) -> int:
    """Return 32 bits that depend on a relative path alone, on any machine."""
    return zlib.crc32(os.fsencode(relative.as_posix()))


def stems(
    sources: Sequence[Source], output: str | None, *, suffix: str, many: bool
) -> list[Path]:
    """Return where each restoration goes, without the extension.

    Args:
        sources: the inputs.
        output: a file if it ends like an image, else a folder; None: beside a single
            input, in `results` for many.
        suffix: what is added to the name.
        many: the command named a folder, a glob or several files.

    Raises:
        OutputError: two inputs share an output.
    """
    if is_file_name(output):
        if many:
            raise OutputError(
                f"--output {output} is one file; name a folder for many images"
            )
        return [Path(str(output)).with_suffix("") for _ in sources]
    paths = []
    for source in sources:
        folder = Path("results" if output is None else output) / source.relative.parent
        if output is None and not many:
            folder = source.path.parent
        paths.append(folder / f"{source.relative.stem}_{suffix}")
    _refuse_collisions(sources, paths)
    return paths


def is_file_name(output: str | None) -> bool:
    """Tell whether an --output names a file rather than a folder."""
    if output is None or Path(output).is_dir():
        return False
    return Path(output).suffix.lower() in READABLE_SUFFIXES


def _refuse_collisions(sources: Sequence[Source], paths: Sequence[Path]) -> None:
    taken: dict[str, Path] = {}
    for source, path in zip(sources, paths, strict=True):
        # The JSON record has the same stem, so x.png and x.jpg collide as well; and a
        # file system may not tell capitals apart.
        key = str(path.resolve()).casefold()
        if key in taken:
            raise OutputError(
                f"{taken[key]} and {source.path} would both be written to {path}; "
                "rename one or restore them separately"
            )
        taken[key] = source.path
