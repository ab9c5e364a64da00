"""Layers shared by the UNets: NHWC, exact group statistics, float32 where it counts.

Every layer stores its parameters under the names `kernel`, `bias` and `scale`, so
that a PyTorch state dict maps onto the tree by renaming alone.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
GROUPS = 32  # every published pixel-space DDPM normalises in 32 groups


def timestep_embedding(
    t: jax.Array, width: int, *, sin_first: bool = False, divisor_shift: int = 0
) -> jax.Array:
    """Return the sinusoidal features of timesteps.

    Args:
        t: timesteps, any shape (...), integral or fractional.
        width: number of features.
        sin_first: [sin, cos] as in the DDPM code; [cos, sin] otherwise.
        divisor_shift: frequencies are 10000^(-i / (half - divisor_shift)).

    Returns:
        Features, (..., width), float32.
    """
    half = width // 2
    # In float64, rounded once: at t = 1000 an error of a frequency is 1000 times as
    # large in its angle.
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / (half - divisor_shift))
    angles = jnp.asarray(t, jnp.float32)[..., None] * np.float32(frequencies)
    waves = (
        [jnp.sin(angles), jnp.cos(angles)]
        if sin_first
        else [
            jnp.cos(angles),
            jnp.sin(angles),
        ]
    )
    features = jnp.concatenate(waves, axis=-1)
    return jnp.pad(features, [(0, 0)] * (features.ndim - 1) + [(0, width - 2 * half)])


def downsample(x: jax.Array) -> jax.Array:
    """Average 2x2 blocks: (N, H, W, C) to (N, H/2, W/2, C)."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample(x: jax.Array) -> jax.Array:
    """Repeat every pixel 2x2 (nearest neighbour): (N, H, W, C) to (N, 2H, 2W, C)."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)


class Dense(nn.Module):
    """Affine map of the last axis."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x @ kernel + bias."""
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return x @ kernel + bias


class Conv(nn.Module):
    """2-D convolution with explicit padding, (N, H, W, C_in) to (N, H', W', C_out).

    Attributes:
        features: C_out.
        size: side of the kernel.
        stride: step of the window.
        padding: zeros before and after each side.
        upsampled: convolve `upsample(x)` instead of x; for the default window alone.
        dtype: of the computation.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
    upsampled: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the convolution of x plus the bias."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if self.upsampled:
            return convolve_upsampled(x, kernel) + bias
        if self.size == 1:
            return x @ kernel[0, 0] + bias
        if self.stride == 1 and self.padding == (self.size // 2, self.size // 2):
            return convolve(x, kernel) + bias
        y = lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=[self.padding, self.padding],
            dimension_numbers=DIMENSIONS,
        )
        return y + bias


class GroupNorm(nn.Module):
    """Group normalisation whose affine part can absorb a further scale and shift.

    Statistics are exact (two passes) and taken in float32 whatever the dtype of x.

    Attributes:
        epsilon: added to the variance.
        silu: SiLU follows; in one function, so that x alone is kept for the gradient.
    """

    epsilon: float = 1e-5
    silu: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        modulation: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Normalise x, (N, H, W, C), then apply `* (1 + scale) + shift` if given.

        Args:
            x: features.
            modulation: scale and shift per channel, each (C,) or (N, C).
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if modulation is not None:
            factor, shift = (m.astype(jnp.float32) for m in modulation)
            scale, bias = scale * (1 + factor), bias * (1 + factor) + shift
        return group_norm(x, scale, bias, self.epsilon, self.silu)


def group_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    silu: bool = False,
) -> jax.Array:
    """Normalise x over space and the channels of each group, then scale and shift.

    Args:
        x: features, (N, H, W, C).
        scale: (C,) or (N, C).
        bias: (C,) or (N, C).
        epsilon: added to the variance.
        silu: apply SiLU to the result.

    Returns:
        Features of the shape and dtype of x.
    """
    n, h, w, c = x.shape
    scale, bias = (jnp.broadcast_to(a, (n, c)) for a in (scale, bias))
    flat = x.astype(jnp.float32).reshape(n, h * w, c)
    y: jax.Array = _group_norm(flat, scale, bias, epsilon, silu)  # pyright: ignore
    return y.reshape(x.shape).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, silu: bool
) -> jax.Array:
    """Normalise x, (N, L, C), with scale and bias (N, C)."""
    return _group_norm_forward(x, scale, bias, epsilon, silu)[0]


def _group_norm_forward(x, scale, bias, epsilon, silu):
    mean = _group_mean(_channel_mean(x))[:, None]
    centred = x - mean
    variance = _group_mean(_channel_mean(jnp.square(centred)))[:, None]
    rate = lax.rsqrt(variance + epsilon)
    y = centred * (rate * scale[:, None]) + bias[:, None]
    return nn.silu(y) if silu else y, (x, mean, rate, scale, bias)


def _group_norm_backward(epsilon, silu, residuals, g):
    """Return the cotangents; autodiff of the above is exact too, but much slower.

    With x_hat = (x - mean) * rate and means over a group written <.>, the cotangent of
    x is rate * (g s - <g s> - x_hat <g s x_hat>).
    """
    x, mean, rate, scale, bias = residuals
    x_hat = (x - mean) * rate
    if silu:
        y = x_hat * scale[:, None] + bias[:, None]
        rise = 1 + jnp.exp(-y)  # the sigmoid is 1 / rise
        g = g * (1 + y * (1 - 1 / rise)) / rise
    along_bias, along_scale = _channel_mean(g), _channel_mean(g * x_hat)
    offset = _group_mean(along_bias * scale)[:, None]
    tilt = _group_mean(along_scale * scale)[:, None]
    length = x.shape[1]
    g_x = rate * (g * scale[:, None] - offset - x_hat * tilt)
    return g_x, along_scale * length, along_bias * length


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)


def _channel_mean(x: jax.Array) -> jax.Array:
    """Average (N, L, C) over L: a dot product, which CPUs run faster than a sum."""
    n, length, _ = x.shape
    weights = jnp.full((n, length), 1 / length, x.dtype)
    return jnp.einsum("nl,nlc->nc", weights, x, precision="highest")


@jax.jit  # one function in the program's text, not a copy per norm
def _group_mean(channels: jax.Array) -> jax.Array:
    """Replace each channel, (N, C), by the mean of its group."""
    n, c = channels.shape
    means = channels.reshape(n, GROUPS, c // GROUPS).mean(axis=-1)
    return jnp.repeat(means, c // GROUPS, axis=-1)


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve x, (N, H, W, C_in), with (S, S, C_in, C_out), padded by S // 2.

    An odd S keeps the size of x, an even one adds a row and a column.

    The cotangent of x is again such a convolution, with the kernel turned by 180
    degrees; autodiff says the same through a reversed window, for which XLA's CPU
    backend has no fast path inside a loop.
    """
    return _convolve(x, kernel, kernel.shape[0] // 2)


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    margin: int,
    dimensions: tuple[str, str, str] = DIMENSIONS,
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[(margin, margin)] * 2,
        dimension_numbers=dimensions,
    )


def _convolve_forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _convolve_backward(residuals, g):
    x, kernel = residuals
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    margin = kernel.shape[0] // 2
    # The batch is contracted, so it takes the part of the channels: no loop, and the
    # compiler drops it where only the cotangent of x is asked for.
    g_kernel = _convolve(x, g, margin, ("CHWN", "IHWO", "HWNC"))
    return _convolve(g, turned, kernel.shape[0] - 1 - margin), g_kernel


convolve.defvjp(_convolve_forward, _convolve_backward)

# Doubling repeats rows, so that two of three taps fall on the same row: the weights
# that output rows 2i and 2i + 1 give to two neighbouring rows, (2, 2, 3).
_PHASES = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
# Backwards, a row gathers from output rows 2i - 1 to 2i + 2 what its two copies gave.
_GATHERED = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)


@jax.custom_vjp
def convolve_upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return `convolve(upsample(x), kernel)` with 4/9 of its multiplications.

    The four pixels that come of one are four 2x2 convolutions of x, done as one; their
    transpose is one 4x4 convolution with stride 2.

    Args:
        x: features, (N, H, W, C_in).
        kernel: (3, 3, C_in, C_out).

    Returns:
        (N, 2 H, 2 W, C_out).
    """
    return _convolve_phases(x, kernel)


def _convolve_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    n, h, w, _ = x.shape
    c_in, c_out = kernel.shape[2:]
    phases = jnp.asarray(_PHASES, kernel.dtype)
    kernels = jnp.einsum(
        "aik,bjl,klcd->ijcabd", phases, phases, kernel, precision="highest"
    )
    y = convolve(x, kernels.reshape(2, 2, c_in, 4 * c_out))
    y = y.reshape(n, h + 1, w + 1, 2, 2, c_out)
    rows = [
        jnp.stack([y[:, a : a + h, b : b + w, a, b] for b in (0, 1)], axis=3)
        for a in (0, 1)
    ]
    return jnp.stack(rows, axis=2).reshape(n, 2 * h, 2 * w, c_out)


def _convolve_upsampled_forward(x, kernel):
    return convolve_upsampled(x, kernel), (x, kernel)


def _convolve_upsampled_backward(residuals, g):
    x, kernel = residuals
    gathered = jnp.asarray(_GATHERED, kernel.dtype)
    turned = jnp.einsum(
        "ik,jl,klcd->ijdc", gathered, gathered, kernel, precision="highest"
    )
    g_x = lax.conv_general_dilated(
        g, turned, (2, 2), [(1, 1), (1, 1)], dimension_numbers=DIMENSIONS
    )
    _, pull_kernel = jax.vjp(functools.partial(_convolve_phases, x), kernel)
    return g_x, *pull_kernel(g)


convolve_upsampled.defvjp(_convolve_upsampled_forward, _convolve_upsampled_backward)


def attention(qkv: jax.Array, num_heads: int, *, heads_first: bool) -> jax.Array:
    """Let every position attend to every other one.

    Args:
        qkv: queries, keys and values, (N, L, 3 C).
        num_heads: number of heads; head width is C / num_heads.
        heads_first: channels are [head][q|k|v] (the legacy order of guided-diffusion)
            rather than [q|k|v][head].

    Returns:
        (N, L, C); the softmax is taken in float32.
    """
    n, length, width = qkv.shape
    head = width // (3 * num_heads)
    if heads_first:
        q, k, v = jnp.moveaxis(qkv.reshape(n, length, num_heads, 3, head), 3, 0)
    else:
        q, k, v = jnp.moveaxis(qkv.reshape(n, length, 3, num_heads, head), 2, 0)
    return jax.nn.dot_product_attention(q, k, v).reshape(n, length, width // 3)
