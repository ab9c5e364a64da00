"""GibbsDDRM (Murata et al., 2023): DDRM in turns with Langevin steps on the kernel.

y = H_phi x + noise of deviation sigma_0, with H_phi the convolution by an unknown
kernel phi. Letters are the source's. At each of the later timesteps, phi is sampled
given y and the predicted x_0, and x is drawn again with the new phi (a partially
collapsed Gibbs sampler).

The convolution is a Fourier transform on a canvas that is wider than the photo by the
kernel. y is unknown in its margin, which phi * x_0 fills. The margin of x_0 is its
reflection, as in `degradations.gaussian_blur`; the source's is grey.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from diip_jax import ddim
from diip_jax.bench import operators
from diip_jax.bench.baselines import ddrm, sampling
from diip_jax.bench.baselines.blind_dps import check
from diip_jax.bench.baselines.restored import SOURCE_SIDE, Restored, for_unknown_kernel
from diip_jax.bench.operators import Convolution, Operator
from diip_jax.prior import Prior
from diip_jax.schedule import ddim_timesteps

SOURCE_ENTRIES = 3 * SOURCE_SIDE**2  # what xi and gamma were chosen for, as the next
SOURCE_KERNEL = 64


@struct.dataclass
class Config:
    """Settings of GibbsDDRM.

    Attributes:
        sigma: standard deviation of the noise in y, in [0, 1].
        eta_a: part of eps in what y says less about than x_t.
        eta_b: how far y replaces the prediction where y says more than x_t.
        eta_c: part of y in what y says less about than x_t.
        eta_d: part of the noise that is drawn anew where y says nothing.
        rank: singular values below it count as zero.
        xi: step size of the Langevin steps, for the source's sizes (`langevin`).
        gamma: weight of ||phi||_1, likewise.
        sigma_phi: deviation of the noise that the Langevin steps assume, in [-1, 1].
        kernel_size: side of the kernel in pixels, odd; 1 for denoising, where the
            kernel is known and the method is DDRM with etas of its own.
        num_steps: DDIM steps.
        start: phi is sampled at timesteps up to this part of T.
        rounds: times phi and x are drawn at each of them.
        langevin_steps: steps on phi each time.
    """

    sigma: float | jax.Array = 0.02  # the task's
    eta_a: float | jax.Array = 0.0  # certain: released code, as those below
    eta_b: float | jax.Array = 0.9
    eta_c: float | jax.Array = 0.8
    eta_d: float | jax.Array = 0.8
    rank: float | jax.Array = 0.05
    xi: float | jax.Array = 1e-11  # for faces; 2e-11 for animals
    gamma: float | jax.Array = 1000.0
    sigma_phi: float | jax.Array = 0.04
    kernel_size: int = struct.field(pytree_node=False, default=65)  # certain: 64, even
    num_steps: int = struct.field(pytree_node=False, default=100)  # certain, as below
    start: float = struct.field(pytree_node=False, default=0.7)
    rounds: int = struct.field(pytree_node=False, default=3)
    langevin_steps: int = struct.field(pytree_node=False, default=500)


DEFAULT = Config()
# For 64x64, inferred, and the best of `GRID`. The kernel is four deviations each way of
# a blur of 1.6 pixels. A photo of a quarter of the source's side is known as well at
# about a quarter of the noise level that its 0.7 has, which is at 0.45.
SMALL = Config(kernel_size=13, start=0.45)
# certain: the two values of xi. inferred: more or less trust in y and in x_0
GRID: Mapping[str, Sequence[float]] = {
    "xi": (1e-11, 2e-11),
    "eta_b": (0.7, 0.9),
    "start": (0.3, 0.45),
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
    check("GibbsDDRM", config.kernel_size, operator)
    size = (y.shape[0], y.shape[1])
    predict_noise, steps = sampling.bind(prior, size, config.num_steps)
    late = late_steps(config, prior.card.schedule.num_train_timesteps)
    x, _ = sample(predict_noise, steps, jnp.asarray(late), 2 * y - 1, key, config)
    evaluations = config.num_steps + config.rounds * int(late[:-1].sum())
    return sampling.answer(x, evaluations)


class _Now(NamedTuple):
    """What changes from step to step: this level, the next, whether it is late."""

    level: ddim.Steps
    next_level: ddim.Steps
    late: jax.Array
    key: jax.Array


def late_steps(config: Config, num_train_timesteps: int) -> np.ndarray:
    """Tell at which of the steps phi is sampled, by x_0, (num_steps,).

    Where x_0 is known well enough; at none where phi is known.
    """
    timesteps = ddim_timesteps(config.num_steps, num_train_timesteps)
    is_late = timesteps <= config.start * num_train_timesteps
    return is_late & (config.kernel_size > 1)


def sample(
    predict_noise: ddim.PredictNoise,
    steps: ddim.Steps,
    late: jax.Array,
    y: jax.Array,
    key: jax.Array,
    config: Config,
) -> tuple[jax.Array, jax.Array]:
    """Return the image, (H, W, 3), and the kernel phi, (k, k).

    Args:
        predict_noise: noise predictor.
        steps: its steps.
        late: at which of them x_0 is good enough to sample phi from it and to fill the
            margin of y with it, (S,). The last step does not sample phi.
        y: degraded photo, (H, W, 3) in [-1, 1].
        key: for the noise.
        config: the settings.
    """

    def step(state: tuple[jax.Array, jax.Array], now: _Now):
        x_t, phi = state
        level = now.level
        eps, x_0 = sampling.predict(predict_noise, x_t, level)
        margin = jnp.where(now.late, x_0, y)

        def draw(phi: jax.Array, key: jax.Array) -> jax.Array:
            x_bar = draw_next(x_0, eps, margin, y, phi, key, level, config)
            return jnp.sqrt(level.alpha_bar_prev) * x_bar

        def round_(i: jax.Array, state: tuple[jax.Array, jax.Array]):
            phi, x_next = state
            key, of_draw = jax.random.split(jax.random.fold_in(now.key, 2 + i))
            _, x_0_next = sampling.predict(predict_noise, x_next, now.next_level)
            phi = langevin(phi, y, x_0_next, key, config)
            return phi, draw(phi, of_draw)

        def rounds(state: tuple[jax.Array, jax.Array]):
            return lax.fori_loop(0, config.rounds, round_, state)

        samples_phi = now.late & (level.alpha_bar_prev < 1)
        drawn = (phi, draw(phi, now.key))
        phi, x_next = lax.cond(samples_phi, rounds, lambda state: state, drawn)
        return (x_next, phi), None

    keys = jax.random.split(key, len(steps.alpha_bar) + 1)
    phi = first_kernel(config.kernel_size)
    x_bar = draw_first(
        y, phi, keys[0], sampling.noise_level(steps.alpha_bar[0]), config
    )
    x_T = jnp.sqrt(steps.alpha_bar[0]) * x_bar
    next_steps = jax.tree.map(lambda a: jnp.concatenate([a[1:], a[-1:]]), steps)
    now = _Now(steps, next_steps, late, keys[1:])
    return lax.scan(step, (x_T, phi), now)[0]


def draw_first(
    y: jax.Array, phi: jax.Array, key: jax.Array, sigma_T: jax.Array, config: Config
) -> jax.Array:
    """Draw x_T / sqrt(ab_T), (H, W, 3), as DDRM does; arguments as in `draw_next`."""
    reach = phi.shape[0] // 2
    operator = operator_of(phi, y.shape, config)
    measured = fill(y, y, operator, key, config)
    noise = operator.to_spectrum(jax.random.normal(key, measured.shape))
    measured = operator.measured(measured)
    s = ddrm.initial(measured, noise, sigma_T, 2 * config.sigma, operator)
    return cut(operator.from_spectrum(s), reach)


def draw_next(
    x_0: jax.Array,
    eps: jax.Array,
    margin: jax.Array,
    y: jax.Array,
    phi: jax.Array,
    key: jax.Array,
    now: ddim.Steps,
    config: Config,
) -> jax.Array:
    """Draw x_t / sqrt(ab_t), given what is predicted from x_{t+1}, (H, W, 3).

    Args:
        x_0: predicted clean photo, (H, W, 3).
        eps: predicted noise, (H, W, 3).
        margin: photo whose measurement fills the margin of y, (H, W, 3).
        y: degraded photo, (H, W, 3).
        phi: kernel, (k, k).
        key: for the noise.
        now: the step from t + 1 to t.
        config: the settings.
    """
    reach = phi.shape[0] // 2
    operator = operator_of(phi, y.shape, config)
    measured = fill(y, margin, operator, key, config)
    s = update(
        operator.to_spectrum(extend(x_0, reach)),
        operator.to_spectrum(extend(eps, reach)),
        operator.measured(measured),
        operator.to_spectrum(jax.random.normal(key, measured.shape)),
        sampling.noise_level(now.alpha_bar_prev),
        2 * config.sigma,  # [-1, 1] is twice as long as [0, 1]
        config,
        operator,
    )
    return cut(operator.from_spectrum(s), reach)


def operator_of(phi: jax.Array, shape: tuple[int, ...], config: Config) -> Convolution:
    """Return the convolution by phi on the canvas of a photo of this shape."""
    rows, columns = (side + phi.shape[0] - 1 for side in shape[:2])
    operator = operators.convolution(phi, (rows, columns))
    return operators.truncated(operator, config.rank)


def fill(
    y: jax.Array, x: jax.Array, operator: Convolution, key: jax.Array, config: Config
) -> jax.Array:
    """Return y on its canvas, its margin a measurement of x with noise."""
    reach = (operator.size[0] - y.shape[0]) // 2
    measurement = operator.apply(extend(x, reach))
    noise = jax.random.normal(jax.random.fold_in(key, 1), measurement.shape)
    measurement += 2 * config.sigma * noise
    return lax.dynamic_update_slice(measurement, y, (reach, reach, 0))


def update(
    x_0: jax.Array,
    eps: jax.Array,
    y: jax.Array,
    noise: jax.Array,
    q: jax.Array,
    sigma_0: jax.Array | float,
    config: Config,
    operator: Convolution,
) -> jax.Array:
    """Draw the spectrum of x_t, given what is predicted from x_{t+1}: Eq. (9).

    Args:
        x_0: V^T x_0, (H, W, 3).
        eps: V^T eps.
        y: U^T y.
        noise: V^T n with n standard normal.
        q: noise level of x_t, scalar.
        sigma_0: deviation of the noise in y, scalar.
        config: the settings.
        operator: the degradation by the present kernel.
    """
    s, inverse = operator.singulars, operator.inverse_singulars()
    eta_a, eta_b, eta_c, eta_d = config.eta_a, config.eta_b, config.eta_c, config.eta_d
    unmeasured = x_0 + q * (jnp.sqrt(1 - jnp.square(eta_d)) * eps + eta_d * noise)
    less = (s > 0) & (q * s < sigma_0)
    towards_y = (y - s * x_0) / jnp.where(sigma_0 > 0, sigma_0, 1.0)
    rho = correlation(jnp.where(less, eps, 0), jnp.where(less, towards_y, 0))
    drawn = 1 - jnp.square(eta_a) - jnp.square(eta_c) - 2 * eta_a * eta_c * rho
    drawn = jnp.sqrt(jnp.maximum(drawn, 0))
    says_less = x_0 + q * (eta_a * eps + eta_c * towards_y + drawn * noise)
    variance = jnp.square(q) - jnp.square(eta_b * sigma_0 * inverse)
    says_more = (1 - eta_b) * x_0 + eta_b * inverse * y
    says_more += jnp.sqrt(jnp.maximum(variance, 0)) * noise
    return jnp.where(less, says_less, jnp.where(s > 0, says_more, unmeasured))


def correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return |<a, b>| / (|a| |b|) of two arrays, real or complex; 0 for zeros."""
    norms = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
    return jnp.abs(jnp.vdot(a, b)) / (norms + 1e-10)


def langevin(
    phi: jax.Array, y: jax.Array, x_0: jax.Array, key: jax.Array, config: Config
) -> jax.Array:
    """Sample the kernel: Langevin steps on ||y - phi * x_0||^2 and ||phi||_1.

    phi <- phi - xi / 2 grad(||y - phi * x_0||^2 / (2 sigma_phi^2) + gamma ||phi||_1)
    + sqrt(xi) n, and at the end phi <- phi / sum(phi).

    The first term is a sum over N entries, and its curvature along a constant kernel
    grows with N and with the k^2 entries of phi. So that a step moves phi by the same
    part of itself at any size, xi is divided by N k^2 and gamma is multiplied by N,
    both relative to the source's. xi is bounded where a step would overshoot.

    Args:
        phi: kernel, (k, k).
        y: degraded photo, (H, W, 3) in [-1, 1].
        x_0: predicted clean photo, (H, W, 3).
        key: for the noise.
        config: the settings.
    """
    side = phi.shape[0]
    a = shifts(x_0, side)
    gram = jnp.dot(a, a.T, precision="highest")  # once, for all steps
    towards = jnp.dot(a, y.ravel(), precision="highest")
    part = y.size / SOURCE_ENTRIES
    gamma = config.gamma * part
    precision = 1 / jnp.square(config.sigma_phi)
    xi = config.xi / (part * (side / SOURCE_KERNEL) ** 2)
    curvature = precision * jnp.abs(gram).sum(axis=1).max()  # at most
    xi = jnp.minimum(xi, 2 / curvature)

    def step(k: jax.Array, n: jax.Array) -> tuple[jax.Array, None]:
        gradient = precision * (gram @ k - towards) + gamma * jnp.sign(k)
        return k - xi / 2 * gradient + jnp.sqrt(xi) * n, None

    noise = jax.random.normal(key, (config.langevin_steps, side * side))
    k, _ = lax.scan(step, phi.ravel(), noise)
    return (k / k.sum()).reshape(side, side)


def shifts(x: jax.Array, side: int) -> jax.Array:
    """Return what each entry of a kernel multiplies, (side^2, H W 3).

    The convolution of x, edges reflected, is `kernel.ravel() @ shifts(x, side)`.
    """
    extended = extend(x, side // 2)

    def shift(row: jax.Array, column: jax.Array) -> jax.Array:
        return lax.dynamic_slice(extended, (row, column, 0), x.shape).ravel()

    # The first entry of a kernel multiplies what lies furthest down and right.
    rows, columns = jnp.divmod(jnp.arange(side * side)[::-1], side)
    return jax.vmap(shift)(rows, columns)


def extend(x: jax.Array, reach: int) -> jax.Array:
    """Return an image, (H, W, 3), with a margin that is its reflection."""
    return jnp.pad(x, [(reach, reach), (reach, reach), (0, 0)], mode="symmetric")


def cut(x: jax.Array, reach: int) -> jax.Array:
    """Return an image without its margin, the inverse of `extend`."""
    return x[reach : x.shape[0] - reach, reach : x.shape[1] - reach]


def first_kernel(side: int) -> jax.Array:
    """Return the kernel to begin with, exp(-r / 10) for a side of 64, (side, side)."""
    rows, columns = np.indices((side, side)) - side // 2
    falling = np.exp(-np.hypot(rows, columns) * SOURCE_KERNEL / (10 * side))
    return jnp.asarray(falling / falling.sum(), jnp.float32)
