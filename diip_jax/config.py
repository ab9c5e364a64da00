"""The settings of a restoration, as data."""

import dataclasses
import typing
from typing import Any, Literal

import jax
from flax import struct

Remat = Literal["auto", "none", "step", "block"]
CriterionName = Literal["paper", "robust", "never"]
DTypeName = Literal["float32", "bfloat16"]


@struct.dataclass
class DIIPConfig:
    """Settings of Algorithm 1 and of the generator g.

    Numbers are leaves of the pytree: changing them never compiles again. The other
    settings shape the program and are static under `jit`.

    Attributes:
        learning_rate: Adam's step size, the paper's eta.
        k_min: iterations before the sharpness criterion may stop (Sec. 3.4.1).
        epsilon: threshold on the normalised decrease of the loss (Sec. 3.4.2).
        num_steps: DDIM steps of g.
        gradient: "full", "frozen" (no derivative of the network) or "last-K" (exact
            for the last K DDIM steps, frozen before).
        remat: what the backward pass recomputes: "none", "step" (each DDIM step),
            "block" (also each residual block) or "auto" (nothing where that fits in
            about a gigabyte or in windows, which are recomputed anyway, else "step").
        criterion: "paper" (the listing), "robust" (smoothed, guarded) or "never".
        max_iterations: the budget; also the length of the traces.
        dtype: "float32" or "bfloat16", for the convolutions and projections of the
            network; norms, softmax, loss and stopping are float32 in both.
        tile: side in pixels of the windows that a larger canvas is predicted from; 0
            gives every canvas to the network whole.
        tile_overlap: pixels that neighbouring windows share at least.
    """

    learning_rate: float | jax.Array = 1.5e-3
    k_min: int | jax.Array = 100
    epsilon: float | jax.Array = 1e-3
    num_steps: int = struct.field(pytree_node=False, default=10)
    gradient: str = struct.field(pytree_node=False, default="full")
    remat: Remat = struct.field(pytree_node=False, default="step")
    criterion: CriterionName = struct.field(pytree_node=False, default="paper")
    max_iterations: int = struct.field(pytree_node=False, default=1500)
    dtype: DTypeName = struct.field(pytree_node=False, default="float32")
    tile: int = struct.field(pytree_node=False, default=0)
    tile_overlap: int = struct.field(pytree_node=False, default=0)

    def replace(self, **changes: Any) -> "DIIPConfig":
        """Return a copy with some settings changed."""
        return dataclasses.replace(self, **changes)


PAPER = DIIPConfig()  # Sec. 4; the budget is Sec. 3.3's, 10 steps are BIRD's


def choices() -> dict[str, tuple[str, ...]]:
    """Return the allowed values of each setting that has a list of them."""
    kinds = typing.get_type_hints(DIIPConfig)
    allowed = {name: typing.get_args(kind) for name, kind in kinds.items()}
    return {n: v for n, v in allowed.items() if typing.get_origin(kinds[n]) is Literal}
