"""Algorithm 1 of Chihaoui & Favaro: restore an image by optimising noise alone.

Minimise E(z; y) = ||g(z) - y||^2 over z with Adam, g frozen, and stop before g(z)
copies the damage. One iteration is `step`; one `lax.while_loop` over it is `restore`.
"""

import enum
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer

from diip_jax import canvas, ddim, devices, matched, stopping
from diip_jax.config import DIIPConfig, choices
from diip_jax.prior import Prior
from diip_jax.schedule import Schedule
from diip_jax.signals import decrease, laplacian_variance


class StopReason(enum.IntEnum):
    """Why a restoration ended."""

    MAX_ITERATIONS = 0  # the budget is spent
    LOW_FREQUENCY = 1  # sharpness falls: the degradation removes detail
    HIGH_FREQUENCY = 2  # the loss hardly falls: the degradation adds detail
    DIVERGED = 3  # the loss is not finite
    INTERRUPTED = 4  # its caller ended it, or looked at it on its way


class DIIPState(NamedTuple):
    """What one iteration hands to the next.

    Attributes:
        k: iterations done.
        z: noise, (H, W, 3).
        opt_state: of the optimiser: Adam's moments.
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
        losses: E(z^k; y) in the prior's range [-1, 1], (max_iterations,), NaN from
            `num_iterations` on; `jax_debug_nans` takes this fill for a fault.
        decreases: normalised decrease of the loss, -Delta_k of Eq. (4), likewise.
        sharpnesses: variance of the Laplacian of g(z^k), likewise.
        z: the noise after the last iteration, canvas-sized.
        uncertainty: standard deviation of the image over the starts, (H, W, 3); zero
            for one start.

    With several starts the image is the mean of theirs, and all other fields but
    `uncertainty` have a leading axis of starts.
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
    uncertainty: jax.Array


Optimizer = Callable[[Any], optax.GradientTransformation]  # of the learning rate
MakeCriterion = Callable[[DIIPConfig, Any], stopping.Criterion]  # of settings, damage


class Parts(NamedTuple):
    """What may stand in the place of the paper's parts, for many images.

    Each makes its part inside the program; make them once, as new ones compile again.

    Attributes:
        generator: makes g of prior, settings, height and width of the canvas, and
            timesteps or None; as `canvas.generator`.
        optimizer: makes an optax transformation of the learning rate.
        criterion: makes the stopping criterion of the settings and of the mean square
            of the damage in y; as `stopping.criterion`.
    """

    generator: Callable[..., ddim.Generate] = canvas.generator
    optimizer: Optimizer = optax.adam
    criterion: MakeCriterion = stopping.criterion


PARTS = Parts()  # the paper's


class Algorithm(NamedTuple):
    """Algorithm 1 bound to one y: start, a first look, one iteration, line 2."""

    init: Callable[[jax.Array], DIIPState]  # of z
    look: Callable[[DIIPState], DIIPState]
    step: Callable[[DIIPState], DIIPState]
    should_continue: Callable[[DIIPState], jax.Array]


def build(
    generate: ddim.Generate,
    y: jax.Array,
    config: DIIPConfig,
    damage: jax.Array | float = 0.0,
    parts: Parts = PARTS,
) -> Algorithm:
    """Bind Algorithm 1 to a generator and a degraded image.

    Args:
        generate: g, noise (H, W, 3) to image (H, W, 3) in [-1, 1].
        y: degraded image, (H, W, 3) in [-1, 1].
        config: the settings.
        damage: mean square of the damage in y, for `criterion="discrepancy"`.
        parts: optimiser and criterion.
    """
    optimizer = parts.optimizer(config.learning_rate)
    criterion = parts.criterion(config, damage)

    def energy(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = generate(z)
        return jnp.mean(jnp.square(x - y)), x

    def look(state: DIIPState) -> DIIPState:
        """Evaluate g(z^0) without a gradient: the discrepancy may need no more."""
        if config.criterion != "discrepancy":
            return state
        loss, x = energy(state.z)
        sharpness = laplacian_variance(x)
        x = jnp.where(jnp.isfinite(loss), x, state.x)
        return state._replace(
            stopping=criterion.update(state.stopping, state.k, loss, sharpness),
            x=x,
            x_peak=x,
            losses=state.losses.at[0].set(loss),
            sharpnesses=state.sharpnesses.at[0].set(sharpness),
        )

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

    most = budget(config, (y.shape[0], y.shape[1]))

    return Algorithm(
        init=lambda z: _first_state(y, z, config, parts),
        look=look,
        step=step,
        should_continue=functools.partial(is_unfinished, budget=most),
    )


def is_unfinished(state: DIIPState, budget: int) -> jax.Array:
    """Tell whether a restoration goes on (line 2).

    Args:
        state: where it stands.
        budget: iterations that it may have.
    """
    alive = (state.k < budget) & ~_diverged(state)
    return alive & ~stopping.detected(state.stopping)


def budget(config: DIIPConfig, size: tuple[int, int]) -> int:
    """Return the iterations that a canvas of this height and width may have."""
    if config.max_work is None or config.criterion != "discrepancy":
        return config.max_iterations
    affordable = config.max_work // math.prod(size)
    # One alone would be for nothing: it takes the second to see what the first did.
    return min(config.max_iterations, affordable) if affordable > 1 else 0


def start(
    y: jax.Array,
    key: jax.Array,
    config: DIIPConfig,
    seen: matched.Start | None = None,
    schedule: Schedule | None = None,
    index: jax.Array | int = 0,
    parts: Parts = PARTS,
) -> DIIPState:
    """Draw z and return the first state.

    Args:
        y: degraded image on its canvas, (H, W, 3) in [-1, 1].
        key: key of the image.
        config: the settings.
        seen: what y says, for `start="matched"`.
        schedule: of the prior, likewise.
        index: which of the starts.
        parts: optimiser and criterion.
    """
    z = start_noise(key, index, y.shape, config)
    if config.start == "matched" and seen is not None and schedule is not None:
        z = matched.diffuse(seen, y, z, schedule)
    return _first_state(y, z, config, parts)


def start_noise(
    key: jax.Array, index: jax.Array | int, shape: tuple[int, ...], config: DIIPConfig
) -> jax.Array:
    """Return the noise of a start.

    Starts come in pairs of opposite noise (antithetic variates; Hammersley & Morton,
    1956): what g does in proportion to the noise cancels in their mean.

    Args:
        key: key of the image.
        index: which of the starts.
        shape: (H, W, 3).
        config: the settings; one start alone has the key of the image.
    """
    if config.num_starts == 1:
        return jax.random.normal(key, shape, jnp.float32)
    drawn = jax.random.normal(jax.random.fold_in(key, index // 2), shape, jnp.float32)
    return jnp.where(index % 2 == 0, drawn, -drawn)


def _first_state(  # line 1
    y: jax.Array, z: jax.Array, config: DIIPConfig, parts: Parts
) -> DIIPState:
    moments = parts.optimizer(config.learning_rate).init(z)
    criteria = parts.criterion(config, 0.0).init()
    trace = jnp.full(config.max_iterations, jnp.nan, jnp.float32)
    state = DIIPState(jnp.int32(0), z, moments, criteria, y, y, trace, trace)
    return devices.vary_together(state)[0]  # the carry of a loop


def resumed(
    state: DIIPState, size: tuple[int, int], config: DIIPConfig, parts: Parts = PARTS
) -> DIIPState:
    """Return a state to go on from, with traces as long as the budget.

    Args:
        state: on the host, as an earlier run left it.
        size: height and width of the canvas.
        config: the settings; their budget may be another one.
        parts: optimiser and criterion.

    Raises:
        ValueError: it is the state of another canvas or criterion, or has done more
            iterations than the budget.
    """
    blank = jax.ShapeDtypeStruct((*size, 3), jnp.float32)
    fresh = jax.eval_shape(lambda y: _first_state(y, y, config, parts), blank)
    if jax.tree.structure(state) != jax.tree.structure(fresh):
        raise ValueError(
            f"state is not one of criterion {config.criterion!r}; go on with the "
            "settings that it was saved with"
        )
    if state.z.shape != fresh.z.shape:
        raise ValueError(
            f"state is of a canvas of shape {state.z.shape}, but this image has one of "
            f"{fresh.z.shape}; go on with the image that it was saved from"
        )
    if (done := int(state.k)) > config.max_iterations:
        raise ValueError(
            f"state has done {done} iterations, but max_iterations is "
            f"{config.max_iterations}; use at least {done}"
        )

    def fitted(trace: jax.Array) -> np.ndarray:
        longer = np.full(config.max_iterations, np.nan, np.float32)
        longer[:done] = np.asarray(trace)[:done]
        return longer

    # What a first look leaves before any iteration is written again by the first one.
    return state._replace(
        losses=fitted(state.losses), sharpnesses=fitted(state.sharpnesses)
    )


def result(
    state: DIIPState, size: tuple[int, int], budget: jax.Array | int = 0
) -> Restoration:
    """Read the answer off a state, stopped or not.

    Args:
        state: the state.
        size: height and width of the image on its canvas.
        budget: iterations that it may have: with fewer, and no other reason to stop,
            it was interrupted.
    """
    verdict = state.stopping.verdict
    use_peak = verdict.detected_low & ~verdict.detected_high  # line 17 overwrites 12
    x = jnp.where(use_peak, state.x_peak, state.x)  # line 20, no extra call of g
    diverged = _diverged(state)
    last = jnp.maximum(state.k - 1 - diverged, 0)
    reason = jnp.select(
        [diverged, verdict.detected_high, verdict.detected_low, state.k < budget],
        [
            StopReason.DIVERGED,
            StopReason.HIGH_FREQUENCY,
            StopReason.LOW_FREQUENCY,
            StopReason.INTERRUPTED,
        ],
        StopReason.MAX_ITERATIONS,
    )
    before = jnp.concatenate([jnp.full(1, jnp.nan, jnp.float32), state.losses[:-1]])
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
        uncertainty=jnp.zeros((*size, 3), jnp.float32),
    )


def _diverged(state: DIIPState) -> jax.Array:
    return (state.k > 0) & ~jnp.isfinite(state.stopping.verdict.loss)


def bind(
    prior: Prior,
    y: jax.Array,
    config: DIIPConfig,
    start: matched.Start | None,
    parts: Parts = PARTS,
) -> Algorithm:
    """Return the algorithm of an image on its canvas.

    Args:
        prior: the frozen model.
        y: degraded image on its canvas, (H, W, 3) in [-1, 1].
        config: the settings.
        start: of `matched.look` where `matched.is_needed`, else None.
        parts: generator, optimiser and criterion.
    """
    size = y.shape[0], y.shape[1]
    if start is None:
        return build(parts.generator(prior, config, size, None), y, config, 0.0, parts)
    at = start.timesteps if config.start == "matched" else None
    generate = parts.generator(prior, config, size, at)
    return build(generate, y, config, start.energy, parts)


def see(
    prior: Prior, y: jax.Array, config: DIIPConfig
) -> tuple[jax.Array, matched.Start | None]:
    """Put an image on its canvas and look at it; return both.

    Args:
        prior: the frozen model.
        y: degraded image, (H, W, 3) in [0, 1].
        config: the settings.
    """
    size = canvas.canvas_size(prior, config, *y.shape[:2])
    y = canvas.place(jnp.asarray(y, jnp.float32), size)
    return y, matched.look(prior, y, config) if matched.is_needed(config) else None


def prepare(
    prior: Prior, y: jax.Array, key: jax.Array, config: DIIPConfig
) -> tuple[Algorithm, DIIPState]:
    """Return the algorithm of one start with its first state, looked at.

    Args:
        prior: the frozen model.
        y: degraded image, (H, W, 3) in [0, 1].
        key: key of the start.
        config: the settings.
    """
    y, seen = see(prior, y, config)
    algorithm = bind(prior, y, config, seen)
    return algorithm, algorithm.look(start(y, key, config, seen, prior.card.schedule))


def known_damage(config: DIIPConfig, seen: matched.Start | None) -> jax.Array | None:
    """Return the mean square of the damage if the discrepancy principle is in use."""
    return (
        seen.energy if seen is not None and config.criterion == "discrepancy" else None
    )


def average(
    starts: Restoration,
    y: jax.Array | np.ndarray,
    damage: jax.Array | float | None = None,
) -> Restoration:
    """Return the restoration that several starts of one image make.

    Args:
        starts: theirs, stacked: all fields have a leading axis of starts.
        y: degraded image, (H, W, 3) in [0, 1].
        damage: mean square of its damage, as for `settle`.
    """
    return starts._replace(
        image=settle(jnp.mean(starts.image, axis=0), y, damage),
        uncertainty=jnp.std(starts.image, axis=0),
    )


def settle(
    image: jax.Array | np.ndarray,
    y: jax.Array | np.ndarray,
    damage: jax.Array | float | None,
) -> jax.Array:
    """Return an image that is no further from y than the damage explains.

    The discrepancy principle without an iteration: on the line from the image to y, the
    first point whose mean square distance from y is that of the damage. A picture
    without damage is thus returned as it was.

    Args:
        image: restored image, (H, W, 3) in [0, 1].
        y: degraded image of the same shape.
        damage: mean square of the damage, in the prior's range [-1, 1]; None where it
            is not known, and the image is returned as it is.
    """
    image, y = jnp.asarray(image, jnp.float32), jnp.asarray(y, jnp.float32)
    if damage is None:
        return image
    distance = jnp.mean(jnp.square(2 * (image - y)))
    kept = jnp.sqrt(damage / jnp.maximum(distance, jnp.finfo(jnp.float32).tiny))
    return y + jnp.minimum(kept, 1) * (image - y)


def restore(
    prior: Prior,
    y: jax.Array,
    key: jax.Array,
    config: DIIPConfig | None = None,
    parts: Parts = PARTS,
) -> Restoration:
    """Restore a degraded image without knowing what happened to it.

    Pure: works under `jit`, `vmap` and sharding; the same key gives the same answer.

    Args:
        prior: the frozen model; its weights are an argument, never a constant.
        y: degraded image, (H, W, 3) in [0, 1].
        key: key of the random start.
        config: the settings; the prior's preset if None.
        parts: other parts than the paper's; static under `jit`.

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
    arguments = devices.vary_together(prior, y, key, config)
    bound = functools.partial(_restore, parts=parts)
    return devices.in_automatic_axes(bound, *arguments)


def _restore(
    prior: Prior, y: jax.Array, key: jax.Array, config: DIIPConfig, parts: Parts
) -> Restoration:
    """Restore a degraded image that was checked."""
    photo = jnp.asarray(y, jnp.float32)
    y, seen = see(prior, photo, config)
    algorithm = bind(prior, y, config, seen, parts)

    def first(index: jax.Array | int) -> DIIPState:
        return start(y, key, config, seen, prior.card.schedule, index, parts)

    damage = known_damage(config, seen)
    return from_starts(algorithm, first, photo, config.num_starts, damage)


Run = Callable[[Algorithm, DIIPState], DIIPState]


def run_to_stop(algorithm: Algorithm, state: DIIPState) -> DIIPState:
    """Run Algorithm 1 from a state to its stop."""
    return lax.while_loop(algorithm.should_continue, algorithm.step, state)


def from_starts(
    algorithm: Algorithm,
    first: Callable[[Any], DIIPState],
    photo: jax.Array,
    num_starts: int,
    damage: jax.Array | None = None,
    run: Run = run_to_stop,
) -> Restoration:
    """Restore an image from each of its starts, and average them.

    Args:
        algorithm: bound to the image.
        first: returns the first state of a start, by its index.
        photo: degraded image, (H, W, 3) float32 in [0, 1].
        num_starts: how many starts.
        damage: mean square of its damage, as for `settle`.
        run: does the iterations of a start.
    """

    def restore_from(index: jax.Array | int) -> Restoration:
        state = run(algorithm, algorithm.look(first(index)))
        return result(state, (photo.shape[0], photo.shape[1]))

    if num_starts == 1:
        alone = restore_from(0)
        return alone._replace(image=settle(alone.image, photo, damage))
    # One after another: each stops by itself, in the memory of one.
    starts = lax.map(restore_from, jnp.arange(num_starts, dtype=jnp.int32))
    return average(starts, photo, damage)


def check(prior: Prior, y: jax.Array | np.ndarray, config: DIIPConfig) -> None:
    """Reject what cannot be restored, before anything is traced.

    Values are looked at only where y and the settings are not tracers.

    Raises:
        ValueError: says what is wrong, the value and the remedy.
    """
    check_form(y)
    check_config(config)
    canvas.check_size(prior, config, *y.shape[:2])
    check_values(y)


def check_form(y: jax.Array | np.ndarray) -> None:
    """Reject what is no image, by its shape and dtype.

    Raises:
        ValueError: says what is wrong and the remedy.
    """
    if y.ndim != 3 or y.shape[-1] != 3:
        raise ValueError(f"y has shape {y.shape}; give one image (H, W, 3)")
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(
            f"y has dtype {y.dtype}; give floats in [0, 1], from images.read or by "
            "y / 255 for 8 bits"
        )


def check_values(y: jax.Array | np.ndarray) -> None:
    """Reject an image whose values are out of range; a tracer tells none.

    Raises:
        ValueError: says what is wrong and the remedy.
    """
    if not isinstance(y, Tracer):
        values = np.asarray(y)  # NumPy: y may be a constant of a function being traced
        if not np.isfinite(values).all():
            raise ValueError("y holds NaN or infinite values; replace them first")
        if values.min() < 0 or values.max() > 1:
            raise ValueError(
                f"y ranges over [{values.min():.3g}, {values.max():.3g}]; "
                "scale it to [0, 1]"
            )


def check_config(config: DIIPConfig) -> None:
    """Reject settings that no restoration can use.

    Raises:
        ValueError: says which setting, its value and what is allowed.
    """
    for name, values in choices().items():
        if getattr(config, name) not in values:
            given = getattr(config, name)
            raise ValueError(f"{name} is {given!r}; use one of {', '.join(values)}")
    for name, least in LEAST.items():
        if getattr(config, name) is not None or name != "max_work":
            check_count(name, getattr(config, name), least)
    ddim.exact_steps(str(config.gradient), config.num_steps)
    if config.tile and config.tile_overlap >= config.tile:
        raise ValueError(
            f"tile_overlap is {config.tile_overlap}; use 0 to {config.tile - 1}"
        )
    for name in ("learning_rate", "epsilon", "k_min"):
        _check_number(name, getattr(config, name), positive=name == "learning_rate")
    for name in ("start_noise", "noise_level"):
        if getattr(config, name) is not None:
            _check_number(name, getattr(config, name), positive=name == "start_noise")


LEAST = {"tile": 0, "tile_overlap": 0} | dict.fromkeys(
    ("num_steps", "max_iterations", "num_starts", "max_work"), 1
)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Reject what is not a whole number, or is too small.

    Raises:
        ValueError: says its name, the value and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} is {value!r}; use an integer of at least {least}")
    if int(value) < least:
        raise ValueError(f"{name} is {value}; use at least {least}")


def _check_number(name: str, value: Any, *, positive: bool) -> None:
    """Reject what is not one number of the range; a tracer tells only its type."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if isinstance(value, jax.Array | np.ndarray):
        real = jnp.issubdtype(value.dtype, jnp.floating)
        is_number = not value.shape and (
            real or jnp.issubdtype(value.dtype, jnp.integer)
        )
    if is_number and isinstance(value, Tracer):
        return
    number = float(value) if is_number else math.nan
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        kind = "number" if math.isfinite(number) else "finite number"
        smallest = "above 0" if positive else "0 or more"
        raise ValueError(f"{name} is {value!r}; use a {kind} {smallest}")
