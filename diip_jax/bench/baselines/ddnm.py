"""DDNM+ (Wang et al., 2023): keep the range space of y, sample its null space.

Letters are the paper's: y = A x + sigma_y n, and A^+ is the pseudo-inverse. What noise
A^+ y brings takes the place of noise that a step would draw. As in the released code
for noisy tasks (its Appendix I), that is done for each singular value of A; the steps
are DDIM's. There is no time travel: the released settings repeat each step once, which
is none.

With noise, a step draws from the distribution of DDRM's with eta_b = 1 (`ddrm.update`);
the two differ in x_T, and where y has none.
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
from diip_jax.bench.baselines.sampling import answer, bind, predict
from diip_jax.bench.operators import Operator
from diip_jax.prior import Prior


@struct.dataclass
class Config:
    """Settings of DDNM+.

    Attributes:
        sigma: standard deviation of the noise in y, in [0, 1].
        eta: part of the noise that is drawn anew, where y says little or nothing.
        num_steps: DDIM steps, evaluations of the network.
    """

    sigma: float | jax.Array = 0.02  # the task's
    eta: float | jax.Array = 0.85  # certain: paper and released code
    num_steps: int = struct.field(pytree_node=False, default=100)  # certain: code


DEFAULT = Config()  # at 64x64 no more than 0.01 dB behind the best of `GRID`
# inferred: around the source's eta; the steps of DDRM too
GRID: Mapping[str, Sequence[float]] = {
    "num_steps": (20, 100),
    "eta": (0.5, 0.7, 0.85, 1.0),
}
config_for = functools.partial(for_linear, DEFAULT, DEFAULT)  # of task and side


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
    operator = operators.known(operator, "DDNM")
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
        operator: the degradation A.
    """
    sigma = 2 * config.sigma * operator.inverse_singulars()  # of the noise in A^+ y
    is_measured = operator.singulars > 0
    inverted = operator.inverse_singulars() * operator.measured(y)
    keys = jax.random.split(key, len(steps.alpha_bar) + 1)

    def step(x_t: jax.Array, now: tuple[ddim.Steps, jax.Array]):
        level, key = now
        eps, x_0 = predict(predict_noise, x_t, level)
        a_t = jnp.sqrt(level.alpha_bar_prev)
        s_t = jnp.sqrt(1 - level.alpha_bar_prev)
        lambda_t, fresh, kept = weights(a_t, s_t, sigma, is_measured, config.eta)
        eps, x_0 = operator.to_spectrum(eps), operator.to_spectrum(x_0)
        n = operator.to_spectrum(jax.random.normal(key, x_t.shape))
        x_0 -= lambda_t * (x_0 - inverted)  # Eq. (17)
        return operator.from_spectrum(a_t * x_0 + fresh * n + kept * eps), None

    x_T = jax.random.normal(keys[0], (*operator.size, 3))
    return lax.scan(step, x_T, (steps, keys[1:]))[0]


def weights(
    a_t: jax.Array,
    s_t: jax.Array,
    sigma: jax.Array,
    is_measured: jax.Array,
    eta: float | jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return lambda_t, and the deviations of fresh noise and of eps, Appendix I.

    For each singular value (a_t lambda_t sigma)^2 + fresh^2 + kept^2 = s_t^2: the noise
    of y that x_0 takes over is a part of what x_{t-1} has to have.

    Args:
        a_t: factor of the clean image in x_{t-1}, scalar.
        s_t: deviation of the noise in x_{t-1}, scalar.
        sigma: deviation of the noise in A^+ y, (H, W, 1).
        is_measured: where the singular value is not 0, (H, W, 1).
        eta: part of the noise that is drawn anew.
    """
    brought = a_t * sigma
    kept = jnp.sqrt(1 - jnp.square(eta)) * s_t
    fits = s_t >= brought
    lambda_t = jnp.where(fits, 1.0, kept / jnp.where(fits, 1.0, brought))
    left = jnp.sqrt(jnp.maximum(s_t**2 - jnp.square(brought), 0))
    replaced = is_measured & (brought > 0)  # without noise in y a step is DDIM's
    fresh = jnp.where(replaced & fits, left, eta * s_t)
    return jnp.where(is_measured, lambda_t, 0.0), fresh, jnp.where(replaced, 0.0, kept)
