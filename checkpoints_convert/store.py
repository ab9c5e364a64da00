"""Where converted priors go: complete or not at all."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from checkpoints_convert import download as weights
from checkpoints_convert.convert import Request, convert
from checkpoints_convert.tensors import FactsError
from diip_jax import prior as priors
from diip_jax.prior import Prior, PriorError


def check_output(folder: Path) -> None:
    """Raise FactsError where a prior must not be written."""
    if folder.is_dir():
        taken = any(folder.iterdir()) and not (folder / "card.json").is_file()
    else:
        taken = folder.exists()
    if taken:
        raise FactsError(f"{folder} exists and is no prior; give a new folder")


def write(prior: Prior, folder: Path) -> None:
    """Write a prior to a folder, in place of the one that may be there.

    It is written beside and moved in one step, so that no half of a prior is ever
    found in its place.

    Raises:
        FactsError: the folder holds something else.
    """
    folder = folder.absolute()
    check_output(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as temp:
        partial = Path(temp) / "prior"
        priors.save(partial, prior)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)


def obtain(
    name: str,
    *,
    cache: Path,
    offline: bool = False,
    progress: bool = True,
    notify: Callable[[str], None],
) -> Path:
    """Return the folder of a public checkpoint as a prior.

    It is downloaded, verified and converted once. A prior that was converted from a
    file of another hash than the published one is converted again.

    Args:
        name: a row of the registry.
        cache: the folder of all downloads, usually `weights.cache_dir()`.
        offline: never touch the network.
        progress: show a progress bar on stderr.
        notify: receives one-line messages.

    Raises:
        WeightsError: unknown name, or no source gave the right file.
        ConversionError: the file is not what the registry says.
    """
    row = weights.lookup(name)
    folder = Path(cache) / "priors" / name
    if _is_current(folder, row.sha256):
        return folder
    fetched = weights.fetch(
        row, cache=cache, offline=offline, progress=progress, notify=notify
    )
    notify(f"{name}: converting {fetched.path.name}")
    write(convert(fetched.path, Request(known_as=name)), folder)
    return folder


def _is_current(folder: Path, sha256: str | None) -> bool:
    """Tell whether a converted prior is there, in today's format, of these weights."""
    try:
        card = priors.Card.from_json((folder / "card.json").read_text("utf-8"))
    except (OSError, PriorError, ValueError, KeyError, TypeError):
        return False
    return sha256 in (None, card.sha256)
