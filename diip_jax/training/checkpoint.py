"""Where a training stands, on disk: its last state, and the best one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as keep

from diip_jax import storage
from diip_jax.prior import check_room
from diip_jax.training.step import TrainState


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read, or belongs to another training."""


class Saved(NamedTuple):
    """What is saved with a state.

    Attributes:
        digest: of the settings; a training with others does not go on from here.
        seconds: that the training took so far.
        loss: validation loss of the average.
    """

    digest: str
    seconds: float
    loss: float


class Checkpoints:
    """The checkpoints of one training; the step is also its position in the data."""

    def __init__(self, folder: Path):
        """Open the folder, which is made when needed."""
        best = keep.BestN(
            n=1, get_metric_fn=lambda metrics: metrics["loss"], reverse=True
        )
        policy = keep.AnyPreservationPolicy([keep.LatestN(1), best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, enable_async_checkpointing=False
        )
        self.folder = folder
        with _translated(folder):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, state: TrainState, about: Saved) -> None:
        """Write a state; the last and the best are kept.

        Raises:
            CheckpointError: it cannot be written.
        """
        leaves = jax.tree.leaves(state)
        with _translated(self.folder):
            check_room(self.folder, leaves)
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(leaves),
                    about=ocp.args.JsonSave(about._asdict()),
                ),
                metrics={"loss": about.loss},
            )

    def latest(
        self, template: TrainState, digest: str
    ) -> tuple[TrainState, Saved] | None:
        """Return the last state, None if there is none.

        Args:
            template: a state of the same shapes, placed as the result is to be.
            digest: of the settings.

        Raises:
            CheckpointError: it is damaged, or of other settings.
        """
        last = self._manager.latest_step()
        if last is None:
            return None
        with _translated(self.folder):
            found = self._manager.restore(
                last, args=ocp.args.Composite(about=ocp.args.JsonRestore())
            )
            about = Saved(**found["about"])
            if about.digest != digest:
                raise CheckpointError(
                    f"{self.folder} is of a training with other settings; give another "
                    "--output, or --restart to begin again"
                )
            leaves = jax.tree.leaves(template)
            found = self._manager.restore(
                last,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(leaves)),
            )
        return jax.tree.unflatten(jax.tree.structure(template), found["state"]), about

    def close(self) -> None:
        """Let go of what the manager holds."""
        self._manager.close()


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """Turn the errors of files into one that says which folder."""
    try:
        with storage.refusals(folder):
            yield
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        first_line = reason.splitlines()[0]
        raise CheckpointError(f"checkpoint in {folder}: {first_line}") from error
