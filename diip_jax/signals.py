"""What the criteria watch: the sharpness of g(z) and the decrease of the loss."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", np.ndarray, jax.Array)


def laplacian_variance(x: jax.Array) -> jax.Array:
    """Return sigma^2, the variance of the Laplacian of x (Sec. 3.4.1, line 4).

    The score of Chao et al. (2021): the four-neighbour Laplacian of the mean of the
    channels, on the pixels that have four neighbours, with grey levels from 0 to 255.

    Args:
        x: image, (H, W, 3) in [-1, 1].

    Returns:
        Scalar, float32.
    """
    grey = 127.5 * x.astype(jnp.float32).mean(axis=-1)
    across = grey[1:-1, :-2] + grey[1:-1, 2:]
    down = grey[:-2, 1:-1] + grey[2:, 1:-1]
    return jnp.var(across + down - 4 * grey[1:-1, 1:-1])


def decrease(loss_before: Array, loss: Array) -> Array:
    """Return the normalised decrease of the loss, -Delta_k of Eq. (4).

    The printed slope Delta_k is negative while the loss falls; this is its negative,
    which the text of Sec. 3.4.2 compares with epsilon.

    Args:
        loss_before: E(z^{k-1}; y), any shape, NumPy's or JAX's.
        loss: E(z^k; y), the same shape.
    """
    return (loss_before - loss) / loss_before
