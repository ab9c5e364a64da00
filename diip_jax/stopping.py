"""When to stop: the two self-supervised signals as scalar state machines.

A criterion is a pair of pure functions, `init() -> state` and
`update(state, k, loss, sharpness) -> state`. The first field of its state is a
`Verdict`, which is all that the rest of the package reads. Nothing here sees an image.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diip_jax.config import DIIPConfig
from diip_jax.signals import decrease


class Verdict(NamedTuple):
    """What every criterion says after an iteration.

    Attributes:
        loss: E(z^k; y); infinite before the first iteration.
        last_peak: LastSharpnessPeakIter; 0 before any peak.
        no_peak: the low-frequency criterion fired without having seen a peak, and
            last_peak is the sharpest iterate since the transient instead.
        detected_low: the low-frequency criterion fired (line 11).
        detected_high: the high-frequency criterion fired (line 16).
    """

    loss: jax.Array
    last_peak: jax.Array
    no_peak: jax.Array
    detected_low: jax.Array
    detected_high: jax.Array


class Criterion(NamedTuple):
    """A stopping criterion with its thresholds bound."""

    init: Callable[[], Any]
    update: Callable[[Any, jax.Array, jax.Array, jax.Array], Any]


def criterion(config: DIIPConfig, damage: jax.Array | float = 0.0) -> Criterion:
    """Bind the criterion that the configuration names to its thresholds.

    Args:
        config: the settings.
        damage: mean square of the damage in y, which only "discrepancy" compares with.
    """
    init, update = CRITERIA[config.criterion]
    thresholds = {"k_min": config.k_min, "epsilon": config.epsilon}
    if config.criterion == "discrepancy":
        thresholds = {"damage": damage}
    return Criterion(init, functools.partial(update, **thresholds))


def detected(state: Any) -> jax.Array:
    """Tell whether a criterion in this state fired (line 2)."""
    return state.verdict.detected_low | state.verdict.detected_high


def undecided() -> Verdict:
    """Return the verdict before the first iteration."""
    no = jnp.bool_(False)
    return Verdict(jnp.float32(jnp.inf), jnp.int32(0), no, no, no)


# criterion="paper": the listing.


class StoppingState(NamedTuple):
    """State of the paper's criteria.

    Attributes:
        verdict: see `Verdict`.
        sharpness: sigma^2[k].
        sharpness_before: sigma^2[k - 1].
    """

    verdict: Verdict
    sharpness: jax.Array
    sharpness_before: jax.Array


def init() -> StoppingState:
    """Return the state before the first iteration (line 1)."""
    infinite = jnp.float32(jnp.inf)
    return StoppingState(undecided(), infinite, infinite)


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
    before = state.verdict
    falling = sharpness < state.sharpness
    peaked = falling & (state.sharpness_before < state.sharpness)
    last_peak = jnp.where(peaked, k - 1, before.last_peak)  # lines 6-8
    detected_low = (k > k_min) & falling  # lines 10-13
    no_peak = detected_low & (last_peak == 0)
    verdict = Verdict(
        loss=loss,
        last_peak=jnp.where(no_peak, k - 1, last_peak),
        no_peak=no_peak,
        detected_low=detected_low,
        detected_high=(k > 0) & (decrease(before.loss, loss) < epsilon),  # lines 15-18
    )
    return StoppingState(verdict, sharpness, state.sharpness)


# criterion="never": the paper's signals, followed past every stop.


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
    verdict = state.verdict._replace(no_peak=no, detected_low=no, detected_high=no)
    return state._replace(verdict=verdict)


# criterion="robust": the same signals, averaged, after the transient. Its own settings
# are fractions of k_min, which measures the transient at the prior's learning rate.

SMOOTHING = 0.9  # of the running averages: a memory of about ten iterations
WARM_UP = 0.5  # times k_min: iterations before the loss may stop a run
PATIENCE = 0.5  # times k_min: iterations without a new minimum of the decrease
LOW_PATIENCE = 0.1  # times k_min: iterations in a row well below the maximum
DROP = math.log(1.1)  # of log sharpness: "well below" has lost a tenth


class RobustState(NamedTuple):
    """State of the averaged criteria.

    Attributes:
        verdict: see `Verdict`; last_peak is the iteration of largest_sharpness.
        decrease: running average of the normalised decrease of the loss, times the
            weight of its terms so far.
        log_sharpness: running average of log sigma^2, likewise.
        smallest_decrease: minimum of the average decrease since the warm-up.
        k_smallest: its iteration.
        largest_sharpness: maximum of the average log sigma^2 since k_min.
        num_below: iterations in a row well below it.
    """

    verdict: Verdict
    decrease: jax.Array
    log_sharpness: jax.Array
    smallest_decrease: jax.Array
    k_smallest: jax.Array
    largest_sharpness: jax.Array
    num_below: jax.Array


def init_robust() -> RobustState:
    """Return the robust criterion's state before the first iteration."""
    infinite, zero, none = jnp.float32(jnp.inf), jnp.float32(0), jnp.int32(0)
    return RobustState(undecided(), zero, zero, infinite, none, -infinite, none)


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

    High frequencies: stop when the averaged decrease has set no new minimum for
    k_min / 2 iterations (Fig. 4: that minimum is near the PSNR peak), or is below
    epsilon. Low frequencies: stop when averaged log sharpness has stayed log 1.1 below
    its maximum for k_min / 10 iterations in a row; return the maximum's image.

    Args:
        state: state after iteration k - 1.
        k: iteration, counted from 0.
        loss: E(z^k; y).
        sharpness: sigma^2[k].
        k_min: iterations of the transient.
        epsilon: threshold on the averaged decrease.
    """
    before = state.verdict
    tiny = jnp.finfo(jnp.float32).tiny  # a flat picture has sharpness 0
    latest = jnp.where(k > 0, decrease(before.loss, loss), 0.0)
    weighted_decrease = _average(state.decrease, latest)
    log_sharpness = jnp.log(jnp.maximum(sharpness, tiny))
    weighted_sharpness = _average(state.log_sharpness, log_sharpness)
    # The averages start at 0. Dividing by the weight of their terms so far removes that
    # bias: sharpness has k + 1 terms, and the decrease, which needs two losses, has k.
    memory = jnp.float32(SMOOTHING)
    slope = weighted_decrease / jnp.maximum(1 - memory**k, tiny)
    level = weighted_sharpness / (1 - memory ** (k + 1))

    warm = k >= WARM_UP * k_min
    new_minimum = warm & (slope < state.smallest_decrease)
    k_smallest = jnp.where(new_minimum, k, state.k_smallest)
    past_minimum = k - k_smallest >= jnp.maximum(PATIENCE * k_min, 1)

    new_maximum = (k >= k_min) & (level > state.largest_sharpness)
    largest = jnp.where(new_maximum, level, state.largest_sharpness)
    below = (k > k_min) & (level < largest - DROP)
    num_below = jnp.where(below, state.num_below + 1, 0)

    verdict = Verdict(
        loss=loss,
        last_peak=jnp.where(new_maximum, k, before.last_peak),
        no_peak=before.no_peak,
        detected_low=num_below >= jnp.maximum(LOW_PATIENCE * k_min, 1),
        detected_high=warm & (k > 0) & (past_minimum | (slope < epsilon)),
    )
    return RobustState(
        verdict=verdict,
        decrease=weighted_decrease,
        log_sharpness=weighted_sharpness,
        smallest_decrease=jnp.where(new_minimum, slope, state.smallest_decrease),
        k_smallest=k_smallest,
        largest_sharpness=largest,
        num_below=num_below,
    )


def _average(average: jax.Array, latest: jax.Array) -> jax.Array:
    return SMOOTHING * average + (1 - SMOOTHING) * latest


# criterion="discrepancy": the rest of y is damage.

TOLERANCE = 1.15  # squared: the energy is an estimate, and copying damage costs more
UNSEEN = 0.02  # deviation in [-1, 1], 40 dB: nearer to y is not worth an iteration


class DiscrepancyState(NamedTuple):
    """State of the discrepancy principle: its verdict."""

    verdict: Verdict


def init_discrepancy() -> DiscrepancyState:
    """Return the state before the first iteration."""
    return DiscrepancyState(undecided())


def update_discrepancy(
    state: DiscrepancyState,
    k: jax.Array,
    loss: jax.Array,
    sharpness: jax.Array,
    *,
    damage: jax.Array | float,
) -> DiscrepancyState:
    """Stop once g(z) is as near to y as the clean image is (Morozov, 1966).

    Args:
        state: state after iteration k - 1.
        k: iteration, counted from 0.
        loss: E(z^k; y).
        sharpness: sigma^2[k], not looked at.
        damage: mean square of the damage in y.
    """
    near = loss <= jnp.maximum(TOLERANCE**2 * damage, UNSEEN**2)
    return DiscrepancyState(state.verdict._replace(loss=loss, detected_high=near))


CRITERIA = {
    "paper": (init, update),
    "robust": (init_robust, update_robust),
    "never": (init, update_never),
    "discrepancy": (init_discrepancy, update_discrepancy),
}
