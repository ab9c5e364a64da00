"""Where converted priors go: complete or not at all."""

from collections.abc import Callable
from pathlib import Path

from checkpoints_convert import download, registry
from checkpoints_convert.convert import Request, convert
from diip_jax import entries, storage
from diip_jax import prior as priors
from diip_jax.prior import Prior, PriorError


def check_output(folder: Path) -> None:
    """Raise what `write` would raise, before there is a prior to write.

    Raises:
        PriorError: the folder holds something else.
        OSError: it cannot be written.
    """
    folder = folder.absolute()
    with storage.refusals(folder):
        priors.check_place(folder)
        above = [p for p in folder.parents if entries.kind(p) != "nothing"]
        storage.check_writable(above[0] / f"{folder.name}.part")


def write(prior: Prior, folder: Path) -> None:
    """Write a prior to a folder, in place of the one that may be there.

    Raises:
        PriorError: the folder holds something else.
        OSError: it cannot be written.
    """
    check_output(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    storage.sweep(folder.parent)
    priors.save(folder, prior)


def locate(
    name: str,
    *,
    cache: Path,
    offline: bool = False,
    progress: bool = True,
    notify: Callable[[str], None],
) -> Path:
    """Return the folder of any prior: bundled, on disk, or a public checkpoint.

    Args:
        name: of a bundled prior, a folder, or a row of the registry.
        cache: see `obtain`.
        offline: see `obtain`.
        progress: see `obtain`.
        notify: see `obtain`.

    Raises:
        PriorError: nothing is called so.
        WeightsError: it is out of reach.
        ConversionError: it cannot be converted.
        OSError: the cache cannot be written.
    """
    try:
        return priors.locate(name)
    except PriorError as error:
        if Path(name).is_file():
            raise PriorError(
                f"{name} is a file; convert it with `python -m checkpoints_convert "
                f"{name} OUT` and pass --prior OUT"
            ) from error
        if name not in registry.public():
            raise PriorError(
                f"{error}; `python -m checkpoints_convert --list` names public ones"
            ) from error
    return obtain(name, cache=cache, offline=offline, progress=progress, notify=notify)


def obtain(
    name: str,
    *,
    cache: Path,
    offline: bool = False,
    progress: bool = True,
    notify: Callable[[str], None],
) -> Path:
    """Return the folder of a public checkpoint as a prior.

    The first call downloads, verifies and converts the checkpoint. Later calls return
    the same folder. A prior that was converted from a file with another hash than the
    published one is converted again.

    Args:
        name: name of a public checkpoint.
        cache: the folder of all downloads, usually `storage.cache_dir()`.
        offline: never touch the network.
        progress: show a progress bar on stderr.
        notify: receives one-line messages.

    Raises:
        WeightsError: unknown name, or no source gave the right file.
        ConversionError: the file is not what the registry says.
        PriorError: the place in the cache holds something else.
        OSError: the prior cannot be written there.
    """
    row = registry.lookup_public(name)
    folder = Path(cache) / "priors" / name
    if _is_current(folder, row.sha256):
        return folder
    fetched = download.fetch(
        row, cache=cache, offline=offline, progress=progress, notify=notify
    )
    notify(f"{name}: converting {fetched.path.name}")
    write(convert(fetched.path, Request(known_as=name)), folder)
    return folder


def _is_current(folder: Path, sha256: str | None) -> bool:
    """Tell whether a folder holds a prior of these weights in today's format."""
    try:
        path = storage.settled(folder) / "card.json"
        card = priors.Card.from_json(path.read_text("utf-8"))
    except (OSError, PriorError, ValueError, KeyError, TypeError):
        return False
    return sha256 in (None, card.sha256)
