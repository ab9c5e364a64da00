"""When to stop: the two self-supervised signals as scalar state machines.

A criterion is a pair of pure functions, `init() -> state` and
`update(state, k, loss, sharpness) -> state`. Whatever else its state holds, it has the
fields of `StoppingState` from `loss` to `detected_high`. Nothing here sees an image.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diip_jax.config import DIIPConfig


class StoppingState(NamedTuple):
    """State of the paper's criteria, and the fields every criterion has.

    Attributes:
        loss: E(z^k; y); infinite before the first iteration.
        last_peak: LastSharpnessPeakIter; 0 before any peak.
        no_peak: the low-frequency criterion fired without having seen a peak, and
            last_peak is the sharpest iterate since the transient instead.
        detected_low: the low-frequency criterion fired (line 11).
        detected_high: the high-frequency criterion fired (line 16).
        sharpness: sigma^2[k].
        sharpness_before: sigma^2[k - 1].
    """

    loss: jax.Array
    last_peak: jax.Array
    no_peak: jax.Array
    detected_low: jax.Array
    detected_high: jax.Array
    sharpness: jax.Array
    sharpness_before: jax.Array


class RobustState(NamedTuple):
    """State of the smoothed criteria; the first five as in `StoppingState`.

    Attributes:
        loss: see `StoppingState`.
        last_peak: iteration of the largest smoothed sharpness since the transient.
        no_peak: always False.
        detected_low: see `StoppingState`.
        detected_high: see `StoppingState`.
        decrease: running average of the normalised decrease of the loss.
        log_sharpness: running average of log sigma^2.
        smallest_decrease: smallest average decrease since the transient.
        k_smallest: its iteration.
        largest_sharpness: largest average log sigma^2 since the transient.
        num_below: iterations in a row well below it.
    """

    loss: jax.Array
    last_peak: jax.Array
    no_peak: jax.Array
    detected_low: jax.Array
    detected_high: jax.Array
    decrease: jax.Array
    log_sharpness: jax.Array
    smallest_decrease: jax.Array
    k_smallest: jax.Array
    largest_sharpness: jax.Array
    num_below: jax.Array


class Criterion(NamedTuple):
    """A stopping criterion with its thresholds bound."""

    init: Callable[[], Any]
    update: Callable[[Any, jax.Array, jax.Array, jax.Array], Any]


# The robust criterion's own settings; they are fractions of k_min, which measures the
# length of the transient at the prior's learning rate.
SMOOTHING = 0.9  # of the running averages: a memory of about ten iterations
PATIENCE = 0.5  # times k_min: iterations without a smaller decrease
LOW_PATIENCE = 0.1  # times k_min: iterations well below the sharpest
DROP = math.log(1.1)  # "well below": sharpness has lost a tenth


def criterion(config: DIIPConfig) -> Criterion:
    """Bind the criterion that the configuration names to its thresholds."""
    init, update = CRITERIA[config.criterion]
    return Criterion(
        init, functools.partial(update, k_min=config.k_min, epsilon=config.epsilon)
    )


def detected(state: StoppingState | RobustState) -> jax.Array:
    """Tell whether either criterion fired (line 2)."""
    return state.detected_low | state.detected_high


def init() -> StoppingState:
    """Return the state before the first iteration (line 1)."""
    infinite, no = jnp.float32(jnp.inf), jnp.bool_(False)
    return StoppingState(infinite, jnp.int32(0), no, no, no, infinite, infinite)


def update(
    state: StoppingState,
    k: jax.Array,
    loss: jax.Array,
    sharpness: jax.Array,
    *,
    k_min: jax.Array | int,
    epsilon: jax.Array | float,
) -> StoppingState:
    """Apply lines 5 to 18 of Algorithm 1 to iteration k.

    Two things are decided here that the listing leaves open. Eq. (4) is negative while
    the loss falls, so line 15 tests the decrease -Delta_k. And where line 12 would
    return g(z^0) because no peak was seen, the sharpest image since the transient is
    taken: as the criterion fires at the first fall after k_min, that is k - 1.

    Args:
        state: state after iteration k - 1.
        k: iteration, counted from 0.
        loss: E(z^k; y).
        sharpness: sigma^2[k].
        k_min: iterations of the transient.
        epsilon: threshold on the normalised decrease.
    """
    falling = sharpness < state.sharpness
    peaked = falling & (state.sharpness_before < state.sharpness)
    last_peak = jnp.where(peaked, k - 1, state.last_peak)  # lines 6-8
    detected_low = (k > k_min) & falling  # lines 10-13
    no_peak = detected_low & (last_peak == 0)
    return StoppingState(
        loss=loss,
        last_peak=jnp.where(no_peak, k - 1, last_peak),
        no_peak=no_peak,
        detected_low=detected_low,
        detected_high=(k > 0) & (_decrease(state.loss, loss) < epsilon),  # lines 15-18
        sharpness=sharpness,
        sharpness_before=state.sharpness,
    )


def update_never(
    state: StoppingState,
    k: jax.Array,
    loss: jax.Array,
    sharpness: jax.Array,
    *,
    k_min: jax.Array | int,
    epsilon: jax.Array | float,
) -> StoppingState:
    """Follow the signals as `update` does, but let nothing fire (Figs. 3, 4 and 6)."""
    state = update(state, k, loss, sharpness, k_min=k_min, epsilon=epsilon)
    no = jnp.bool_(False)
    return state._replace(no_peak=no, detected_low=no, detected_high=no)


def init_robust() -> RobustState:
    """Return the robust criterion's state before the first iteration."""
    infinite, zero, no = jnp.float32(jnp.inf), jnp.float32(0), jnp.bool_(False)
    start = jnp.int32(0)
    flags = (start, no, no, no)
    averages = (zero, zero)
    return RobustState(infinite, *flags, *averages, infinite, start, -infinite, start)


def update_robust(
    state: RobustState,
    k: jax.Array,
    loss: jax.Array,
    sharpness: jax.Array,
    *,
    k_min: jax.Array | int,
    epsilon: jax.Array | float,
) -> RobustState:
    """Apply the paper's two signals to running averages, after the transient.

    High frequencies: the average decrease of the loss has passed its minimum (Fig. 4:
    there the PSNR peaks), that is, it made no smaller value for k_min / 2 iterations,
    or it fell below epsilon. Low frequencies: the average sharpness has been a tenth
    below its largest value since k_min for k_min / 10 iterations; that value's image
    is returned. The first test waits for k_min / 2 iterations, the second for k_min.

    Args:
        state: state after iteration k - 1.
        k: iteration, counted from 0.
        loss: E(z^k; y).
        sharpness: sigma^2[k].
        k_min: iterations of the transient.
        epsilon: threshold on the average normalised decrease.
    """
    tiny = jnp.finfo(jnp.float32).tiny  # a flat picture has sharpness 0
    fresh = jnp.where(k > 0, _decrease(state.loss, loss), 0.0)
    decrease = SMOOTHING * state.decrease + (1 - SMOOTHING) * fresh
    log_sharpness = SMOOTHING * state.log_sharpness + (1 - SMOOTHING) * jnp.log(
        jnp.maximum(sharpness, tiny)
    )
    # Averages start at 0; dividing by the weight so far removes that bias.
    slope = decrease / jnp.maximum(1 - SMOOTHING**k, tiny)
    level = log_sharpness / (1 - SMOOTHING ** (k + 1))

    settled = k >= PATIENCE * k_min
    slower = settled & (slope < state.smallest_decrease)
    k_smallest = jnp.where(slower, k, state.k_smallest)
    past_minimum = k - k_smallest >= jnp.maximum(PATIENCE * k_min, 1)

    sharper = (k >= k_min) & (level > state.largest_sharpness)
    largest = jnp.where(sharper, level, state.largest_sharpness)
    below = (k > k_min) & (level < largest - DROP)
    num_below = jnp.where(below, state.num_below + 1, 0)
    return RobustState(
        loss=loss,
        last_peak=jnp.where(sharper, k, state.last_peak),
        no_peak=state.no_peak,
        detected_low=num_below >= jnp.maximum(LOW_PATIENCE * k_min, 1),
        detected_high=settled & (k > 0) & (past_minimum | (slope < epsilon)),
        decrease=decrease,
        log_sharpness=log_sharpness,
        smallest_decrease=jnp.where(slower, slope, state.smallest_decrease),
        k_smallest=k_smallest,
        largest_sharpness=largest,
        num_below=num_below,
    )


def _decrease(loss_before: jax.Array, loss: jax.Array) -> jax.Array:
    """Return the normalised decrease of the loss, -Delta_k of Eq. (4)."""
    return (loss_before - loss) / loss_before


CRITERIA = {
    "paper": (init, update),
    "robust": (init_robust, update_robust),
    "never": (init, update_never),
}
