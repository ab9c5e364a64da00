"""A prior that is known exactly: the entries of an image are N(mu, s^2), independent.

Its noise predictor is a closed form, and each sampler can be written out beside it.
"""

import jax.numpy as jnp
import numpy as np

from diip_jax import ddim
from diip_jax.schedule import Schedule, ddim_timesteps


def predictor(mu, s):
    """Return E[n | x_t] for x_t = sqrt(ab) x + sqrt(1 - ab) n; takes ab for t.

    Args:
        mu: mean, a number or (H, W, 3), of NumPy or JAX.
        s: deviation.
    """

    def predict_noise(x_t, alpha_bar):
        variance = alpha_bar * s**2 + 1 - alpha_bar
        return (1 - alpha_bar) ** 0.5 * (x_t - alpha_bar**0.5 * mu) / variance

    return predict_noise


def steps(num_steps):
    """Return DDIM steps of the usual schedule, whose conditioning is alpha_bar."""
    alphas_cumprod = Schedule().alphas_cumprod()
    timesteps = ddim_timesteps(num_steps)
    conditioning = jnp.asarray(alphas_cumprod[timesteps], jnp.float32)
    return ddim.make_steps(conditioning, alphas_cumprod, timesteps)


def levels(num_steps):
    """Return alpha_bar before and after each step, float64 pairs."""
    alpha_bar = Schedule().alphas_cumprod()[ddim_timesteps(num_steps)]
    return list(zip(alpha_bar, np.append(alpha_bar[1:], 1.0), strict=True))


def dense(operator):
    """Return an operator on one channel as a matrix, (h w, H W) float64."""
    height, width = operator.size
    units = np.eye(height * width, dtype=np.float32).reshape(height, width, -1)
    measured = np.asarray(operator.apply(units), np.float64)
    return measured.reshape(-1, height * width)


def columns(x):
    """Return an image, (H, W, 3), as the columns of a matrix, (H W, 3) float64."""
    return np.asarray(x, np.float64).reshape(-1, x.shape[-1])
