"""Keep the state of an unfinished restoration on disk, so that a killed run goes on.

A state is a folder: an Orbax checkpoint, and beside it the digest of the photo and the
settings that it belongs to. At every moment a whole state is there.
"""

import json
from pathlib import Path
from typing import Any

import jax

from diip_jax import storage
from diip_jax.diip import DIIPState
from diip_jax.prior import orbax_alone, save_arrays


class StateError(ValueError):
    """A saved state cannot be read or written."""


def save(path: Path, state: DIIPState, digest: str) -> None:
    """Write a state, replacing the one that is there.

    Args:
        path: a folder.
        state: on the host.
        digest: hash of photo and settings.

    Raises:
        StateError: it cannot be written.
    """
    try:
        with storage.refusals(path), storage.replacing(path.absolute()) as folder:
            save_arrays(folder / "state", _plain(state))
            (folder / "digest.json").write_text(json.dumps(digest), encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:
        raise StateError(
            f"cannot save the state: {_reason(error)} ({path}); make room, or choose "
            "another --output"
        ) from error


def is_saved(path: Path, digest: str) -> bool:
    """Tell whether `load` will find a state that belongs to this digest."""
    return _digest(storage.settled(path)) == digest


def load(path: Path, template: DIIPState, digest: str) -> DIIPState | None:
    """Return a saved state, or None if there is none that belongs to this digest.

    Args:
        path: as given to `save`.
        template: shapes and dtypes of the state.
        digest: hash of photo and settings; a state of another one is not taken.

    Raises:
        StateError: the files are damaged.
    """
    import orbax.checkpoint as ocp

    folder = storage.settled(path.absolute())
    if _digest(folder) != digest:
        return None
    try:
        with (
            storage.refusals(folder),
            ocp.StandardCheckpointer(**orbax_alone()) as checkpointer,
        ):
            plain = checkpointer.restore(folder / "state", _plain(template))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise StateError(
            f"the saved state {folder} is damaged ({_reason(error)}); delete it"
        ) from error
    return jax.tree.unflatten(jax.tree.structure(template), plain)


def _digest(folder: Path) -> str | None:
    try:
        return json.loads((folder / "digest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # there is no state


def _plain(state: DIIPState) -> list[Any]:
    """Return the leaves: Orbax then need not know our types."""
    return jax.tree.leaves(state)


def _reason(error: Exception) -> str:
    """Return what went wrong, in the system's words if it was the system."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return reason.splitlines()[0]
