"""The matched start: its formula, its timestep, and what it makes of simple pictures.

The network of these tests knows nothing of images, so that what depends on its answer
is tested on the bundled prior.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import canvas, load_prior, matched
from diip_jax.config import DEFAULT, PAPER
from diip_jax.schedule import Schedule
from helpers import seeded

SCHEDULES = [Schedule(), Schedule(kind="cosine"), Schedule(num_train_timesteps=400)]
SIDE = 32
GIVEN = DEFAULT.replace(noise_level=0.05)


@pytest.fixture(scope="module")
def y():
    return jnp.asarray(2 * seeded.image(SIDE, SIDE) - 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("level", [0.064, 0.3, 2.0])
def test_a_level_becomes_the_nearest_timestep(schedule, level):
    t = int(matched.timestep(schedule, level))
    alphas_cumprod = schedule.alphas_cumprod()
    levels = [np.sqrt((1 - a) / a) for a in alphas_cumprod]
    assert t == min(range(len(levels)), key=lambda i: abs(levels[i] - level))


@pytest.mark.parametrize("deviation", [0.0, 0.1, 0.9])
def test_the_start_is_diffused_with_the_noise_that_it_lacks(y, deviation):
    schedule = Schedule()
    noise = seeded.image(SIDE, SIDE, 1) - 0.5
    start = matched.Start(
        jnp.full((SIDE, SIDE, 1), deviation), jnp.asarray([80]), jnp.float32(0)
    )
    z = matched.diffuse(start, y, jnp.asarray(noise), schedule)
    alpha_bar = schedule.alphas_cumprod()[80]
    lacks = np.sqrt(max(1 - alpha_bar - alpha_bar * deviation**2, 0))
    truth = np.sqrt(alpha_bar) * np.asarray(y) + lacks * noise
    np.testing.assert_allclose(z, truth, atol=1e-6)  # float32


def test_a_noise_level_that_is_given_is_used_and_nothing_is_estimated(tiny_prior, y):
    start = matched.look(tiny_prior, y, GIVEN)
    np.testing.assert_allclose(start.noise, 0.1)  # of [-1, 1]
    assert start.energy == pytest.approx(0.01, rel=1e-4)  # a float32 mean
    level = tiny_prior.card.schedule.noise_levels()[int(start.timesteps[0])]
    assert level == pytest.approx(0.1, abs=0.01)  # the distance of two timesteps


def test_a_start_noise_that_is_given_is_the_level(tiny_prior, y):
    config = GIVEN.replace(start_noise=0.4, num_steps=4)
    start = matched.look(tiny_prior, y, config)
    first = int(matched.timestep(tiny_prior.card.schedule, 0.4))
    truth = [round(first * share) for share in (1, 0.75, 0.5, 0.25)]
    np.testing.assert_array_equal(start.timesteps, truth)


def test_only_settings_that_ask_for_it_need_a_look():
    assert not matched.is_needed(PAPER)
    assert matched.is_needed(PAPER.replace(criterion="discrepancy"))
    assert matched.is_needed(PAPER.replace(start="matched"))


@pytest.fixture(scope="module")
def looks():
    """Return what the bundled prior sees in simple pictures, by name."""
    prior = load_prior("natural64")
    waves = np.sin(np.arange(64) / 9)
    x = 0.6 * np.outer(waves, waves[::-1])[..., None] * np.ones(3)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(x.shape)
    blurred = sum(np.roll(noise, s, (0, 1)) for s in ((0, 0), (0, 1), (1, 0), (1, 1)))
    ripples = np.sin(np.arange(64) * np.pi / 3 + 0.3)  # full in the next Haar level
    pictures = {
        "clean": x,
        "white": x + 0.2 * noise,
        "coloured": x + 0.05 * blurred / 2,
        "blocks": np.kron(x[::8, ::8], np.ones((8, 8, 1))),
        "hidden": x + 0.2 * np.outer(ripples, ripples)[..., None] + 0.04 * noise,
    }
    look = jax.jit(matched.look)
    canvases = {name: jnp.float32(np.clip(p, -1, 1)) for name, p in pictures.items()}
    return {name: look(prior, p, DEFAULT) for name, p in canvases.items()}


def level_of(start):
    return Schedule().noise_levels()[int(start.timesteps[0])]


def test_a_clean_picture_has_the_least_level_and_no_damage(looks):
    assert level_of(looks["clean"]) == pytest.approx(matched.LEAST_LEVEL, abs=0.01)
    assert jnp.sqrt(looks["clean"].energy) < 0.005


def test_white_noise_starts_at_its_own_level(looks):
    assert level_of(looks["white"]) == pytest.approx(0.2, rel=0.15)
    assert jnp.sqrt(looks["white"].energy) == pytest.approx(0.2, rel=0.15)


def test_noise_that_no_filter_sees_is_seen_by_the_network(looks):
    assert jnp.max(looks["coloured"].noise) < 0.02
    assert level_of(looks["coloured"]) > 1.5 * matched.LEAST_LEVEL
    assert jnp.sqrt(looks["coloured"].energy) > 0.02


def test_white_noise_that_texture_hides_is_not_counted_twice(looks):
    """The network finds it, and its energy is not added to what the filter found."""
    assert jnp.sqrt(jnp.mean(jnp.square(looks["hidden"].noise))) < 0.03
    assert level_of(looks["hidden"]) == pytest.approx(matched.COLOURED_LEVEL, abs=0.01)
    found = jnp.sqrt(looks["hidden"].energy)
    assert found == pytest.approx(matched.HIDDEN_DEVIATION, rel=0.01)
    assert found < 0.04  # what is there; the picture keeps the difference


def test_blocks_are_drowned(looks):
    assert level_of(looks["blocks"]) > 2 * matched.LEAST_LEVEL


def test_g_of_a_matched_start_depends_on_its_timestep(tiny_prior, y):
    """The generator takes timesteps that are known only when the program runs."""

    @jax.jit
    def of(t):
        return canvas.generator(tiny_prior, GIVEN, (SIDE, SIDE), t[None])(y)

    at = [
        canvas.generator(tiny_prior, GIVEN, (SIDE, SIDE), jnp.asarray([t]))(y)
        for t in (5, 90)
    ]
    np.testing.assert_allclose(of(jnp.int32(5)), at[0], atol=1e-5)  # two programs
    np.testing.assert_allclose(of(jnp.int32(90)), at[1], atol=1e-5)
    assert jnp.abs(at[0] - at[1]).max() > 0.01
