"""Where a restoration starts, and when it has copied enough: both told from y alone.

A matched start is the forward diffusion of y to one timestep, with only the noise that
y lacks there: z^0 = sqrt(ab) y + sqrt(max(0, (1 - ab) - ab sigma^2)) n. DDNM+ (Wang et
al., 2023) subtracts the same variance inside a sampler. Damage that is not white noise
has to be drowned in noise, so the timestep is later than its energy alone would say.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diip_jax import canvas, noise
from diip_jax.config import DIIPConfig
from diip_jax.prior import Prior
from diip_jax.schedule import Schedule

# Noise levels sqrt((1 - ab) / ab) and deviations, all in the prior's range [-1, 1].
# Set by hand on development pictures, with the bundled natural64; docs/paper.md.
LEAST_LEVEL = 0.03  # of a start: what even a clean photo gets
REFERENCE_LEVEL = 0.08  # where the network is asked what it takes for noise
CLEAN, COLOURED = 0.55, 0.64  # its answer over that level: clean photos, camera noise
COLOURED_LEVEL = 0.144  # of a start for the noise of cameras, which is not white
COLOURED_DEVIATION = 0.04  # of that noise
PLAIN, WHITE = 0.5, 0.65  # white part of its answer over that level: neither, and white
HIDDEN_DEVIATION = 0.03  # of white noise that texture hid, as far as it is to be taken
WHITE_SHARE = 2.0  # times the white noise: what it adds to the answer, at most
BLOCK_LEVEL = 5.0  # of a start, times the height of JPEG's steps
BLOCK_DEVIATION = 1.5  # of JPEG's damage, times that height
PERCENTILE = 0.9  # of the noise map: most pixels must lack noise, not have too much


class Start(NamedTuple):
    """What y says of its own restoration, computed once per image.

    Attributes:
        noise: standard deviation of its white noise, (H, W, 1) in the prior's range;
            None once the starts are drawn.
        timesteps: of g, in the order of sampling, (num_steps,) int32.
        energy: mean square of the damage: at this loss the rest of y is damage.
    """

    noise: jax.Array | None
    timesteps: jax.Array
    energy: jax.Array


def is_needed(config: DIIPConfig) -> bool:
    """Tell whether a restoration with these settings asks what y says."""
    return config.start == "matched" or config.criterion == "discrepancy"


def look(prior: Prior, y: jax.Array, config: DIIPConfig) -> Start:
    """Look at a picture before its restoration; one evaluation of the network.

    Args:
        prior: the frozen model.
        y: degraded image on its canvas, (H, W, 3) in [-1, 1].
        config: the settings.
    """
    if config.noise_level is None:
        deviation, blocks = noise.noise_map(y), noise.blockiness(y)
        missed, whiteness = _missed(prior, y, deviation, config)
    else:
        deviation = jnp.full((*y.shape[:2], 1), 2 * config.noise_level, jnp.float32)
        blocks = missed = whiteness = jnp.float32(0)
    level = config.start_noise
    if level is None:
        floor = LEAST_LEVEL + missed * (COLOURED_LEVEL - LEAST_LEVEL)
        white = jnp.quantile(deviation, PERCENTILE)
        level = jnp.maximum(jnp.maximum(white, floor), BLOCK_LEVEL * blocks)
    coloured = COLOURED_DEVIATION * missed * (1 - whiteness)
    hidden = HIDDEN_DEVIATION * missed * whiteness
    white_energy = jnp.maximum(jnp.mean(jnp.square(deviation)), hidden**2)
    first = timestep(prior.card.schedule, level)
    fractions = jnp.arange(config.num_steps, 0, -1, jnp.float32) / config.num_steps
    return Start(
        noise=deviation,
        timesteps=jnp.int32(jnp.round(first * fractions)),
        energy=white_energy + coloured**2 + (BLOCK_DEVIATION * blocks) ** 2,
    )


def abstract(prior: Prior, y: jax.Array, config: DIIPConfig) -> Start:
    """Return something of the structure of what `look` returns."""
    return Start(y, y, y)


def diffuse(
    start: Start, y: jax.Array, drawn: jax.Array, schedule: Schedule
) -> jax.Array:
    """Return z^0: y diffused to the first timestep with the noise that it lacks there.

    Args:
        start: what y says.
        y: degraded image on its canvas, (H, W, 3) in [-1, 1].
        drawn: standard normal noise, (H, W, 3).
        schedule: of the prior.
    """
    assert start.noise is not None  # the starts are not drawn yet
    alpha_bar = _alphas(schedule)[start.timesteps[0]]
    missing = jnp.maximum((1 - alpha_bar) - alpha_bar * jnp.square(start.noise), 0)
    return jnp.sqrt(alpha_bar) * y + jnp.sqrt(missing) * drawn


def timestep(schedule: Schedule, level: jax.Array | float) -> jax.Array:
    """Return the timestep whose noise level is nearest to this one, int32."""
    levels = jnp.asarray(schedule.noise_levels(), jnp.float32)
    return jnp.argmin(jnp.abs(levels - level)).astype(jnp.int32)


def _missed(
    prior: Prior, y: jax.Array, white: jax.Array, config: DIIPConfig
) -> tuple[jax.Array, jax.Array]:
    """Return how surely y has noise that filters missed, and how white that is; 0 to 1.

    The noise of a camera went through its demosaicking and looks like texture to any
    filter, and strong texture hides white noise. The network knows texture. At a low
    noise level it takes about half of that level from a clean photo, and more from a
    noisy one; what it takes where the noise is white is as white.
    """
    at = timestep(prior.card.schedule, REFERENCE_LEVEL)
    once = config.replace(num_steps=1, gradient="frozen")
    size = y.shape[0], y.shape[1]
    generate = canvas.generator(prior, once, size, timesteps=at[None])
    taken = y - generate(jnp.sqrt(_alphas(prior.card.schedule)[at]) * y)
    of_white = WHITE_SHARE * jnp.sqrt(jnp.mean(jnp.square(white)))
    answer = jnp.square(noise.floor_of(taken)) - jnp.square(of_white)
    ratio = jnp.sqrt(jnp.maximum(answer, 0)) / REFERENCE_LEVEL
    white_ratio = noise.white_noise(taken) / REFERENCE_LEVEL
    return _ramp(ratio, CLEAN, COLOURED), _ramp(white_ratio, PLAIN, WHITE)


def _ramp(x: jax.Array, low: float, high: float) -> jax.Array:
    """Return 0 below `low`, 1 above `high`, and the line in between."""
    return jnp.clip((x - low) / (high - low), 0, 1)


def _alphas(schedule: Schedule) -> jax.Array:
    return jnp.asarray(schedule.alphas_cumprod(), jnp.float32)
