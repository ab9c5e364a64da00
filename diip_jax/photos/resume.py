"""Keep the state of an unfinished restoration on disk, so that a killed run goes on.

A state is a folder: an Orbax checkpoint, and beside it the digest of the photo and the
settings that it belongs to. It is written under another name and renamed, so that at
every moment a whole state is there under one of the two names.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax

from diip_jax.diip import DIIPState


class StateError(ValueError):
    """A saved state cannot be read or written."""


def save(path: Path, state: DIIPState, digest: str) -> None:
    """Write a state, replacing the one that is there.

    Args:
        path: a folder.
        state: on the host.
        digest: of what it belongs to.

    Raises:
        StateError: it cannot be written.
    """
    import orbax.checkpoint as ocp

    path = path.absolute()
    fresh, old = _fresh(path), _old(path)
    try:
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(fresh / "state", _plain(state))
        # Last, so that a folder with a digest is complete.
        (fresh / "digest.json").write_text(json.dumps(digest), encoding="utf-8")
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except OSError as error:
        raise StateError(f"cannot save the state {path}: {error}") from error
    shutil.rmtree(old, ignore_errors=True)


def is_saved(path: Path, digest: str) -> bool:
    """Tell whether `load` will find a state that belongs to this digest."""
    return any(_digest(folder) == digest for folder in (path, _fresh(path)))


def load(path: Path, template: DIIPState, digest: str) -> DIIPState | None:
    """Return a saved state, or None if there is none that belongs to this digest.

    Args:
        path: as given to `save`.
        template: shapes and dtypes of the state.
        digest: of what it must belong to.

    Raises:
        StateError: the files are damaged.
    """
    import orbax.checkpoint as ocp

    for folder in (path.absolute(), _fresh(path.absolute())):
        if _digest(folder) != digest:
            continue
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                plain = checkpointer.restore(folder / "state", _plain(template))
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise StateError(
                f"the saved state {folder} is damaged ({reason}); delete it"
            ) from error
        return jax.tree.unflatten(jax.tree.structure(template), plain)
    return None


def remove(path: Path) -> None:
    """Delete a saved state if there is one."""
    for folder in (path, _fresh(path), _old(path)):
        shutil.rmtree(folder, ignore_errors=True)


def _fresh(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def _digest(folder: Path) -> str | None:
    try:
        return json.loads((folder / "digest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # no state, or one that was killed before it was complete


def _plain(state: DIIPState) -> list[Any]:
    """Return the leaves: Orbax then need not know our types."""
    return jax.tree.leaves(state)
