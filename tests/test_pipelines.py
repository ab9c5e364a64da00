"""Own generators, optimisers and criteria, and the loop that can be differentiated.

The generators are formulas, and the partners are Python loops and finite differences.
"""

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diip_jax import canvas, ddim, diip, pipelines, stopping
from diip_jax.config import DIIPConfig
from diip_jax.diip import StopReason
from diip_jax.schedule import Schedule, ddim_timesteps
from helpers import seeded

SIDE = 8
CONFIG = DIIPConfig(learning_rate=0.1, k_min=2, epsilon=0.0, max_iterations=6)
NEVER = CONFIG.replace(criterion="never")


def waves(z, gain=1.5):
    """Map noise to an image in [-1, 1]."""
    return jnp.sin(gain * (z + jnp.roll(z, 1, 0)) / 2)


@pytest.fixture
def y():
    return jnp.asarray(seeded.image(SIDE, SIDE))


def noise(key, shape=(SIDE, SIDE, 3)):
    return jax.random.normal(key, shape, jnp.float32)


@functools.partial(jax.jit, static_argnums=(2, 3))
def descend(y, key, optimizer, count):
    """Minimise the mean square by optax in a Python loop; return g(z) of the last."""
    z, target = noise(key), 2 * y - 1
    state = optimizer.init(z)
    for _ in range(count):
        x, gradient = waves(z), jax.grad(lambda z: jnp.mean((waves(z) - target) ** 2))
        updates, state = optimizer.update(gradient(z), state)
        z = optax.apply_updates(z, updates)
    return (x + 1) / 2


class Counter(NamedTuple):
    """State of a criterion that counts."""

    verdict: stopping.Verdict
    count: Any


def third(config, damage):
    """Return a criterion that stops at its third iteration."""

    def init():
        return Counter(stopping.undecided(), jnp.int32(0))

    def update(state, k, loss, sharpness):
        count = state.count + 1
        verdict = state.verdict._replace(loss=loss, detected_high=count == 3)
        return Counter(verdict, count)

    return stopping.Criterion(init, update)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam,
        optax.sgd,
        lambda rate: optax.chain(optax.clip(1e-3), optax.sgd(rate, momentum=0.9)),
    ],
)
def test_any_optimiser_descends(y, key, optimizer):
    answer = pipelines.restore_with(waves, y, key, NEVER, optimizer=optimizer)
    expected = descend(y, key, optimizer(0.1), 6)
    # Two programs: a few roundings, which Adam's division spreads.
    np.testing.assert_allclose(answer.image, expected, atol=1e-5)


def test_any_criterion_stops(y, key):
    answer = pipelines.restore_with(waves, y, key, CONFIG, criterion=third)
    assert (int(answer.num_iterations), int(answer.iteration)) == (3, 2)
    assert answer.reason == StopReason.HIGH_FREQUENCY
    expected = descend(y, key, optax.adam(0.1), 3)
    np.testing.assert_allclose(answer.image, expected, atol=1e-5)


def test_a_noise_predictor_of_one_s_own(y, key):
    """The best predictor for images of N(0, 1), and its chain in NumPy."""
    schedule, timesteps = Schedule(), ddim_timesteps(4)

    def predict_noise(x_t, alpha_bar):  # E[eps | x_t] for x_0 of N(0, 1)
        return jnp.sqrt(1 - alpha_bar) * x_t

    alphas = jnp.asarray(schedule.alphas_cumprod(), jnp.float32)[timesteps]
    steps = ddim.make_steps(alphas, schedule.alphas_cumprod(), timesteps)
    generate = ddim.generator(predict_noise, steps)
    answer = pipelines.restore_with(generate, y, key, NEVER)
    x = noise(key)
    for t, after in zip(timesteps, [*timesteps[1:], None], strict=True):
        ab = schedule.alphas_cumprod()[t]
        ab_prev = 1.0 if after is None else schedule.alphas_cumprod()[after]
        x_0 = np.clip(np.sqrt(ab) * x, -1, 1)
        eps = (x - np.sqrt(ab) * x_0) / np.sqrt(1 - ab)
        x = np.sqrt(ab_prev) * x_0 + np.sqrt(1 - ab_prev) * eps
    energy = np.mean(np.square(x - (2 * y - 1)))
    assert answer.losses[0] == pytest.approx(float(energy), rel=1e-4)
    assert answer.losses[5] < answer.losses[0]


def test_restore_takes_the_same_parts(tiny_prior, y, key):
    parts = diip.Parts(
        generator=lambda prior, config, size, timesteps: waves,
        optimizer=optax.sgd,
        criterion=third,
    )
    actual = diip.restore(tiny_prior, y, key, CONFIG, parts)
    options = {"optimizer": optax.sgd, "criterion": third}
    expected = pipelines.restore_with(waves, y, key, CONFIG, **options)
    np.testing.assert_array_equal(actual.image, expected.image)
    assert actual.num_iterations == expected.num_iterations == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "matched"}, "start is 'matched', which asks a prior about y"),
        ({"criterion": "discrepancy"}, "criterion is 'discrepancy', which asks a"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; use a number above 0"),
    ],
)
def test_settings_that_ask_a_prior_are_refused(y, key, changes, message):
    with pytest.raises(ValueError, match=message):
        pipelines.restore_with(waves, y, key, CONFIG.replace(**changes))


def test_a_generator_of_another_size_is_refused(y, key):
    message = r"makes \(4, 4, 3\) of noise \(8, 8, 3\); it must make an image of y's"
    with pytest.raises(ValueError, match=message):
        pipelines.restore_with(lambda z: z[::2, ::2], y, key, CONFIG)
    with pytest.raises(ValueError, match="y ranges over"):
        pipelines.restore_with(waves, 3 * y, key, CONFIG)
    with pytest.raises(ValueError, match="num_iterations is 0; use at least 1"):
        pipelines.unrolled(waves, y, key, CONFIG, num_iterations=0)


# The loop that can be differentiated


@pytest.mark.parametrize("num_starts", [1, 2])
def test_unrolled_is_the_restoration_of_so_many_iterations(y, key, num_starts):
    config = NEVER.replace(num_starts=num_starts)
    actual = pipelines.unrolled(waves, y, key, config, num_iterations=6)
    expected = pipelines.restore_with(waves, y, key, config)
    for name in ("image", "losses", "z", "reason", "num_iterations"):
        found, wanted = getattr(actual, name), getattr(expected, name)
        np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=1e-6, err_msg=name)


def outcome(y, rate, gain, key, target, generator=waves):
    """Return a loss of a user's own, of the restoration after three iterations."""
    config = NEVER.replace(learning_rate=rate)
    generate = functools.partial(generator, gain=gain)
    options = {"optimizer": lambda rate: optax.sgd(100 * rate)}
    answer = pipelines.unrolled(generate, y, key, config, num_iterations=3, **options)
    return jnp.mean(jnp.square(answer.image - target))


def outcome_in_float64(y, rate, gain, z, target):
    """Return the same loss by NumPy, with the gradient written out by hand."""
    z, y = np.float64(z), np.float64(y)
    for _ in range(3):
        phase = gain * (z + np.roll(z, 1, 0)) / 2
        x = np.sin(phase)
        back = 2 * (x - (2 * y - 1)) / z.size * np.cos(phase) * gain / 2
        z = z - 100 * rate * (back + np.roll(back, -1, 0))
    return np.mean(((x + 1) / 2 - target) ** 2)


def test_gradients_are_those_of_finite_differences(y, key):
    """By y, the learning rate and a weight of g, in float32 against float64.

    Central differences of 1e-5 in float64 are right to ten digits. Float32 leaves about
    1e-6 of the largest term, and the sums have some hundred.
    """
    rate, gain = 0.3, 1.5
    target = np.float64(seeded.image(SIDE, SIDE, seed=3))
    gradients = jax.grad(outcome, (0, 1, 2))(y, rate, gain, key, jnp.float32(target))
    rng = np.random.default_rng(0)
    directions = [
        (rng.standard_normal(y.shape), 0.0, 0.0),
        (np.zeros(y.shape), 1.0, 0.0),
        (np.zeros(y.shape), 0.0, 1.0),
    ]
    at, z, h = (np.float64(y), rate, gain), noise(key), 1e-5
    for direction in directions:
        up, down = (
            outcome_in_float64(
                *(a + sign * h * d for a, d in zip(at, direction, strict=True)),
                z,
                target,
            )
            for sign in (1, -1)
        )
        expected = (up - down) / (2 * h)
        pairs = zip(gradients, direction, strict=True)
        actual = sum(np.sum(np.float64(g) * d) for g, d in pairs)
        assert actual == pytest.approx(expected, rel=1e-4)


def test_adam_has_a_gradient_where_pixels_are_clipped(y, key):
    """Their gradient is 0, where the root of optax's own Adam has no derivative."""

    def clipped(z):
        return jnp.clip(3 * z, -1, 1)

    def loss(y, **options):
        answer = pipelines.unrolled(clipped, y, key, NEVER, num_iterations=3, **options)
        return jnp.mean(jnp.square(answer.image))

    assert np.isfinite(jax.grad(loss)(y)).all()
    plain = functools.partial(loss, optimizer=optax.adam)
    assert np.isnan(jax.grad(plain)(y)).any()
    assert loss(y) == pytest.approx(float(plain(y)), rel=1e-6)


def test_forward_mode_agrees_where_there_is_no_custom_vjp(y, key):
    target = jnp.zeros_like(y)
    function = functools.partial(outcome, y, gain=1.5, key=key, target=target)
    _, forward = jax.jvp(function, (0.3,), (1.0,))
    assert float(forward) == pytest.approx(float(jax.grad(function)(0.3)), rel=1e-4)


def network_loss(prior, y, key, gradient):
    """Return a loss of the restoration by a network, after two iterations."""
    config = NEVER.replace(num_steps=1, gradient=gradient)
    generate = canvas.generator(prior, config, y.shape[:2])
    answer = pipelines.unrolled(generate, y, key, config, num_iterations=2)
    return jnp.mean(jnp.square(answer.image))


def test_forward_mode_fails_on_networks_that_are_not_frozen(tiny_prior, y, key):
    def lowered(gradient):
        loss = functools.partial(network_loss, key=key, gradient=gradient)
        slope = jax.jit(lambda y: jax.jvp(lambda y: loss(tiny_prior, y), (y,), (y,)))
        return slope.lower(y)

    with pytest.raises(TypeError, match=r"forward-mode .* custom_vjp"):
        lowered("full")
    lowered("frozen")


@pytest.mark.slow  # compiles a gradient of a gradient
@pytest.mark.parametrize("gradient", ["full", "frozen"])
def test_the_weights_of_a_network_have_a_gradient(tiny_prior, y, key, gradient):
    """By one direction of all weights: only the full gradient sees the network."""
    derivative = jax.grad(network_loss, allow_int=True)
    of_weights = seeded.compile_quickly(
        functools.partial(derivative, key=key, gradient=gradient), tiny_prior, y
    )(tiny_prior, y)
    leaves = jax.tree.leaves(of_weights)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any(np.any(leaf) for leaf in leaves) == (gradient == "full")


@pytest.mark.slow  # compiles five programs
def test_the_page_on_pipelines_runs():
    page = (Path(__file__).parents[1] / "docs" / "pipelines.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["answer"].num_iterations == 10  # of the page's own criterion
    assert all(np.isfinite(g).all() and np.any(g) for g in names["gradients"])
