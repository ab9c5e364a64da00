"""The functions of `unets.ops` as the most obvious code, and inputs for both."""

import math

import jax.numpy as jnp
import numpy as np

# float32 sums of up to a few thousand terms, in another order.
FLOAT32 = 5e-6


def normal(*shape, seed=0):
    """Return standard normal float32 numbers of this shape, the same in every run."""
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def group_norm(x, scale, bias, epsilon=1e-5):
    """Normalise each image and each group of 32 on its own, as the definition says."""
    n, h, w, c = x.shape
    groups = x.astype(jnp.float32).reshape(n, h, w, 32, c // 32)
    mean = groups.mean(axis=(1, 2, 4), keepdims=True)
    variance = ((groups - mean) ** 2).mean(axis=(1, 2, 4), keepdims=True)
    x_hat = ((groups - mean) / jnp.sqrt(variance + epsilon)).reshape(n, h, w, c)
    scale, bias = (jnp.broadcast_to(a, (n, c))[:, None, None] for a in (scale, bias))
    return (x_hat * scale + bias).astype(x.dtype)


def convolve(x, kernel):
    """Sum shifted copies of the padded image, each times one tap of the kernel."""
    size, margin = kernel.shape[0], kernel.shape[0] // 2
    height, width = x.shape[1:3]
    padded = jnp.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    total = 0
    for i in range(size):
        for j in range(size):
            shifted = padded[:, i : i + height, j : j + width]
            total = total + jnp.einsum("nhwi,io->nhwo", shifted, kernel[i, j])
    return total


def attention(qkv, num_heads, heads_first):
    """Attend head by head and query by query, in float64."""
    n, length, width = qkv.shape
    channels = width // 3
    head = channels // num_heads
    out = np.zeros((n, length, channels))
    for i in range(n):
        for m in range(num_heads):
            start = 3 * m * head if heads_first else m * head
            stride = head if heads_first else channels
            q, k, v = (
                np.float64(qkv[i, :, start + part * stride :][:, :head])
                for part in range(3)
            )
            for row in range(length):
                scores = k @ q[row] / math.sqrt(head)
                weights = np.exp(scores - scores.max())
                out[i, row, m * head : (m + 1) * head] = weights @ v / weights.sum()
    return out
