"""One training step, as a pure function of the state and a batch of pictures."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diip_jax.compilation import compiler_options
from diip_jax.config import DEFAULT, DTypeName
from diip_jax.prior import Card, network
from diip_jax.training import loss


@struct.dataclass
class TrainConfig:
    """Settings of a training; the numbers are leaves.

    Attributes:
        learning_rate: of Adam, at its peak.
        warm_up: steps until the learning rate is there.
        weight_decay: of AdamW; 0 is Adam.
        clip_norm: largest global norm of a gradient.
        ema_decay: of the average of the weights, once it is warm.
        band: timesteps that half of a batch is drawn from: those of restoration.
        seed: of crops, timesteps and noise.
        batch_size: crops of a step, over all devices.
        weighting: a key of `loss.WEIGHTINGS`.
        dtype: of the network's convolutions and projections; the master weights are
            float32.
    """

    learning_rate: float = 2.5e-4
    warm_up: int = 200
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.9997
    band: tuple[int, int] = (20, 260)
    seed: int = 0
    batch_size: int = struct.field(pytree_node=False, default=32)
    weighting: str = struct.field(pytree_node=False, default="level")
    dtype: DTypeName = struct.field(pytree_node=False, default="float32")


class TrainState(NamedTuple):
    """What one step hands to the next.

    Attributes:
        step: steps done.
        params: the weights, float32.
        moments: state of the optimiser.
        ema: exponential moving average of the weights, which is the prior.
        failed_at: the first step whose loss or gradient was not finite, -1 before;
            from there on, the weights stay as they were.
    """

    step: jax.Array
    params: Any
    moments: optax.OptState
    ema: Any
    failed_at: jax.Array


class Metrics(NamedTuple):
    """What a step tells: its weighted loss, and its gradient's norm before clipping."""

    loss: jax.Array
    gradient_norm: jax.Array


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Return Adam or AdamW of clipped gradients, without the learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(config.weight_decay),
    )


def rate(step: jax.Array, progress: jax.Array, config: TrainConfig) -> jax.Array:
    """Return the learning rate: linear warm-up, then a cosine down to a tenth.

    Args:
        step: steps done.
        progress: share of the training done, in [0, 1], by steps or by the clock.
        config: the settings.
    """
    warm = jnp.minimum(1.0, (step + 1) / config.warm_up)
    cosine = (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))) / 2
    return config.learning_rate * warm * (0.1 + 0.9 * cosine)


def average_decay(step: jax.Array, config: TrainConfig) -> jax.Array:
    """Return the decay of the average of the weights, small at first."""
    return jnp.minimum(config.ema_decay, (1 + step) / (10 + step))


def init(params: Any, config: TrainConfig) -> TrainState:
    """Return the state before the first step; the average starts at the weights."""
    params = jax.tree.map(lambda a: jnp.array(a, jnp.float32), params)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        moments=optimizer(config).init(params),
        ema=jax.tree.map(jnp.copy, params),
        failed_at=jnp.int32(-1),
    )


def predictor(card: Card, dtype: DTypeName) -> loss.Predict:
    """Return the network of a card, for one timestep per image."""
    unet = network(card, DEFAULT.replace(dtype=dtype))

    def predict(params: Any, x_t: jax.Array, t: jax.Array) -> jax.Array:
        conditioning = unet.apply({"params": params}, t, method="condition")
        return jnp.asarray(unet.apply({"params": params}, x_t, conditioning))

    return predict


def train_step(
    state: TrainState,
    pictures: jax.Array,
    progress: jax.Array,
    card: Card,
    config: TrainConfig,
) -> tuple[TrainState, Metrics]:
    """Take one step.

    Args:
        state: the state, on all devices.
        pictures: crops, (N, H, W, 3) uint8.
        progress: share of the training done, in [0, 1].
        card: of the prior in training.
        config: the settings.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    of_time, of_noise = jax.random.split(key)
    x = loss.in_range(pictures)
    noise = jax.random.normal(of_noise, x.shape, jnp.float32)
    schedule = card.schedule
    t = loss.draw_timesteps(of_time, len(x), schedule.num_train_timesteps, config.band)
    weight = jnp.asarray(loss.weights(schedule, config.weighting))[t]
    predict = predictor(card, config.dtype)

    def objective(params: Any) -> jax.Array:
        return jnp.mean(
            weight * loss.noise_error(predict, params, x, noise, t, schedule)
        )

    value, gradient = jax.value_and_grad(objective)(state.params)
    return _updated(state, value, gradient, progress, config)


def _updated(
    state: TrainState,
    value: jax.Array,
    gradient: Any,
    progress: jax.Array,
    config: TrainConfig,
) -> tuple[TrainState, Metrics]:
    """Return the state after a gradient, or unchanged weights if it is not finite."""
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)]
    norm = jnp.sqrt(jnp.asarray(squares).sum())
    good = jnp.isfinite(value) & jnp.isfinite(norm) & (state.failed_at < 0)
    direction, moments = optimizer(config).update(gradient, state.moments, state.params)
    eta, decay = rate(state.step, progress, config), average_decay(state.step, config)
    params = jax.tree.map(lambda p, d: p - eta * d, state.params, direction)
    ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.ema, params)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    new = TrainState(
        step=state.step + good,
        params=keep(params, state.params),
        moments=keep(moments, state.moments),
        ema=keep(ema, state.ema),
        failed_at=jnp.where(good | (state.failed_at >= 0), state.failed_at, state.step),
    )
    return new, Metrics(value, norm)


@functools.cache
def jitted_train_step() -> Any:
    """Return `train_step` jitted; the memory of the state is used again."""
    return jax.jit(
        train_step,
        static_argnames="card",
        donate_argnames="state",
        compiler_options=compiler_options(),
    )


class Placement(NamedTuple):
    """Where states and batches live: on all devices, and split over them."""

    state: NamedSharding
    batch: NamedSharding


def placement(batch_size: int) -> Placement:
    """Return the placement over all devices, of all processes.

    Raises:
        ValueError: the devices cannot share a batch evenly.
    """
    devices = np.asarray(jax.devices())
    if batch_size % len(devices):
        raise ValueError(
            f"batch_size is {batch_size}; use a multiple of the {len(devices)} devices"
        )
    mesh = Mesh(devices, ("data",))
    return Placement(
        NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    )
