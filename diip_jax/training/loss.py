"""What a prior is trained to do: predict the noise in a noisy picture.

The loss is the mean square error of the predicted noise (Ho et al., 2020), with one
weight for each timestep.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax.schedule import Schedule

MAX_LEVEL_WEIGHT = 10.0
MIN_SNR = 5.0  # gamma of Hang et al. (2023)

Predict = Callable[[Any, jax.Array, jax.Array], jax.Array]  # params, x_t, t to eps

# Weights by the noise level sqrt((1 - ab) / ab) of a timestep. An error of eps is one
# of x_0 times that level, so that equal weights hardly see the largest timesteps.
WEIGHTINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": np.ones_like,
    "level": lambda level: np.clip(level, 1, MAX_LEVEL_WEIGHT),
    # Hang et al. (2023), min(SNR, gamma) for x_0, written for eps; SNR = level^-2.
    "min-snr": lambda level: np.minimum(MIN_SNR * level**2, 1),
    # Choi et al. (2022), (k + SNR)^-gamma with k = gamma = 1.
    "p2": lambda level: 1 / (1 + level**-2.0),
}


def in_range(pictures: jax.Array) -> jax.Array:
    """Return 8-bit pictures as float32 ones in [-1, 1]."""
    return pictures.astype(jnp.float32) / 127.5 - 1


def draw_timesteps(
    key: jax.Array, count: int, num_train_timesteps: int, band: tuple[int, int]
) -> jax.Array:
    """Return timesteps, half of them from a band, stratified within both halves.

    Each stratum gives one timestep, so that every batch holds small and large ones and
    its loss varies less.

    Args:
        key: of the batch.
        count: how many.
        num_train_timesteps: T.
        band: first and last timestep of the band.

    Returns:
        (count,) int32, those of the band first.
    """
    in_band = count // 2
    offsets = jax.random.uniform(key, (count,))
    first, last = band
    low = first + (last + 1 - first) * _strata(offsets[:in_band])
    everywhere = num_train_timesteps * _strata(offsets[in_band:])
    drawn = jnp.concatenate([low, everywhere]).astype(jnp.int32)
    return jnp.minimum(drawn, num_train_timesteps - 1)  # a sum may round up to T


def _strata(offsets: jax.Array) -> jax.Array:
    """Return one number of [0, 1) in each of as many equal parts."""
    return (jnp.arange(len(offsets)) + offsets) / max(len(offsets), 1)


def diffuse(
    x: jax.Array, noise: jax.Array, t: jax.Array, schedule: Schedule
) -> jax.Array:
    """Return x_t = sqrt(ab_t) x + sqrt(1 - ab_t) noise, Eq. (4) of Ho et al. (2020).

    Args:
        x: clean images, (N, H, W, 3) in [-1, 1].
        noise: standard normal, of the same shape.
        t: timesteps, (N,).
        schedule: the forward process.
    """
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod(), jnp.float32)
    alpha_bar = alphas_cumprod[t][:, None, None, None]
    return jnp.sqrt(alpha_bar) * x + jnp.sqrt(1 - alpha_bar) * noise


def noise_error(
    predict: Predict,
    params: Any,
    x: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    schedule: Schedule,
) -> jax.Array:
    """Return the mean square error of the noise predicted in each image, (N,).

    Args:
        predict: the network.
        params: its weights.
        x: clean images, (N, H, W, 3) in [-1, 1].
        noise: standard normal, of the same shape.
        t: timesteps, (N,).
        schedule: the forward process.
    """
    x_t = diffuse(x, noise, t, schedule)
    seen = jnp.asarray(schedule.network_timesteps(t), jnp.float32)
    error = predict(params, x_t, seen) - noise
    return jnp.mean(jnp.square(error), axis=(1, 2, 3))


def weights(schedule: Schedule, weighting: str) -> np.ndarray:
    """Return the weight of each timestep, (T,) float32; see `WEIGHTINGS`."""
    return WEIGHTINGS[weighting](schedule.noise_levels()).astype(np.float32)
