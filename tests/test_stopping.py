"""Algorithm 1's criteria against the paper's listing, transcribed on Python lists.

The listing keeps every value and looks back; `stopping.update` carries a few scalars.
The robust criterion is ours: its partner is written from its docstring, with averages
as sums over the whole past instead of recursions.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import stopping
from diip_jax.config import DIIPConfig
from helpers.algorithm import Verdict, algorithm_1

pytestmark = pytest.mark.usefixtures("strict_ranks")


def updated(name):
    """Return an update of a criterion that also tells whether it has fired."""
    _, update = stopping.CRITERIA[name]

    def both(*numbers, **settings):
        state = update(*numbers, **settings)
        return state, stopping.detected(state)

    return both


@functools.cache
def compiled(name):
    return jax.jit(updated(name))


def follow(name, losses, sharpnesses, k_min, epsilon, jit=True) -> Verdict:
    """Run a criterion of the package over recorded traces."""
    state = stopping.CRITERIA[name][0]()
    update = compiled(name) if jit else updated(name)
    for k, (loss, sharpness) in enumerate(zip(losses, sharpnesses, strict=True)):
        numbers = (np.int32(k), np.float32(loss), np.float32(sharpness))
        state, detected = update(state, *numbers, k_min=k_min, epsilon=epsilon)
        if detected:
            return verdict(k, state)
    return verdict(None, state)


def verdict(k, state) -> Verdict:
    said = state.verdict
    flags = bool(said.detected_low), bool(said.detected_high)
    return Verdict(k, *flags, int(said.last_peak), bool(said.no_peak))


def falling_loss(count, rate=0.1):
    return [(1 - rate) ** k for k in range(count)]


# name: (losses, sharpnesses, k_min, what must come out)
CASES = {
    "peak after k_min": (
        falling_loss(8),
        [1, 2, 3, 4, 5, 6, 5, 4],
        3,
        Verdict(6, True, False, 5, False),
    ),
    "falling at k_min, peak in the transient": (
        falling_loss(8),
        [1, 3, 2, 1.5, 1.2, 1.1, 1, 0.9],
        3,
        Verdict(4, True, False, 1, False),
    ),
    "two peaks": (
        falling_loss(8),
        [1, 3, 2, 4, 3, 2, 5, 4],
        4,
        Verdict(5, True, False, 3, False),
    ),
    "no peak": (
        falling_loss(8),
        [9, 8, 7, 6, 5, 4, 3, 2],
        3,
        Verdict(4, True, False, 3, True),
    ),
    "no peak, a plateau at the fall": (
        falling_loss(8),
        [9, 8, 7, 7, 7, 7, 6, 5],
        2,
        Verdict(6, True, False, 5, True),
    ),
    "slow loss": (
        [1, 0.9, 0.8, 0.7999, 0.7998, 0.7],
        [1, 2, 3, 4, 5, 6],
        3,
        Verdict(3, False, True, 0, False),
    ),
    "rising loss": (
        [1, 0.9, 0.95, 0.8, 0.7, 0.6],
        [1, 2, 3, 4, 5, 6],
        3,
        Verdict(2, False, True, 0, False),
    ),
    "both": (
        [1, 0.9, 0.8, 0.7, 0.6999, 0.6],
        [1, 3, 2, 4, 3, 2],
        3,
        Verdict(4, True, True, 3, False),
    ),
    "neither": (
        falling_loss(6),
        [1, 2, 3, 4, 5, 6],
        3,
        Verdict(None, False, False, 0, False),
    ),
    "nothing fires at iteration 0": (
        falling_loss(3),
        [1, 2, 3],
        0,
        Verdict(None, False, False, 0, False),
    ),
    "fall at iteration 1 with k_min 0": (
        falling_loss(3),
        [2, 1, 0.5],
        0,
        Verdict(1, True, False, 0, True),
    ),
}


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_named_cases(case, jit):
    losses, sharpnesses, k_min, expected = CASES[case]
    literal = algorithm_1(losses, sharpnesses, k_min, epsilon=1e-3)
    ours = follow("paper", losses, sharpnesses, k_min, 1e-3, jit=jit)
    assert literal == expected
    assert ours == expected


def random_trace(seed):
    """Return losses and sharpnesses that stop in all the ways there are."""
    rng = np.random.default_rng(seed)
    count = 40
    rate = np.exp(rng.normal(-3, 0.3)) * (1 + 0.25 * rng.standard_normal(count))
    rate *= np.exp(-np.arange(count) / rng.uniform(5, 40))
    trend = rng.choice([-0.3, 0.2, 0.6])
    steps = trend + rng.choice([0.1, 0.3]) * rng.standard_normal(count)
    sharpnesses = 100 * np.exp(0.1 * np.cumsum(steps))
    return np.exp(-np.cumsum(rate)).astype(np.float32), sharpnesses.astype(np.float32)


def test_random_traces():
    """Follow 80 traces; both criteria, both at once and no peak must have occurred."""
    seen = []
    for seed in range(80):
        losses, sharpnesses = random_trace(seed)
        k_min, epsilon = seed % 13, 0.004
        expected = algorithm_1(losses, sharpnesses, k_min, np.float32(epsilon))
        ours = follow("paper", losses, sharpnesses, k_min, epsilon)
        assert ours == expected, f"seed {seed}"
        seen.append(expected)
    kinds = {(v.detected_low, v.detected_high) for v in seen}
    assert {(True, False), (False, True)} <= kinds
    assert any(v.no_peak for v in seen)
    assert any(v.detected_low and not v.no_peak for v in seen)
    counts = [sum(v.detected_low for v in seen), sum(v.detected_high for v in seen)]
    assert min(counts) >= 10, f"too one-sided to mean much: low, high = {counts}"


def test_never_follows_but_never_fires():
    losses, sharpnesses, k_min, _ = CASES["both"]
    ours = follow("never", losses, sharpnesses, k_min, 1e-3)
    assert ours == Verdict(None, False, False, 3, False)


def test_the_discrepancy_fires_when_the_loss_is_that_of_the_damage():
    """Morozov's principle, with its factor above 1."""
    damage = 0.01
    config = DIIPConfig(criterion="discrepancy")
    criterion = stopping.criterion(config, jnp.float32(damage))
    state = criterion.init()
    assert not stopping.detected(state)
    threshold = stopping.TOLERANCE**2 * damage
    for k, loss in enumerate([3.0, np.nan, 1.01 * threshold, 0.99 * threshold]):
        state = criterion.update(state, jnp.int32(k), jnp.float32(loss), jnp.float32(1))
        assert bool(stopping.detected(state)) == (loss < threshold)
    assert bool(state.verdict.detected_high)
    assert not bool(state.verdict.detected_low)


def test_thresholds_are_read_from_the_configuration():
    config = DIIPConfig(k_min=3, epsilon=0.05, criterion="paper")
    criterion = stopping.criterion(config)
    state = criterion.init()
    for k, loss in enumerate(falling_loss(3, rate=0.04)):
        assert not stopping.detected(state)
        state = criterion.update(state, jnp.int32(k), jnp.float32(loss), jnp.float32(k))
        if k == 1:
            break
    assert bool(state.verdict.detected_high)  # a decrease of 4 % is below 5 %


def test_update_is_one_program_for_all_thresholds():
    traces = []

    @jax.jit
    def update(state, k, loss, sharpness, k_min, epsilon):
        traces.append(1)
        return stopping.update(state, k, loss, sharpness, k_min=k_min, epsilon=epsilon)

    for k_min, epsilon in [(1, 0.1), (100, 1e-3), (7, 0.0)]:
        update(stopping.init(), jnp.int32(0), 1.0, 2.0, k_min, epsilon)
    assert len(traces) == 1


# The robust criterion


def robust(losses, sharpnesses, k_min, epsilon) -> Verdict:
    """Decide as the docstring of `update_robust` says, in float64, by whole sums."""
    losses, sharpnesses = np.float64(losses), np.float64(sharpnesses)
    drops = [(a - b) / a for a, b in zip(losses[:-1], losses[1:], strict=True)]
    logs = [math.log(s) for s in sharpnesses]

    def average(values):  # the newest counts fully, the one before 0.9, ...
        weights = [0.9 ** (len(values) - 1 - i) for i in range(len(values))]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    slopes = [0.0] + [average(drops[:k]) for k in range(1, len(losses))]
    levels = [average(logs[: k + 1]) for k in range(len(losses))]
    peak = 0
    for k in range(len(losses)):
        high = low = False
        settled = [j for j in range(k + 1) if j >= k_min / 2]
        if settled and k > 0:
            best = min(settled, key=lambda j: slopes[j])  # the first of equal ones
            high = k - best >= max(k_min / 2, 1) or slopes[k] < epsilon
        late = [j for j in range(k + 1) if j >= k_min]
        if late:
            peak = max(late, key=lambda j: levels[j])
            length = 0
            while k - length > peak and _is_below(levels, k - length, k_min):
                length += 1
            low = length >= max(k_min / 10, 1)
        if high or low:
            return Verdict(k, low, high, peak, False)
    return Verdict(None, False, False, peak, False)


def _is_below(levels, k, k_min) -> bool:
    """Tell whether iteration k is a tenth below the largest average up to it."""
    return levels[k] < max(levels[math.ceil(k_min) : k + 1]) - math.log(1.1)


def noise_like(count=300, minimum=120, k_min=60):
    """Return traces as in Figs. 4 and 6 for noise: decrease with a minimum."""
    k = np.arange(count)
    decrease = 0.004 + 0.05 * np.exp(-k / 15) + 4e-7 * (k - minimum) ** 2
    sharpness = 200 * np.exp(0.004 * k)
    return np.exp(-np.cumsum(decrease)), sharpness, k_min


def blur_like(count=300, peak=90, k_min=60):
    """Return traces as in Fig. 6 for blur: sigma^2 peaks and falls."""
    k = np.arange(count)
    decrease = 0.02 * np.exp(-k / 150)  # ever slower, but far from epsilon
    sharpness = 400 * np.exp(-(((k - peak) / 60.0) ** 2) * np.where(k < peak, 0.2, 1))
    return np.exp(-np.cumsum(decrease)), sharpness, k_min


def test_robust_stops_near_the_slowest_decrease_of_a_noise_like_trace():
    losses, sharpnesses, k_min = noise_like()
    ours = follow("robust", losses, sharpnesses, k_min, 1e-4)
    assert ours.detected_high
    assert not ours.detected_low
    # The minimum at 120, the lag of the average (10) and the wait of k_min / 2.
    assert 120 + 30 <= ours.k <= 120 + 30 + 20


def test_robust_returns_the_peak_of_a_blur_like_trace():
    losses, sharpnesses, k_min = blur_like()
    ours = follow("robust", losses, sharpnesses, k_min, 1e-4)
    assert ours.detected_low
    assert not ours.detected_high
    assert 90 <= ours.last_peak <= 90 + 15  # the lag of the average
    assert ours.last_peak < ours.k < 90 + 60


def test_robust_returns_no_peak_of_the_transient():
    """Adam's start is sharp with noise; the peak that counts comes after k_min."""
    losses, sharpnesses, k_min = blur_like()
    sharpnesses = sharpnesses + 1e5 * np.exp(-np.arange(300) / 4)
    ours = follow("robust", losses, sharpnesses, k_min, 1e-4)
    assert ours == robust(losses, sharpnesses, k_min, 1e-4)
    assert ours.detected_low
    assert 60 <= ours.last_peak < ours.k


def test_robust_ignores_the_transient():
    """A rising loss and a falling sharpness stop nothing before k_min / 2 and k_min."""
    losses = np.concatenate(
        [np.linspace(1, 2, 29), 2 * np.exp(-0.05 * np.arange(1, 32))]
    )
    sharpnesses = np.concatenate([1000 * 0.9 ** np.arange(30), np.full(30, 50.0)])
    ours = follow("robust", losses, sharpnesses, 60, 1e-4)
    assert ours.k is None or ours.k >= 30
    literal = follow("paper", losses, sharpnesses, 60, 1e-4)
    assert literal.k == 1  # where the paper's listing stops at once


def test_robust_stops_below_epsilon_after_the_transient():
    losses = np.exp(-np.cumsum(0.05 * np.exp(-np.arange(200) / 20)))
    ours = follow("robust", losses, 1.01 ** np.arange(200), 40, 2e-3)
    assert ours.detected_high
    decreases = 1 - losses[1:] / losses[:-1]
    first_below = int(np.argmax(decreases < 2e-3)) + 1
    assert first_below <= ours.k <= first_below + 20  # the lag of the average


def test_robust_survives_a_flat_picture():
    ours = follow("robust", falling_loss(40, 0.05), np.zeros(40), 4, 1e-4)
    assert not ours.detected_low


def test_robust_against_its_docstring_on_random_traces():
    seen = []
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        losses, sharpnesses, k_min = (noise_like, blur_like)[seed % 2](
            200, int(rng.integers(60, 120)), int(rng.integers(0, 70))
        )
        shaken = 1 + 0.02 * rng.standard_normal(200)
        losses = np.float32(losses * np.maximum.accumulate(shaken) ** -0.1)
        sharpnesses = np.float32(sharpnesses * shaken**2)
        expected = robust(losses, sharpnesses, k_min, 1e-4)
        assert follow("robust", losses, sharpnesses, k_min, 1e-4) == expected, seed
        seen.append(expected)
    assert sum(v.detected_low for v in seen) >= 10
    assert sum(v.detected_high for v in seen) >= 10
