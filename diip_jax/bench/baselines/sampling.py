"""What the compared samplers share: what they ask of a prior, and Gaussian algebra.

A step goes from x_t to x_{t-1}; `ddim.Steps` holds alpha_bar of both.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax import ddim
from diip_jax.bench.baselines.restored import Restored
from diip_jax.config import PAPER
from diip_jax.prior import Prior, network, noise_predictor
from diip_jax.schedule import ddim_timesteps

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


def bind(
    prior: Prior, size: tuple[int, int], num_steps: int
) -> tuple[ddim.PredictNoise, ddim.Steps]:
    """Return a prior's noise predictor and its steps; arguments as of `timesteps`."""
    return noise_predictor(prior, PAPER, timesteps(prior, size, num_steps))


def bind_variance(
    prior: Prior, size: tuple[int, int], num_steps: int
) -> tuple[PredictStep, ddim.Steps]:
    """Return a prior's predictor of noise and variance; otherwise as `bind`."""
    return step_predictor(prior, timesteps(prior, size, num_steps))


def timesteps(prior: Prior, size: tuple[int, int], num_steps: int) -> np.ndarray:
    """Return timesteps for images of one size, in the order of sampling, (S,).

    Args:
        prior: the frozen model.
        size: height and width of the images.
        num_steps: "leading" timesteps, the last of which is 0.

    Raises:
        ValueError: the prior does not take such images, or has fewer timesteps.
    """
    check_size(prior, size)
    return ddim_timesteps(num_steps, prior.card.schedule.num_train_timesteps)


def check_size(prior: Prior, size: tuple[int, int]) -> None:
    """Reject images that a prior does not take as they are.

    Raises:
        ValueError: says the size and the remedy.
    """
    side, stride = prior.card.architecture.image_size, prior.stride
    height, width = size
    if not prior.card.any_size and size != (side, side):
        raise ValueError(
            f"image is {width}x{height}; prior {prior.card.name} takes {side}x{side}"
        )
    if height % stride or width % stride:
        raise ValueError(
            f"image is {width}x{height}; crop its sides to multiples of {stride}"
        )


def predict(
    predict_noise: ddim.PredictNoise, x_t: jax.Array, now: ddim.Steps
) -> tuple[jax.Array, jax.Array]:
    """Return eps and the x_0 that it leaves, not clipped, each (H, W, 3)."""
    eps = predict_noise(x_t, now.conditioning)
    return eps, without_noise(x_t, eps, now.alpha_bar)


def without_noise(x_t: jax.Array, eps: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """Return x_0, given x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps."""
    return (x_t - jnp.sqrt(1 - alpha_bar) * eps) / jnp.sqrt(alpha_bar)


def posterior(
    x_t: jax.Array, x_0: jax.Array, now: ddim.Steps
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return mean and variance of q(x_{t-1} | x_t, x_0), and beta_t.

    Eq. (7) of Ho et al. (2020), beta_t being 1 - ab_t / ab_{t-1}.
    """
    alpha = now.alpha_bar / now.alpha_bar_prev
    beta = 1 - alpha
    left = 1 - now.alpha_bar_prev
    mean = jnp.sqrt(now.alpha_bar_prev) * beta * x_0 + jnp.sqrt(alpha) * left * x_t
    return mean / (1 - now.alpha_bar), beta * left / (1 - now.alpha_bar), beta


def between(v: jax.Array, variance: jax.Array, beta: jax.Array) -> jax.Array:
    """Return the variance that v in [-1, 1] stands for, Eq. (15) of Nichol & Dhariwal.

    Geometrically between the posterior's at v = -1 and beta at v = 1; 0 in the last
    step, where the posterior's is.
    """
    w = (v + 1) / 2
    learnt = jnp.exp(w * jnp.log(beta) + (1 - w) * jnp.log(variance))
    return jnp.where(variance > 0, learnt, 0)


def noise_level(alpha_bar: jax.Array) -> jax.Array:
    """Return sqrt((1 - alpha_bar) / alpha_bar), sigma_t of a clean image's multiple."""
    return jnp.sqrt((1 - alpha_bar) / alpha_bar)


def answer(x: jax.Array, evaluations: int, gradients: int = 0) -> Restored:
    """Return the answer of a method whose image is in the prior's range.

    Args:
        x: image, (H, W, 3) in [-1, 1] and a little outside.
        evaluations: of the network.
        gradients: how many of them were differentiated.
    """
    image = (jnp.clip(x, -1, 1) + 1) / 2
    return Restored(image, jnp.int32(evaluations), jnp.int32(gradients))
