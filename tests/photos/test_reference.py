"""The oracle stop against a plain Python loop over Algorithm 1 that never stops.

The loop keeps g(z^k) of every iteration; the oracle must see the same pictures at the
same iterations, at the stop too, where the answer may be another picture.
"""

import jax
import numpy as np
import pytest
import seeded

from diip_jax import diip, engine
from diip_jax.diip import StopReason
from diip_jax.photos import oracle

# Stops long before its budget, by the sharpness, and returns an earlier iterate.
CONFIG = seeded.PRESET.replace(k_min=4, num_steps=5, max_iterations=12)
NEVER = CONFIG.replace(criterion="never")
SIZE = (15, 14)  # smaller than its canvas, so that a crop in the wrong place shows
# Alone and in lanes a convolution may add in another order, measured 1e-6 after the 12
# iterations here.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def every_iterate(tiny_prior):
    """Return g(z^k) for all k of the budget, (12, H, W, 3) in [0, 1]."""
    y, key = seeded.image(*SIZE), jax.random.key(0)
    algorithm, state = diip.prepare(tiny_prior, y, key, NEVER)
    step, seen = jax.jit(algorithm.step), []
    for _ in range(NEVER.max_iterations):
        state = step(state)
        seen.append((np.asarray(state.x)[: SIZE[0], : SIZE[1]] + 1) / 2)
    return np.stack(seen)


def test_oracle_sees_every_iterate_and_none_twice(tiny_prior, every_iterate):
    job = engine.Job(SIZE, lambda: seeded.image(*SIZE), jax.random.key(0))
    seen = {}
    for report in engine.run(tiny_prior, [job], CONFIG, chunk=1):
        for lane in [*report.running, *report.finished]:
            seen[lane.iteration] = oracle.iterate(lane.snapshot(), SIZE)
    answer, stop = lane.restoration(), lane.iteration
    assert answer.reason == StopReason.LOW_FREQUENCY
    assert int(answer.iteration) < stop < CONFIG.max_iterations - 1

    for ahead in oracle.run_on(tiny_prior, job, lane.snapshot(), CONFIG):
        assert ahead.iteration not in seen
        seen[ahead.iteration] = oracle.iterate(ahead.snapshot(), SIZE)
    assert sorted(seen) == list(range(CONFIG.max_iterations))
    for k, expected in enumerate(every_iterate):
        np.testing.assert_allclose(seen[k], expected, atol=TOLERANCE)
    # The answer is the iterate that it names, and not the one at the stop.
    named = every_iterate[int(answer.iteration)]
    np.testing.assert_allclose(answer.image, named, atol=TOLERANCE)
    assert np.abs(seen[stop] - answer.image).max() > 10 * TOLERANCE


def test_nothing_is_left_to_do_after_the_budget(tiny_prior):
    job = engine.Job(SIZE, lambda: seeded.image(*SIZE), jax.random.key(0))
    (*_, last) = engine.run(tiny_prior, [job], NEVER, chunk=12)
    state = last.finished[0].snapshot()
    assert not list(oracle.run_on(tiny_prior, job, state, NEVER))


def test_ctrl_c_ends_the_look_ahead(tiny_prior):
    job = engine.Job(SIZE, lambda: seeded.image(*SIZE), jax.random.key(0))
    *_, last = engine.run(tiny_prior, [job], CONFIG, chunk=12)
    state = last.finished[0].snapshot()
    ahead = oracle.run_on(tiny_prior, job, state, CONFIG, should_stop=lambda: True)
    assert [lane.iteration for lane in ahead] == [int(state.k)]


def test_best_is_the_earliest_of_equals():
    assert oracle.best({3: 20.0, 1: 21.0, 2: 21.0, 0: 5.0}) == oracle.Oracle(21.0, 1)
    assert oracle.best({0: float("inf"), 1: 3.0}).iteration == 0
