"""The settings of a restoration, as data."""

import dataclasses
import typing
from typing import Any, Literal

import jax
from flax import struct

Remat = Literal["auto", "none", "step", "block"]
CriterionName = Literal["paper", "robust", "never", "discrepancy"]
StartName = Literal["random", "matched"]
ClipGradient = Literal["zero", "straight-through"]
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
        criterion: "paper" (the listing), "robust" (smoothed, guarded), "discrepancy"
            (stop when the loss has fallen to the energy of the damage) or "never".
        max_iterations: the budget; also the length of the traces.
        dtype: "float32" or "bfloat16", for the convolutions and projections of the
            network; norms, softmax, loss and stopping are float32 in both.
        tile: side in pixels of the windows that a larger canvas is predicted from; 0
            gives every canvas to the network whole.
        tile_overlap: pixels that neighbouring windows share at least.
        start: z at first: "random" (the paper's) or "matched" (y, diffused to a
            timestep with the noise that it lacks there).
        num_starts: restorations from different noise, in pairs of opposite noise, whose
            images are averaged.
        start_noise: noise level sqrt((1 - ab) / ab) of the timestep of a matched start,
            in the prior's range; None to choose it from y.
        noise_level: standard deviation of the noise in y, in [0, 1]; None to estimate
            it, and other damage, from y.
        max_work: iterations times pixels of the canvas, at most; None for no limit. A
            canvas too large for any iteration has its first look alone. Only for
            `criterion="discrepancy"`, which has such a look.
        clip_gradient: derivative of the clip of x_0 where it clips: "zero" (its own) or
            "straight-through" (1, so that saturated pixels can change).
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
    start: StartName = struct.field(pytree_node=False, default="random")
    num_starts: int = struct.field(pytree_node=False, default=1)
    start_noise: float | jax.Array | None = None
    noise_level: float | jax.Array | None = None
    max_work: int | None = struct.field(pytree_node=False, default=None)
    clip_gradient: ClipGradient = struct.field(pytree_node=False, default="zero")

    def replace(self, **changes: Any) -> "DIIPConfig":
        """Return a copy with some settings changed."""
        return dataclasses.replace(self, **changes)


PAPER = DIIPConfig()  # Sec. 4; the budget is Sec. 3.3's, 10 steps are BIRD's
# Ours, set on development pictures; `benchmarks/tuning.py` varies what matters in it.
DEFAULT = DIIPConfig(
    start="matched",
    num_steps=1,
    num_starts=4,
    learning_rate=0.01,
    max_iterations=8,
    max_work=8 * 256**2,
    criterion="discrepancy",
    clip_gradient="straight-through",
    remat="auto",
)


def choices() -> dict[str, tuple[str, ...]]:
    """Return the allowed values of each setting that has a list of them."""
    kinds = typing.get_type_hints(DIIPConfig)
    allowed = {name: typing.get_args(kind) for name, kind in kinds.items()}
    return {n: v for n, v in allowed.items() if typing.get_origin(kinds[n]) is Literal}
