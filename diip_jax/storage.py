"""Files and folders that appear whole or not at all, and where the cache is.

Whatever the package writes, it writes here: under another name in the same folder, then
renamed. A failure leaves nothing behind. A kill leaves the old or the new, and perhaps
a part under another name, which `sweep` deletes later. Every error is an `OSError`;
callers say what could not be written. In a store an object appears whole by itself.
"""

import contextlib
import errno
import logging
import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import platformdirs

from diip_jax import entries
from diip_jax.addresses import Address

_PART = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.(?:tmp|new)")
_OLD = ".diip-old"  # ends the name of a folder that was moved aside
_LONGEST_NAME = 255  # bytes of a file's name, on every common file system


def cache_dir() -> Path:
    """Return the folder of what can be made again: $DIIP_CACHE or the platform's.

    Raises:
        OSError: the system knows no home folder to have it in.
    """
    try:
        if chosen := os.environ.get("DIIP_CACHE"):
            return Path(chosen).expanduser()
        folder = platformdirs.user_cache_dir("diip_jax", appauthor=False, opinion=False)
    except RuntimeError as error:
        raise OSError(errno.ENOENT, "no home folder is known") from error
    return Path(folder)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in place of the one that may be there.

    Args:
        path: the file; its folder exists.
        data: its content.
    """
    write_together([(path, data)])


def write_together(files: Sequence[tuple[Path, bytes]]) -> None:
    """Write files in this order, once the contents of all of them are on the disk.

    A full disk, the usual reason to fail, is found out before anything is replaced.

    Args:
        files: each file and its content; the folders exist.
    """
    with contextlib.ExitStack() as stack:
        parts = []
        for path, data in files:
            if isinstance(path, Address):
                path.write_bytes(data)
                continue
            _refuse_folder(path)
            part, file = stack.enter_context(_writing(path))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            parts.append(part)
        local = [path for path, _ in files if not isinstance(path, Address)]
        for part, path in zip(parts, local, strict=True):
            os.replace(part, path)


def check_writable(path: Path) -> None:
    """Raise what `write_bytes` would raise; the file that may be there is not touched.

    Args:
        path: the file; its folder exists.
    """
    if isinstance(path, Address):
        part = Address(_part(path, "tmp"))
        part.write_bytes(b"")
        with contextlib.suppress(OSError):  # who may write may perhaps not delete
            part.unlink()
        return
    _refuse_folder(path)
    with _writing(path) as (part, file):
        file.close()
        part.unlink()


def check_room(folder: Path, num_bytes: int) -> None:
    """Raise what writing so many bytes in a folder would raise; nothing is written.

    For writers that take a full disk badly. Where the system cannot tell, nothing is
    raised.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with _writing(folder / "room") as (part, file):
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
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


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Raise what the system refuses in the block as an `OSError` of `path`.

    Its own would name a part, which is not there any more. Orbax raises a ValueError or
    RuntimeError, with the system's number in its text, and logs tracebacks.

    Args:
        path: the place as its user knows it.
    """
    log = logging.getLogger("absl")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        found = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's way
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number is None:
            raise
        reason = getattr(error, "strerror", None) or os.strerror(number)
        raise OSError(number, reason, str(path)) from error
    finally:
        log.disabled = was_disabled


def settled(folder: Path) -> Path:
    """Return where a folder's content is: elsewhere only after a badly timed kill."""
    old = aside(folder)
    return old if os.path.exists(old) and not os.path.exists(folder) else folder


def aside(folder: Path) -> Path:
    """Return where the old content of a folder is while it is replaced."""
    return folder.parent / f".{folder.name}{_OLD}"


def remove(folder: Path) -> None:
    """Delete a folder that `replacing` made, if it is there."""
    for path in (folder, aside(folder)):
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what killed processes of this machine left in a folder.

    A folder that may be written in, but not read, is left as it is.
    """
    if isinstance(folder, Address):
        return
    try:
        inside = entries.listing(folder)
    except PermissionError:
        return
    for path, kind, is_link, _ in inside:
        if not _is_left_over(path):
            continue
        if kind == "folder" and not is_link:
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _exchange(part: Path, folder: Path) -> None:
    """Give a folder the place of another one, which is deleted if it is there."""
    old = aside(folder)
    if os.path.exists(folder):
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        part.rename(folder)
    except OSError:
        if not os.path.exists(folder):
            if os.path.exists(old):
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

    The leading dot keeps a folder walk from taking it for a picture. Of a long name, so
    much is left that the new one is not too long.
    """
    entries.check_name(path)
    ending = f".{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.{kind}"
    name = f".{path.name}"
    while len(os.fsencode(name)) + len(ending) > _LONGEST_NAME:
        name = name[:-1]
    return path.with_name(name + ending)


def _refuse_folder(path: Path) -> None:
    if entries.kind(path) == "folder":
        raise IsADirectoryError(errno.EISDIR, "it is a folder")


def _is_left_over(path: Path) -> bool:
    if path.name.endswith(_OLD):
        replaced = path.with_name(path.name.removesuffix(_OLD).removeprefix("."))
        return aside(replaced) == path and os.path.exists(replaced)
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
