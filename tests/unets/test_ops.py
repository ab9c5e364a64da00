"""The functions of the UNets against naive formulas, their gradients against autodiff.

`group_norm` and `convolve` carry gradients written by hand: here the same functions
are written in the most obvious way and JAX differentiates them.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.unets import ops
from helpers import naive, seeded
from helpers.naive import FLOAT32, normal

# One rounding to eight bits of mantissa is 2^-9; a gradient sees a few of them.
BFLOAT16 = 2e-2


def value_and_cotangents(function, g, *args):
    """Return a function's value and what its gradient makes of the cotangent g."""

    @jax.jit
    def both(g, *args):
        value, pull_back = jax.vjp(function, *args)
        return value, *pull_back(g.astype(value.dtype))

    return both(g, *args)


def group_norm(x, scale, bias):
    return ops.group_norm(x, scale, bias, 1e-5)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 4, 32), (3, 5, 2, 64), (2, 1, 7, 96)])
def test_group_norm_and_its_gradients(shape, per_image):
    n, c = shape[0], shape[-1]
    x = 3 + 2 * normal(*shape)  # a mean that must be taken away exactly
    rows = (n, c) if per_image else (c,)
    scale, bias = normal(*rows, seed=1), normal(*rows, seed=2)
    g = normal(*shape, seed=3)
    actual = value_and_cotangents(group_norm, g, x, scale, bias)
    expected = value_and_cotangents(naive.group_norm, g, x, scale, bias)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == jnp.float32
        assert seeded.relative_error(a, b) < FLOAT32


def test_group_norm_with_silu_and_its_gradients():
    shape = (3, 5, 2, 64)
    x, g = 3 + 2 * normal(*shape), normal(*shape, seed=3)
    scale, bias = normal(64, seed=1), normal(64, seed=2)
    actual = value_and_cotangents(
        lambda *args: ops.group_norm(*args, 1e-5, silu=True), g, x, scale, bias
    )
    expected = value_and_cotangents(
        lambda *args: jax.nn.silu(naive.group_norm(*args)), g, x, scale, bias
    )
    for a, b in zip(actual, expected, strict=True):
        assert seeded.relative_error(a, b) < FLOAT32


def test_means_as_accelerators_take_them(monkeypatch):
    """What a GPU or TPU would compile instead of a CPU's dot product, run here."""

    def elsewhere(*args, cpu, default):
        return default(*args)

    x, g = 3 + 2 * normal(2, 6, 5, 32), normal(2, 6, 5, 32, seed=3)
    scale, bias = normal(32, seed=1), normal(32, seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(ops.lax, "platform_dependent", elsewhere)
        ops._pixel_mean.clear_cache()
        text = jax.jit(group_norm).lower(x, scale, bias).as_text()
        actual = value_and_cotangents(group_norm, g, x, scale, bias)
    ops._pixel_mean.clear_cache()
    assert "stablehlo.reduce" in text  # so the patch has reached it
    expected = value_and_cotangents(naive.group_norm, g, x, scale, bias)
    for a, b in zip(actual, expected, strict=True):
        assert seeded.relative_error(a, b) < FLOAT32


def test_silu_is_safe_far_from_zero():
    """The gradient divides by 1 + exp(-y), which is infinite below about -88."""
    x = normal(1, 4, 4, 32)
    far = jnp.where(jnp.arange(32) % 2, 1e3, -1e3)
    value, g_x, *_ = value_and_cotangents(
        lambda *args: ops.group_norm(*args, 1e-5, silu=True),
        jnp.ones_like(x),
        x,
        jnp.ones(32),
        far,
    )
    assert np.isfinite(g_x).all()
    np.testing.assert_array_equal(value[..., ::2], 0)
    assert (value[..., 1::2] > 990).all()


def test_group_norm_keeps_precision_far_from_zero():
    """Mean 1000, deviation 1: a variance as E[x^2] - E[x]^2 is off by some 0.06."""
    x = 1000 + normal(1, 8, 8, 32)
    scale, bias = jnp.ones(32), jnp.zeros(32)
    exact = np.asarray(x, np.float64)
    mean, std = exact.mean(axis=(1, 2)), exact.std(axis=(1, 2))
    actual = group_norm(x, scale, bias)
    # The mean is known to a few times 1000 * 2^-24 = 6e-5.
    np.testing.assert_allclose(actual, (exact - mean) / std, atol=1e-3)


def test_group_norm_of_a_constant_is_the_bias():
    bias = normal(64)
    y = group_norm(jnp.full((2, 4, 6, 64), 7.0), jnp.ones(64), bias)
    # The mean is off by a rounding or two of 7, times 1 / sqrt(epsilon) = 316.
    np.testing.assert_allclose(y, jnp.broadcast_to(bias, y.shape), atol=6e-4)


def test_group_norm_epsilon_counts():
    x = normal(1, 4, 4, 32)
    y = ops.group_norm(x, jnp.ones(32), jnp.zeros(32), 3.0)
    expected = naive.group_norm(x, jnp.ones(32), jnp.zeros(32), 3.0)
    assert seeded.relative_error(y, expected) < FLOAT32


def test_group_norm_in_bfloat16_takes_statistics_in_float32():
    x = (5 + normal(2, 6, 4, 64)).astype(jnp.bfloat16)
    scale, bias, g = normal(64, seed=1), normal(64, seed=2), normal(*x.shape, seed=3)
    actual = value_and_cotangents(group_norm, g, x, scale, bias)
    exact = x.astype(jnp.float32)
    expected = value_and_cotangents(naive.group_norm, g, exact, scale, bias)
    low, full = jnp.bfloat16, jnp.float32
    assert [a.dtype for a in actual] == [low, low, full, full]
    for a, b in zip(actual, expected, strict=True):
        assert seeded.relative_error(a, b) < BFLOAT16


FEW, MANY = 3, ops.FEW + 1  # channels, for which a CPU convolves differently


@pytest.mark.parametrize("outputs", [FEW, MANY])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 4, 4, MANY), 3),
        ((3, 7, 4, FEW), 1),
        ((3, 7, 4, FEW), 3),
        ((3, 7, 4, MANY), 5),
        ((2, 1, 6, MANY), 3),
    ],
)
def test_convolve_and_its_gradients(shape, size, outputs):
    x, kernel = normal(*shape), normal(size, size, shape[-1], outputs, seed=1)
    g = normal(*shape[:3], outputs, seed=2)
    actual = value_and_cotangents(ops.convolve, g, x, kernel)
    expected = value_and_cotangents(naive.convolve, g, x, kernel)
    for a, b in zip(actual, expected, strict=True):
        assert seeded.relative_error(a, b) < FLOAT32


@pytest.mark.parametrize("shape", [(1, 4, 4, 5), (3, 1, 4, 2), (2, 3, 5, 8)])
def test_convolve_upsampled_and_its_gradients(shape):
    n, h, w, c = shape
    x, kernel = normal(*shape), normal(3, 3, c, 4, seed=1)
    g = normal(n, 2 * h, 2 * w, 4, seed=2)

    def doubled_first(x, kernel):
        return naive.convolve(x.repeat(2, axis=1).repeat(2, axis=2), kernel)

    actual = value_and_cotangents(ops.convolve_upsampled, g, x, kernel)
    expected = value_and_cotangents(doubled_first, g, x, kernel)
    for a, b in zip(actual, expected, strict=True):
        assert seeded.relative_error(a, b) < FLOAT32


@pytest.mark.parametrize("outputs", [FEW, MANY])
def test_convolve_in_bfloat16(outputs):
    x, kernel = normal(2, 6, 5, 8), normal(3, 3, 8, outputs, seed=1)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    g = normal(2, 6, 5, outputs, seed=2)
    exact = [a.astype(jnp.float32) for a in (x, kernel)]
    actual = value_and_cotangents(ops.convolve, g, x, kernel)
    expected = value_and_cotangents(naive.convolve, g, *exact)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        assert seeded.relative_error(a, b) < BFLOAT16


def test_gradients_pass_through_vmap_and_jit():
    """Lanes run the layers under `vmap`; the hand-written gradients must follow."""
    x, kernel = normal(3, 1, 5, 4, 32), normal(3, 3, 32, 32, seed=1)
    scale, bias = normal(32, seed=2), normal(32, seed=3)

    def loss(convolve, group_norm, x):
        y = group_norm(convolve(x, kernel), scale, bias, 1e-5)
        return jnp.sum(jnp.sin(y))

    ours = jax.jit(jax.vmap(jax.grad(lambda x: loss(ops.convolve, ops.group_norm, x))))(
        x
    )
    naive_gradient = jax.jit(
        jax.grad(lambda x: loss(naive.convolve, naive.group_norm, x))
    )
    for i in range(3):
        error = seeded.relative_error(ours[i], naive_gradient(x[i]))
        assert error < 10 * FLOAT32  # through two layers


@pytest.mark.parametrize("function", [ops.downsample, ops.upsample])
def test_gradient_of_resampling_is_its_transpose(function):
    """<f(x), g> = <x, f'(g)> for a linear f: the definition of a transpose."""
    x = normal(2, 4, 6, 3)
    y, pull_back = jax.vjp(function, x)
    g = normal(*y.shape, seed=1)
    [g_x] = pull_back(g)
    # Dot products of some hundred float32 values of size one.
    np.testing.assert_allclose(jnp.vdot(y, g), jnp.vdot(x, g_x), atol=1e-4)


def test_resampling_by_hand():
    x = jnp.arange(8.0).reshape(1, 2, 4, 1)
    assert ops.downsample(x)[0, :, :, 0].tolist() == [[2.5, 4.5]]
    doubled = ops.upsample(x)
    np.testing.assert_array_equal(doubled, np.kron(x, np.ones((1, 2, 2, 1))))
    np.testing.assert_array_equal(ops.downsample(doubled), x)


@pytest.mark.parametrize("sin_first", [False, True])
@pytest.mark.parametrize(("width", "shift"), [(32, 0), (32, 1), (33, 0)])
def test_timestep_embedding_is_its_formula(width, shift, sin_first):
    times = [0, 1, 333, 999.5]
    features = ops.timestep_embedding(
        jnp.asarray(times), width, sin_first=sin_first, divisor_shift=shift
    )
    half = width // 2
    expected = np.zeros((len(times), width))
    for i, t in enumerate(times):
        for j in range(half):
            angle = t * 10000 ** (-j / (half - shift))
            pair = (math.sin(angle), math.cos(angle))
            first, second = pair if sin_first else pair[::-1]
            expected[i, j], expected[i, half + j] = first, second
    # Angles up to 1000 in float32 are off by 1000 * 2^-23.
    np.testing.assert_allclose(features, expected, atol=3e-4)


def test_timestep_embedding_keeps_any_shape():
    assert ops.timestep_embedding(jnp.zeros(()), 8).shape == (8,)
    assert ops.timestep_embedding(jnp.zeros((2, 3)), 8).shape == (2, 3, 8)


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_matches_a_loop(num_heads, heads_first):
    qkv = normal(2, 6, 3 * 16)
    actual = ops.attention(qkv, num_heads, heads_first=heads_first)
    expected = naive.attention(np.asarray(qkv), num_heads, heads_first)
    assert seeded.relative_error(actual, expected) < FLOAT32


def test_attention_in_bfloat16_takes_the_softmax_in_float32():
    qkv = 4 * normal(1, 64, 3 * 32)  # scores of some 16: bfloat16 would be off by 6 %
    rounded = qkv.astype(jnp.bfloat16)
    actual = ops.attention(rounded, 1, heads_first=True)
    assert actual.dtype == jnp.bfloat16
    expected = naive.attention(np.asarray(rounded.astype(jnp.float32)), 1, True)
    assert seeded.relative_error(actual.astype(jnp.float32), expected) < BFLOAT16
