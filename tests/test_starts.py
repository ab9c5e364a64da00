"""Several starts, the first look, the discrepancy stop, and what is returned of them.

The partners are single restorations, Python loops over `step`, and closed forms.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import ddim, diip, engine, matched, restore, stopping
from diip_jax.config import DEFAULT, DIIPConfig
from diip_jax.diip import StopReason
from diip_jax.schedule import Schedule
from helpers import seeded

SIDE = 16
KEY = jax.random.key(3)
# The network of these tests takes noise for image: no loss falls to the energy of so
# little damage, so every start iterates to the end of its budget.
CONFIG = DEFAULT.replace(
    num_starts=3, max_iterations=3, noise_level=0.001, start_noise=0.2
)
TWO_PROGRAMS = 2e-5  # roundings, spread by Adam's division


@pytest.fixture(scope="module")
def y():
    return jnp.asarray(seeded.image(SIDE, SIDE))


@pytest.fixture(scope="module")
def answer(tiny_prior, y):
    return jax.device_get(jax.jit(restore)(tiny_prior, y, KEY, CONFIG))


@functools.cache
def programs():
    """Return a start's first look and its step, compiled once for all settings."""

    def begin(prior, y, index, config):
        place, seen = diip.see(prior, y, config)
        algorithm = diip.bind(prior, place, config, seen)
        state = diip.start(place, KEY, config, seen, prior.card.schedule, index)
        return algorithm.look(state), place, seen

    def step(prior, state, place, seen, config):
        algorithm = diip.bind(prior, place, config, seen)
        state = algorithm.step(state)
        return state, algorithm.should_continue(state)

    return jax.jit(begin), jax.jit(step)


def alone(prior, y, index, config=CONFIG):
    """Restore from one start by a Python loop, without `settle`."""
    begin, step = programs()
    state, place, seen = begin(prior, y, index, config)
    goes_on = not stopping.detected(state.stopping)
    while goes_on:
        state, goes_on = step(prior, state, place, seen, config)
    return diip.result(state, y.shape[:2]), seen


def test_the_answer_is_the_mean_of_starts_that_stop_by_themselves(
    tiny_prior, y, answer
):
    starts = [alone(tiny_prior, y, index) for index in range(3)]
    images = np.stack([start.image for start, _ in starts])
    damage = starts[0][1].energy
    settled = diip.settle(images.mean(0), y, damage)
    np.testing.assert_allclose(answer.image, settled, atol=TWO_PROGRAMS)
    np.testing.assert_allclose(answer.uncertainty, images.std(0), atol=TWO_PROGRAMS)
    for index, (start, _) in enumerate(starts):
        assert answer.num_iterations[index] == start.num_iterations == 3
        np.testing.assert_allclose(
            answer.losses[index], start.losses, rtol=1e3 * TWO_PROGRAMS
        )
    assert len({float(start.losses[0]) for start, _ in starts}) == 3  # other noise


def test_the_engine_gives_the_same_from_pairs_of_photo_and_start(tiny_prior, y, answer):
    jobs = [engine.Job((SIDE, SIDE), lambda: np.asarray(y), KEY)]
    done, damage = {}, set()
    for report in engine.run(tiny_prior, jobs, CONFIG, num_lanes=2, chunk=2):
        done |= {lane.start: lane.restoration() for lane in report.finished}
        damage |= {lane.damage for lane in report.finished}
    assert sorted(done) == [0, 1, 2]
    answers = [done[start] for start in range(3)]
    together = engine.combine(answers, np.asarray(y), *damage)
    np.testing.assert_allclose(together.image, answer.image, atol=TWO_PROGRAMS)
    np.testing.assert_array_equal(together.num_iterations, answer.num_iterations)
    np.testing.assert_allclose(
        together.uncertainty, answer.uncertainty, atol=TWO_PROGRAMS
    )


@pytest.mark.slow  # two programs more
def test_one_start_has_the_key_of_the_image_and_no_extra_axis(tiny_prior, y):
    config = CONFIG.replace(num_starts=1)
    found = jax.jit(restore)(tiny_prior, y, KEY, config)
    start, seen = alone(tiny_prior, y, 0, config)
    settled = diip.settle(start.image, y, seen.energy)
    np.testing.assert_allclose(found.image, settled, atol=TWO_PROGRAMS)
    assert found.num_iterations.shape == ()
    np.testing.assert_array_equal(found.uncertainty, np.zeros((SIDE, SIDE, 3)))


def test_a_first_look_that_is_enough_needs_no_iteration(tiny_prior, y):
    """Told that all of y is noise, every first image is near enough."""
    config = CONFIG.replace(noise_level=1.0)
    found = jax.jit(restore)(tiny_prior, y, KEY, config)
    np.testing.assert_array_equal(found.num_iterations, 0)
    np.testing.assert_array_equal(found.reason, StopReason.HIGH_FREQUENCY)
    assert np.isfinite(found.losses[:, 0]).all()
    assert np.isnan(found.losses[:, 1:]).all()


def test_a_canvas_too_large_for_an_iteration_has_its_first_look(tiny_prior, y):
    config = CONFIG.replace(max_work=SIDE * SIDE - 1)
    found = jax.jit(restore)(tiny_prior, y, KEY, config)
    np.testing.assert_array_equal(found.num_iterations, 0)
    np.testing.assert_array_equal(found.reason, StopReason.MAX_ITERATIONS)


@pytest.mark.parametrize(
    ("max_work", "budget"), [(None, 8), (7 * 64, 7), (2 * 64, 2), (64, 0)]
)
def test_the_budget_is_work_over_pixels(max_work, budget):
    assert diip.budget(DEFAULT.replace(max_work=max_work), (8, 8)) == budget
    paper = DIIPConfig(max_work=max_work)
    assert diip.budget(paper, (8, 8)) == paper.max_iterations  # it has no first look


@pytest.mark.parametrize("deviation", [0.0, 0.05, 0.3])
def test_settling_ends_at_the_distance_of_the_damage(y, deviation):
    image = jnp.clip(y + 0.1, 0, 1)
    settled = diip.settle(image, y, deviation**2)
    rms = 2 * np.sqrt(np.mean(np.square(settled - y)))
    before = 2 * np.sqrt(np.mean(np.square(image - y)))
    assert rms == pytest.approx(min(deviation, before), abs=1e-6)
    # On the line between the two: both differences are parallel.
    np.testing.assert_allclose((settled - y) * before, (image - y) * rms, atol=1e-6)
    np.testing.assert_array_equal(diip.settle(image, y, None), image)
    np.testing.assert_array_equal(diip.settle(y, y, 0.0), y)


@pytest.mark.slow  # another program of the network
def test_vmap_over_images_is_one_by_one(tiny_prior, y, answer):
    keys = jnp.stack([KEY, jax.random.key(4)])
    many = jax.jit(jax.vmap(restore, (None, 0, 0, None)))(
        tiny_prior, jnp.stack([y, 1 - y]), keys, CONFIG
    )
    np.testing.assert_allclose(many.image[0], answer.image, atol=TWO_PROGRAMS)


def test_a_clipped_pixel_can_come_back_only_straight_through():
    """x_0 = 3 is clipped to 1: its derivative is 0, or as if it were not clipped."""
    now = ddim.Steps(None, jnp.float32(0.5), jnp.float32(1))

    def x(z, clip):
        return ddim.step(lambda *_: jnp.zeros(()), z, now, clip=clip)

    z = jnp.float32(3 * np.sqrt(0.5))
    for clip, slope in ((ddim.clip, 0.0), (ddim.straight_through_clip, np.sqrt(2))):
        value, gradient = jax.value_and_grad(x)(z, clip)
        assert value == 1
        assert gradient == pytest.approx(slope, abs=1e-6)


def test_matched_starts_follow_the_photo_and_random_ones_do_not(tiny_prior, y):
    canvas_y, seen = diip.see(tiny_prior, y, CONFIG)
    schedule = tiny_prior.card.schedule
    drawn = diip.start_noise(KEY, 0, canvas_y.shape, CONFIG)
    z = diip.start(canvas_y, KEY, CONFIG, seen, schedule).z
    expected = matched.diffuse(seen, canvas_y, drawn, schedule)
    np.testing.assert_array_equal(z, expected)
    random = diip.start(canvas_y, KEY, CONFIG.replace(start="random"), seen, schedule)
    np.testing.assert_array_equal(random.z, drawn)


def test_starts_come_in_pairs_of_opposite_noise():
    drawn = [diip.start_noise(KEY, i, (8, 8, 3), CONFIG) for i in range(4)]
    np.testing.assert_array_equal(drawn[1], -drawn[0])
    np.testing.assert_array_equal(drawn[3], -drawn[2])
    assert jnp.abs(drawn[2] - drawn[0]).max() > 1
    alone = diip.start_noise(KEY, 0, (8, 8, 3), CONFIG.replace(num_starts=1))
    np.testing.assert_array_equal(alone, jax.random.normal(KEY, (8, 8, 3)))


def test_what_is_linear_in_the_noise_cancels_in_a_pair(y):
    """A linear network: the mean of a pair is what y alone would give."""
    schedule = Schedule()
    seen = matched.Start(jnp.zeros((SIDE, SIDE, 1)), jnp.asarray([100]), jnp.zeros(()))
    mixed = [
        matched.diffuse(seen, y, diip.start_noise(KEY, i, y.shape, CONFIG), schedule)
        for i in range(2)
    ]
    mean = (3 * mixed[0] + 3 * mixed[1]) / 2
    root = np.sqrt(schedule.alphas_cumprod()[100])
    np.testing.assert_allclose(mean, 3 * root * y, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_starts", 0, "use at least 1"),
        ("max_work", 0, "use at least 1"),
        ("start_noise", 0.0, "above 0"),
        ("noise_level", -0.1, "0 or more"),
        ("start", "warm", "use one of random, matched"),
    ],
)
def test_impossible_settings_are_refused(name, value, message):
    with pytest.raises(ValueError, match=f"{name} is {value!r}.*{message}"):
        diip.check_config(DEFAULT.replace(**{name: value}))
