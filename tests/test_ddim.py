"""DDIM against diffusers' scheduler, closed forms and finite differences.

The partners: `diffusers.DDIMScheduler` (live, and as stored outputs), the diagonal
Jacobian of baselines.md 1.3 multiplied up in NumPy, and finite differences in float64.
The noise predictor is a formula, so that every side can evaluate it.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import ddim
from diip_jax.schedule import ddim_timesteps, linear_alphas_cumprod
from helpers import seeded
from helpers.ddim_chain import (
    SHAPE,
    STEP_COUNTS,
    diffusers_chain,
    predict_noise,
    start,
)

pytestmark = pytest.mark.usefixtures("strict_ranks")

GOLDEN = Path(__file__).parent / "golden" / "ddim.npz"


def steps_of(num_steps):
    timesteps = ddim_timesteps(num_steps)
    conditioning = jnp.asarray(timesteps, jnp.float32)
    return ddim.make_steps(conditioning, linear_alphas_cumprod(), timesteps)


def test_steps_pair_each_timestep_with_the_next():
    alphas_cumprod = linear_alphas_cumprod()
    steps = steps_of(3)
    expected = alphas_cumprod[[666, 333, 0]]
    np.testing.assert_allclose(steps.alpha_bar, expected, rtol=1e-7)  # float32
    np.testing.assert_allclose(steps.alpha_bar_prev[:2], expected[1:], rtol=1e-7)
    assert steps.alpha_bar_prev[2] == 1
    assert steps.conditioning.tolist() == [666, 333, 0]


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_exact_noise_gives_back_the_image(num_steps):
    x_0 = jnp.asarray(seeded.image(*SHAPE[:2]) * 1.8 - 0.9)
    steps = steps_of(num_steps)
    root, rest = jnp.sqrt(steps.alpha_bar[0]), jnp.sqrt(1 - steps.alpha_bar[0])
    x_t = root * x_0 + rest * start()

    def exact(x_t, alpha_bar):
        return (x_t - jnp.sqrt(alpha_bar) * x_0) / jnp.sqrt(1 - alpha_bar)

    known = steps._replace(conditioning=steps.alpha_bar)
    # x_0 is divided by sqrt(alpha_bar) >= 0.015 once per step: 1e-7 / 0.015.
    np.testing.assert_allclose(ddim.chain(exact, known)(x_t), x_0, atol=2e-5)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_chain_stays_in_range(num_steps):
    x = ddim.chain(predict_noise, steps_of(num_steps))(start(scale=3))
    assert float(jnp.abs(x).max()) <= 1
    assert float(jnp.abs(x).min()) < 0.5  # it is not all clipped either


@pytest.mark.parametrize("num_steps", STEP_COUNTS)
def test_chain_matches_the_stored_outputs_of_diffusers(num_steps):
    with np.load(GOLDEN) as golden:
        expected = golden[f"x_{num_steps}"]
    x = ddim.chain(predict_noise, steps_of(num_steps))(start())
    # diffusers forms alpha_bar in float32; a relative 1e-6 there is 1e-5 in x.
    np.testing.assert_allclose(x, expected, atol=3e-5)


@pytest.mark.parity
@pytest.mark.parametrize("num_steps", [*STEP_COUNTS, 50])
def test_chain_matches_diffusers(num_steps):
    expected = diffusers_chain(num_steps)
    x = ddim.chain(predict_noise, steps_of(num_steps))(start())
    # As above; 50 steps carry the difference of alpha_bar on fifty times.
    np.testing.assert_allclose(x, expected, atol=1e-4 if num_steps > 20 else 3e-5)


@pytest.mark.parametrize("remat", [True, False])
@pytest.mark.parametrize("gradient", ["full", "frozen", "last-1", "last-2", "last-9"])
def test_gradient_variants_are_one_map(gradient, remat):
    steps = steps_of(3)
    expected = ddim.chain(predict_noise, steps, remat=False)(start())
    g = ddim.generator(predict_noise, steps, gradient=gradient, remat=remat)
    # The same operations in the same order, though compiled apart.
    np.testing.assert_allclose(g(start()), expected, atol=2e-6)


def pull_back(g, z, cotangent):
    return jax.vjp(g, z)[1](cotangent)[0]


def diagonal(z, steps, predict=predict_noise):
    """Return dg/dz with eps held constant, per pixel, by the product over steps.

    A step multiplies by sqrt(ab_prev / ab) where x_0 is not clipped, and by
    s_prev / s where it is, s = sqrt(1 - ab) (baselines.md 1.3). Also the end point.
    """
    x_t, product = np.asarray(z, np.float64), np.ones(z.shape)
    for t, ab, ab_prev in zip(*(np.asarray(a, np.float64) for a in steps), strict=True):
        s, s_prev = np.sqrt(1 - ab), np.sqrt(1 - ab_prev)
        eps = np.asarray(predict(jnp.asarray(x_t), t), np.float64)
        x_0 = (x_t - s * eps) / np.sqrt(ab)
        product *= np.where(abs(x_0) > 1, s_prev / s, np.sqrt(ab_prev / ab))
        x_0 = np.clip(x_0, -1, 1)
        x_t = np.sqrt(ab_prev) * x_0 + s_prev * (x_t - np.sqrt(ab) * x_0) / s
    return product, x_t


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_frozen_gradient_is_the_diagonal_product(num_steps):
    steps, z, cotangent = steps_of(num_steps), start(3), start(4)
    g = ddim.generator(predict_noise, steps, gradient="frozen")
    product, x = diagonal(z, steps)
    clipped = abs(x) >= 1
    assert clipped.any()  # the case is of use only where
    assert not clipped.all()  # both happen
    actual = pull_back(g, z, cotangent)
    # float32 against float64, through factors of up to 61 formed from 1 - alpha_bar.
    np.testing.assert_allclose(actual, product * cotangent, rtol=2e-4, atol=1e-6)
    assert (np.asarray(actual)[clipped] == 0).all()


@pytest.mark.parametrize("num_steps", [3, 10])
def test_frozen_gradient_without_clipping_is_one_constant(num_steps):
    steps, z, cotangent = steps_of(num_steps), start(3), start(4)

    def mild(x_t, alpha_bar):  # x_0 = 0.4 sin(x_t), never clipped
        x_0 = 0.4 * jnp.sin(x_t)
        return (x_t - jnp.sqrt(alpha_bar) * x_0) / jnp.sqrt(1 - alpha_bar)

    steps = steps._replace(conditioning=steps.alpha_bar)
    g = ddim.generator(mild, steps, gradient="frozen")
    constant = 1 / np.sqrt(linear_alphas_cumprod()[ddim_timesteps(num_steps)[0]])
    actual = pull_back(g, z, cotangent)
    np.testing.assert_allclose(actual, constant * np.asarray(cotangent), rtol=1e-4)
    if num_steps == 10:
        assert constant == pytest.approx(60.8, abs=0.05)


def differences(f, z, directions, size=1e-6):
    """Return directional derivatives of a scalar f by central differences."""
    return [
        (float(f(z + size * d)) - float(f(z - size * d))) / (2 * size)
        for d in directions
    ]


# Curvature and the kinks of the clip, where a direction crosses one, leave 1e-6.
FINITE_DIFFERENCES = 2e-5


def mild_start():
    """Return noise whose chain clips some pixels at some steps, in float64."""
    return jnp.asarray(np.random.default_rng(5).standard_normal(SHAPE))


def random_directions(count=5):
    return [np.random.default_rng(10 + i).standard_normal(SHAPE) for i in range(count)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("remat", [True, False])
@pytest.mark.parametrize("num_steps", [1, 3, 5])
def test_full_gradient_matches_finite_differences(num_steps, remat):
    steps, z = steps_of(num_steps), mild_start()
    g = ddim.generator(predict_noise, steps, gradient="full", remat=remat)
    cotangent = np.random.default_rng(6).standard_normal(SHAPE)

    @jax.jit
    def f(z):
        return jnp.sum(g(z) * cotangent)

    gradient = np.asarray(jax.grad(f)(z))
    assert gradient.dtype == np.float64
    actual = [float(np.sum(gradient * d)) for d in random_directions()]
    expected = differences(f, z, random_directions())
    np.testing.assert_allclose(actual, expected, rtol=FINITE_DIFFERENCES)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("last", [1, 2])
def test_last_k_is_frozen_first_and_exact_after(last):
    """Compose the product over the frozen steps with differences of the exact ones."""
    steps, z = steps_of(4), mild_start()
    first = ddim.Steps(*(a[:-last] for a in steps))
    end = ddim.chain(predict_noise, ddim.Steps(*(a[-last:] for a in steps)))
    cotangent = np.random.default_rng(6).standard_normal(SHAPE)
    product, middle = diagonal(z, first)
    expected = differences(
        jax.jit(lambda x_t: jnp.sum(end(x_t) * cotangent)),
        jnp.asarray(middle),
        [product * d for d in random_directions()],
    )
    g = ddim.generator(predict_noise, steps, gradient=f"last-{last}")
    gradient = pull_back(g, z, jnp.asarray(cotangent))
    actual = [float(np.sum(np.asarray(gradient) * d)) for d in random_directions()]
    np.testing.assert_allclose(actual, expected, rtol=FINITE_DIFFERENCES)
    others = {v: ddim.generator(predict_noise, steps, gradient=v) for v in VARIANTS}
    for name, other in others.items():
        assert (
            seeded.relative_error(pull_back(other, z, jnp.asarray(cotangent)), gradient)
            > 0.01
        ), f"{name} does not differ: the test shows nothing"


VARIANTS = ("full", "frozen")


def test_last_k_of_all_steps_is_the_full_gradient():
    steps, z, cotangent = steps_of(3), start(3), start(4)
    full, last = (
        pull_back(ddim.generator(predict_noise, steps, gradient=v), z, cotangent)
        for v in ("full", "last-3")
    )
    np.testing.assert_array_equal(full, last)


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [("full", 10), ("frozen", 0), ("last-1", 1), ("last-10", 10), ("last-11", 10)],
)
def test_exact_steps(gradient, expected):
    assert ddim.exact_steps(gradient, 10) == expected


@pytest.mark.parametrize(
    "gradient", ["", "last", "last-0", "last--1", "last-x", "FULL"]
)
def test_unknown_gradients_are_refused(gradient):
    with pytest.raises(ValueError, match="use full, frozen or last-K"):
        ddim.exact_steps(gradient, 10)
