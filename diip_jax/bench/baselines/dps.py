"""DPS (Chung et al., 2023): ancestral sampling, pulled towards y at each step.

Letters are the paper's: x'_{i-1} of Algorithm 1 is a step of the DDPM, and
x_{i-1} = x'_{i-1} - zeta grad ||y - A x_0(x_i)||, through the network.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from diip_jax import ddim
from diip_jax.bench import operators
from diip_jax.bench.baselines import sampling
from diip_jax.bench.baselines.restored import Restored, for_linear
from diip_jax.bench.baselines.sampling import PredictStep, answer, bind_variance
from diip_jax.bench.operators import Operator
from diip_jax.prior import Prior

SOURCE_ENTRIES = 3 * 256**2  # of the images that zeta was chosen for


@struct.dataclass
class Config:
    """Settings of DPS.

    Attributes:
        zeta: step size towards y, for images of 256 x 256 pixels (`rescaled`).
        num_steps: steps, evaluations of the network and gradients through it.
    """

    zeta: float | jax.Array = 0.3  # certain: released code, deblurring and SR of faces
    num_steps: int = struct.field(pytree_node=False, default=1000)  # certain


DEFAULT = Config()
SMALL = Config(zeta=2.0)  # tuned with `GRID`, for 64x64
# The paper's range of 0.3 to 1, and beyond it, for a smaller network.
GRID: Mapping[str, Sequence[float]] = {"zeta": (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0, 8.0)}
config_for = functools.partial(for_linear, SMALL, DEFAULT)  # of task and side


def restore(
    prior: Prior,
    y: jax.Array,
    key: jax.Array,
    config: Config = DEFAULT,
    operator: Operator | None = None,
) -> Restored:
    """Restore a measurement of a known operator.

    Args:
        prior: the frozen model.
        y: measurement, (h, w, 3) in [0, 1].
        key: for the noise.
        config: the settings.
        operator: the degradation A.

    Raises:
        ValueError: there is no operator, or the prior does not take its images.
    """
    operator = operators.known(operator, "DPS")
    predict_step, steps = bind_variance(prior, operator.size, config.num_steps)
    y = operators.to_prior_range(operator, y)
    x = sample(predict_step, steps, y, key, config, operator)
    return answer(x, evaluations=config.num_steps, gradients=config.num_steps)


def sample(
    predict_step: PredictStep,
    steps: ddim.Steps,
    y: jax.Array,
    key: jax.Array,
    config: Config,
    operator: Operator,
) -> jax.Array:
    """Return the image, (H, W, 3), everything in the prior's range.

    Args:
        predict_step: predictor of noise and variance.
        steps: its steps.
        y: measurement, (h, w, 3).
        key: for the noise.
        config: the settings.
        operator: the degradation A.
    """
    shape = (*operator.size, 3)
    zeta = rescaled(config.zeta, shape)
    keys = jax.random.split(key, len(steps.alpha_bar) + 1)

    def step(x: jax.Array, now: tuple[ddim.Steps, jax.Array]):
        level, key = now

        def distance(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            x_0, x_next = ancestral(predict_step, x, level, key)
            return norm(y - operator.apply(x_0)), x_next

        gradient, x_next = jax.grad(distance, has_aux=True)(x)
        return x_next - zeta * gradient, None

    x = jax.random.normal(keys[0], shape)
    return lax.scan(step, x, (steps, keys[1:]))[0]


def ancestral(
    predict_step: PredictStep, x: jax.Array, now: ddim.Steps, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return x_0 as predicted, in [-1, 1], and a draw of x_{i-1}, each (H, W, 3).

    Eq. (6) and (7) of Ho et al. (2020) for any spacing of the steps. The last step
    draws nothing.

    Args:
        predict_step: predictor of noise and variance.
        x: x_i.
        now: a single entry of `Steps`.
        key: for the noise.
    """
    eps, v = predict_step(x, now.conditioning)
    x_0 = ddim.clip(sampling.without_noise(x, eps, now.alpha_bar))
    mean, smallest, beta = sampling.posterior(x, x_0, now)
    deviation = jnp.sqrt(sampling.between(v, smallest, beta))
    return x_0, mean + deviation * jax.random.normal(key, x.shape)


def norm(r: jax.Array) -> jax.Array:
    """Return ||r||, whose gradient at 0 is 0."""
    squared = jnp.sum(jnp.square(r))
    zero = squared == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))


def rescaled(zeta: float | jax.Array, shape: tuple[int, int, int]) -> float | jax.Array:
    """Return the step size for images of a shape, given that for 256 x 256.

    The gradient of a norm has a norm of about 1 whatever the size, so that a pixel
    moves by zeta / sqrt(N).
    """
    return zeta * np.sqrt(np.prod(shape) / SOURCE_ENTRIES)
