"""Files and folders that appear whole or not at all, and where the cache is.

Whatever the package writes, it writes here: under another name in the same folder, then
renamed. A failure leaves nothing behind. A kill leaves the old or the new, and perhaps
a part under another name, which `sweep` deletes later. Every error is an `OSError`;
callers say what could not be written.
"""

import contextlib
import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

_PART = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.(?:tmp|new)")
_OLD = ".diip-old"  # ends the name of a folder that was moved aside


def cache_dir() -> Path:
    """Return the folder of what can be made again: $DIIP_CACHE or the platform's."""
    if chosen := os.environ.get("DIIP_CACHE"):
        return Path(chosen).expanduser()
    return Path(platformdirs.user_cache_dir("diip_jax", appauthor=False, opinion=False))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in place of the one that may be there.

    Args:
        path: the file; its folder exists.
        data: its content.
    """
    with _writing(path) as (part, file):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(part, path)


def check_writable(path: Path) -> None:
    """Raise what `write_bytes` would raise; the file that may be there is not touched.

    Args:
        path: the file; its folder exists.
    """
    if path.is_dir():
        raise IsADirectoryError("it is a folder")
    with _writing(path) as (part, file):
        file.close()
        part.unlink()


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` when the block ends.

    Between two renames nothing is at `folder`; `settled` finds the old one then.

    Args:
        folder: the place; the folders above it are made.
    """
    part = _part(folder, "new")
    part.mkdir(parents=True)
    try:
        yield part
        _exchange(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def settled(folder: Path) -> Path:
    """Return where a folder's content is: elsewhere only after a badly timed kill."""
    return _old(folder) if _old(folder).exists() and not folder.exists() else folder


def remove(folder: Path) -> None:
    """Delete a folder that `replacing` made, if it is there."""
    for path in (folder, _old(folder)):
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what killed processes of this machine left in a folder."""
    for path in folder.iterdir():
        if not _is_left_over(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _exchange(part: Path, folder: Path) -> None:
    """Give a folder the place of another one, which is deleted if it is there."""
    old = _old(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        part.rename(folder)
    except OSError:
        if not folder.exists():
            if old.exists():
                old.rename(folder)
            raise
        _exchange(part, folder)  # somebody else was faster: theirs is replaced now
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Open the file that is to become path; if that fails, leave nothing of it.

    Not tempfile: its files are private (0600), and an output follows the umask.
    """
    part = _part(path, "tmp")
    try:
        with open(part, "wb") as file:
            yield part, file
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            part.unlink()
        raise


def _part(path: Path, kind: str) -> Path:
    """Return a new name under which to write what is to become path.

    The leading dot keeps a folder walk from taking it for a picture.
    """
    owner = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{owner}.{kind}")


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{_OLD}")


def _is_left_over(path: Path) -> bool:
    if path.name.endswith(_OLD):
        replaced = path.with_name(path.name.removesuffix(_OLD).removeprefix("."))
        return _old(replaced) == path and replaced.exists()
    match = _PART.fullmatch(path.name)
    if match is None or match[1] != _machine():
        return False
    return not _is_alive(int(match[2]))


def _machine() -> str:
    """Return a name for this machine: process numbers mean nothing on another."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True
