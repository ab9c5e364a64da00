"""BlindDPS (Chung et al., 2023) without its kernel prior: DPS with an unknown blur.

The source samples the kernel with a diffusion model of kernels, which is not to be had.
In its place a softmax of free numbers is the kernel, one step of Adam on the same
distance updates it after each step of the image, and nothing but the softmax is known
of it. Results belong in a row that says "no kernel prior". zeta is a number, as in the
paper; the released code has sqrt(ab_t) in its place. Of super-resolution the method
sees y on the grid of the result, and takes what it lacks for a blur.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from diip_jax import ddim
from diip_jax.bench.baselines import dps
from diip_jax.bench.baselines.restored import Restored, for_unknown_kernel
from diip_jax.bench.baselines.sampling import PredictStep, answer, bind_variance
from diip_jax.bench.operators import Operator
from diip_jax.prior import Prior


@struct.dataclass
class Config:
    """Settings of BlindDPS.

    Attributes:
        zeta: step size of the image towards y, for images of 256 x 256 pixels.
        kernel_rate: Adam's step size on the numbers whose softmax is the kernel.
        kernel_size: side of the kernel in pixels, odd; 1 for denoising, where it is
            known.
        num_steps: steps, evaluations of the network and gradients through it.
    """

    zeta: float | jax.Array = 0.3  # certain: paper and configuration
    kernel_rate: float | jax.Array = 0.1  # reported: DMPlug's blind deblurring
    kernel_size: int = struct.field(pytree_node=False, default=65)  # certain: 64, even
    num_steps: int = struct.field(pytree_node=False, default=1000)  # certain


DEFAULT = Config()
# For 64x64, tuned with `GRID`. The kernel is inferred: four deviations each way of a
# blur of 1.6 pixels.
SMALL = Config(zeta=1.0, kernel_rate=0.01, kernel_size=13)
# inferred: zeta around the source's; a kernel that follows at once, or slowly
GRID: Mapping[str, Sequence[float]] = {
    "zeta": (0.3, 1.0, 2.0, 4.0),
    "kernel_rate": (0.01, 0.1),
}
config_for = functools.partial(for_unknown_kernel, SMALL, DEFAULT)  # of task and side


def restore(
    prior: Prior,
    y: jax.Array,
    key: jax.Array,
    config: Config = DEFAULT,
    operator: Operator | None = None,
) -> Restored:
    """Restore a photo with an unknown blur.

    Args:
        prior: the frozen model.
        y: degraded photo, (H, W, 3) in [0, 1].
        key: for the noise.
        config: the settings.
        operator: none; the method estimates it.

    Raises:
        ValueError: an operator is given, the kernel has no centre, or the prior does
            not take such images.
    """
    check("BlindDPS", config.kernel_size, operator)
    size = (y.shape[0], y.shape[1])
    predict_step, steps = bind_variance(prior, size, config.num_steps)
    x, _ = sample(predict_step, steps, 2 * y - 1, key, config)
    return answer(x, evaluations=config.num_steps, gradients=config.num_steps)


def sample(
    predict_step: PredictStep,
    steps: ddim.Steps,
    y: jax.Array,
    key: jax.Array,
    config: Config,
) -> tuple[jax.Array, jax.Array]:
    """Return the image, (H, W, 3), and the kernel, (k, k).

    Args:
        predict_step: predictor of noise and variance.
        steps: its steps.
        y: degraded photo, (H, W, 3) in [-1, 1].
        key: for the noise.
        config: the settings.
    """
    zeta = dps.rescaled(config.zeta, (y.shape[0], y.shape[1], y.shape[2]))
    optimizer = optax.adam(config.kernel_rate)
    keys = jax.random.split(key, len(steps.alpha_bar) + 1)

    def step(state: tuple, now: tuple[ddim.Steps, jax.Array]):
        (x, logits, opt_state), (level, key) = state, now

        def distance(x: jax.Array, logits: jax.Array):
            x_0, x_next = dps.ancestral(predict_step, x, level, key)
            return dps.norm(y - blur(x_0, jax.nn.softmax(logits, (0, 1)))), x_next

        of_both = jax.grad(distance, argnums=(0, 1), has_aux=True)
        (gradient, of_logits), x_next = of_both(x, logits)
        updates, opt_state = optimizer.update(of_logits, opt_state)
        logits = jnp.asarray(optax.apply_updates(logits, updates))
        return (x_next - zeta * gradient, logits, opt_state), None

    x = jax.random.normal(keys[0], y.shape)
    logits = jnp.zeros((config.kernel_size, config.kernel_size))
    first = (x, logits, optimizer.init(logits))
    (x, logits, _), _ = lax.scan(step, first, (steps, keys[1:]))
    return x, jax.nn.softmax(logits, (0, 1))


def blur(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve each channel with a kernel, edges reflected.

    As `degradations.gaussian_blur` does; the source fills with grey beyond the edges.

    Args:
        x: image, (H, W, 3).
        kernel: (k, k) with k odd.
    """
    reach = kernel.shape[0] // 2
    margins = [(reach, reach), (reach, reach), (0, 0)]
    padded = jnp.pad(x, margins, mode="symmetric")
    channels = jnp.moveaxis(padded, -1, 0)[:, None]
    # The library's convolution does not turn the kernel round.
    turned = kernel[::-1, ::-1][None, None]
    blurred = lax.conv(channels, turned, (1, 1), "VALID", precision="highest")
    return jnp.moveaxis(blurred[:, 0], 0, -1)


def check(method: str, kernel_size: int, operator: Operator | None) -> None:
    """Reject what a method with an unknown kernel cannot use.

    Raises:
        ValueError: an operator is given, or the kernel has no centre.
    """
    if operator is not None:
        raise ValueError(f"{method} estimates the degradation; give no operator")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; use an odd number of pixels")
