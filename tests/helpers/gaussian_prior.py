"""A prior whose noise predictor is known: every pixel is N(mean, variance).

x_t has variance alpha_bar variance + 1 - alpha_bar, so the best prediction of its noise
is a line in x_t. The conditioning of a step is its alpha_bar.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax import ddim
from diip_jax.schedule import linear_alphas_cumprod

ALPHAS_CUMPROD = linear_alphas_cumprod(20, 5e-3, 0.3)  # down to 0.03, within 20 steps
T = len(ALPHAS_CUMPROD)


def steps(timesteps=tuple(range(T))[::-1]):
    """Return DDIM steps whose conditioning is alpha_bar."""
    timesteps = np.asarray(timesteps)
    alpha_bar = jnp.asarray(ALPHAS_CUMPROD[timesteps], jnp.float32)
    return ddim.make_steps(alpha_bar, ALPHAS_CUMPROD, timesteps)


def noise_predictor(mean, variance=0.0):
    """Return eps of x_t, given alpha_bar; for JAX and NumPy arrays."""

    def predict_noise(x_t, alpha_bar):
        s = (1 - alpha_bar) ** 0.5
        spread = alpha_bar * variance + 1 - alpha_bar
        return s * (x_t - alpha_bar**0.5 * mean) / spread

    return predict_noise


def levels(timesteps=tuple(range(T))[::-1]):
    """Return pairs of alpha_bar before and after each step, as Python floats."""
    before = [float(ALPHAS_CUMPROD[t]) for t in timesteps]
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
