"""BIRD against its pseudocode in NumPy, with the frozen gradient in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.bench.baselines import bird, forms
from diip_jax.bench.baselines.bird import Config
from helpers import gaussian, seeded

SHAPE = (8, 8, 3)
TIMESTEPS = (15, 10, 5, 0)


def g_and_slope(z):
    """Return g(z), and its frozen derivative, which is of each pixel by itself."""
    x, D = z, np.ones_like(z)
    for ab, ab_prev in gaussian.short_levels(TIMESTEPS):
        s, s_prev = np.sqrt(1 - ab), np.sqrt(1 - ab_prev)
        x_0 = (x - s * gaussian.wavy(x, np.float64(ab))) / np.sqrt(ab)
        clipped = np.abs(x_0) > 1
        x_0 = np.clip(x_0, -1, 1)
        eps = (x - np.sqrt(ab) * x_0) / s
        x = np.sqrt(ab_prev) * x_0 + s_prev * eps
        D = D * np.where(clipped, s_prev / s, np.sqrt(ab_prev / ab))
    return x, D


def pseudocode(z, y, iterations, learning_rate):
    """Follow the listing in float64: Adam on z, then back to the sphere."""
    m = v = 0.0
    for i in range(1, iterations + 1):
        x, D = g_and_slope(z)
        gradient = 2 * D * (x - y) / x.size
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        z = z - learning_rate * (m / (1 - 0.9**i)) / (
            np.sqrt(v / (1 - 0.999**i)) + 1e-8
        )
        z = z * np.sqrt(z.size) / np.linalg.norm(z)
    return x, z


def test_the_pseudocode_with_the_frozen_gradient(key):
    config = Config(iterations=6, learning_rate=0.05)
    y = jnp.asarray(np.random.default_rng(0).uniform(-0.9, 0.9, SHAPE), jnp.float32)
    steps = gaussian.short_steps(TIMESTEPS)
    state = bird.invert(gaussian.wavy, steps, forms.identity(), y, SHAPE, key, config)
    z = np.float64(jax.random.normal(jax.random.split(key)[0], SHAPE))
    x, z = pseudocode(z, np.float64(y), 6, 0.05)
    # Adam divides by the gradient's size: float32 shows where that is small
    np.testing.assert_allclose(state.variables["z"], z, atol=2e-4)
    np.testing.assert_allclose(state.x, x, atol=1e-3)  # a slope of up to 6 after that
    assert np.linalg.norm(state.variables["z"]) ** 2 == pytest.approx(192, rel=1e-5)


def test_the_kernel_is_found_where_the_prior_knows_the_picture(key):
    """g(z) is one picture whatever z is: what is left is the kernel."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.uniform(-1, 1, (16, 16, 3)), jnp.float32)
    k = jnp.asarray([[0, 0.1, 0], [0.5, 0.2, 0], [0, 0, 0.2]])
    form = forms.kernel(3)
    config = Config(iterations=150, kernel_learning_rate=3e-3)
    predict_noise = gaussian.predictor(x)
    steps = gaussian.short_steps((0,))
    y = forms.convolve(x, k)
    state = bird.invert(predict_noise, steps, form, y, x.shape, key, config)
    seen = form.apply(state.variables["eta"], x)
    delta = jnp.zeros((16, 16, 3)).at[8, 8].set(1)
    found = form.apply(state.variables["eta"], delta)[7:10, 7:10, 0]
    assert np.mean((seen - y) ** 2) < 1e-4  # at first 0.1
    # a picture of a point is the kernel, turned around as convolve does not turn it
    np.testing.assert_allclose(found, np.asarray(k)[::-1, ::-1], atol=0.03)


class Pooling:
    """A known operator: means of 2x2 pixels."""

    size = (16, 16)

    def apply(self, x):
        return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


@pytest.fixture
def config(monkeypatch):
    predict_noise = gaussian.bound(gaussian.wavy)
    monkeypatch.setattr(bird, "noise_predictor", predict_noise)
    return Config(form="downsample", factor=2, num_steps=2, iterations=3)


def test_a_known_operator_is_the_form_without_unknowns(tiny_prior, key, config):
    small = Pooling().apply(jnp.asarray(seeded.image(16, 16)))
    blind = jax.jit(bird.restore)(tiny_prior, small, key, config)
    told = jax.jit(lambda p, y, k: bird.restore(p, y, k, config, Pooling()))(
        tiny_prior, small, key
    )
    # the same numbers in another order: float32, through Adam
    np.testing.assert_allclose(blind.image, told.image, atol=1e-3)
    assert blind.image.shape == (16, 16, 3)
    assert (blind.evaluations, blind.gradients) == (2 * 3, 0)


def test_vmap_is_one_by_one(tiny_prior, key, config):
    y = jnp.stack([seeded.image(8, 8, seed) for seed in (0, 1)])
    keys = jax.random.split(key)
    together = jax.jit(jax.vmap(bird.restore, (None, 0, 0, None)))(
        tiny_prior, y, keys, config
    )
    alone = jax.jit(bird.restore)(tiny_prior, y[1], keys[1], config)
    np.testing.assert_allclose(together.image[1], alone.image, atol=1e-3)  # as above


def test_the_network_fits_in(tiny_prior, key):
    y = jnp.zeros((13, 17, 3))
    restored = jax.eval_shape(bird.restore, tiny_prior, y, key)
    assert restored.image.shape == y.shape


def test_bad_settings(tiny_prior, key):
    y = jnp.zeros((15, 15, 3))
    for config, message in [
        (Config(form="blur"), "form is 'blur'; use one of identity"),
        (Config(form="kernel", kernel_size=4), "kernel_size is 4; use an odd"),
        (Config(form="downsample", factor=3), "canvas is 46x46, but factor is 3"),
        (Config(num_steps=0), "num_steps is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            bird.restore(tiny_prior, y, key, config)


@pytest.mark.parametrize(
    ("task", "form"),
    [
        ("denoise", "identity"),
        ("sr8", "downsample"),
        ("motion_blur", "kernel"),
        ("jpeg", None),
        ("water", None),
    ],
)
def test_a_task_has_its_form(task, form):
    config = bird.config_for(task, 64)
    assert (config and config.form) == form
    if task == "sr8":
        assert config.factor == 8
    if form == "kernel":
        assert config.kernel_size == 11  # 41 of 256 pixels are 10.25 of 64


@pytest.mark.parametrize(("task", "rate"), [("denoise", 0.01), ("sr4", 0.001)])
def test_large_pictures_have_the_released_rates(task, rate):
    assert bird.config_for(task, 256).learning_rate == rate
    assert bird.config_for(task, 64).learning_rate > rate
