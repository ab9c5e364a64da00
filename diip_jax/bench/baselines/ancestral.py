"""What the ancestral samplers ask of a prior: noise, and the variance of a step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax import ddim
from diip_jax.config import PAPER
from diip_jax.prior import Prior, network, noise_predictor

# eps and v, each (H, W, 3): v in [-1, 1] places the logarithm of the variance between
# the schedule's two bounds, Eq. (15) of Nichol & Dhariwal (2021).
PredictStep = Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]


def step_predictor(
    prior: Prior, timesteps: np.ndarray
) -> tuple[PredictStep, ddim.Steps]:
    """Return a prior's predictor of noise and variance, and its steps.

    Args:
        prior: the frozen model. Without a learned variance v is -1, the schedule's
            smaller bound, which is the variance of the posterior.
        timesteps: in the order of sampling, (S,).
    """
    predict_noise, steps = noise_predictor(prior, PAPER, timesteps)
    if getattr(prior.card.architecture, "learn_sigma", False):
        return _with_learned_variance(prior), steps

    def predict_step(x: jax.Array, conditioning: Any) -> tuple[jax.Array, jax.Array]:
        return predict_noise(x, conditioning), -jnp.ones_like(x)

    return predict_step, steps


def _with_learned_variance(prior: Prior) -> PredictStep:
    """Return the predictor that also reads the channels that the UNet drops."""
    unet = network(prior.card, PAPER)
    variables = {"params": prior.params}

    def predict_step(x: jax.Array, conditioning: Any) -> tuple[jax.Array, jax.Array]:
        applied: Any = unet.apply(
            variables,
            x[None],
            conditioning,
            capture_intermediates=lambda module, _: module.name == "out_2",
            mutable=["intermediates"],
        )
        eps, kept = applied
        (output,) = kept["intermediates"]["out_2"]["__call__"]
        return eps[0], output[0, ..., 3:]

    return predict_step
