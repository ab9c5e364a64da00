"""Addresses: places in a store, such as s3://bucket/scans, written like paths.

An address is a path whose text is its URL, so that names, suffixes and parents are
asked as of any path. What is there is asked of fsspec, which is imported when the
first address is, and which knows the credentials by the provider's own means alone.
A refusal is an `OSError` with one line, whatever the store raised.
"""

import contextlib
import errno
import io
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PosixPath
from typing import IO, Any, NamedTuple
from urllib.parse import unquote, urlsplit

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_FIRST_PART = re.compile(r"[a-z][a-z0-9+.-]+:")
# Where an object appears whole or not at all; elsewhere it is written under another
# name and then moved.
_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory"})
# What tells one content of an object from another, by the names that stores use.
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "generation",
    "LastModified",
    "mtime",
    "created",
)
_REQUESTS = 32  # that do not wait for each other


class Found(NamedTuple):
    """What a store has.

    Attributes:
        address: where.
        is_folder: other addresses begin with it.
        version: differs where the content does; None where the store does not tell.
    """

    address: "Address"
    is_folder: bool
    version: str | None


class Address(PosixPath):
    """A place in a store; what no store has a word for is an `OSError`."""

    __slots__ = ()

    def __str__(self) -> str:
        first, *rest = self.parts or ("",)
        if _FIRST_PART.fullmatch(first):
            return f"{first}//{'/'.join(rest)}"
        return super().__str__()

    def __fspath__(self) -> str:
        return str(self)

    @property
    def protocol(self) -> str:
        """What comes before "://"."""
        return self.parts[0].removesuffix(":")

    def find(self) -> Found | None:
        """Return what is there, None if nothing is."""
        with self._refusals():
            store, key = self._store()
            try:
                return self._found(store.info(key), self)
            except FileNotFoundError:
                return None

    def listing(self) -> list[Found]:
        """Return what is in the folder, in the order of the names."""
        with self._refusals():
            store, key = self._store()
            inside = [(_name(info), info) for info in store.ls(key, detail=True)]
        own = "/".join(self.parts[1:])  # a store may have an object for the folder
        others = [(name, info) for name, info in inside if _key(info) != own]
        return sorted(self._found(info, self / name) for name, info in others)

    def tree(self) -> list[str]:
        """Return the keys of all objects below, relative to here; empty if none is."""
        with self._refusals():
            store, key = self._store()
            found = store.find(key)
        start = len(_stripped(key)) + 1
        return [_stripped(name)[start:] for name in found]

    def open(self, mode: str = "r", *_: Any, **options: Any) -> IO[Any]:
        """Return a stream of the content, which is read whole by one request."""
        if set(mode) - set("rbt"):
            raise OSError(errno.ENOTSUP, "addresses are written whole", str(self))
        data = io.BytesIO(self.read_bytes())
        data.name = str(self)  # type: ignore[attr-defined]
        encoding = options.get("encoding") or "utf-8"
        return data if "b" in mode else io.TextIOWrapper(data, encoding)

    def read_bytes(self) -> bytes:
        """Return the content."""
        with self._refusals():
            store, key = self._store()
            return store.cat_file(key)

    def head(self, num_bytes: int) -> bytes:
        """Return the beginning of the content, by one request."""
        with self._refusals():
            store, key = self._store()
            return store.cat_file(key, start=0, end=num_bytes)

    def read_together(self, names: list[str]) -> list[bytes]:
        """Return the contents of objects below, asked for at the same time."""
        with self._refusals():
            store, key = self._store()
            keys = [f"{key.rstrip('/')}/{name}" for name in names]
            with ThreadPoolExecutor(_REQUESTS) as threads:
                return list(threads.map(store.cat_file, keys))

    def write_bytes(self, data: Any) -> int:
        """Write an object, which appears whole or not at all."""
        with self._refusals():
            store, key = self._store()
            if self.protocol in _WHOLE:
                store.pipe_file(key, bytes(data))
            else:
                part = f"{key}.{secrets.token_hex(4)}.tmp"
                store.makedirs(key.rpartition("/")[0], exist_ok=True)
                store.pipe_file(part, bytes(data))
                store.mv(part, key)
        return len(data)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete an object."""
        with self._refusals():
            store, key = self._store()
            try:
                store.rm_file(key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: folders of a store are there as soon as something is in them."""

    def absolute(self) -> "Address":
        """Return the address itself."""
        return self

    def _store(self) -> tuple[Any, str]:
        """Return fsspec's file system, and what it calls this place."""
        import fsspec.core

        return fsspec.core.url_to_fs(str(self), use_listings_cache=False)

    def _found(self, info: dict[str, Any], where: "Address") -> Found:
        found = [f"{info[name]}" for name in _VERSIONS if info.get(name) is not None]
        is_folder = info["type"] == "directory"
        version = f"{info.get('size')} {found[0]}" if found and not is_folder else None
        return Found(where, is_folder, version)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn whatever a store raises into an `OSError` that says where, and why."""
        try:
            yield
        except ImportError as error:
            reason = f"{_line(error)}; `pip install diip-jax[cluster]` brings S3's"
            raise OSError(errno.ENOTSUP, reason, str(self)) from error
        except OSError as error:
            number = error.errno or _NUMBERS.get(type(error), errno.EIO)
            # What is missing is often all that a store says of it.
            missing = number == errno.ENOENT
            reason = "nothing is there" if missing else _line(error)
            raise OSError(number, reason, str(self)) from error
        except Exception as error:  # a store's own: of botocore, of gcsfs, of aiohttp
            raise OSError(errno.EIO, _line(error), str(self)) from error


_NUMBERS: dict[type, int] = {
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    IsADirectoryError: errno.EISDIR,
}


def path(text: str | Path) -> Path:
    """Return the path that a text names: an `Address` if it begins as a URL.

    Args:
        text: of a flag, say. file:// names a file of this machine.

    Raises:
        OSError: it holds a password or a signature, which would be told and recorded.
    """
    if isinstance(text, Path):
        return text
    match = _SCHEME.match(text)
    if match is None:
        return Path(text)
    scheme, rest = match[1].lower(), text[match.end() :]
    if scheme == "file":
        return Path(unquote(urlsplit(text).path))
    _refuse_secrets(scheme, rest)
    return Address(f"{scheme}:", *filter(None, rest.split("/")))


def is_address(text: str | Path | None) -> bool:
    """Tell whether a text or a path names a place in a store."""
    return isinstance(path(text), Address) if text is not None else False


def _refuse_secrets(scheme: str, rest: str) -> None:
    login, at, host = rest.partition("/")[0].rpartition("@")
    signed = scheme in ("http", "https") and "?" in rest
    if not signed and not (at and ":" in login):
        return
    shown = f"{scheme}://...{at}{host.partition('?')[0]}"
    raise OSError(
        errno.EINVAL,
        "an address with a password or a signature is not taken; give credentials by "
        "the provider's own means",
        shown,
    )


def _line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _stripped(key: str) -> str:
    return key.strip("/")


def _key(info: dict[str, Any]) -> str:
    return _stripped(info["name"].partition("://")[2] or info["name"])


def _name(info: dict[str, Any]) -> str:
    return _key(info).rpartition("/")[2]
