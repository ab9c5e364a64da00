"""GDP (Fei et al., 2023): ancestral sampling, drawn towards y at every step.

At each t the network gives the mean mu and the variance of x_{t-1}, and x0hat. With

    L = mean (D_phi(x0hat) - y)^2, pixels in [0, 1],
    mu <- mu - s dL/dx0hat,    x_{t-1} = mu + sqrt(variance) n,

x0hat counts as an independent variable: the network is not differentiated, and the
step is not multiplied by the variance. Unknown phi of the degradation D descends along
the same L, a few times at each t.

Origins of the constants: [c] certain, read in the released code; [i] inferred or
chosen here; [t] tuned with `GRID`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from diip_jax import canvas, ddim
from diip_jax.bench.baselines import forms, sampling
from diip_jax.bench.baselines.forms import Form, FormName
from diip_jax.bench.baselines.restored import BLURS, DENOISING, Restored
from diip_jax.bench.baselines.sampling import PredictStep, step_predictor
from diip_jax.bench.operators import Operator
from diip_jax.config import PAPER
from diip_jax.prior import Prior
from diip_jax.schedule import ddim_timesteps

NUMBERS = 256 * 256 * 3  # of a picture that the released scales are for


@struct.dataclass
class Config:
    """Settings.

    Attributes:
        form: of the degradation where no operator is given, see `forms.make`.
        factor: of super-resolution.
        kernel_size: side of an unknown kernel in pixels, odd.
        num_steps: of the chain; all T timesteps in the source.
        s: guidance scale for a picture of 256x256x3. It is multiplied by N / 196608
            for one of N numbers, so that a pixel moves as far per step. A chain of
            fewer steps needs more of it, about in proportion.
        repeats: descents of phi at each t.
        phi_rate: step of gradient descent on f and M. That on M is scaled as s is.
        kernel_learning_rate: Adam's, of the kernel network's weights.
    """

    form: FormName = struct.field(pytree_node=False, default="identity")
    factor: int = struct.field(pytree_node=False, default=4)
    kernel_size: int = struct.field(pytree_node=False, default=9)  # [c] Gaussian, 9x9
    num_steps: int = struct.field(pytree_node=False, default=1000)  # [c] T
    s: float | jax.Array = 2000.0  # [t] for denoising, unknown in the source
    repeats: int = struct.field(pytree_node=False, default=6)  # [c] enhancement; else 1
    phi_rate: float | jax.Array = 1.0  # [c]
    kernel_learning_rate: float | jax.Array = 2e-4  # [i] BIRD's: no kernel in the code


DENOISE = Config()
DEBLUR = Config(form="kernel", s=6000.0)  # [c]
SR = Config(form="downsample", s=2000.0)  # [c]
LIGHT = Config(form="affine", s=80000.0)  # [c]
GRID: Mapping[str, Sequence[Any]] = {
    "s": (2e3, 4e3, 6e3, 1e4, 2e4, 4e4, 6e4, 8e4),
}


def config_for(task: str, side: int) -> Config | None:
    """Return the settings for a task, None where no form of degradation is its.

    They are those of every size: s is scaled, and at 64x64 `GRID` has no better one.

    Args:
        task: its name; a number after "sr" is the factor.
        side: of the pictures in pixels.
    """
    del side
    if task.startswith("sr"):
        return dataclasses.replace(SR, factor=int(task.removeprefix("sr")))
    if task in DENOISING:
        return DENOISE
    return DEBLUR if task in BLURS else None


class State(NamedTuple):
    """What one timestep hands to the next.

    Attributes:
        x: x_t, (H, W, 3).
        phi: unknowns of the degradation.
        opt_state: of their optimiser.
    """

    x: jax.Array
    phi: Any
    opt_state: optax.OptState


def phi_optimizer(
    phi: Any, config: Config, shape: tuple[int, ...]
) -> optax.GradientTransformation:
    """Return what moves the unknowns of a degradation.

    Args:
        phi: the unknowns, as the form starts them.
        config: the settings.
        shape: of the pictures, (H, W, 3).
    """
    if "f" not in phi:
        return optax.adam(config.kernel_learning_rate)
    # L is a mean: the more pixels there are, the smaller is the gradient of each M.
    scale = math.prod(shape) / NUMBERS
    return optax.multi_transform(
        {
            "f": optax.sgd(config.phi_rate),
            "M": optax.sgd(config.phi_rate * scale),
        },
        {"f": "f", "M": "M"},
    )


def sample(
    predict: PredictStep,
    steps: ddim.Steps,
    form: Form,
    y: jax.Array,
    shape: tuple[int, ...],
    key: jax.Array,
    config: Config,
) -> State:
    """Return the last state; its x is the answer.

    Args:
        predict: predictor of noise and variance.
        steps: all timesteps, in the order of sampling.
        form: D.
        y: what the form's prediction is compared with, in [-1, 1].
        shape: of x, (H, W, 3).
        key: of x_T, of phi and of the noise n, split in this order; that of n splits
            again, one for each step in the order of sampling.
        config: the settings.
    """
    x_key, phi_key, n_key = jax.random.split(key, 3)
    phi = form.init(phi_key)
    optimizer = phi_optimizer(phi, config, shape)
    s = config.s * math.prod(shape) / NUMBERS

    def L(phi: Any, x_0: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(form.apply(phi, x_0) - y)) / 4  # as in [0, 1]

    def descend(state: State, x_0: jax.Array) -> State:
        updates, opt_state = optimizer.update(
            jax.grad(L)(state.phi, x_0), state.opt_state
        )
        return State(state.x, optax.apply_updates(state.phi, updates), opt_state)

    def step(state: State, level: tuple[ddim.Steps, jax.Array]) -> tuple[State, None]:
        now, key = level
        eps, v = predict(state.x, now.conditioning)
        x_0 = ddim.clip(sampling.without_noise(state.x, eps, now.alpha_bar))
        mu, variance, beta = sampling.posterior(state.x, x_0, now)
        if jax.tree.leaves(state.phi):
            state = lax.fori_loop(
                0, config.repeats, lambda _, state: descend(state, x_0), state
            )
        mu = mu - s * jax.grad(L, 1)(state.phi, x_0)
        n = jax.random.normal(key, shape, jnp.float32)
        deviation = jnp.sqrt(sampling.between(v, variance, beta))
        return state._replace(x=mu + deviation * n), None

    x = jax.random.normal(x_key, shape, jnp.float32)
    keys = jax.random.split(n_key, len(steps.alpha_bar))
    state = State(x, phi, optimizer.init(phi))
    return lax.scan(step, state, (steps, keys))[0]


def restore(
    prior: Prior,
    y: jax.Array,
    key: jax.Array,
    config: Config = DENOISE,
    operator: Operator | None = None,
) -> Restored:
    """Restore by GDP.

    Args:
        prior: the frozen model.
        y: degraded image, (H, W, 3) in [0, 1]; the small one, (h, w, 3), where the
            form is of super-resolution or the operator has a smaller image.
        key: of the samples and of phi.
        config: the settings.
        operator: the known degradation; None for the blind form of the settings.

    Raises:
        ValueError: the form, its numbers, or the size of y do not fit.
    """
    height, width = forms.size_of(operator, y, config.form, config.factor)
    canvas.check_size(prior, PAPER, height, width)
    length = prior.card.schedule.num_train_timesteps
    predict, steps = step_predictor(prior, ddim_timesteps(config.num_steps, length))
    size = canvas.canvas_size(prior, PAPER, height, width)
    form, y = forms.bind(
        operator, y, size, config.form, config.kernel_size, config.factor
    )
    x = sample(predict, steps, form, y, (*size, 3), key, config).x
    image = canvas.cut(jnp.clip(x, -1, 1), (height, width))
    return Restored(image, jnp.int32(config.num_steps), jnp.int32(0))
