"""Functions that the layers call: plain mathematics, written to be fast.

Each docstring names the plain expression that the function equals, up to the rounding
of sums, and says why it is written otherwise.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
FEW = 6  # channels; to no more than these, CPUs convolve by taps
STRIPS = 8  # of an image, which CPUs add up before they average pixels
GROUPS = 32  # every published pixel-space DDPM normalises in 32 groups


def timestep_embedding(
    t: jax.Array, width: int, *, sin_first: bool = False, divisor_shift: int = 0
) -> jax.Array:
    """Return the sinusoidal features of timesteps.

    Equals `concatenate([cos(t * f), sin(t * f)])`, f_i = 10000^(-i / (half - shift)).
    The f_i are computed in float64 and rounded once, because an error of f_i is 1000
    times as large in the angle of t = 1000.

    Args:
        t: timesteps, any shape (...), integral or fractional.
        width: number of features; an odd one adds a zero.
        sin_first: [sin, cos] as in the DDPM code; [cos, sin] otherwise.
        divisor_shift: the shift in the frequencies f_i.

    Returns:
        Features, (..., width), float32.
    """
    half = width // 2
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / (half - divisor_shift))
    t = jnp.asarray(t, jnp.float32)[..., None]
    angles = t * np.float32(frequencies).reshape((1,) * (t.ndim - 1) + (half,))
    first, second = (jnp.sin, jnp.cos) if sin_first else (jnp.cos, jnp.sin)
    features = jnp.concatenate([first(angles), second(angles)], axis=-1)
    return jnp.pad(features, [(0, 0)] * (features.ndim - 1) + [(0, width - 2 * half)])


# Resampling


@jax.custom_vjp
def downsample(x: jax.Array) -> jax.Array:
    """Average 2x2 blocks: (N, H, W, C) to (N, H/2, W/2, C).

    Equals `nn.avg_pool(x, (2, 2), (2, 2))`; only faster, because of `_sum_blocks` and
    because the gradient is one `upsample`, where autodiff would pad and add four times.
    """
    return _sum_blocks(x) / 4


@jax.custom_vjp
def upsample(x: jax.Array) -> jax.Array:
    """Repeat every pixel 2x2 (nearest neighbour): (N, H, W, C) to (N, 2H, 2W, C).

    Equals `x.repeat(2, axis=1).repeat(2, axis=2)`; only faster, because the gradient is
    `_sum_blocks`, where autodiff would reduce.
    """
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)


def _sum_blocks(x: jax.Array) -> jax.Array:
    """Sum 2x2 blocks: (N, H, W, C) to (N, H/2, W/2, C).

    Equals `x.reshape(N, H/2, 2, W/2, 2, C).sum((2, 4))`; only faster, because CPUs add
    four slices faster than they reduce.
    """
    n, h, w, c = x.shape
    blocks = x.reshape(n, h // 2, 2, w // 2, 2, c)
    upper, lower = blocks[:, :, 0], blocks[:, :, 1]
    return (upper[:, :, :, 0] + upper[:, :, :, 1]) + (
        lower[:, :, :, 0] + lower[:, :, :, 1]
    )


# Each is the other's transpose, up to a factor.
downsample.defvjp(lambda x: (downsample(x), None), lambda _, g: (upsample(g) / 4,))
upsample.defvjp(lambda x: (upsample(x), None), lambda _, g: (_sum_blocks(g),))


# Group normalisation


def group_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    silu: bool = False,
) -> jax.Array:
    """Normalise x over space and the channels of each group, then scale and shift.

    Equals `(x - mean) / sqrt(variance + epsilon) * scale + bias` with the mean and the
    variance of each image and group, then `nn.silu`; only faster, because the gradient
    is written by hand (see `_group_norm_backward`). SiLU is part of the function, so
    that the gradient keeps x alone.

    Args:
        x: features, (N, H, W, C).
        scale: (C,) or (N, C).
        bias: (C,) or (N, C).
        epsilon: added to the variance.
        silu: apply SiLU to the result.

    Returns:
        Features of the shape and dtype of x; computed in float32.
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
    """Return the value and what the gradient needs.

    The variance is the mean of squared deviations. E[x^2] - E[x]^2 needs one pass less
    but loses digits where the mean is large.
    """
    mean = _group_mean(_pixel_mean(x))
    centred = x - mean
    rate = lax.rsqrt(_group_mean(_pixel_mean(jnp.square(centred))) + epsilon)
    y = centred * (rate * scale) + bias
    return y * lax.logistic(y) if silu else y, (x, mean, rate, scale, bias)


def _group_norm_backward(epsilon, silu, residuals, g):
    """Return the cotangents of x, scale and bias.

    Equals autodiff of `_group_norm_forward`; only faster, because it takes two sums
    over the pixels and then one expression for each pixel. With x_hat = (x - mean) *
    rate and means over a group written <.>, the cotangent of x is
    rate * (g s - <g s> - x_hat <g s x_hat>).
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

# A jitted function stands in the program's text once, not once per norm or kernel.


@jax.jit
def _pixel_mean(x: jax.Array) -> jax.Array:
    """Average over the pixels: (N, H, W, C) to (N, 1, 1, C).

    Equals `x.mean((1, 2), keepdims=True)`; only faster on CPUs. The parallel loop that
    computes x adds up strips of the image there, and a dot product averages their sum.
    The dot product runs on one thread, but a sum down to a few numbers is slower still.
    Accelerators sum the terms as they compute them, so they take the plain mean.
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

    Equals `channels.reshape(N, GROUPS, -1).mean(-1).repeat(C // GROUPS, -1)`; only
    faster, because a dot product is computed before the loops that use it. XLA would do
    the repetition inside those loops, again for every pixel.
    """
    c = channels.shape[-1]
    group = lax.div(jnp.arange(c, dtype=jnp.int32), jnp.int32(c // GROUPS))
    shares = (group[:, None] == group[None]).astype(jnp.float32) / (c // GROUPS)
    return jnp.einsum("nhwc,cd->nhwd", channels, shares, precision="highest")


# Convolution


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve x, (N, H, W, C_in), with (S, S, C_in, C_out), padded by S // 2.

    Equals `lax.conv_general_dilated(x, kernel, (1, 1), [(S // 2, S // 2)] * 2)`; only
    faster, because the gradient is written by hand (see `_convolve_backward`) and
    because CPUs convolve to few channels by taps. An odd S keeps the size of x; an even
    S adds a row and a column.
    """
    return _convolve(x, kernel, kernel.shape[0] // 2)


def _convolve(x: jax.Array, kernel: jax.Array, margin: int) -> jax.Array:
    """Convolve x, padded by a margin, in the way that suits shapes and platform.

    Equals `_convolve_whole(x, kernel, margin)`; only faster for few outputs on CPUs.
    """
    whole = functools.partial(_convolve_whole, margin=margin)
    if kernel.shape[-1] > FEW or kernel.shape[0] != 2 * margin + 1:
        return whole(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_convolve_by_taps, default=whole)


def _convolve_whole(x: jax.Array, kernel: jax.Array, margin: int) -> jax.Array:
    """Convolve x, padded by a margin, as XLA does it."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[(margin, margin)] * 2,
        dimension_numbers=DIMENSIONS,
    )


def _convolve_by_taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve x, (N, H, W, C_in), with (S, S, C_in, C_out), S odd, its size kept.

    Equals `_convolve_whole(x, kernel, S // 2)`; only faster for few outputs, because a
    CPU convolves to 3 channels hardly faster than to 32. One product gives what every
    pixel sends to its neighbours, and a sum gives what every pixel receives.
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
    # Not `convolve`: JAX 0.10 confuses what is kept for the gradient with constants of
    # the function in the gradient of a gradient inside a loop.
    return _convolve(x, kernel, kernel.shape[0] // 2), (x, kernel)


def _convolve_backward(residuals, g):
    """Return the cotangents of x and kernel.

    Equals autodiff of `_convolve_whole`; only faster, because the cotangent of x is a
    plain convolution of g with the kernel turned by 180 degrees. Autodiff says the same
    through a reversed window, for which XLA's CPU backend has no fast path in a loop.
    """
    x, kernel = residuals
    turned = _hoisted_out_of_loops(kernel[::-1, ::-1].swapaxes(2, 3))
    margin = kernel.shape[0] // 2
    g_x = _convolve(g, turned, kernel.shape[0] - 1 - margin)
    return g_x, _kernel_cotangent(x, g, margin)


def _kernel_cotangent(x: jax.Array, g: jax.Array, margin: int) -> jax.Array:
    """Return the cotangent of the kernel that convolved x, of the cotangent g.

    The sum runs over the batch, so the batch takes the place of the input channels: no
    loop is needed, and the compiler drops this convolution where only the cotangent of
    x is asked for. The axes are put in order here, not named to the convolution: inside
    a loop XLA's CPU backend has no fast path for the names.
    """
    batch_inwards = _convolve_whole(
        x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), margin
    )
    return batch_inwards.transpose(1, 2, 0, 3)


convolve.defvjp(_convolve_forward, _convolve_backward)


@jax.jit
def _hoisted_out_of_loops(kernel: jax.Array) -> jax.Array:
    """Return a kernel that was made from another one.

    Equals `kernel`; only faster, because XLA takes what stands behind a barrier out of
    the loops over steps and iterations. CPUs then make the kernel once. Without the
    barrier they would make it in every round of the loops. Accelerators turn a kernel
    as they read it and need no second copy, so they get no barrier.
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
    """Double the sides of x and convolve.

    Equals `convolve(upsample(x), kernel)`; only faster, because it takes 4/9 of the
    multiplications. The four pixels that come from one are four 2x2 convolutions of x,
    done as one. The gradient is one 4x4 convolution with stride 2.

    Args:
        x: features, (N, H, W, C_in).
        kernel: (3, 3, C_in, C_out).

    Returns:
        (N, 2 H, 2 W, C_out).
    """
    return _convolve_phases(x, kernel)


def _convolve_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Compute `convolve_upsampled`: convolve to 4 C_out channels, then interleave."""
    n, h, w, _ = x.shape
    c_in, c_out = kernel.shape[2:]
    phases = jnp.asarray(_PHASES, kernel.dtype)
    kernels = jnp.einsum(
        "aik,bjl,klcd->ijcabd", phases, phases, kernel, precision="highest"
    )
    y = convolve(x, _hoisted_out_of_loops(kernels.reshape(2, 2, c_in, 4 * c_out)))
    y = y.reshape(n, h + 1, w + 1, 2, 2, c_out)
    rows = [
        jnp.stack([y[:, a : a + h, b : b + w, a, b] for b in (0, 1)], axis=3)
        for a in (0, 1)
    ]
    return jnp.stack(rows, axis=2).reshape(n, 2 * h, 2 * w, c_out)


def _convolve_upsampled_forward(x, kernel):
    return _convolve_phases(x, kernel), (x, kernel)  # as in `_convolve_forward`


def _convolve_upsampled_backward(residuals, g):
    """Return the cotangents of x and kernel.

    Equals autodiff of `_convolve_phases`; only faster, because the cotangent of x is
    one convolution of g, without taking its four phases apart, and that of the kernel
    is the plain one of `convolve(upsample(x), kernel)`: of the phases, it would be a
    convolution with a window larger than x, which CPUs do slowly.
    """
    x, kernel = residuals
    gathered = jnp.asarray(_GATHERED, kernel.dtype)
    turned = jnp.einsum(
        "ik,jl,klcd->ijdc", gathered, gathered, kernel, precision="highest"
    )
    g_x = lax.conv_general_dilated(
        g,
        _hoisted_out_of_loops(turned),
        (2, 2),
        [(1, 1), (1, 1)],
        dimension_numbers=DIMENSIONS,
    )
    return g_x, _kernel_cotangent(upsample(x), g, margin=1)


convolve_upsampled.defvjp(_convolve_upsampled_forward, _convolve_upsampled_backward)


# Attention


def attention(qkv: jax.Array, num_heads: int, *, heads_first: bool) -> jax.Array:
    """Let every position attend to every other one.

    Equals `softmax(q @ k.T / sqrt(width of a head)) @ v` for each head; only smaller,
    because the gradient computes the softmax again. A softmax kept for the gradient
    would take L^2 numbers per head.

    Args:
        qkv: queries, keys and values, (N, L, 3 C).
        num_heads: number of heads; the width of a head is C / num_heads.
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
    mix = jax.checkpoint(jax.nn.dot_product_attention, prevent_cse=False)
    return mix(q, k, v).reshape(n, length, width // 3)
