"""The deterministic DDIM map g from noise to image (Song et al., 2021, eta = 0).

A noise predictor is a function `predict_noise(x_t, conditioning) -> eps` of one image,
(H, W, 3) in [-1, 1]. The gradient variants wrap the predictor; the chain does not know
them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

PredictNoise = Callable[[jax.Array, Any], jax.Array]
Generate = Callable[[jax.Array], jax.Array]
Clip = Callable[[jax.Array], jax.Array]
UNROLLED = 4  # steps; longer chains would take minutes to compile


class Steps(NamedTuple):
    """The numbers that change from one DDIM step to the next, in the order of sampling.

    Attributes:
        conditioning: pytree with leading axis S, given to the noise predictor.
        alpha_bar: alpha_bar_t at the timestep of the step, (S,).
        alpha_bar_prev: alpha_bar after the step, (S,); 1 after the last.
    """

    conditioning: Any
    alpha_bar: jax.Array
    alpha_bar_prev: jax.Array


Advance = Callable[[jax.Array, Steps], jax.Array]  # a step with its noise predictor


def make_steps(
    conditioning: Any, alphas_cumprod: np.ndarray, timesteps: np.ndarray | jax.Array
) -> Steps:
    """Pair each timestep's conditioning with the alpha_bars before and after it."""
    alpha_bar = jnp.asarray(alphas_cumprod, jnp.float32)[timesteps]
    return Steps(conditioning, alpha_bar, jnp.append(alpha_bar[1:], 1.0))


def clip(x_0: jax.Array) -> jax.Array:
    """Clip to [-1, 1]; a pixel that is clipped has no gradient."""
    return jnp.clip(x_0, -1, 1)


@jax.custom_jvp
def straight_through_clip(x_0: jax.Array) -> jax.Array:
    """Clip to [-1, 1] with derivative 1, so that clipped pixels can come back."""
    return clip(x_0)


@straight_through_clip.defjvp
def _straight_through(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return clip(*primals), *tangents


CLIPS: dict[str, Clip] = {"zero": clip, "straight-through": straight_through_clip}


def step(
    predict_noise: PredictNoise, x_t: jax.Array, now: Steps, *, clip: Clip = clip
) -> jax.Array:
    """Take one DDIM step, Eq. (12) of Song et al. (2021) with sigma = 0.

    The predicted x_0 is clipped to [-1, 1] and eps re-derived from it, so that the
    chain ends in [-1, 1].

    Args:
        predict_noise: noise predictor.
        x_t: current sample, (H, W, 3).
        now: a single entry of `Steps`.
        clip: `clip` or `straight_through_clip`, which differ in their derivative.

    Returns:
        The sample at the next timestep, (H, W, 3).
    """
    alpha_bar, alpha_bar_prev = now.alpha_bar, now.alpha_bar_prev
    eps = predict_noise(x_t, now.conditioning)
    x_0 = (x_t - jnp.sqrt(1 - alpha_bar) * eps) / jnp.sqrt(alpha_bar)
    x_0 = clip(x_0)
    eps = (x_t - jnp.sqrt(alpha_bar) * x_0) / jnp.sqrt(1 - alpha_bar)
    return jnp.sqrt(alpha_bar_prev) * x_0 + jnp.sqrt(1 - alpha_bar_prev) * eps


def chain(
    predict_noise: PredictNoise,
    steps: Steps,
    *,
    remat: bool = True,
    clip: Clip = clip,
) -> Generate:
    """Return the map through all steps.

    Args:
        predict_noise: noise predictor.
        steps: the steps, in the order of sampling.
        remat: recompute each step in the backward pass, so that memory holds one
            evaluation of the network and one sample per step.
        clip: as in `step`.
    """
    advance = functools.partial(step, predict_noise, clip=clip)
    # Recomputation saves memory only in a loop. Without recomputation, short chains are
    # unrolled: the backward pass of a loop copies and stacks what each step leaves.
    if not remat and len(steps.alpha_bar) <= UNROLLED:
        return _unrolled(advance, steps)
    return _scan_over_rows(advance, steps, remat=remat)


def _scan_over_rows(advance: Advance, steps: Steps, *, remat: bool) -> Generate:
    """Return the map through all steps, as a loop.

    Equals `lax.scan` of `advance` over `steps`; only faster. Such a scan slices `steps`
    at a running index, and CPUs take the slice again for every pixel that uses it. Here
    the steps are the rows of a matrix, and a dot product with a one-hot vector takes a
    row. Its result is an array, computed once per step.
    """
    rows = jax.vmap(lambda now: ravel_pytree(now)[0])(steps)
    _, unravel = ravel_pytree(_entry(steps, 0))

    def body(x_t: jax.Array, one_hot: jax.Array) -> tuple[jax.Array, None]:
        now = unravel(jnp.dot(one_hot, rows, precision="highest"))
        return advance(x_t, now), None

    if remat:
        body = jax.checkpoint(body, prevent_cse=False)
    return lambda x_t: lax.scan(body, x_t, jnp.eye(len(rows), dtype=jnp.float32))[0]


def _unrolled(advance: Advance, steps: Steps) -> Generate:
    """Return the map through all steps, one after the other.

    The jitted step is one function of the program, called several times. The program's
    text thus holds the network once.
    """
    advance = jax.jit(advance)

    def run(x_t: jax.Array) -> jax.Array:
        for i in range(len(steps.alpha_bar)):
            x_t = advance(x_t, _entry(steps, i))
        return x_t

    return run


def _entry(steps: Steps, i: int) -> Steps:
    """Return step i by itself."""
    return jax.tree.map(lambda a: a[i], steps)


def frozen(predict_noise: PredictNoise) -> PredictNoise:
    """Treat eps as a constant: only the linear DDIM algebra is differentiated.

    The Jacobian of g is then diagonal, as in BIRD's released code.
    """
    return lambda x_t, conditioning: lax.stop_gradient(predict_noise(x_t, conditioning))


def generator(
    predict_noise: PredictNoise,
    steps: Steps,
    *,
    gradient: str = "full",
    remat: bool = True,
    clip: Clip = clip,
) -> Generate:
    """Return g with one of its three gradients.

    Args:
        predict_noise: noise predictor.
        steps: the steps, in the order of sampling.
        gradient: "full", "frozen" or "last-K" (see `exact_steps`).
        remat: as in `chain`, for the differentiated steps.
        clip: as in `step`.
    """
    num_steps = len(steps.alpha_bar)
    split = num_steps - exact_steps(gradient, num_steps)
    if split == 0:
        return chain(predict_noise, steps, remat=remat, clip=clip)
    if split == num_steps:
        return chain(frozen(predict_noise), steps, remat=False, clip=clip)
    first = jax.tree.map(lambda a: a[:split], steps)
    last = jax.tree.map(lambda a: a[split:], steps)
    coarse = chain(frozen(predict_noise), first, remat=False, clip=clip)
    fine = chain(predict_noise, last, remat=remat, clip=clip)
    return lambda z: fine(coarse(z))


def exact_steps(gradient: str, num_steps: int) -> int:
    """Return how many of the last DDIM steps are differentiated exactly.

    Raises:
        ValueError: gradient is not "full", "frozen" or "last-K" with K >= 1.
    """
    if gradient in ("full", "frozen"):
        return num_steps if gradient == "full" else 0
    kind, _, count = gradient.partition("-")
    if kind == "last" and count.isdecimal() and int(count) >= 1:
        return min(int(count), num_steps)
    raise ValueError(
        f"gradient is {gradient!r}; use full, frozen or last-K, e.g. last-2"
    )
