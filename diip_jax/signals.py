"""Variance of the Laplacian, the sharpness score of Sec. 3.4.1."""

import jax
import jax.numpy as jnp


def laplacian_variance(x: jax.Array) -> jax.Array:
    """Return sigma^2, the variance of the Laplacian of x (Chao et al., 2021).

    The four-neighbour Laplacian of the mean of the channels, on the pixels that have
    four neighbours, with grey levels counted from 0 to 255.

    Args:
        x: image, (H, W, 3) in [-1, 1].

    Returns:
        Scalar, float32.
    """
    grey = 127.5 * x.astype(jnp.float32).mean(axis=-1)
    across = grey[1:-1, :-2] + grey[1:-1, 2:]
    down = grey[:-2, 1:-1] + grey[2:, 1:-1]
    return jnp.var(across + down - 4 * grey[1:-1, 1:-1])
