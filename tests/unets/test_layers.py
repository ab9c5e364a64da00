"""The layers of the UNets against naive formulas."""

import jax.numpy as jnp
import pytest

from diip_jax.unets import layers
from helpers import naive, seeded
from helpers.naive import FLOAT32, normal


def test_timed_group_norm_is_norm_then_scale_and_shift():
    norm, x = layers.TimedGroupNorm(), normal(2, 4, 6, 64)
    scale, bias, factor, shift = (normal(64, seed=i) for i in range(1, 5))
    params = {"params": {"scale": scale, "bias": bias}}
    projection = jnp.concatenate([factor, shift])
    time = norm.apply(params, projection, method="condition")
    expected = naive.group_norm(x, scale, bias) * (1 + factor) + shift
    assert seeded.relative_error(norm.apply(params, x, time), expected) < FLOAT32


def test_timed_group_norm_without_scale_adds_before_it_normalises():
    norm, x = layers.TimedGroupNorm(scale_shift=False), normal(2, 4, 6, 64)
    scale, bias, addend = (normal(64, seed=i) for i in range(1, 4))
    params = {"params": {"scale": scale, "bias": bias}}
    time = norm.apply(params, addend, method="condition")
    expected = naive.group_norm(x + addend, scale, bias)
    assert seeded.relative_error(norm.apply(params, x, time), expected) < FLOAT32


@pytest.mark.parametrize("padding", [(1, 1), (0, 1)])
def test_strided_convolution_is_every_second_position(padding):
    layer = layers.Conv(4, stride=2, padding=padding)
    x, kernel, bias = normal(2, 8, 6, 3), normal(3, 3, 3, 4, seed=1), normal(4, seed=2)
    actual = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    dense = naive.convolve(x, kernel)
    first = 1 - padding[0]  # padded on one side only, windows start one pixel later
    expected = dense[:, first::2, first::2] + bias
    assert seeded.relative_error(actual, expected) < FLOAT32


@pytest.mark.parametrize("size", [1, 3])
def test_conv_and_dense_add_their_bias(size):
    x, bias = normal(2, 4, 6, 3), normal(5, seed=2)
    kernel = normal(size, size, 3, 5, seed=1)
    params = {"params": {"kernel": kernel, "bias": bias}}
    margin = (size // 2, size // 2)
    conv = layers.Conv(5, size=size, padding=margin).apply(params, x)
    assert seeded.relative_error(conv, naive.convolve(x, kernel) + bias) < FLOAT32
    params = {"params": {"kernel": kernel[0, 0], "bias": bias}}
    dense = layers.Dense(5).apply(params, x)
    assert seeded.relative_error(dense, x @ kernel[0, 0] + bias) < FLOAT32
