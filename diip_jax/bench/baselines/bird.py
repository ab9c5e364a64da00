"""BIRD (Chihaoui, Lemkhenter & Favaro, 2024): noise and degradation, found together.

    min over z with ||z||^2 = N, and eta, of ||y - H_eta(g(z))||^2

by Adam, for a fixed number of iterations, where g is the deterministic DDIM map and
H_eta a form of degradation with unknowns eta. As in the released code, the network is
frozen in the gradient too: only the linear DDIM algebra is differentiated.

Origins of the constants: [c] certain, read in the released code or the paper; [i]
inferred or chosen here; [t] tuned with `GRID`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from diip_jax import canvas, ddim
from diip_jax.bench.baselines import forms
from diip_jax.bench.baselines.forms import Form, FormName
from diip_jax.bench.baselines.restored import (
    BLURS,
    DENOISING,
    SMALL_SIDE,
    SOURCE_SIDE,
    Restored,
    odd,
)
from diip_jax.bench.operators import Operator
from diip_jax.config import PAPER
from diip_jax.prior import Prior, noise_predictor
from diip_jax.schedule import ddim_timesteps


@struct.dataclass
class Config:
    """Settings; the default is the released one for denoising.

    Attributes:
        form: of the degradation where no operator is given, see `forms.make`.
        factor: of super-resolution.
        kernel_size: side of an unknown kernel in pixels, odd.
        num_steps: DDIM steps of g.
        iterations: how many are made.
        learning_rate: Adam's, of z.
        kernel_learning_rate: Adam's, of the kernel network's weights.
    """

    form: FormName = struct.field(pytree_node=False, default="identity")  # [c]
    factor: int = struct.field(pytree_node=False, default=4)
    kernel_size: int = struct.field(pytree_node=False, default=41)  # [c] at 256x256
    num_steps: int = struct.field(pytree_node=False, default=10)  # [c] delta_t = 100
    iterations: int = struct.field(pytree_node=False, default=200)  # [c] N of the paper
    learning_rate: float | jax.Array = 0.01  # [c] code; the paper says .003
    kernel_learning_rate: float | jax.Array = 2e-4  # [c] code


DENOISE = Config()
DEBLUR = Config(form="kernel", iterations=100, learning_rate=0.003)  # [c] code
SR = Config(form="downsample", iterations=100, learning_rate=0.001)  # [c] code
SMALL_DENOISE = Config(learning_rate=0.03)  # [t] for 64x64, as the next
SMALL_SR = Config(form="downsample", iterations=100, learning_rate=0.003)
GRID: Mapping[str, Sequence[Any]] = {
    "learning_rate": (0.001, 0.003, 0.01, 0.03),
    "iterations": (100, 200),
}


def config_for(task: str, side: int) -> Config | None:
    """Return the settings for a task, None where no form of degradation is its.

    The released settings are for 256x256. The kernel shrinks with the pictures.

    Args:
        task: its name; a number after "sr" is the factor.
        side: of the pictures in pixels.
    """
    small = side <= SMALL_SIDE
    if task.startswith("sr"):
        factor = int(task.removeprefix("sr"))
        return dataclasses.replace(SMALL_SR if small else SR, factor=factor)
    if task in DENOISING:
        return SMALL_DENOISE if small else DENOISE
    if task not in BLURS:
        return None
    return dataclasses.replace(
        DEBLUR, kernel_size=odd(DEBLUR.kernel_size * side / SOURCE_SIDE)
    )


class State(NamedTuple):
    """What one iteration hands to the next.

    Attributes:
        variables: z, (H, W, 3), and eta, the unknowns of the degradation.
        opt_state: Adam's moments of both.
        x: g(z) of the last iteration, (H, W, 3) in [-1, 1].
    """

    variables: dict[str, Any]
    opt_state: optax.OptState
    x: jax.Array


def project(z: jax.Array) -> jax.Array:
    """Return z on the sphere ||z||^2 = N, where Gaussian noise of N numbers lies."""
    return z * jnp.sqrt(z.size) / jnp.linalg.norm(z)


def invert(
    predict_noise: ddim.PredictNoise,
    steps: ddim.Steps,
    form: Form,
    y: jax.Array,
    shape: tuple[int, ...],
    key: jax.Array,
    config: Config,
) -> State:
    """Return the last state; its x is the answer.

    Args:
        predict_noise: noise predictor.
        steps: of g, in the order of sampling.
        form: H.
        y: what the form's prediction is compared with, in [-1, 1].
        shape: of z and x, (H, W, 3).
        key: of z and eta.
        config: the settings.
    """
    generate = ddim.generator(predict_noise, steps, gradient="frozen")
    optimizer = optax.multi_transform(
        {
            "z": optax.adam(config.learning_rate),
            "eta": optax.adam(config.kernel_learning_rate),
        },
        {"z": "z", "eta": "eta"},
    )

    def energy(variables: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        x = generate(variables["z"])
        seen = form.apply(variables["eta"], x)
        return jnp.mean(jnp.square(seen - y)), x  # the paper's sum: the same to Adam

    def step(state: State, _: None) -> tuple[State, None]:
        gradient, x = jax.grad(energy, has_aux=True)(state.variables)
        updates, opt_state = optimizer.update(gradient, state.opt_state)
        moved: Any = optax.apply_updates(state.variables, updates)
        return State(moved | {"z": project(moved["z"])}, opt_state, x), None

    z_key, eta_key = jax.random.split(key)
    z = jax.random.normal(z_key, shape, jnp.float32)
    variables = {"z": z, "eta": form.init(eta_key)}
    first = State(variables, optimizer.init(variables), jnp.zeros(shape, jnp.float32))
    return lax.scan(step, first, None, config.iterations)[0]


def restore(
    prior: Prior,
    y: jax.Array,
    key: jax.Array,
    config: Config = DENOISE,
    operator: Operator | None = None,
) -> Restored:
    """Restore by BIRD.

    Args:
        prior: the frozen model.
        y: degraded image, (H, W, 3) in [0, 1]; the small one, (h, w, 3), where the
            form is of super-resolution or the operator has a smaller image.
        key: of the noise and the kernel network.
        config: the settings.
        operator: the known degradation; None for the blind form of the settings.

    Raises:
        ValueError: the form, its numbers, or the size of y do not fit.
    """
    height, width = forms.size_of(operator, y, config.form, config.factor)
    canvas.check_size(prior, PAPER, height, width)
    length = prior.card.schedule.num_train_timesteps
    timesteps = ddim_timesteps(config.num_steps, length)
    predict_noise, steps = noise_predictor(prior, PAPER, timesteps)
    size = canvas.canvas_size(prior, PAPER, height, width)
    form, y = forms.bind(
        operator, y, size, config.form, config.kernel_size, config.factor
    )
    state = invert(predict_noise, steps, form, y, (*size, 3), key, config)
    image = canvas.cut(state.x, (height, width))
    evaluations = config.num_steps * config.iterations
    return Restored(image, jnp.int32(evaluations), jnp.int32(0))
