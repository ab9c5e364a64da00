"""What is at a path and in a folder: the one place that asks the file system.

An `Address` asks its store.

That nothing is there is an answer. A refusal is an `OSError`, and callers make it the
failure of that one entry: no permission, a link that points at itself, a name that is
too long or that no file can have. The questions of pathlib are not asked: which
refusals those hide differs from Python 3.11 to 3.14.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Literal, NamedTuple

from diip_jax.addresses import Address, Found

Kind = Literal["file", "folder", "pipe", "device", "nothing"]
_KINDS: dict[int, Kind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
}


class Entry(NamedTuple):
    """What a folder holds under a name.

    Attributes:
        path: where it is.
        kind: what it is, or what it points at; None where the system does not tell.
        is_link: it points at something else.
        version: in a store, what differs where the content does.
    """

    path: Path
    kind: Kind | None
    is_link: bool
    version: str | None = None


def kind(path: Path) -> Kind:
    """Return what is at a path; a link counts as what it points at.

    Raises:
        OSError: the system does not tell.
    """
    check_name(path)
    if isinstance(path, Address):
        found = path.find()
        return "nothing" if found is None else _kind_in_store(found)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    return _KINDS.get(stat.S_IFMT(mode), "device")


def is_file(path: Path) -> bool:
    """Tell whether a file is there, and the system tells so."""
    if isinstance(path, Address):
        with contextlib.suppress(OSError):
            return kind(path) == "file"
        return False
    return os.path.isfile(path)


def listing(folder: Path) -> list[Entry]:
    """Return what a folder holds, in the order of the names.

    Raises:
        OSError: the folder cannot be read.
    """
    check_name(folder)
    if isinstance(folder, Address):
        return [
            Entry(found.address, _kind_in_store(found), False, found.version)
            for found in folder.listing()
        ]
    with os.scandir(folder) as found:
        entries = [Entry(folder / e.name, _kind(e), e.is_symlink()) for e in found]
    return sorted(entries)


def tree(folder: Path) -> list[str]:
    """Return the names of all files below a folder, relative to it; none is an answer.

    A store is asked by one listing.

    Raises:
        OSError: the system does not tell.
    """
    check_name(folder)
    if isinstance(folder, Address):
        return folder.tree() if kind(folder) == "folder" else []
    found = []
    for base, _, names in os.walk(folder):
        below = Path(base).relative_to(folder)
        found += [(below / name).as_posix() for name in names]
    return found


def version(path: Path) -> str | None:
    """Return what differs where the content of a file does; None if nobody tells.

    Raises:
        OSError: nothing is there.
    """
    if isinstance(path, Address):
        found = path.find()
        return None if found is None else found.version
    about = os.stat(path)
    return f"{about.st_size} {about.st_mtime_ns}"


def resolved(path: Path) -> Path:
    """Return a path without links, as far as the system tells."""
    if isinstance(path, Address):
        return path
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # no file can be there
        return path


def check_name(path: Path) -> None:
    """Raise an OSError, as for any other bad name, where Python has a ValueError."""
    try:
        if b"\0" not in os.fsencode(path):
            return
        reason = "a file name cannot hold a NUL"
    except UnicodeEncodeError:
        reason = "a file name cannot hold these characters"
    raise OSError(errno.EINVAL, reason, repr(str(path)))


def _kind_in_store(found: Found) -> Kind:
    return "folder" if found.is_folder else "file"


def _kind(entry: os.DirEntry) -> Kind | None:
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else kind(Path(entry.path))
    except OSError:
        return None
