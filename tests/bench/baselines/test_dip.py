"""Deep Image Prior: its network in PyTorch, its loop in Python, what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diip_jax.bench.baselines import dip
from diip_jax.bench.baselines.dip import Config
from helpers import seeded

TINY = Config(channels=(8, 8), skips=(4, 0), input_channels=4)
FLAT = Config(channels=(8,), skips=(0,), input_channels=4, iterations=4)


def weights_of(config, key, side=16):
    network = dip.Skip(config.channels, config.skips)
    z = jnp.zeros((side, side, config.input_channels))
    return network, jax.jit(network.init)(key, z)["params"]


def test_the_default_has_about_two_million_weights(key):
    """2.2 M, as inferred from the architecture; here counted layer by layer."""

    def conv(size, c_in, c_out):
        return size**2 * c_in * c_out + c_out

    expected, norm = conv(1, 128, 3), 2  # numbers per channel
    for i in range(5):
        c_in = 32 if i == 0 else 128
        expected += conv(1, c_in, 4) + norm * 4  # skip
        expected += conv(3, c_in, 128) + conv(3, 128, 128) + 2 * norm * 128  # down
        expected += norm * 132 + conv(3, 132, 128) + norm * 128  # up
        expected += conv(1, 128, 128) + norm * 128
    shapes = jax.eval_shape(lambda: weights_of(Config(), key, 64)[1])
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == expected
    assert 2.1e6 < count < 2.3e6


def torch_skip(params, z, channels, skips):
    """Return the network's output in PyTorch, channel by channel as released."""
    torch = pytest.importorskip("torch")
    nn = torch.nn.functional

    def tensor(array):
        return torch.from_numpy(np.array(array))

    def conv(weights, h, stride=1):
        weights = weights["conv"]
        kernel = tensor(weights["kernel"]).permute(3, 2, 0, 1)
        margin = kernel.shape[-1] // 2
        h = nn.pad(h, (margin,) * 4, mode="reflect")
        return nn.conv2d(h, kernel, tensor(weights["bias"]), stride)

    def norm(weights, h):
        scale, bias = (tensor(weights["norm"][name]) for name in ("scale", "bias"))
        return nn.batch_norm(h, None, None, scale, bias, training=True)

    def block(weights, h, stride=1):
        h = conv(weights["conv"], h, stride)
        return nn.leaky_relu(norm(weights["norm"], h), 0.2)

    def scale(weights, h, skips):
        deeper = block(weights["down_again"], block(weights["down"], h, stride=2))
        if "deeper" in weights:
            deeper = scale(weights["deeper"], deeper, skips[1:])
        up = torch.nn.Upsample(scale_factor=2, mode="bilinear")(deeper)
        if skips[0]:
            up = torch.cat([block(weights["skip"], h), up], dim=1)
        return block(
            weights["up_again"], block(weights["up"], norm(weights["both"], up))
        )

    h = scale(params["scale"], tensor(z).permute(2, 0, 1)[None], skips)
    return torch.sigmoid(conv(params["out"], h))[0].permute(1, 2, 0).numpy()


@pytest.mark.parity
def test_the_network_is_pytorchs(key):
    pytest.importorskip("torch")
    network, params = weights_of(TINY, key)
    rng = np.random.default_rng(0)
    params = jax.tree.map(  # also scales and biases that start as ones and zeros
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32),
        params,
    )
    z = rng.uniform(0, 0.1, (16, 16, 4)).astype(np.float32)
    x = jax.jit(network.apply)({"params": params}, z)
    expected = torch_skip(params, z, TINY.channels, TINY.skips)
    # float32; normalisation magnifies the roundings of small differences of z
    np.testing.assert_allclose(x, expected, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(9, 12), (10, 7)])  # with a rest of 1, and without
def test_convolution_and_gradient_are_xlas(size, stride, shape):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def plain(x, kernel):
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=axes
        )

    x, kernel = draw(2, *shape, 5), draw(size, size, 5, 4)
    expected, pull = jax.vjp(plain, x, kernel)
    g = draw(*expected.shape)
    ours, pull_ours = jax.vjp(lambda *a: dip.convolve(*a, stride), x, kernel)
    np.testing.assert_allclose(ours, expected, atol=1e-5)  # float32 sums of 45 terms
    for mine, theirs in zip(pull_ours(g), pull(g), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=5e-5)  # of up to 216


def test_weights_start_as_pytorchs(key):
    """Uniform within 1 / sqrt(fan-in), the biases too."""
    _, params = weights_of(Config(channels=(64,), skips=(0,)), key)
    kernel, bias = (
        params["scale"]["up"]["conv"]["conv"][k] for k in ("kernel", "bias")
    )
    bound = (9 * 64) ** -0.5
    for leaf in (kernel, bias):
        assert 0.9 * bound < np.max(np.abs(leaf)) <= bound
        # the variance of a uniform variable; 64 of them for the bias
        assert np.var(leaf) == pytest.approx(bound**2 / 3, rel=0.5)


def loop(y, key, config):
    """Follow the released loop; return the outputs' mean and how often they fell."""
    network = dip.Skip(config.channels, config.skips)
    z_key, theta_key, jitter_key = jax.random.split(key, 3)
    shape = (*y.shape[:2], config.input_channels)
    z = 0.1 * jax.random.uniform(z_key, shape)
    theta = jax.jit(network.init)(theta_key, z)
    optimizer = optax.adam(config.learning_rate)
    opt_state = optimizer.init(theta)

    @jax.jit
    def look(theta, z):
        def energy(theta):
            x = network.apply(theta, z)
            return jnp.mean((x - y) ** 2), x

        return jax.value_and_grad(energy, has_aux=True)(theta)

    @jax.jit
    def update(theta, gradient, opt_state):
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(theta, updates), opt_state

    last_theta, last_psnr, mean, falls = None, None, None, 0
    for k in range(config.iterations):
        noise = jax.random.normal(jax.random.fold_in(jitter_key, k), shape)
        (loss, x), gradient = look(theta, z + config.jitter * noise)
        psnr = 10 * np.log10(1 / loss)
        mean = x if mean is None else 0.99 * mean + 0.01 * x
        if last_psnr is not None and psnr - last_psnr < -config.fall:
            theta, falls = last_theta, falls + 1
        else:
            last_theta, last_psnr = theta, psnr
        theta, opt_state = update(theta, gradient, opt_state)
    return mean, falls


def test_the_loop(key):
    """With a limit that asks for a rise of 0.2 dB, so that weights are taken back."""
    config = FLAT.replace(iterations=6, fall=-0.2)
    y = jnp.asarray(seeded.image(8, 8))
    mean, falls = loop(y, key, config)
    restored = jax.jit(dip.restore)(None, y, key, config)
    assert 0 < falls < 5
    # The same operations, compiled otherwise: Adam magnifies roundings of gradients.
    np.testing.assert_allclose(restored.image, mean, atol=1e-3)
    assert (restored.evaluations, restored.gradients) == (0, 0)


def test_the_answer_is_the_running_mean_of_what_is_gone_through(key):
    y = jnp.asarray(seeded.image(7, 9))
    image, outputs = jax.jit(lambda y: dip.fit_any(y, key, FLAT, None, lambda x: x))(y)
    assert outputs.shape == (FLAT.iterations, 7, 9, 3)
    mean = outputs[0]
    for output in outputs[1:]:
        mean = 0.99 * mean + 0.01 * output
    np.testing.assert_allclose(image, mean, atol=1e-6)  # sums of float32


@pytest.mark.slow
def test_a_smooth_picture_is_fitted_before_its_noise(key):
    rows, columns = np.mgrid[:32, :32] / 32
    x = np.stack([rows, columns, 1 - rows], axis=-1)
    y = x + 0.15 * np.random.default_rng(0).standard_normal(x.shape)
    config = Config(channels=(8, 8, 8), skips=(0, 0, 0), iterations=150)
    y = jnp.asarray(np.clip(y, 0, 1), jnp.float32)
    restored = jax.jit(dip.restore)(None, y, key, config.replace(answer="raw"))
    left, before = (np.mean((image - x) ** 2) for image in (restored.image, y))
    assert left < before / 4  # a quarter is six decibels
    assert left < np.mean((restored.image - y) ** 2)  # nearer to x than to y


def test_a_known_operator_and_any_size(key):
    class Halving:
        size = (13, 18)

        def apply(self, x):
            return x[::2, ::2]

    config = FLAT.replace(iterations=40, answer="raw")
    y = jnp.full((7, 9, 3), 0.8)
    run = jax.jit(lambda y, key: dip.restore(None, y, key, config, Halving()))
    image = run(y, key).image
    assert image.shape == (13, 18, 3)
    assert np.mean((Halving().apply(image) - y) ** 2) < 0.01  # 0.09 at first


@pytest.mark.slow
def test_vmap_is_one_by_one(key):
    y = jnp.stack([seeded.image(8, 8, seed) for seed in (0, 1)])
    keys = jax.random.split(key)
    together = jax.jit(jax.vmap(dip.restore, (None, 0, 0, None)))(None, y, keys, FLAT)
    alone = jax.jit(dip.restore)(None, y[1], keys[1], FLAT)
    np.testing.assert_allclose(together.image[1], alone.image, atol=2e-3)  # as above


def test_small_pictures_have_the_small_network():
    assert dip.config_for("jpeg", 64) == dip.SMALL
    assert dip.config_for("jpeg", 256) == Config()
