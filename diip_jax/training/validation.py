"""How good a prior is on pictures that it was not trained on."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax.compilation import compiler_options
from diip_jax.prior import Card
from diip_jax.schedule import Schedule
from diip_jax.training import loss, step

TIMESTEPS = (50, 150, 250, 333, 450, 550, 666, 800, 950)  # of a thousand


def timesteps(schedule: Schedule) -> Sequence[int]:
    """Return `TIMESTEPS`, at the same places of this schedule."""
    return [t * schedule.num_train_timesteps // 1000 for t in TIMESTEPS]


def errors(params: Any, pictures: jax.Array, card: Card) -> jax.Array:
    """Return the mean square error of eps at each of `timesteps`, over pictures.

    Noise is the same in every call.

    Args:
        params: the weights.
        pictures: crops, (N, H, W, 3) uint8.
        card: of the prior.
    """
    x = loss.in_range(pictures)
    predict = step.predictor(card, "float32")

    def at(t: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0), t)
        noise = jax.random.normal(key, x.shape, jnp.float32)
        everywhere = jnp.full(len(x), t)
        error = loss.noise_error(predict, params, x, noise, everywhere, card.schedule)
        return jnp.mean(error)

    return jax.lax.map(at, jnp.asarray(timesteps(card.schedule)))


@functools.cache
def jitted_errors() -> Any:
    """Return `errors` jitted."""
    options = compiler_options()
    return jax.jit(errors, static_argnames="card", compiler_options=options)


def psnrs(found: np.ndarray, schedule: Schedule) -> dict[int, float]:
    """Return the PSNR in dB of the x_0 that is predicted at each of `timesteps`.

    An error of eps is one of x_0 times the noise level. The predicted x_0 is not
    clipped; the peak is 2, as images are in [-1, 1].

    Args:
        found: mean square errors of eps, as `errors` returns them.
        schedule: the forward process.
    """
    at = timesteps(schedule)
    of_x_0 = np.asarray(found) * schedule.noise_levels()[at] ** 2
    return dict(zip(at, (10 * np.log10(4 / of_x_0)).tolist(), strict=True))


def validation_loss(found: np.ndarray, schedule: Schedule, weighting: str) -> float:
    """Return the mean of the errors of eps, weighted as in training."""
    weights = loss.weights(schedule, weighting)[timesteps(schedule)]
    return float(np.mean(weights * np.asarray(found)))


def line(psnr: Mapping[int, float]) -> str:
    """Return the PSNRs as a line to print."""
    return "x_0 in dB at t: " + ", ".join(f"{t} {v:.2f}" for t, v in psnr.items())
