"""Layers shared by the UNets: NHWC, exact group statistics, float32 where it counts.

Every layer stores its parameters under the names `kernel`, `bias` and `scale`, so
that a PyTorch state dict maps onto the tree by renaming alone. Their values always come
from a file: of an initial value only the shape counts, and zeros are quickest to trace.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
FEW = 6  # channels; to no more than these, CPUs convolve by taps
STRIPS = 8  # of an image, which CPUs add up before they average pixels
GROUPS = 32  # every published pixel-space DDPM normalises in 32 groups

Time = tuple[jax.Array, ...]  # what a residual block computes from the timestep alone
Conditioning = tuple[Time, ...]  # of all residual blocks, in order


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


@jax.custom_vjp
def downsample(x: jax.Array) -> jax.Array:
    """Average 2x2 blocks: (N, H, W, C) to (N, H/2, W/2, C)."""
    return _sum_blocks(x) / 4


@jax.custom_vjp
def upsample(x: jax.Array) -> jax.Array:
    """Repeat every pixel 2x2 (nearest neighbour): (N, H, W, C) to (N, 2H, 2W, C)."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)


def _sum_blocks(x: jax.Array) -> jax.Array:
    """Sum 2x2 blocks, as four slices: CPUs run them faster than a reduction."""
    n, h, w, c = x.shape
    blocks = x.reshape(n, h // 2, 2, w // 2, 2, c)
    upper, lower = blocks[:, :, 0], blocks[:, :, 1]
    return (upper[:, :, :, 0] + upper[:, :, :, 1]) + (
        lower[:, :, :, 0] + lower[:, :, :, 1]
    )


# Each is the other's transpose, up to a factor.
downsample.defvjp(lambda x: (downsample(x), None), lambda _, g: (upsample(g) / 4,))
upsample.defvjp(lambda x: (upsample(x), None), lambda _, g: (_sum_blocks(g),))


class Dense(nn.Module):
    """Affine map of the last axis."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x @ kernel + bias."""
        kernel = self.param(
            "kernel", nn.initializers.zeros, (x.shape[-1], self.features)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        y = x @ kernel
        return y + jnp.broadcast_to(bias, y.shape)  # one line of the program, not two


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
        kernel = self.param("kernel", nn.initializers.zeros, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if self.upsampled:
            y = convolve_upsampled(x, kernel)
        elif self.size == 1:
            y = x @ kernel[0, 0]
        elif self.stride == 1 and self.padding == (self.size // 2, self.size // 2):
            y = convolve(x, kernel)
        else:
            y = lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=[self.padding, self.padding],
                dimension_numbers=DIMENSIONS,
            )
        return y + jnp.broadcast_to(bias, y.shape)


class GroupNorm(nn.Module):
    """Group normalisation with a scale and a bias per channel.

    Statistics are exact (two passes) and taken in float32 whatever the dtype of x.

    Attributes:
        epsilon: added to the variance.
        silu: SiLU follows; in one function, so that x alone is kept for the gradient.
    """

    epsilon: float = 1e-5
    silu: bool = False

    @nn.compact
    def affine(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Return scale and bias, each (channels,)."""
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return scale, bias

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise x, (N, H, W, C)."""
        return group_norm(x, *self.affine(x.shape[-1]), self.epsilon, self.silu)


class TimedGroupNorm(GroupNorm):
    """The group normalisation of a residual block at which the timestep enters.

    Attributes:
        scale_shift: time scales and shifts what is normalised; otherwise it is added to
            what is to be normalised.
    """

    scale_shift: bool = True

    def condition(self, projection: jax.Array) -> Time:
        """Return what the norm needs of the time.

        Args:
            projection: of the time embedding, (..., 2 C) or, to be added, (..., C).

        Returns:
            Scale and bias of `norm(x) * (1 + factor) + shift`, or the addend; (..., C).
        """
        if not self.scale_shift:
            return (projection,)
        factor, shift = jnp.split(projection, 2, axis=-1)
        scale, bias = self.affine(factor.shape[-1])
        return scale * (1 + factor), bias * (1 + factor) + shift

    def __call__(self, x: jax.Array, time: Time) -> jax.Array:
        """Normalise x, (N, H, W, C), given what `condition` made of the time."""
        if self.scale_shift:
            scale, bias = time
            return group_norm(x, scale, bias, self.epsilon, self.silu)
        return super().__call__(x + time[0].astype(x.dtype))


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
    n, _, _, c = x.shape
    scale, bias = (
        jnp.broadcast_to(a.reshape(-1, 1, 1, c), (n, 1, 1, c)) for a in (scale, bias)
    )
    wide = x.astype(jnp.float32)
    y: jax.Array = _group_norm(wide, scale, bias, epsilon, silu)  # pyright: ignore
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, silu: bool
) -> jax.Array:
    """Normalise x, (N, H, W, C), with scale and bias (N, 1, 1, C)."""
    return _group_norm_forward(x, scale, bias, epsilon, silu)[0]


def _group_norm_forward(x, scale, bias, epsilon, silu):
    mean = _group_mean(_pixel_mean(x))
    centred = x - mean
    rate = lax.rsqrt(_group_mean(_pixel_mean(jnp.square(centred))) + epsilon)
    y = centred * (rate * scale) + bias
    return y * lax.logistic(y) if silu else y, (x, mean, rate, scale, bias)


def _group_norm_backward(epsilon, silu, residuals, g):
    """Return the cotangents; autodiff of the above is exact too, but much slower.

    With x_hat = (x - mean) * rate and means over a group written <.>, the cotangent of
    x is rate * (g s - <g s> - x_hat <g s x_hat>).
    """
    x, mean, rate, scale, bias = residuals
    _, height, width, _ = x.shape
    x_hat = (x - mean) * rate
    if silu:
        y = x_hat * scale + bias
        rise = 1 + jnp.exp(-y)  # the sigmoid is 1 / rise
        g = g * (1 + y * (1 - 1 / rise)) / rise
    g_bias, g_scale = _pixel_mean(g), _pixel_mean(g * x_hat)
    offset = rate * _group_mean(g_bias * scale)
    tilt = rate * _group_mean(g_scale * scale)
    g_x = g * (rate * scale) - offset - x_hat * tilt
    return g_x, height * width * g_scale, height * width * g_bias


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)

# The jitted ones are one function in the program's text, not a copy per norm.


@jax.jit
def _pixel_mean(x: jax.Array) -> jax.Array:
    """Average over the pixels: (N, H, W, C) to (N, 1, 1, C).

    On a CPU strips of the image are added up, in the parallel loop that computes x, and
    a dot product averages their sum: it runs on one thread, but a sum down to a few
    numbers is slower still. Elsewhere a sum takes its terms as they are computed.
    """
    n, height, width, c = x.shape

    def product(x: jax.Array) -> jax.Array:
        rows = x.reshape(n, math.gcd(height, STRIPS), -1, c).sum(1)
        weights = jnp.full(rows.shape[:2], 1 / (height * width), x.dtype)
        means = jnp.einsum("nl,nlc->nc", weights, rows, precision="highest")
        return means.reshape(n, 1, 1, c)

    def mean(x: jax.Array) -> jax.Array:
        return x.mean(axis=(1, 2), keepdims=True)

    return lax.platform_dependent(x, cpu=product, default=mean)


@jax.jit
def _group_mean(channels: jax.Array) -> jax.Array:
    """Give each channel its group's average: (N, 1, 1, C) to (N, 1, 1, C).

    By a dot product, because what it gives is an array of its own: a repetition would
    be done anew for every pixel, inside the loops that use it.
    """
    c = channels.shape[-1]
    group = lax.div(jnp.arange(c), c // GROUPS)
    shares = (group[:, None] == group).astype(jnp.float32) / (c // GROUPS)
    return jnp.einsum("nhwc,cd->nhwd", channels, shares, precision="highest")


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve x, (N, H, W, C_in), with (S, S, C_in, C_out), padded by S // 2.

    An odd S keeps the size of x, an even one adds a row and a column.

    The cotangent of x is again such a convolution, with the kernel turned by 180
    degrees; autodiff says the same through a reversed window, for which XLA's CPU
    backend has no fast path inside a loop.
    """
    return _convolve(x, kernel, kernel.shape[0] // 2)


def _convolve(x: jax.Array, kernel: jax.Array, margin: int) -> jax.Array:
    """Convolve x, padded by a margin, in the way that suits shapes and platform."""
    whole = functools.partial(_convolve_whole, margin=margin)
    if kernel.shape[-1] > FEW or kernel.shape[0] != 2 * margin + 1:
        return whole(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_convolve_by_taps, default=whole)


def _convolve_whole(
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


def _convolve_by_taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve x, (N, H, W, C_in), with (S, S, C_in, C_out), S odd, its size kept.

    One product gives what every pixel sends to its neighbours, a sum what arrives. For
    few outputs: a CPU convolves to 3 channels hardly faster than to 32.
    """
    n, height, width, c_in = x.shape
    size, _, _, c_out = kernel.shape
    margin = size // 2
    weights = kernel.transpose(2, 0, 1, 3).reshape(c_in, size * size * c_out)
    sent = jnp.matmul(x, weights, preferred_element_type=jnp.float32)
    sent = jnp.pad(sent, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    sent = sent.reshape(*sent.shape[:3], size, size, c_out)
    taps = itertools.product(range(size), repeat=2)
    received = [sent[:, i : i + height, j : j + width, i, j] for i, j in taps]
    return functools.reduce(jnp.add, received).astype(x.dtype)


def _convolve_forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _convolve_backward(residuals, g):
    x, kernel = residuals
    turned = _once(kernel[::-1, ::-1].swapaxes(2, 3))
    margin = kernel.shape[0] // 2
    # The batch is contracted, so it takes the part of the channels: no loop, and the
    # compiler drops it where only the cotangent of x is asked for.
    g_kernel = _convolve_whole(x, g, margin, ("CHWN", "IHWO", "HWNC"))
    return _convolve(g, turned, kernel.shape[0] - 1 - margin), g_kernel


convolve.defvjp(_convolve_forward, _convolve_backward)


@jax.jit
def _once(kernel: jax.Array) -> jax.Array:
    """Return a kernel that was made of another one, for CPUs to make it only once.

    Behind a barrier it is an array of its own, which XLA takes out of the loops over
    steps and iterations; a bare transpose stays inside. Accelerators turn kernels as
    they read them, and need no second copy.
    """
    return lax.platform_dependent(
        kernel, cpu=lax.optimization_barrier, default=lambda kernel: kernel
    )


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
    y = convolve(x, _once(kernels.reshape(2, 2, c_in, 4 * c_out)))
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
        g, _once(turned), (2, 2), [(1, 1), (1, 1)], dimension_numbers=DIMENSIONS
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
    # The gradient computes the softmax anew: kept, it would take L^2 numbers per head.
    mix = jax.checkpoint(jax.nn.dot_product_attention, prevent_cse=False)
    return mix(q, k, v).reshape(n, length, width // 3)
