"""A prior that is known exactly: the entries of an image are N(mu, s^2), independent.

Its noise predictor is a closed form, and each sampler can be written out beside it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax import ddim
from diip_jax.schedule import Schedule, ddim_timesteps, linear_alphas_cumprod

# A schedule that comes down to 0.03 within 20 steps, so that every step is walked.
SHORT_ALPHAS_CUMPROD = linear_alphas_cumprod(20, 5e-3, 0.3)
SHORT = len(SHORT_ALPHAS_CUMPROD)


def predictor(mu, s=0.0):
    """Return E[n | x_t] for x_t = sqrt(ab) x + sqrt(1 - ab) n; takes ab for t.

    Args:
        mu: mean, a number or (H, W, 3), of NumPy or JAX.
        s: deviation; 0 where the prior knows the image.
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


def short_steps(timesteps=tuple(range(SHORT))[::-1]):
    """Return DDIM steps whose conditioning is alpha_bar."""
    timesteps = np.asarray(timesteps)
    alpha_bar = jnp.asarray(SHORT_ALPHAS_CUMPROD[timesteps], jnp.float32)
    return ddim.make_steps(alpha_bar, SHORT_ALPHAS_CUMPROD, timesteps)


def short_levels(timesteps=tuple(range(SHORT))[::-1]):
    """Return pairs of alpha_bar before and after each step, as Python floats."""
    before = [float(SHORT_ALPHAS_CUMPROD[t]) for t in timesteps]
    return list(zip(before, [*before[1:], 1.0], strict=True))


def bound(predict_noise):
    """Return a stand-in for `prior.noise_predictor` that gives this predictor.

    It is for the compared methods: their `restore` then takes any prior's schedule and
    sizes, and no network has to be compiled.
    """

    def noise_predictor(prior, config, timesteps):
        alphas_cumprod = prior.card.schedule.alphas_cumprod()
        alpha_bar = jnp.asarray(alphas_cumprod[timesteps], jnp.float32)
        return predict_noise, ddim.make_steps(alpha_bar, alphas_cumprod, timesteps)

    return noise_predictor


def wavy(x_t, alpha_bar):
    """Predict some noise, of no prior; smooth, for JAX and NumPy arrays."""
    sin = jnp.sin if isinstance(x_t, jax.Array) else np.sin
    return 0.8 * x_t + 0.3 * sin(3 * x_t + alpha_bar)
