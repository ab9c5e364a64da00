"""DDRM (Kawar et al., 2022): sample with y's spectrum in place, non-blind.

Letters are the paper's: y = H x + sigma_y n, eta, eta_b; x_t is a multiple of the clean
image with noise of deviation sigma_t, which is sqrt((1 - ab) / ab) here.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from diip_jax import ddim
from diip_jax.bench import operators
from diip_jax.bench.baselines.restored import Restored, for_linear
from diip_jax.bench.baselines.sampling import answer, bind, noise_level, predict
from diip_jax.bench.operators import Operator
from diip_jax.prior import Prior


@struct.dataclass
class Config:
    """Settings of DDRM.

    Attributes:
        sigma: standard deviation of the noise in y, in [0, 1].
        eta: part of the noise that is drawn anew where y says little or nothing.
        eta_b: how far y replaces the prediction where y says more than x_t.
        num_steps: DDIM steps, evaluations of the network.
    """

    sigma: float | jax.Array = 0.02  # the task's
    eta: float | jax.Array = 0.85  # certain: paper and released code
    eta_b: float | jax.Array = 1.0  # certain: paper and released code
    num_steps: int = struct.field(pytree_node=False, default=20)  # certain: paper


DEFAULT = Config()
SMALL = Config(eta_b=0.7, num_steps=100)  # tuned with `GRID`, for 64x64
# inferred: around the paper's settings
GRID: Mapping[str, Sequence[float]] = {
    "num_steps": (20, 100),
    "eta": (0.7, 0.85),
    "eta_b": (0.7, 1.0),
}
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
        operator: the degradation.

    Raises:
        ValueError: there is no operator, or the prior does not take its images.
    """
    operator = operators.known(operator, "DDRM")
    predict_noise, steps = bind(prior, operator.size, config.num_steps)
    y = operators.to_prior_range(operator, y)
    x = sample(predict_noise, steps, y, key, config, operator)
    return answer(x, evaluations=config.num_steps)


def sample(
    predict_noise: ddim.PredictNoise,
    steps: ddim.Steps,
    y: jax.Array,
    key: jax.Array,
    config: Config,
    operator: Operator,
) -> jax.Array:
    """Return the image, (H, W, 3), everything in the prior's range.

    Args:
        predict_noise: noise predictor.
        steps: its steps.
        y: measurement, (h, w, 3).
        key: for the noise.
        config: the settings.
        operator: the degradation.
    """
    sigma_y = 2 * config.sigma  # [-1, 1] is twice as long as [0, 1]
    y_spectrum = operator.measured(y)
    keys = jax.random.split(key, len(steps.alpha_bar) + 1)

    def noise(key: jax.Array) -> jax.Array:
        return operator.to_spectrum(jax.random.normal(key, (*operator.size, 3)))

    def step(x_t: jax.Array, now: tuple[ddim.Steps, jax.Array]):
        level, key = now
        eps, x_0 = predict(predict_noise, x_t, level)
        s = update(
            operator.to_spectrum(x_0),
            operator.to_spectrum(eps),
            y_spectrum,
            noise(key),
            noise_level(level.alpha_bar_prev),
            sigma_y,
            config,
            operator,
        )
        return jnp.sqrt(level.alpha_bar_prev) * operator.from_spectrum(s), None

    sigma_T = noise_level(steps.alpha_bar[0])
    s_T = initial(y_spectrum, noise(keys[0]), sigma_T, sigma_y, operator)
    x_T = jnp.sqrt(steps.alpha_bar[0]) * operator.from_spectrum(s_T)
    return lax.scan(step, x_T, (steps, keys[1:]))[0]


def initial(
    y: jax.Array,
    noise: jax.Array,
    sigma_T: jax.Array,
    sigma_y: jax.Array | float,
    operator: Operator,
) -> jax.Array:
    """Draw the spectrum of x_T (Sec. 3.2).

    Args:
        y: U^T y, (H, W, 3).
        noise: V^T n with n standard normal, (H, W, 3).
        sigma_T: noise level of x_T, scalar.
        sigma_y: deviation of the noise in y, scalar.
        operator: the degradation.
    """
    s, inverse = operator.singulars, operator.inverse_singulars()
    says_more = (s > 0) & (sigma_T * s >= sigma_y)
    mean = jnp.where(says_more, inverse * y, 0)
    variance = sigma_T**2 - jnp.where(says_more, sigma_y * inverse, 0) ** 2
    return mean + jnp.sqrt(jnp.maximum(variance, 0)) * noise


def update(
    x_0: jax.Array,
    eps: jax.Array,
    y: jax.Array,
    noise: jax.Array,
    sigma_t: jax.Array,
    sigma_y: jax.Array | float,
    config: Config,
    operator: Operator,
) -> jax.Array:
    """Draw the spectrum of x_t, given that of x_0 as predicted from x_{t+1} (Sec. 3.2).

    Args:
        x_0: V^T x_0, (H, W, 3).
        eps: V^T of the predicted noise, (x_{t+1} - x_0) / sigma_{t+1}.
        y: U^T y.
        noise: V^T n with n standard normal.
        sigma_t: noise level of x_t, scalar.
        sigma_y: deviation of the noise in y, scalar.
        config: the settings.
        operator: the degradation.
    """
    s, inverse = operator.singulars, operator.inverse_singulars()
    eta, eta_b = config.eta, config.eta_b
    kept = jnp.sqrt(1 - jnp.square(eta)) * sigma_t
    unmeasured = x_0 + kept * eps + eta * sigma_t * noise
    towards_y = (y - s * x_0) / jnp.where(sigma_y > 0, sigma_y, 1.0)
    says_less = x_0 + kept * towards_y + eta * sigma_t * noise
    variance = sigma_t**2 - (eta_b * sigma_y * inverse) ** 2
    says_more = (1 - eta_b) * x_0 + eta_b * inverse * y
    says_more += jnp.sqrt(jnp.maximum(variance, 0)) * noise
    measured = jnp.where(sigma_t * s >= sigma_y, says_more, says_less)
    return jnp.where(s > 0, measured, unmeasured)
