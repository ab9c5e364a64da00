"""DreamClean (ICLR 2024): invert y, then sample back with variance-preserving steps.

y is taken up to a noise level by inverted DDIM. On the way down, each level first
makes M variance-preserving steps (VPS, its Eq. (9)), which walk along the score and
refresh a part of the noise; a DDIM step follows.

The paper's code and full text were not at hand. What is known of the method is what
reviews and a third party's code report. Origins of the constants: [c] certain; [r]
reported by others; [i] inferred or chosen here; [t] tuned with `GRID`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from diip_jax import canvas, ddim
from diip_jax.bench.baselines.restored import Restored, for_any
from diip_jax.bench.baselines.sampling import predict, without_noise
from diip_jax.bench.operators import Operator
from diip_jax.config import PAPER
from diip_jax.prior import Prior, noise_predictor
from diip_jax.schedule import ddim_timesteps


@struct.dataclass
class Config:
    """Settings.

    Attributes:
        S: levels of the whole grid.
        n: of them used, the lowest ones; y is inverted up to tau = n T / S.
        M: variance-preserving steps at each level.
        gamma: share of the noise that such a step removes, in [0, 2].
    """

    # [i] S: 30 levels make the 90 evaluations that are reported. At S = 100 the
    # highest is near tau = 300.
    S: int = struct.field(pytree_node=False, default=100)
    n: int = struct.field(pytree_node=False, default=30)  # [r] 90 = n + n (M + 1)
    M: int = struct.field(pytree_node=False, default=1)  # [r]
    gamma: float | jax.Array = 0.05  # [i] unknown; see `GRID`


DEFAULT = Config()
SMALL = Config(n=20)  # [t] for 64x64
GRID: Mapping[str, Sequence[Any]] = {"n": (20, 30, 40, 60), "gamma": (0.05, 0.2)}
config_for = functools.partial(for_any, SMALL, DEFAULT)  # of task and side


def invert_step(
    predict_noise: ddim.PredictNoise, x: jax.Array, now: ddim.Steps
) -> jax.Array:
    """Take x one level up, to that of `now`; DDIM's step read backwards.

    x_t = sqrt(ab_t / ab_s) (x_s - sqrt(1 - ab_s) e) + sqrt(1 - ab_t) e with
    e = eps(x_s, t) for the level s below: the network sees the old x at the new level.
    """
    alpha_bar, below = now.alpha_bar, now.alpha_bar_prev
    e = predict_noise(x, now.conditioning)
    x_0 = without_noise(x, e, below)
    return jnp.sqrt(alpha_bar) * x_0 + jnp.sqrt(1 - alpha_bar) * e


def vps_step(
    predict_noise: ddim.PredictNoise,
    x: jax.Array,
    now: ddim.Steps,
    gamma: jax.Array | float,
    n: jax.Array,
) -> jax.Array:
    """Move x along the score and add noise n of what variance was lost, Eq. (9).

    With eta_l = gamma (1 - ab), eta_g = sqrt(gamma (2 - gamma) (1 - ab)) and the score
    -eps / sqrt(1 - ab).
    """
    s = jnp.sqrt(1 - now.alpha_bar)
    eps = predict_noise(x, now.conditioning)
    return x - gamma * s * eps + jnp.sqrt(gamma * (2 - gamma)) * s * n


def reverse_step(
    predict_noise: ddim.PredictNoise, x: jax.Array, now: ddim.Steps
) -> jax.Array:
    """Take x one level down by DDIM, with x_0 clipped and eps as predicted."""
    e, x_0 = predict(predict_noise, x, now)
    kept = jnp.sqrt(now.alpha_bar_prev) * ddim.clip(x_0)
    return kept + jnp.sqrt(1 - now.alpha_bar_prev) * e


def clean(
    predict_noise: ddim.PredictNoise,
    steps: ddim.Steps,
    y: jax.Array,
    key: jax.Array,
    config: Config,
) -> jax.Array:
    """Return y up through all steps and down again, (H, W, 3) in [-1, 1].

    Args:
        predict_noise: noise predictor.
        steps: the n levels, in the order of sampling.
        y: degraded image, (H, W, 3) in [-1, 1].
        key: of the noise; split into (n, M), in the order of sampling.
        config: M and gamma.
    """

    def up(x: jax.Array, now: ddim.Steps) -> tuple[jax.Array, None]:
        return invert_step(predict_noise, x, now), None

    def down(
        x: jax.Array, level: tuple[ddim.Steps, jax.Array]
    ) -> tuple[jax.Array, None]:
        now, keys = level

        def refresh(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            n = jax.random.normal(key, x.shape, jnp.float32)
            return vps_step(predict_noise, x, now, config.gamma, n), None

        x, _ = lax.scan(refresh, x, keys)
        return reverse_step(predict_noise, x, now), None

    x, _ = lax.scan(up, y, steps, reverse=True)
    keys = jax.random.split(key, (len(steps.alpha_bar), config.M))
    x, _ = lax.scan(down, x, (steps, keys))
    return x


def restore(
    prior: Prior,
    y: jax.Array,
    key: jax.Array,
    config: Config = DEFAULT,
    operator: Operator | None = None,
) -> Restored:
    """Restore by DreamClean.

    Args:
        prior: the frozen model.
        y: degraded image, (H, W, 3) in [0, 1].
        key: of the noise.
        config: the settings.
        operator: must be None: only the blind method is known well enough.

    Raises:
        ValueError: an operator is given, n is not in 1 .. S, or the prior does not
            take the size of y.
    """
    if operator is not None:
        raise ValueError("DreamClean is blind here; give no operator")
    if not 1 <= config.n <= config.S:
        raise ValueError(f"n is {config.n}; use 1 to S = {config.S} levels")
    height, width = y.shape[:2]
    canvas.check_size(prior, PAPER, height, width)
    length = prior.card.schedule.num_train_timesteps
    timesteps = ddim_timesteps(config.S, length)[-config.n :]
    predict_noise, steps = noise_predictor(prior, PAPER, timesteps)
    size = canvas.canvas_size(prior, PAPER, height, width)
    start = canvas.place(jnp.asarray(y, jnp.float32), size)
    x = clean(predict_noise, steps, start, key, config)
    evaluations = config.n * (1 + config.M + 1)
    image = canvas.cut(x, (height, width))
    return Restored(image, jnp.int32(evaluations), jnp.int32(0))
