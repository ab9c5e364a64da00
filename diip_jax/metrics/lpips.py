"""LPIPS, a learned distance between images (Zhang et al., 2018), version 0.1.

A pure function of weights, which are read by `lpips_weights`. Features of a network
trained on ImageNet are compared at five depths, after scaling each pixel's feature
vector to length 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


class Stage(NamedTuple):
    """What comes between two compared features.

    Attributes:
        pool: side of the window of the max-pooling that begins it, its stride 2; 0 for
            none.
        convolutions: stride and padding of each convolution, which a ReLU follows.
    """

    pool: int
    convolutions: tuple[tuple[int, int], ...]


class Weights(NamedTuple):
    """Weights of one network.

    Attributes:
        kernels: of all convolutions in order, each (S, S, C_in, C_out).
        biases: of the same, each (C_out,).
        heads: importance of each channel at the five depths, each (C,).
    """

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    heads: tuple[jax.Array, ...]


SAME = (1, 1)  # stride 1, one pixel of padding around a 3x3 window
NETWORKS: dict[str, tuple[Stage, ...]] = {
    "alex": (
        Stage(0, ((4, 2),)),
        Stage(3, ((1, 2),)),
        Stage(3, (SAME,)),
        Stage(0, (SAME,)),
        Stage(0, (SAME,)),
    ),
    "vgg": (
        Stage(0, (SAME,) * 2),
        Stage(2, (SAME,) * 2),
        Stage(2, (SAME,) * 3),
        Stage(2, (SAME,) * 3),
        Stage(2, (SAME,) * 3),
    ),
}
SMALLEST_SIDE = {"alex": 31, "vgg": 16}  # pixels, for nothing to be pooled away
# Mean and deviation of ImageNet's channels, for images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


def lpips(
    network: str, weights: Weights, reference: jax.Array, comparison: jax.Array
) -> jax.Array:
    """Return the distance of two images: 0 if they are equal, near 1 if unrelated.

    Args:
        network: "alex" or "vgg".
        weights: of this network.
        reference: image, (H, W, 3) in [0, 1], sides of at least `SMALLEST_SIDE`.
        comparison: image of the same shape.
    """
    pair = 2 * jnp.stack([reference, comparison]).astype(jnp.float32) - 1
    pair = (pair - jnp.array(SHIFT)) / jnp.array(SCALE)
    distance = jnp.float32(0)
    for x, head in zip(_features(network, weights, pair), weights.heads, strict=True):
        length = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
        x = x / (length + 1e-10)
        distance += jnp.mean(jnp.square(x[0] - x[1]) @ head)
    return distance


def _features(network: str, weights: Weights, x: jax.Array) -> list[jax.Array]:
    """Return the five features of images, (N, H, W, 3)."""
    layers = iter(zip(weights.kernels, weights.biases, strict=True))
    features = []
    for stage in NETWORKS[network]:
        if stage.pool:
            x = nn.max_pool(x, (stage.pool, stage.pool), (2, 2))
        for stride, padding in stage.convolutions:
            kernel, bias = next(layers)
            x = lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                [(padding, padding)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = nn.relu(x + bias)
        features.append(x)
    return features
