"""Which files a command names, and where their restorations go."""

import fnmatch
import glob
import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from diip_jax import addresses, entries
from diip_jax.entries import Entry
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
        data: the bytes of standard input or of a pipe, None for a file.
        problem: why it cannot be read, where that is known before it is tried.
        version: in a store, what differs where the content does.
    """

    path: Path
    relative: Path
    data: bytes | None = None
    problem: str | None = None
    version: str | None = None

    @property
    def is_standard(self) -> bool:
        """Whether it is standard input."""
        return str(self.path) == STANDARD

    def content(self) -> Path | io.BytesIO:
        """Return what `images.read` can read."""
        if self.data is None:
            return self.path
        stream = io.BytesIO(self.data)
        stream.name = "standard input" if self.is_standard else str(self.path)
        return stream


def sources(
    patterns: Iterable[str], *, recursive: bool = False, data: bytes = b""
) -> list[Source]:
    """Return the image files that paths, folders and globs name, in a stable order.

    A file named outright is taken with any suffix, and even if it is missing: reading
    it fails later, and the other files are restored. A pipe named outright is read
    here, once. Folders and globs pass over files that are not images by their suffix,
    dot files, the junk of file managers and results of this program. What cannot be
    read in them is a source with a problem.

    Args:
        patterns: files, folders, globs; "-" for standard input.
        recursive: look in subfolders too.
        data: what standard input gave.

    Raises:
        InputError: a folder or a glob has no images.
    """
    found: dict[Path, Source] = {}
    for pattern in dict.fromkeys(patterns):
        path = addresses.path(pattern)
        fixed, wild = _split(pattern)
        if pattern == STANDARD:
            named = [Source(path, Path("stdin"), data)]
        elif wild:
            named = _expand(pattern, fixed, wild)
        elif is_folder(path):
            named = _inside(path, recursive)
        else:
            named = [_outright(path)]
        found |= {source.path: source for source in named}
    return list(found.values())


def names_many(patterns: Sequence[str]) -> bool:
    """Tell whether patterns ask for a folder's worth of images, even if it is one."""
    if len(patterns) != 1:
        return len(patterns) > 1
    _, wild = _split(patterns[0])
    return bool(wild) or is_folder(addresses.path(patterns[0]))


def is_folder(path: Path) -> bool:
    """Tell whether a folder is there; if the system does not tell, reading says why."""
    try:
        return entries.kind(path) == "folder"
    except OSError:
        return False


def _split(pattern: str) -> tuple[Path, list[str]]:
    """Return the fixed folders that a glob begins with, and the parts after them.

    What is there is meant as it is written, even if it looks like a glob.
    """
    path = addresses.path(pattern)
    fixed, wild = type(path)(), list(path.parts)
    while wild and not (glob.has_magic(wild[0]) and not _is_there(fixed / wild[0])):
        fixed /= wild.pop(0)
    return fixed, wild


def _is_there(path: Path) -> bool:
    try:
        return entries.kind(path) != "nothing"
    except OSError:  # too long for a name, but not for a glob
        return False


def _outright(path: Path) -> Source:
    """Return what is named as one file; a pipe can be read only once."""
    source = Source(path, Path(path.name))
    try:
        kind = entries.kind(path)
        if kind == "pipe":
            return source._replace(data=path.read_bytes())
    except OSError as error:
        return source._replace(problem=unreadable(path, error))
    return _only_a_file(source, kind)


def _only_a_file(source: Source, kind: entries.Kind | None) -> Source:
    """Return a source that is not opened if opening it could wait for ever."""
    if kind not in ("pipe", "device"):
        return source
    what = f"cannot read {source.path}: it is a {kind}, and no file"
    return source._replace(problem=what)


def unreadable(path: Path, error: OSError) -> str:
    """Return the line that says why a path cannot be read."""
    return f"cannot read {path}: {error.strerror or error}"


def _expand(pattern: str, fixed: Path, wild: Sequence[str]) -> list[Source]:
    """Return the images that match a glob, named from its last fixed folder on."""
    found = {source.path: source for source in _matching(fixed, wild, fixed)}
    if not found:
        raise InputError(f"no image matches {pattern}; is the glob right?")
    return [found[path] for path in sorted(found)]


def _matching(folder: Path, parts: Sequence[str], base: Path) -> Iterator[Source]:
    """Yield the images below a folder that match the parts of a glob, as in a shell."""
    pattern, *rest = parts
    if rest and not glob.has_magic(pattern):
        yield from _matching(folder / pattern, rest, base)
        return
    if pattern == "**":
        yield from _matching(folder, rest or ["*"], base)
    for source, entry, beside in _read(folder, base):
        if entry is None:
            yield source
        elif _is_hidden(entry) and not pattern.startswith("."):
            continue
        elif pattern == "**":
            if entry.kind == "folder" and not entry.is_link:
                yield from _matching(entry.path, parts, base)
        elif fnmatch.fnmatch(entry.path.name, pattern):
            if rest and entry.kind == "folder":
                yield from _matching(entry.path, rest, base)
            elif not rest and entry.kind != "folder" and is_image(entry.path, beside):
                yield source


def _inside(folder: Path, recursive: bool) -> list[Source]:
    found = list(_walk(folder, recursive))
    if not found:
        remedy = "" if recursive else "; pass --recursive to look in its subfolders"
        raise InputError(f"no images in {folder}{remedy}")
    return found


def _walk(base: Path, recursive: bool) -> Iterator[Source]:
    """Yield the images of a folder, then those of its subfolders."""
    waiting = [base]
    while waiting:
        deeper = []
        for source, entry, beside in _read(waiting.pop(), base):
            if entry is None:
                yield source
            elif entry.kind != "folder":
                if is_image(entry.path, beside):
                    yield source
            elif recursive and not entry.is_link and not _is_hidden(entry):
                deeper.append(entry.path)
        waiting += reversed(deeper)


def _read(folder: Path, base: Path) -> Iterator[tuple[Source, Entry | None, Set[str]]]:
    """Yield what a folder holds, each with the names of everything in it.

    If it cannot be read, the folder is yielded without an entry.

    Args:
        folder: the folder.
        base: what the names of sources are relative to.
    """
    try:
        inside = entries.listing(folder)
    except (FileNotFoundError, NotADirectoryError):  # no match, or gone by now
        return
    except OSError as error:
        name = _relative(folder, base) if folder != base else Path(folder.name)
        yield Source(folder, name, problem=unreadable(folder, error)), None, set()
        return
    names = {entry.path.name for entry in inside}
    for entry in inside:
        name = _relative(entry.path, base)
        source = Source(entry.path, name, version=entry.version)
        yield _only_a_file(source, entry.kind), entry, names


def _relative(path: Path, base: Path) -> Path:
    """Return what comes after a base, an address no more."""
    return Path(*path.relative_to(base).parts)


def _is_hidden(entry: Entry) -> bool:
    return entry.path.name.startswith(".")


def is_image(path: Path, beside: Set[str] | None = None) -> bool:
    """Tell whether a file found in a folder is to be restored.

    Args:
        path: the file.
        beside: names of what is in its folder, where that is known: a store is then
            not asked again for each photo.
    """
    name = path.name.lower()
    hidden = name.startswith(".") or name in JUNK
    if hidden or path.suffix.lower() not in READABLE_SUFFIXES:
        return False
    # A file system that knows no capitals has more names than it lists.
    if beside is not None and addresses.is_address(path):
        return f"{path.stem}.json" not in beside or not is_result(path)
    return not is_result(path)


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
    wanted = folder / relative
    parent = wanted.parent
    try:
        if entries.kind(wanted) == "file":
            return wanted
        there = entries.kind(parent) == "folder"
        others = entries.listing(parent) if there else []
    except OSError as error:
        raise InputError(
            f"cannot look for the clean image of {relative} in {folder}: "
            f"{error.strerror or error}"
        ) from error
    alike = [e.path for e in others if e.kind == "file" and e.path.stem == wanted.stem]
    found = [path for path in alike if is_image(path)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "nothing"
        raise InputError(
            f"{parent} has {names} for {relative}; it takes one image of that name"
        )
    return found[0]


def shard(sources: Sequence[Source], index: int, count: int) -> list[Source]:
    """Return the inputs of shard `index` (1 to `count`): each is in exactly one.

    The choice depends on the name alone, so that machines agree without talking. The
    suffix does not count: what may be written to one place is in one shard.
    """

    def number(source: Source) -> int:
        return name_hash(Path(place(source.relative))) % count + 1

    return [source for source in sources if number(source) == index]


def name_hash(relative: Path) -> int:
    """Return 32 bits that depend on a relative path alone, on any machine."""
    return zlib.crc32(os.fsencode(relative.as_posix()))


def place(path: Path) -> str:
    """Return what paths share that one file, and its record, may not tell apart.

    The record of x.png is that of x.jpg as well; and a file system may not tell
    capitals apart.
    """
    stem, _ = os.path.splitext(path)
    return stem.casefold()


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
        OutputError: there is one file for many inputs.
    """
    if is_file_name(output):
        if many:
            raise OutputError(
                f"--output {output} is one file; name a folder for many images"
            )
        return [addresses.path(str(output)).with_suffix("") for _ in sources]
    paths = []
    for source in sources:
        base = addresses.path("results" if output is None else output)
        folder = base / source.relative.parent
        if output is None and not many:
            folder = source.path.parent
        paths.append(folder / f"{source.relative.stem}_{suffix}")
    return paths


def is_file_name(output: str | None) -> bool:
    """Tell whether an --output names a file rather than a folder."""
    if output is None or is_folder(addresses.path(output)):
        return False
    return Path(output).suffix.lower() in READABLE_SUFFIXES
