"""Lanes against images restored alone, runs cut short, and eight devices.

The partner is `diip.restore`, one `while_loop` without lanes; for the counting of
iterations it is arithmetic on jobs whose lengths are known beforehand.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diip_jax import canvas, diip, engine
from diip_jax.config import DEFAULT
from diip_jax.diip import StopReason
from helpers import diffusers_unet, many_devices, seeded, two_devices
from helpers.lanes import CONFIG, SIZES, TWELVE, images

ROOT = Path(__file__).parents[1]
BUDGET = seeded.PRESET.max_iterations
LONG = CONFIG.replace(learning_rate=1e-3, epsilon=0.0)  # small steps: nothing fires

# A convolution over several images may add in another order than over one, and up to
# 40 iterations carry the difference on; measured 3e-6.
TOLERANCE = 1e-4


def jobs_of(pictures, key, states=None):
    states = states or [None] * len(pictures)
    return [
        engine.Job(
            y.shape[:2],
            lambda y=y: y,
            jax.random.fold_in(key, i),
            {} if state is None else {0: state},
        )
        for i, (y, state) in enumerate(zip(pictures, states, strict=True))
    ]


def collect(reports):
    """Return the restorations of a run by job, and its last report."""
    done, last = {}, None
    for last in reports:
        done |= {lane.job: lane.restoration() for lane in last.finished}
    return done, last


def check_same(actual, expected, tolerance=TOLERANCE):
    assert actual.reason == expected.reason
    assert actual.iteration == expected.iteration
    assert actual.num_iterations == expected.num_iterations
    np.testing.assert_allclose(actual.image, expected.image, atol=tolerance)
    np.testing.assert_allclose(actual.losses, expected.losses, rtol=tolerance)


@pytest.fixture(scope="module")
def key():
    """Return the key that the keys of all images are folded from."""
    return jax.random.key(7)


@pytest.fixture(scope="module")
def alone(tiny_prior, key, restore_jit):
    """Return every image restored by itself."""
    return [
        jax.device_get(restore_jit(tiny_prior, y, jax.random.fold_in(key, i), CONFIG))
        for i, y in enumerate(images())
    ]


def test_images_stop_at_different_iterations(alone):
    """Otherwise the tests below would show little."""
    counts = [int(r.num_iterations) for r in alone]
    assert len(set(counts)) >= 4, counts
    assert max(counts) < BUDGET, "the budget ended a run, not a criterion"
    assert all(r.reason == StopReason.HIGH_FREQUENCY for r in alone)


@pytest.mark.parametrize("num_lanes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_lanes_with_refill_agree_with_images_alone(tiny_prior, key, alone, num_lanes):
    together = engine.restore_many(
        tiny_prior, images(), key, CONFIG, num_lanes=num_lanes, chunk=7
    )
    assert len(together) == len(alone)
    for size, actual, expected in zip(SIZES, together, alone, strict=True):
        assert actual.image.shape == (*size, 3)
        check_same(actual, expected)


@pytest.mark.slow  # test_diip.py has the same with settings that stop later
def test_vmap_agrees_with_images_alone(tiny_prior, key, alone, restore_vmap):
    chosen = [i for i, size in enumerate(SIZES) if size == (16, 16)][:2]
    ys = jnp.stack([images()[i] for i in chosen])
    keys = jnp.stack([jax.random.fold_in(key, i) for i in chosen])
    both = restore_vmap(tiny_prior, ys, keys, CONFIG)
    for lane, i in enumerate(chosen):
        check_same(jax.tree.map(lambda a, n=lane: a[n], both), alone[i])


@pytest.mark.parametrize("keep_traces", [False, True])
def test_other_pictures_numbers_and_chunks_compile_nothing(
    tiny_prior, key, tmp_path, keep_traces
):
    compiled = []
    traces = tmp_path if keep_traces else None
    options = {"num_lanes": 1, "traces": traces}

    def count(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    first = images([(10, 8), (9, 8)])
    config = LONG.replace(max_iterations=6)  # of no other test
    other = config.replace(learning_rate=2e-3, k_min=900)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        engine.restore_many(tiny_prior, first, key, config, chunk=4, **options)
        assert compiled
        compiled.clear()
        second, key = [1 - y for y in first], jax.random.key(8)
        engine.restore_many(tiny_prior, second, key, other, chunk=5, **options)
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def test_order_of_the_images_does_not_matter(tiny_prior, key, alone):
    order = [4, 0, 3, 1]
    pictures, jobs = images(), jobs_of(images(), key)
    done, _ = collect(
        engine.run(tiny_prior, [jobs[i] for i in order], CONFIG, num_lanes=2)
    )
    for place, i in enumerate(order):
        assert done[place].image.shape == pictures[i].shape
        check_same(done[place], alone[i])


# One image: progress, interruption, resumption


def one_job(key, state=None):
    return jobs_of([seeded.image(16, 16)], key, [state])


@pytest.fixture(scope="module")
def uninterrupted(tiny_prior, key):
    """Return a run of one image to its budget, in one go."""
    done, _ = collect(engine.run(tiny_prior, one_job(key), LONG, chunk=BUDGET))
    assert done[0].num_iterations == BUDGET
    return done[0]


@pytest.mark.parametrize("chunk", [1, 9, 1000])
def test_length_of_a_chunk_does_not_matter(tiny_prior, key, uninterrupted, chunk):
    done, last = collect(engine.run(tiny_prior, one_job(key), LONG, chunk=chunk))
    chex.assert_trees_all_equal(done[0], uninterrupted)  # the same program: bit by bit
    assert last.lane_iterations == last.useful_iterations == BUDGET


def test_chunk_may_change_as_the_run_goes(tiny_prior, key, uninterrupted):
    lengths = iter([5, 1, 20, 100])
    reports = list(
        engine.run(tiny_prior, one_job(key), LONG, chunk=lambda: next(lengths))
    )
    assert [report.iterations for report in reports] == [5, 1, 20, 14]
    answer = reports[-1].finished[0].restoration()
    chex.assert_trees_all_equal(answer, uninterrupted)


def test_resuming_is_bit_identical(tiny_prior, key, uninterrupted):
    snapshots = []
    for report in engine.run(tiny_prior, one_job(key), LONG, chunk=13):
        snapshots += [lane.snapshot() for lane in report.running]
    assert len(snapshots) == 3
    for snapshot in (snapshots[0], snapshots[-1]):
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(snapshot))
        resumed = one_job(key, snapshot)
        done, last = collect(engine.run(tiny_prior, resumed, LONG, chunk=8))
        chex.assert_trees_all_equal(done[0], uninterrupted)
        assert last.useful_iterations == BUDGET - int(snapshot.k)


def test_snapshots_have_the_announced_shapes(tiny_prior, key):
    report = next(iter(engine.run(tiny_prior, one_job(key), LONG, chunk=2)))
    snapshot = report.running[0].snapshot()
    expected = engine.abstract_state(tiny_prior, (16, 16), LONG)
    chex.assert_trees_all_equal_shapes_and_dtypes(snapshot, expected)


def test_progress_is_read_off_the_traces(tiny_prior, key, uninterrupted):
    k = -1
    for report in engine.run(tiny_prior, one_job(key), LONG, chunk=7):
        [lane] = [*report.running, *report.finished]
        assert lane.job == 0
        assert lane.iteration == min(k + 7, BUDGET - 1)
        k = lane.iteration
        assert lane.loss == uninterrupted.losses[k]
        assert lane.sharpness == uninterrupted.sharpnesses[k]
        assert lane.decrease == pytest.approx(uninterrupted.decreases[k], rel=1e-6)
        assert not report.interrupted
        assert report.iterations == min(7, BUDGET - 7 * (k // 7))
        assert report.seconds > 0


def test_answers_on_the_way_are_the_images_of_their_iteration(tiny_prior, key):
    z = jnp.zeros((16, 16, 3))
    g = seeded.compile_quickly(canvas.generator(tiny_prior, LONG, z.shape[:2]), z)
    before = None
    for report in engine.run(tiny_prior, one_job(key), LONG, chunk=1):
        if report.finished:
            break
        answer = report.running[0].restoration()
        assert answer.reason == StopReason.INTERRUPTED
        if before is not None:
            image = (g(before.z) + 1) / 2
            np.testing.assert_allclose(answer.image, image, atol=TOLERANCE)
        before = answer


def test_should_stop_ends_the_run_with_what_there_is(tiny_prior, key):
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) == 2

    pictures = images([(16, 16)] * 3)
    reports = list(
        engine.run(
            tiny_prior,
            jobs_of(pictures, key),
            LONG,
            num_lanes=2,
            chunk=5,
            should_stop=should_stop,
        )
    )
    assert [report.interrupted for report in reports] == [False, True]
    last = reports[-1]
    assert not last.running
    assert sorted(lane.job for lane in last.finished) == [0, 1]  # the third never began
    for lane in last.finished:
        answer = lane.restoration()
        assert answer.num_iterations == 10
        assert answer.reason == StopReason.INTERRUPTED
        assert np.isfinite(answer.image).all()
        assert np.isnan(answer.losses[10:]).all()


# Trouble


def unreadable():
    raise ValueError("x.png is truncated")


def test_a_bad_image_does_not_stop_the_others(tiny_prior, key, alone):
    jobs = jobs_of(images(), key)
    jobs[1] = jobs[1]._replace(load=unreadable)
    jobs[3] = jobs[3]._replace(load=lambda: np.full((16, 16, 3), np.nan))
    done, failures = {}, {}
    for report in engine.run(tiny_prior, jobs, CONFIG, num_lanes=2):
        done |= {lane.job: lane.restoration() for lane in report.finished}
        failures |= {failure.job: str(failure.error) for failure in report.failed}
    assert set(failures) == {1, 3}
    assert failures[1] == "x.png is truncated"
    assert "NaN" in failures[3]
    assert set(done) == {0, 2, 4, 5}
    for i, answer in done.items():
        check_same(answer, alone[i])


@pytest.mark.parametrize("count", [1, 3])
def test_only_bad_images(tiny_prior, key, count):
    jobs = [engine.Job((16, 16), unreadable, key)] * count
    reports = list(engine.run(tiny_prior, jobs, CONFIG, num_lanes=2))
    assert [f.job for report in reports for f in report.failed] == list(range(count))
    assert not any(report.finished or report.running for report in reports)


def missing():
    raise FileNotFoundError("x.png is gone")


def test_jobs_that_cannot_begin_fail_alone_and_say_why(tiny_prior, key):
    small = np.full((8, 8, 3), 0.5, np.float32)
    _, state = diip.prepare(tiny_prior, small, key, LONG)
    other = CONFIG.replace(criterion="robust")
    _, robust = diip.prepare(tiny_prior, small, key, other)
    ahead = state._replace(k=jnp.int32(BUDGET + 1))
    jobs = {
        "x.png is gone": engine.Job((8, 8), missing, key),
        r"\(8, 8\), but its job says \(8, 7\)": engine.Job((8, 7), lambda: small, key),
        "dtype uint8": engine.Job((8, 8), lambda: small.astype(np.uint8), key),
        "not one of criterion 'paper'": one_job(key, robust)[0],
        r"canvas of shape \(8, 8, 3\), but this image .* \(16, 16, 3\)": (
            one_job(key, state)[0]
        ),
        "done 41 iterations, but max_iterations is 40; use at least 41": engine.Job(
            (8, 8), lambda: small, key, {0: ahead}
        ),
    }
    reports = list(engine.run(tiny_prior, list(jobs.values()), LONG, num_lanes=2))
    assert not any(report.running or report.finished for report in reports)
    failures = {f.job: str(f.error) for report in reports for f in report.failed}
    for i, message in enumerate(jobs):
        assert re.search(message, failures[i]), failures[i]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_lanes": 0}, "num_lanes is 0; use at least 1"),
        ({"num_lanes": 1.5}, "num_lanes is 1.5; use an integer of at least 1"),
        ({"chunk": 0}, "chunk is 0; use at least 1"),
        ({"chunk": -3}, "chunk is -3; use at least 1"),
        ({"chunk": lambda: 0}, "chunk is 0; use at least 1"),
        ({"config": CONFIG.replace(criterion="best")}, "criterion is 'best'; use one"),
    ],
)
def test_impossible_options_are_refused(tiny_prior, key, options, message):
    options = {"config": CONFIG, **options}
    with pytest.raises(ValueError, match=message):
        list(engine.run(tiny_prior, one_job(key), **options))


def test_images_must_be_some_iterations_apart(tiny_prior, key):
    with pytest.raises(ValueError, match="every is 0; use at least 1"):
        next(engine.iterate(tiny_prior, seeded.image(8, 8), key, every=0))


def test_restore_many_names_the_image_before_it_begins(tiny_prior, key, monkeypatch):
    monkeypatch.delattr(engine, "run")
    pictures = [seeded.image(8, 8), np.full((16, 16, 3), 2.0)]
    with pytest.raises(ValueError, match="image 1: y ranges over"):
        engine.restore_many(tiny_prior, pictures, key, CONFIG)


def test_restore_many_may_be_stopped(tiny_prior, key):
    pictures = images([(16, 16)] * 3)
    options = {"num_lanes": 2, "chunk": 5, "should_stop": lambda: True}
    answers = engine.restore_many(tiny_prior, pictures, key, LONG, **options)
    assert [int(answer.num_iterations) for answer in answers] == [5, 5, 0]
    assert {int(answer.reason) for answer in answers} == {StopReason.INTERRUPTED}
    np.testing.assert_array_equal(answers[2].image, pictures[2])


def test_a_larger_budget_goes_on(tiny_prior, key, uninterrupted):
    shorter = LONG.replace(max_iterations=7)
    *_, last = engine.run(tiny_prior, one_job(key), shorter)
    resumed = one_job(key, last.finished[0].snapshot())
    done, last = collect(engine.run(tiny_prior, resumed, LONG))
    assert last.useful_iterations == BUDGET - 7
    chex.assert_trees_all_close(done[0], uninterrupted, atol=TOLERANCE)


def test_a_diverged_state_stays_as_it_is(tiny_prior, key):
    _, state = diip.prepare(tiny_prior, seeded.image(16, 16), key, LONG)
    verdict = state.stopping.verdict._replace(loss=jnp.float32(jnp.nan))
    criterion = state.stopping._replace(verdict=verdict)
    state = jax.device_get(state._replace(k=jnp.int32(3), stopping=criterion))
    done, last = collect(engine.run(tiny_prior, one_job(key, state), LONG))
    assert last.useful_iterations == 0
    assert done[0].num_iterations == 3
    assert done[0].reason == StopReason.DIVERGED


def test_nothing_to_do(tiny_prior, key):
    assert engine.restore_many(tiny_prior, [], key, CONFIG) == []


# Memory


def test_number_of_lanes_is_halved_until_it_fits(tiny_prior, monkeypatch):
    monkeypatch.setattr(engine, "rough_memory", lambda *args: 10 * args[3])
    monkeypatch.setattr(engine, "_available_bytes", lambda _: 70)
    assert engine.fitting_lanes(tiny_prior, (16, 16), CONFIG, 16) == 4  # 40 <= 42 < 80
    monkeypatch.setattr(engine, "_available_bytes", lambda _: 1)
    assert engine.fitting_lanes(tiny_prior, (16, 16), CONFIG, 16) == 1
    monkeypatch.setattr(engine, "_available_bytes", lambda _: None)
    assert engine.fitting_lanes(tiny_prior, (16, 16), CONFIG, 16) == 16


@pytest.mark.slow
def test_rough_memory_is_no_less_than_the_compiler_s_and_no_dream(tiny_prior):
    config = CONFIG.replace(gradient="full", remat="step")
    rough = engine.rough_memory(tiny_prior, (64, 64), config)
    exact = engine.memory(tiny_prior, (64, 64), config)
    assert 0.5 * exact < rough < 4 * exact  # which features are kept differs


def test_rough_memory_is_known_of_every_family(tiny_prior):
    for prior in (tiny_prior, diffusers_unet.prior("small_library")):
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(prior.params))
        one, two = (engine.rough_memory(prior, (16, 16), DEFAULT, n) for n in (1, 2))
        assert two - one > 0
        assert one - (two - one) == weights


@pytest.fixture
def room_for_one(monkeypatch):
    """Let a device that promised room for two lanes run out of memory with them."""
    advance = engine.jitted_advance()

    def small(prior, lanes, *args):
        if len(lanes.y) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return advance(prior, lanes, *args)

    monkeypatch.setattr(engine, "jitted_advance", lambda _: small)
    monkeypatch.setattr(engine, "fitting_lanes", lambda *args: 2)


@pytest.mark.usefixtures("room_for_one")
def test_running_out_of_memory_halves_the_lanes_and_loses_nothing(
    tiny_prior, key, alone
):
    jobs = jobs_of(images()[:4], key)
    jobs[1] = jobs[1]._replace(load=unreadable)
    del jobs[2]  # of another canvas
    done, failures = {}, []
    for report in engine.run(tiny_prior, jobs, CONFIG, num_lanes=None):
        done |= {lane.job: lane.restoration() for lane in report.finished}
        failures += [failure.job for failure in report.failed]
    assert failures == [1]
    assert set(done) == {0, 2}
    check_same(done[0], alone[0])
    check_same(done[2], alone[3])


@pytest.mark.usefixtures("room_for_one")
def test_a_number_of_lanes_that_was_asked_for_is_not_changed(tiny_prior, key):
    jobs = jobs_of(images([(16, 16)] * 2), key)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        list(engine.run(tiny_prior, jobs, CONFIG, num_lanes=2))


# Utilisation


@pytest.mark.slow
def test_lanes_are_kept_busy(tiny_prior, key):
    """Four times as many images as lanes, 4 to 20 iterations long, in mixed order.

    The lengths are known because each job goes on from a state that has done the rest.
    """
    lengths = [20, 4, 10, 16, 6, 20, 4, 12, 18, 8, 14, 4, 20, 6, 16, 10]
    assert max(lengths) >= 3 * min(lengths)
    pictures = images([(8, 8)] * len(lengths))
    states = []
    for i, (y, length) in enumerate(zip(pictures, lengths, strict=True)):
        _, state = diip.prepare(tiny_prior, y, jax.random.fold_in(key, i), LONG)
        verdict = state.stopping.verdict._replace(loss=jnp.float32(1))  # not diverged
        state = state._replace(
            k=jnp.int32(BUDGET - length),
            stopping=state.stopping._replace(verdict=verdict),
        )
        states.append(jax.device_get(state))
    jobs = jobs_of(pictures, key, states)
    ended, previous = [], 0
    for report in engine.run(tiny_prior, jobs, LONG, num_lanes=4, chunk=2):
        assert len(report.running) + len(report.finished) <= 4
        assert report.useful_iterations >= previous
        previous = report.useful_iterations
        assert not report.failed
        ended += [lane.job for lane in report.finished]
        for lane in report.finished:
            assert lane.restoration().num_iterations == BUDGET
    assert sorted(ended) == list(range(len(lengths)))
    assert report.useful_iterations == sum(lengths)
    utilisation = report.useful_iterations / report.lane_iterations
    assert utilisation >= 0.9, f"{utilisation:.3f}"
    # In groups of four that wait for their slowest it would be this much:
    groups = [max(lengths[i : i + 4]) for i in range(0, len(lengths), 4)]
    assert utilisation > 1.2 * sum(lengths) / (4 * sum(groups))


def test_memory_is_more_than_the_weights(tiny_prior):
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(tiny_prior.params))
    needed = engine.memory(tiny_prior, (16, 16), CONFIG)
    if needed is None:
        pytest.skip("this backend does not say")
    assert needed > weights


# Own parts and own settings, on a generator that compiles in a moment


def waves(z):
    return jnp.sin(0.75 * (z + jnp.roll(z, 1, 0)))


WAVES = diip.Parts(
    generator=lambda prior, config, size, timesteps: waves,
    optimizer=lambda rate: optax.sgd(100 * rate, momentum=0.5),
)


def test_lanes_take_parts_as_one_image_does(tiny_prior, key):
    pictures = images(TWELVE[:3])
    config = CONFIG.replace(epsilon=1e-3)
    together = engine.restore_many(
        tiny_prior, pictures, key, config, num_lanes=2, parts=WAVES
    )
    for i, (y, actual) in enumerate(zip(pictures, together, strict=True)):
        own_key = jax.random.fold_in(key, i)
        check_same(actual, diip.restore(tiny_prior, y, own_key, config, WAVES))
    moments = list(
        engine.iterate(tiny_prior, pictures[0], key, config, every=5, parts=WAVES)
    )
    last = diip.restore(tiny_prior, pictures[0], key, config, WAVES)
    np.testing.assert_allclose(moments[-1].image, last.image, atol=TOLERANCE)


OWN = [
    {"learning_rate": 0.02, "epsilon": 0.0, "k_min": 6},
    {"learning_rate": 0.3, "epsilon": 0.0, "k_min": 12},
    {"learning_rate": 0.02, "epsilon": 0.03, "k_min": 6},
]


@pytest.mark.parametrize("criterion", ["paper", "robust"])
def test_each_image_may_have_numbers_of_its_own(tiny_prior, key, criterion):
    """They agree with images alone, stop apart, and share one program."""
    run_s = CONFIG.replace(criterion=criterion)
    settings = [run_s.replace(**own) for own in OWN]
    pictures, traced = images(TWELVE[:3]), []

    def generator(*args):
        traced.append(args)
        return waves

    parts = WAVES._replace(generator=generator)
    together = engine.restore_many(
        tiny_prior, pictures, key, settings, num_lanes=2, parts=parts
    )
    assert len(traced) <= 2  # for two lanes, and for one, when nothing waits
    for i, (y, actual) in enumerate(zip(pictures, together, strict=True)):
        own_key = jax.random.fold_in(key, i)
        check_same(actual, diip.restore(tiny_prior, y, own_key, settings[i], WAVES))
    assert len({int(one.num_iterations) for one in together}) == 3


def test_own_settings_must_share_the_program(tiny_prior, key):
    job, other = one_job(key)[0], CONFIG.replace(num_steps=7)
    message = "job 0 has num_steps 7, but the run has 5; images of one run differ in"
    with pytest.raises(ValueError, match=message):
        list(engine.run(tiny_prior, [job._replace(config=other)], CONFIG))
    wrong = CONFIG.replace(learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"learning_rate is -1.0"):
        list(engine.run(tiny_prior, [job._replace(config=wrong)], CONFIG))
    with pytest.raises(ValueError, match="there are 1 settings for 2 images"):
        engine.restore_many(tiny_prior, images(TWELVE[:2]), key, [CONFIG])


def test_an_image_whose_noise_is_known_is_among_others(tiny_prior, key):
    """What is known of y is of the look at y, which compiles for itself."""
    base = CONFIG.replace(
        start="matched", criterion="discrepancy", num_steps=1, max_iterations=2
    )
    settings, pictures = [base, base.replace(noise_level=0.2)], images(TWELVE[:2])
    both = engine.restore_many(tiny_prior, pictures, key, settings, parts=WAVES)
    second = jobs_of(pictures, key)[1]._replace(config=settings[1])
    (report, *_) = engine.run(tiny_prior, [second], base, parts=WAVES)
    (lane,) = [*report.finished, *report.running]
    assert lane.damage == pytest.approx((2 * 0.2) ** 2, rel=1e-6)
    alone = diip.restore(tiny_prior, pictures[1], second.key, settings[1], WAVES)
    np.testing.assert_allclose(both[1].image, alone.image, atol=TOLERANCE)


def test_a_state_of_another_optimiser_is_not_gone_on_from(tiny_prior, key):
    with pytest.raises(ValueError, match="state is not one of criterion"):
        diip.resumed(
            diip.start(jnp.zeros((8, 8, 3)), key, CONFIG), (8, 8), CONFIG, WAVES
        )


# Under the default dtype of float64


@pytest.mark.parametrize("own", [False, True])
def test_the_default_dtype_changes_no_lane(tiny_prior, key, x64, own):
    settings = [CONFIG.replace(**numbers) for numbers in OWN]
    pictures = [np.float64(y) for y in images(TWELVE[:3])]
    options = {"config": settings if own else settings[0], "num_lanes": 2}

    def restored():
        return engine.restore_many(tiny_prior, pictures, key, parts=WAVES, **options)

    actual = restored()
    jax.config.update("jax_enable_x64", False)
    for one, expected in zip(actual, restored(), strict=True):
        check_same(one, expected, tolerance=1e-6)  # the same numbers in two programs
        assert one.image.dtype == one.losses.dtype == one.z.dtype == np.float32


@pytest.mark.parametrize("start", ["random", "matched"])
def test_lanes_with_a_network_have_no_default_dtype(tiny_prior, x64, start):
    """Traced only: a loop whose carry changed its dtype would not trace."""
    config = seeded.PRESET.replace(start=start, criterion="discrepancy", num_steps=1)
    lanes = engine._abstract_lanes((8, 8), config, 2)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    after, _ = jax.eval_shape(engine.advance, tiny_prior, lanes, config, count, count)
    assert jax.tree.map(lambda a: a.dtype, after) == jax.tree.map(
        lambda a: a.dtype, lanes
    )


# Eight devices


def run_on_devices(count, program, path):
    """Run a helper in a process that sees so many devices, and load what it stores."""
    here, flag = Path(__file__).parent, "--xla_force_host_platform_device_count"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}={count}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"helpers.{program}", str(path)],
        env={
            **os.environ,
            "XLA_FLAGS": flags.strip(),
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(here)]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(path) as stored:
        return dict(stored)


@pytest.mark.slow
def test_eight_devices_agree_with_one(tiny_prior, key, tmp_path):
    """Twelve images on eight lanes, one per device, against lanes on one device."""
    actual = run_on_devices(8, "eight_devices", tmp_path / "sharded.npz")
    expected = engine.restore_many(tiny_prior, images(TWELVE), key, CONFIG, num_lanes=2)
    for i, one in enumerate(expected):
        assert actual["reason"][i] == one.reason
        assert actual["iteration"][i] == one.iteration
        assert actual["num_iterations"][i] == one.num_iterations
        np.testing.assert_allclose(actual["image"][i], one.image, atol=TOLERANCE)
        np.testing.assert_allclose(actual["losses"][i], one.losses, rtol=TOLERANCE)
    assert len({int(one.num_iterations) for one in expected}) >= 4


def test_a_prior_and_lanes_may_be_on_two_devices(tmp_path):
    """By a formula in the network's place: the slow test below has a network."""
    found = run_on_devices(2, "two_devices", tmp_path / "two.npz")
    expected = two_devices.restored(two_devices.prior())
    assert len(found) == 3
    for way, restored in found.items():
        np.testing.assert_allclose(restored, expected, atol=TOLERANCE, err_msg=way)


@pytest.mark.slow  # a minute: each way compiles its programs anew
def test_priors_and_lanes_may_be_on_any_devices(tiny_prior, tmp_path):
    """Committed priors, meshes of both kinds and shard_map, against one device."""
    actual = run_on_devices(4, "many_devices", tmp_path / "many.npz")
    key, expected = jax.random.key(many_devices.KEY), {}
    for kind, config in {
        "engine": many_devices.CONFIG,
        "restore": many_devices.FULL,
    }.items():
        alone = engine.restore_many(tiny_prior, many_devices.PICTURES, key, config)
        expected[kind] = np.stack([one.image for one in alone])
    assert len(actual) == 7
    for way, found in actual.items():
        np.testing.assert_allclose(
            found, expected[way.split()[0]], atol=TOLERANCE, err_msg=way
        )


# Last, since what JAX has traced before is lost in it


@pytest.mark.slow
def test_a_kept_trace_is_not_made_again_and_gives_the_same(
    tiny_prior, key, alone, tmp_path, monkeypatch
):
    def restore():
        options = {"chunk": 7, "traces": tmp_path}
        return engine.restore_many(tiny_prior, images()[:2], key, CONFIG, **options)

    first = restore()
    assert len(list(tmp_path.iterdir())) == 1
    jax.clear_caches()  # as in another process
    engine.jitted_advance.cache_clear()

    def never(*_):
        raise AssertionError("traced again")

    monkeypatch.setattr(engine.canvas, "generator", never)
    for again, before, expected in zip(restore(), first, alone, strict=False):
        chex.assert_trees_all_equal(again, before)
        check_same(again, expected)
