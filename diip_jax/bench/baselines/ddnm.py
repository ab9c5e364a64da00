"""DDNM+ (Wang et al., 2023): keep the range space of y, sample its null space.

Letters are the paper's: y = A x + sigma_y n; A^+ is the pseudo-inverse. Its simplified
handling of noise is used: the noise in A^+ y counts as white, and lambda_t and gamma_t
are numbers. (With a number per singular value the method is DDRM with eta_b = 1.) There
is no time travel: the released settings repeat each step once, which is none.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from diip_jax import ddim
from diip_jax.bench import operators
from diip_jax.bench.baselines.restored import LINEAR, Restored
from diip_jax.bench.baselines.sampling import answer, bind, predict
from diip_jax.bench.operators import Operator
from diip_jax.prior import Prior


@struct.dataclass
class Config:
    """Settings of DDNM+.

    Attributes:
        sigma: standard deviation of the noise in y, in [0, 1].
        eta: part of the noise that is drawn anew.
        rank: singular values below it count as zero in A^+.
        num_steps: DDIM steps, evaluations of the network.
    """

    sigma: float | jax.Array = 0.02  # the task's
    eta: float | jax.Array = 0.85  # certain: paper and released code
    # inferred: the released code's 0.03, for another blur, leaves 6 times sigma_y here
    rank: float | jax.Array = 0.1
    num_steps: int = struct.field(pytree_node=False, default=100)  # certain: code


DEFAULT = Config()
# inferred: around the source's eta; how much of a blur is inverted, from its 0.03 on
GRID: Mapping[str, Sequence[float]] = {
    "eta": (0.5, 0.85),
    "rank": (3e-2, 0.1, 0.2, 0.4),
}


def config_for(task: str, side: int) -> Config | None:
    """Return the settings for a task, None where the damage is not linear.

    Args:
        task: its name.
        side: of the pictures in pixels.
    """
    del side
    return DEFAULT if task in LINEAR else None


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
    pinv = operators.truncated(operator, config.rank)
    sigma = noise_of_inverse(pinv, 2 * config.sigma)
    keys = jax.random.split(key, len(steps.alpha_bar) + 1)

    def step(x_t: jax.Array, now: tuple[ddim.Steps, jax.Array]):
        level, key = now
        eps, x_0 = predict(predict_noise, x_t, level)
        a_t = jnp.sqrt(level.alpha_bar_prev)
        s_t = jnp.sqrt(1 - level.alpha_bar_prev)
        lambda_t, gamma_t = weights(a_t, config.eta * s_t, sigma)
        x_0 -= lambda_t * pinv.pseudo_inverse(operator.apply(x_0) - y)  # Eq. (17)
        noise = jax.random.normal(key, x_t.shape)
        kept = jnp.sqrt(1 - jnp.square(config.eta)) * s_t
        return a_t * x_0 + jnp.sqrt(gamma_t) * noise + kept * eps, None

    x_T = jax.random.normal(keys[0], (*operator.size, 3))
    return lax.scan(step, x_T, (steps, keys[1:]))[0]


def noise_of_inverse(operator: Operator, sigma_y: jax.Array | float) -> jax.Array:
    """Return the deviation per pixel of A^+ n, for n of deviation sigma_y.

    The paper takes sigma_y itself, which is the same for the identity and for average
    pooling. A^+ of a blur multiplies noise.
    """
    return sigma_y * jnp.sqrt(jnp.mean(jnp.square(operator.inverse_singulars())))


def weights(
    a_t: jax.Array, sigma_t: jax.Array, sigma: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return lambda_t and gamma_t, Eq. (19).

    (a_t lambda_t sigma)^2 + gamma_t = sigma_t^2: what A^+ y brings of its noise
    replaces a part of the noise that the step would draw.

    Args:
        a_t: factor of the clean image in x_{t-1}, scalar.
        sigma_t: deviation of the noise that the step draws, scalar.
        sigma: deviation of the noise in A^+ y, scalar.
    """
    brought = a_t * sigma
    fits = sigma_t >= brought
    lambda_t = jnp.where(fits, 1.0, sigma_t / jnp.where(fits, 1.0, brought))
    return lambda_t, jnp.maximum(sigma_t**2 - jnp.square(lambda_t * brought), 0)
