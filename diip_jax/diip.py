"""Algorithm 1 of Chihaoui & Favaro: restore an image by optimising noise alone.

Minimise E(z; y) = ||g(z) - y||^2 over z with Adam, g frozen, and stop before g(z)
copies the damage. One iteration is `step`; one `lax.while_loop` over it is `restore`.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer

from diip_jax import canvas, ddim, stopping
from diip_jax.config import DIIPConfig, choices
from diip_jax.prior import Prior
from diip_jax.signals import decrease, laplacian_variance


class StopReason(enum.IntEnum):
    """Why a restoration ended."""

    MAX_ITERATIONS = 0  # the budget is spent
    LOW_FREQUENCY = 1  # sharpness falls: the degradation removes detail
    HIGH_FREQUENCY = 2  # the loss hardly falls: the degradation adds detail
    DIVERGED = 3  # the loss is not finite


class DIIPState(NamedTuple):
    """What one iteration hands to the next.

    Attributes:
        k: iterations done.
        z: noise, (H, W, 3).
        opt_state: Adam's moments.
        stopping: state of the criterion, its `stopping.Verdict` first.
        x: g(z) of the last finite iteration, (H, W, 3) in [-1, 1]; y before any.
        x_peak: g(z) of iteration `last_peak`, which is 0 before any peak; y before any
            iteration.
        losses: E(z^k; y), (max_iterations,), NaN where not reached.
        sharpnesses: sigma^2[k], likewise.
    """

    k: jax.Array
    z: jax.Array
    opt_state: optax.OptState
    stopping: Any
    x: jax.Array
    x_peak: jax.Array
    losses: jax.Array
    sharpnesses: jax.Array


class Restoration(NamedTuple):
    """The answer, of fixed shapes.

    Attributes:
        image: restored image, (H, W, 3) float32 in [0, 1].
        iteration: n*, the iteration that it was taken from.
        num_iterations: iterations done.
        reason: a `StopReason`, int32.
        no_peak: the sharpness criterion fired without having seen a peak, so that the
            sharpest image since the transient was taken instead.
        last_peak: iteration of the last sharpness peak, 0 before any.
        losses: E(z^k; y) in the prior's range [-1, 1], (max_iterations,), then NaN.
        decreases: normalised decrease of the loss, -Delta_k of Eq. (4), likewise.
        sharpnesses: variance of the Laplacian of g(z^k), likewise.
        z: the noise after the last iteration, canvas-sized.
    """

    image: jax.Array
    iteration: jax.Array
    num_iterations: jax.Array
    reason: jax.Array
    no_peak: jax.Array
    last_peak: jax.Array
    losses: jax.Array
    decreases: jax.Array
    sharpnesses: jax.Array
    z: jax.Array


class Algorithm(NamedTuple):
    """Algorithm 1 bound to one y: start, one iteration, line 2."""

    init: Callable[[jax.Array], DIIPState]  # of z
    step: Callable[[DIIPState], DIIPState]
    should_continue: Callable[[DIIPState], jax.Array]


def build(generate: ddim.Generate, y: jax.Array, config: DIIPConfig) -> Algorithm:
    """Bind Algorithm 1 to a generator and a degraded image.

    Args:
        generate: g, noise (H, W, 3) to image (H, W, 3) in [-1, 1].
        y: degraded image, (H, W, 3) in [-1, 1].
        config: the settings.
    """
    optimizer = optax.adam(config.learning_rate)
    criterion = stopping.criterion(config)

    def energy(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = generate(z)
        return jnp.mean(jnp.square(x - y)), x

    def step(state: DIIPState) -> DIIPState:
        k = state.k
        (loss, x), gradient = jax.value_and_grad(energy, has_aux=True)(state.z)
        updates, opt_state = optimizer.update(gradient, state.opt_state)  # line 3
        sharpness = laplacian_variance(x)  # line 4
        criteria = criterion.update(state.stopping, k, loss, sharpness)  # lines 5-18
        last_peak = criteria.verdict.last_peak
        x = jnp.where(jnp.isfinite(loss), x, state.x)
        # Invariant: x_peak = g(z^last_peak), from k = 0 on, where last_peak is 0. The
        # paper's criterion knows a peak one iteration later, the robust one at once.
        x_peak = jnp.where(last_peak == k - 1, state.x, state.x_peak)
        return DIIPState(
            k=k + 1,
            z=jnp.asarray(optax.apply_updates(state.z, updates)),
            opt_state=opt_state,
            stopping=criteria,
            x=x,
            x_peak=jnp.where(last_peak == k, x, x_peak),
            losses=state.losses.at[k].set(loss),
            sharpnesses=state.sharpnesses.at[k].set(sharpness),
        )

    def should_continue(state: DIIPState) -> jax.Array:  # line 2
        alive = (state.k < config.max_iterations) & ~_diverged(state)
        return alive & ~stopping.detected(state.stopping)

    return Algorithm(lambda z: _first_state(y, z, config), step, should_continue)


def start(y: jax.Array, key: jax.Array, config: DIIPConfig) -> DIIPState:
    """Draw z and return the first state; nothing of the prior is needed for it.

    Args:
        y: degraded image on its canvas, (H, W, 3) in [-1, 1].
        key: key of the random start.
        config: the settings.
    """
    return _first_state(y, jax.random.normal(key, y.shape, jnp.float32), config)


def _first_state(y: jax.Array, z: jax.Array, config: DIIPConfig) -> DIIPState:  # line 1
    moments = optax.adam(config.learning_rate).init(z)
    criteria = stopping.criterion(config).init()
    trace = jnp.full(config.max_iterations, jnp.nan, jnp.float32)
    return DIIPState(jnp.int32(0), z, moments, criteria, y, y, trace, trace)


def result(state: DIIPState, size: tuple[int, int]) -> Restoration:
    """Read the answer off a state, stopped or not.

    Args:
        state: a state with at least one iteration done.
        size: height and width of the image on its canvas.
    """
    verdict = state.stopping.verdict
    use_peak = verdict.detected_low & ~verdict.detected_high  # line 17 overwrites 12
    x = jnp.where(use_peak, state.x_peak, state.x)  # line 20, no extra call of g
    diverged = _diverged(state)
    last = jnp.maximum(state.k - 1 - diverged, 0)
    reason = jnp.select(
        [diverged, verdict.detected_high, verdict.detected_low],
        [StopReason.DIVERGED, StopReason.HIGH_FREQUENCY, StopReason.LOW_FREQUENCY],
        StopReason.MAX_ITERATIONS,
    )
    before = jnp.concatenate([jnp.full(1, jnp.nan), state.losses[:-1]])
    return Restoration(
        image=canvas.cut(x, size),
        iteration=jnp.where(use_peak, verdict.last_peak, last),
        num_iterations=state.k,
        reason=reason.astype(jnp.int32),
        no_peak=verdict.no_peak & use_peak,
        last_peak=verdict.last_peak,
        losses=state.losses,
        decreases=decrease(before, state.losses),
        sharpnesses=state.sharpnesses,
        z=state.z,
    )


def _diverged(state: DIIPState) -> jax.Array:
    return (state.k > 0) & ~jnp.isfinite(state.stopping.verdict.loss)


def prepare(
    prior: Prior, y: jax.Array, key: jax.Array, config: DIIPConfig
) -> tuple[Algorithm, DIIPState]:
    """Put an image on its canvas, draw z and return the algorithm with its first state.

    Args:
        prior: the frozen model.
        y: degraded image, (H, W, 3) in [0, 1].
        key: key of the random start.
        config: the settings.
    """
    size = canvas.canvas_size(prior, config, *y.shape[:2])
    y = canvas.place(jnp.asarray(y, jnp.float32), size)
    algorithm = build(canvas.generator(prior, config, size), y, config)
    return algorithm, start(y, key, config)


def restore(
    prior: Prior, y: jax.Array, key: jax.Array, config: DIIPConfig | None = None
) -> Restoration:
    """Restore a degraded image without knowing what happened to it.

    Pure: works under `jit`, `vmap` and sharding; the same key gives the same answer.

    Args:
        prior: the frozen model; its weights are an argument, never a constant.
        y: degraded image, (H, W, 3) in [0, 1].
        key: key of the random start.
        config: the settings; the prior's preset if None.

    Returns:
        The restored image with its stop reason and traces.

    Raises:
        ValueError: y is not an image, or the settings are not possible.

    Example:
        >>> from diip_jax import load_prior, restore
        >>> prior = load_prior("natural64")
        >>> restoration = jax.jit(restore)(prior, y, jax.random.key(0))
    """
    config = prior.card.preset if config is None else config
    check(prior, y, config)
    algorithm, state = prepare(prior, y, key, config)
    state = lax.while_loop(algorithm.should_continue, algorithm.step, state)
    return result(state, (y.shape[0], y.shape[1]))


def check(prior: Prior, y: jax.Array | np.ndarray, config: DIIPConfig) -> None:
    """Reject what cannot be restored, before anything is traced.

    Values are looked at only where y and the settings are not tracers.

    Raises:
        ValueError: says what is wrong, the value and the remedy.
    """
    if y.ndim != 3 or y.shape[-1] != 3:
        raise ValueError(f"y has shape {y.shape}; give one image (H, W, 3)")
    canvas.check_size(prior, config, *y.shape[:2])
    if not isinstance(y, Tracer):
        values = np.asarray(y)  # NumPy: y may be a constant of a function being traced
        if not np.isfinite(values).all():
            raise ValueError("y holds NaN or infinite values; replace them first")
        if values.min() < 0 or values.max() > 1:
            raise ValueError(
                f"y ranges over [{values.min():.3g}, {values.max():.3g}]; "
                "scale it to [0, 1]"
            )
    check_config(config)


def check_config(config: DIIPConfig) -> None:
    """Reject settings that no restoration can use.

    Raises:
        ValueError: says which setting, its value and what is allowed.
    """
    for name, values in choices().items():
        if getattr(config, name) not in values:
            given = getattr(config, name)
            raise ValueError(f"{name} is {given!r}; use one of {', '.join(values)}")
    ddim.exact_steps(config.gradient, config.num_steps)
    if config.tile and not 0 <= config.tile_overlap < config.tile:
        raise ValueError(
            f"tile_overlap is {config.tile_overlap}; use 0 to {config.tile - 1}"
        )
    for name in ("num_steps", "max_iterations"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; use at least 1")
    for name in ("learning_rate", "epsilon", "k_min"):
        value = getattr(config, name)
        smallest = "above 0" if name == "learning_rate" else "0 or more"
        if isinstance(value, int | float) and not (
            value > 0 if name == "learning_rate" else value >= 0
        ):
            raise ValueError(f"{name} is {value}; use a number {smallest}")
