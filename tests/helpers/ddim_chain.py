"""A noise predictor that is a formula, and diffusers' DDIM chain with it."""

import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.schedule import ddim_timesteps

STEP_COUNTS = (1, 2, 3, 5, 7, 10, 20)
SHAPE = (8, 12, 3)


def predict_noise(x_t, t):
    """Couple neighbouring pixels and channels, as a network would; smooth in x_t."""
    around = jnp.roll(x_t, 1, axis=0) - 0.5 * jnp.roll(x_t, 1, axis=2)
    return jnp.sin(2 * x_t + t / 500) + 0.3 * jnp.cos(around)


def start(seed=0, scale=1.0):
    z = np.random.default_rng(seed).standard_normal(SHAPE)
    return jnp.asarray(scale * z, jnp.float32)


def torch_predict_noise(x_t, t):
    """Return `predict_noise` of a PyTorch tensor (H, W, C)."""
    around = x_t.roll(1, 0) - 0.5 * x_t.roll(1, 2)
    return (2 * x_t + t / 500).sin() + 0.3 * around.cos()


def diffusers_chain(num_steps):
    """Return the end of the chain from `start()` by diffusers' scheduler."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="leading",
        steps_offset=0,
    )
    scheduler.set_timesteps(num_steps)
    assert scheduler.timesteps.tolist() == ddim_timesteps(num_steps).tolist()
    x = torch.from_numpy(np.array(start()))
    for t in scheduler.timesteps:
        eps = torch_predict_noise(x, float(t))
        step = scheduler.step(eps, t, x, eta=0.0, use_clipped_model_output=True)
        x = step.prev_sample
    return x.numpy()
