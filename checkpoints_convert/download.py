"""Verified downloads of public checkpoints, and the lock file that records them.

`fetch` tries the addresses of a checkpoint in order. It downloads into a folder that
nothing reads, checks the files there and moves that folder to its place with one
rename. A download that is cut short leaves nothing that a later run takes for weights.

A published hash decides whether a file is right. Where nobody publishes one, the first
download records the hash in `weights.lock.json`, and every later run compares with it.
The same entry keeps size and time, so that unchanged files are not hashed at every
start.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from checkpoints_convert import registry
from checkpoints_convert.registry import Checkpoint, HubFile, WeightsError
from diip_jax import storage

LOCK = "weights.lock.json"
DRIVE_URL = "https://drive.google.com/uc?id={}"
ATTEMPTS = 2  # of a plain URL; the other clients retry by themselves

Notify = Callable[[str], None]
Source = Callable[[Checkpoint, Path], None]
Records = dict[str, dict]  # file name -> its bytes, mtime_ns, sha256 and maybe md5


@dataclasses.dataclass(frozen=True)
class Fetched:
    """Verified files on disk.

    Attributes:
        path: the weights.
        sha256: their hash.
        extra_files: the configuration files beside them, by name.
    """

    path: Path
    sha256: str
    extra_files: Mapping[str, Path]


# Fetching


def fetch(
    checkpoint: Checkpoint,
    *,
    cache: Path,
    offline: bool = False,
    progress: bool = True,
    notify: Notify,
) -> Fetched:
    """Return the verified files of a checkpoint, downloading them where needed.

    Args:
        checkpoint: a row of the registry, or one built by hand.
        cache: the folder of all downloads, usually `storage.cache_dir()`.
        offline: never touch the network.
        progress: show a progress bar on stderr.
        notify: receives one-line messages: the licence before a download, a hash
            trusted on first use, a source that failed before another is tried.

    Raises:
        WeightsError: no source gave the right file, it is absent and `offline` is set,
            the cache cannot be used, or the libraries of `[hub]` are missing.
    """
    cache = Path(cache)
    folder = cache / "downloads" / checkpoint.name
    try:
        lock = _read_lock(cache)
        records, trouble = _cached(checkpoint, folder, lock)
        if records is None:
            sources = _sources(checkpoint, progress)
            if offline:
                addresses = " or ".join(address for address, _ in sources)
                why = f"{trouble}, and offline mode forbids a download from {addresses}"
                raise _unavailable(checkpoint, why)
            notify(f"{checkpoint.name}: {trouble}")
            records = _download(checkpoint, sources, folder, lock, notify)
        return _accept(checkpoint, folder, cache, records, notify)
    except OSError as error:
        raise WeightsError(
            f"{checkpoint.name}: cannot use the cache {cache}: {error}; "
            "set DIIP_CACHE to a folder that can be written"
        ) from error


def _cached(
    checkpoint: Checkpoint, folder: Path, lock: Mapping
) -> tuple[Records | None, str]:
    """Return what is recorded of good cached files; else delete them and say why."""
    if not folder.exists():
        return None, f"{checkpoint.file} is not in {folder}"
    try:
        return _verify(checkpoint, folder, lock), ""
    except WeightsError as error:
        shutil.rmtree(folder)
        return None, f"the copy in {folder} was deleted: {error}"


def _unavailable(checkpoint: Checkpoint, why: str) -> WeightsError:
    return WeightsError(
        f"{checkpoint.name}: {why}; get {checkpoint.file} by other means and run "
        f"`python -m checkpoints_convert {checkpoint.file} OUT`"
    )


def _download(
    checkpoint: Checkpoint,
    sources: list[tuple[str, Source]],
    folder: Path,
    lock: Mapping,
    notify: Notify,
) -> Records:
    """Fill folder from the first source whose files pass, or raise WeightsError."""
    _require_libraries(checkpoint)
    notify(
        f"{checkpoint.name}: licence: {checkpoint.licence}; trained on "
        f"{checkpoint.training_data}; published by {checkpoint.source}"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    storage.sweep(folder.parent)
    failures, handled = [], sys.exception()  # the caller may be handling an error
    for address, source in sources:
        try:
            with storage.replacing(folder) as partial:
                return _obtain(checkpoint, source, partial, lock, handled)
        except _SourceError as error:
            failures.append(f"{address}: {error}")
            notify(f"{checkpoint.name}: {failures[-1]}")
    raise _unavailable(checkpoint, f"no source gave it: {'; '.join(failures)}")


class _SourceError(RuntimeError):
    """A source did not give the right files; the next one is tried."""


def _obtain(
    checkpoint: Checkpoint,
    source: Source,
    partial: Path,
    lock: Mapping,
    handled: BaseException | None,
) -> Records:
    """Put a source's files into a folder and verify them, or raise _SourceError."""
    try:
        source(checkpoint, partial / checkpoint.file)
        return _verify(checkpoint, partial, lock)
    except Exception as error:  # the libraries share no base class
        raise _SourceError(_reason(error, handled)) from error


def _reason(error: BaseException, handled: BaseException | None) -> str:
    """Return the root of an error in one line: libraries wrap it in layers."""
    while not isinstance(error, WeightsError):
        inner = error.__cause__ or error.__context__
        if inner is None or inner is handled:
            break
        error = inner
    text = " ".join(str(error).split()).rstrip(".")
    return text[:300] or type(error).__name__


# Sources: each puts the weights, and the hub also the extra files, at a destination


def _sources(checkpoint: Checkpoint, progress: bool) -> list[tuple[str, Source]]:
    """Return the addresses of a checkpoint with their downloaders, in order."""
    found: list[tuple[str, Source]] = [
        (url, functools.partial(from_url, url=url, progress=progress))
        for url in checkpoint.urls
    ]
    if hub := checkpoint.hub:
        host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        address = f"{host}/{hub.repo}/resolve/{hub.revision}/{hub.file}"
        found.append((address, functools.partial(from_hub, hub=hub, progress=progress)))
    if checkpoint.gdrive:
        url = DRIVE_URL.format(checkpoint.gdrive)
        found.append((url, functools.partial(from_drive, url=url, progress=progress)))
    return found


def _require_libraries(checkpoint: Checkpoint) -> None:
    needs = (
        ("pooch", checkpoint.urls),
        ("huggingface_hub", checkpoint.hub),
        ("gdown", checkpoint.gdrive),
    )
    find = importlib.util.find_spec
    if missing := [name for name, used in needs if used and find(name) is None]:
        raise WeightsError(
            f"{checkpoint.name}: downloading needs {' and '.join(missing)}: "
            'pip install "diip-jax[hub]"'
        )


def from_url(
    checkpoint: Checkpoint, destination: Path, *, url: str, progress: bool
) -> None:
    """Download a plain URL, starting again when the connection breaks."""
    import pooch
    import requests

    download = pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 20)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            download(url, str(destination), None)
            return
        except requests.RequestException as error:
            # an answer such as 404 will not change; a broken connection may
            if isinstance(error, requests.HTTPError) or attempt == ATTEMPTS:
                raise


def from_hub(
    checkpoint: Checkpoint, destination: Path, *, hub: HubFile, progress: bool
) -> None:
    """Download a pinned file and its configuration from the hub, or a mirror of it.

    HF_ENDPOINT, HF_HUB_OFFLINE and HF_HOME mean what they do everywhere; a copy in the
    hub's own cache is used.
    """
    from huggingface_hub import hf_hub_download, utils

    scratch = destination.parent / ".hub"
    silence = not (progress or utils.are_progress_bars_disabled())
    if silence:
        utils.disable_progress_bars()
    try:
        for name in (hub.file, *checkpoint.extras):
            path = hf_hub_download(
                hub.repo, name, revision=hub.revision, local_dir=scratch
            )
            target = destination if name == hub.file else destination.parent / name
            os.replace(path, target)
    finally:
        if silence:
            utils.enable_progress_bars()
    shutil.rmtree(scratch)


def from_drive(
    checkpoint: Checkpoint, destination: Path, *, url: str, progress: bool
) -> None:
    """Download from Google Drive, through its confirmation page for large files."""
    import gdown

    gdown.download(url=url, output=str(destination), quiet=not progress)


# Trust


def _verify(checkpoint: Checkpoint, folder: Path, lock: Mapping) -> Records:
    """Return what is recorded of the files in folder, or raise WeightsError."""
    known = lock.get(checkpoint.name, {})
    names = (checkpoint.file, *checkpoint.extras)
    records = {n: _record(checkpoint, folder / n, known.get(n, {})) for n in names}
    _check_weights(checkpoint, folder / checkpoint.file, records[checkpoint.file])
    for name in _unpublished(checkpoint):
        sha256 = records[name]["sha256"]
        recorded = known.get(name, {}).get("sha256", sha256)
        if sha256 != recorded:
            raise WeightsError(
                f"sha256 of {name} is {sha256}, but {recorded} was recorded in {LOCK} "
                "at the first download; delete that entry if the publisher replaced it"
            )
    return records


def _unpublished(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the names of the files for which nobody publishes a hash."""
    weights = () if checkpoint.sha256 or checkpoint.md5 else (checkpoint.file,)
    return (*weights, *checkpoint.extras)


def _record(checkpoint: Checkpoint, path: Path, known: Mapping) -> dict:
    """Return size, time and hashes of a file; if it is unchanged, those known."""
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise WeightsError(f"{path.name} is missing") from error
    algorithms = ["sha256", "md5"] if checkpoint.md5 else ["sha256"]
    record: dict = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if record.items() <= known.items() and known.keys() >= set(algorithms):
        return dict(known)
    for algorithm in algorithms:
        record[algorithm] = registry.digest(path, algorithm)
    return record


def _check_weights(checkpoint: Checkpoint, path: Path, record: Mapping) -> None:
    """Raise WeightsError unless the file is what was published."""
    size = record["bytes"]
    if (title := _html_title(path)) is not None:
        raise WeightsError(f"an HTML page ({title}) came instead of {path.name}")
    if checkpoint.bytes is not None and size != checkpoint.bytes:
        raise WeightsError(f"{path.name} has {size} bytes, not {checkpoint.bytes}")
    published = {"sha256": checkpoint.sha256, "md5": checkpoint.md5}
    for name, wanted in published.items():
        if wanted and record[name] != wanted:
            found = record[name]
            raise WeightsError(f"{name} of {path.name} is {found}, not {wanted}")
    # Without a published hash, at least a cut-off file must not become the reference.
    if not any(published.values()) and size < 4 * checkpoint.parameters:
        raise WeightsError(
            f"{path.name} has {size} bytes, too few for {checkpoint.parameters} "
            "float32 parameters"
        )


def _html_title(path: Path) -> str | None:
    """Return the title of an HTML page, or None if the file is not one."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if not re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|!--)", start, re.I):
        return None
    title = re.search(rb"<title[^>]*>(.*?)</title>", start, re.I | re.S)
    text = title.group(1).decode("utf-8", "replace") if title else "no title"
    return " ".join(text.split())[:80]


def _accept(
    checkpoint: Checkpoint, folder: Path, cache: Path, records: Records, notify: Notify
) -> Fetched:
    """Write down what is new about verified files and return them."""
    lock = _read_lock(cache)  # again: other runs may have written during a download
    known = lock.get(checkpoint.name, {})
    if records != known:
        _write_lock(cache, {**lock, checkpoint.name: records})
    if new := [name for name in _unpublished(checkpoint) if name not in known]:
        hashes = ", ".join(f"{name} {records[name]['sha256']}" for name in new)
        notify(
            f"{checkpoint.name}: nobody publishes a hash, so it was recorded in "
            f"{cache / LOCK} and will be compared from now on: {hashes}"
        )
    extras = {name: folder / name for name in checkpoint.extras}
    sha256 = str(records[checkpoint.file]["sha256"])
    return Fetched(folder / checkpoint.file, sha256, extras)


def _read_lock(cache: Path) -> dict[str, Records]:
    try:
        return json.loads((cache / LOCK).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise WeightsError(
            f"{cache / LOCK} is not valid JSON; repair it, or delete it to trust the "
            "cached files as they are"
        ) from error


def _write_lock(cache: Path, lock: Mapping) -> None:
    text = json.dumps(lock, indent=1, sort_keys=True) + "\n"
    storage.write_bytes(cache / LOCK, text.encode())
