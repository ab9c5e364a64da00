"""Deep Image Prior (Ulyanov, Vedaldi & Lempitsky, 2018), fitted to y itself.

A convolutional network f_theta of fixed random input z is trained until f_theta(z)
looks like y. It learns what looks like a picture before it learns noise, so few enough
iterations restore:

    theta* = argmin ||f_theta(z) - y||^2,    x* = f_theta*(z).

Origins of the constants: [c] certain, read in the released code; [r] reported by
others; [i] inferred or chosen here; [t] tuned with `GRID`.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import lax

from diip_jax.bench.baselines.forms import pytorch_start
from diip_jax.bench.baselines.restored import Restored, for_any
from diip_jax.bench.operators import Operator
from diip_jax.prior import Prior
from diip_jax.unets import ops

Answer = Literal["raw", "ema"]


@struct.dataclass
class Config:
    """Settings; the default is the released code's for denoising.

    The blind form fits the network to y on the grid of the result, whatever the damage.

    Attributes:
        channels: features of each scale, finest first, down and up.
        skips: features of each scale's skip branch; 0 for none.
        input_channels: of z.
        iterations: T_max, the early stop.
        learning_rate: of Adam.
        input_scale: z is uniform in [0, input_scale].
        jitter: deviation of the noise that each iteration adds to z.
        fall: a PSNR against y that is so many dB lower than before is undone.
        ema_decay: of the running mean of the outputs.
        answer: "raw", f_theta(z) at the end, or "ema", that mean.
    """

    # [c] five scales
    channels: tuple[int, ...] = struct.field(pytree_node=False, default=(128,) * 5)
    skips: tuple[int, ...] = struct.field(pytree_node=False, default=(4,) * 5)
    input_channels: int = struct.field(pytree_node=False, default=32)  # [c]
    iterations: int = struct.field(pytree_node=False, default=3000)  # [c]
    learning_rate: float | jax.Array = 0.01  # [c]
    input_scale: float | jax.Array = 0.1  # [c]
    jitter: float | jax.Array = 1 / 30  # [c] at 25 / 255; .03 and .05 for SR x4, x8
    fall: float | jax.Array = 5.0  # [c]
    ema_decay: float | jax.Array = 0.99  # [c]
    answer: Answer = struct.field(pytree_node=False, default="ema")  # [c] has both


DEFAULT = Config()
# For 64x64: [i] four scales, of half the width. The fifth would be 2x2 there. [t] The
# source's 3000 iterations copy the damage of so small a picture.
SMALL = Config(channels=(64,) * 4, skips=(4,) * 4, iterations=500)
JPEG = Config(  # [c]
    channels=(8, 16, 32, 64, 128),
    skips=(0, 0, 0, 4, 4),
    input_channels=3,
    iterations=2400,
    answer="raw",
)
GRID: Mapping[str, Sequence[Any]] = {
    "iterations": (500, 1000, 2000, 3000),
    "answer": ("raw", "ema"),
}
config_for = functools.partial(for_any, SMALL, DEFAULT)  # of task and side


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve (N, H, W, C) with (S, S, C, features), without padding.

    Equals `lax.conv_general_dilated(x, kernel, (stride, stride), "VALID")`; only faster
    on CPUs, because the gradient is written by hand (see `_backward`).
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return x @ kernel[0, 0]
    strides = (stride, stride)
    return lax.conv_general_dilated(
        x, kernel, strides, "VALID", dimension_numbers=ops.DIMENSIONS
    )


def _forward(x, kernel, stride):
    return convolve(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, g):
    """Return the cotangents of x and kernel.

    Equals autodiff of `convolve`; only faster, as XLA's CPU backend has a fast path for
    none of its two convolutions in a loop: one of g with holes, and one whose window is
    all of g. Here zeros fill the holes, and each tap of the kernel is a product.
    """
    x, kernel = residuals
    size, (rows, columns) = kernel.shape[0], g.shape[1:3]
    edges = [(size - 1, size - 1 + (side - size) % stride) for side in x.shape[1:3]]
    holes = [(0, 0, 0), *((*edge, stride - 1) for edge in edges), (0, 0, 0)]
    spread = lax.pad(g, jnp.zeros((), g.dtype), holes)
    g_x = convolve(spread, kernel[::-1, ::-1].swapaxes(2, 3), 1)
    taps = [
        jnp.einsum(
            "nhwc,nhwf->cf",
            x[:, i : i + stride * rows : stride, j : j + stride * columns : stride],
            g,
        )
        for i, j in itertools.product(range(size), repeat=2)
    ]
    return g_x, jnp.stack(taps).reshape(kernel.shape)


convolve.defvjp(_forward, _backward)


def _as_linen(x, kernel, strides, padding, **kwargs):
    """Convolve as `linen.Conv` asks for it, which adds what `convolve` has not."""
    del padding, kwargs  # none of either
    return convolve(x, kernel, strides[0])


class Conv(nn.Module):
    """Convolution with reflection at the edges."""

    features: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (H, W, C) to (H / stride, W / stride, features)."""
        margin, start = self.size // 2, pytorch_start(self.size**2 * x.shape[-1])
        padded = jnp.pad(x, [(margin, margin), (margin, margin), (0, 0)], "reflect")
        return nn.Conv(
            self.features,
            (self.size, self.size),
            self.stride,
            padding="VALID",
            kernel_init=start,
            bias_init=start,
            conv_general_dilated=_as_linen,
            name="conv",
        )(padded)


class Norm(nn.Module):
    """Batch normalisation in training mode, of a batch of one image."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise each channel of (H, W, C) over its pixels."""
        return nn.InstanceNorm(epsilon=1e-5, name="norm")(x[None])[0]


class Block(nn.Module):
    """Convolution, normalisation and LeakyReLU of slope 0.2."""

    features: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (H, W, C) to (H / stride, W / stride, features)."""
        x = Conv(self.features, self.size, self.stride, name="conv")(x)
        return nn.leaky_relu(Norm(name="norm")(x), 0.2)


class Scale(nn.Module):
    """One scale of the hourglass around the next coarser one."""

    channels: tuple[int, ...]
    skips: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (H, W, C) to (H, W, channels[0])."""
        features, skip = self.channels[0], self.skips[0]
        deeper = Block(features, stride=2, name="down")(x)
        deeper = Block(features, name="down_again")(deeper)
        if len(self.channels) > 1:
            deeper = Scale(self.channels[1:], self.skips[1:], name="deeper")(deeper)
        shape = (*x.shape[:2], deeper.shape[-1])
        h = jax.image.resize(deeper, shape, "bilinear")
        if skip:
            h = jnp.concatenate([Block(skip, 1, name="skip")(x), h], axis=-1)
        h = Block(features, name="up")(Norm(name="both")(h))
        return Block(features, 1, name="up_again")(h)


class Skip(nn.Module):
    """The network "skip": an hourglass with thin skip connections."""

    channels: tuple[int, ...]
    skips: tuple[int, ...]

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Map (H, W, C), sides multiples of 2**scales, to (H, W, 3) in [0, 1]."""
        h = Scale(self.channels, self.skips, name="scale")(z)
        return nn.sigmoid(Conv(3, 1, name="out")(h))


class State(NamedTuple):
    """What one iteration hands to the next.

    Attributes:
        theta: weights of the network.
        opt_state: Adam's moments.
        good: weights of the last iteration that did not fall.
        psnr: of its output against y, in dB.
        mean: running mean of the outputs, (H, W, 3).
    """

    theta: Any
    opt_state: optax.OptState
    good: Any
    psnr: jax.Array
    mean: jax.Array


def fit(
    y: jax.Array,
    size: tuple[int, int],
    key: jax.Array,
    config: Config,
    observe: Callable[[jax.Array], jax.Array],
    watch: Callable[[jax.Array], Any],
) -> tuple[jax.Array, Any]:
    """Fit the network to y.

    Args:
        y: measurement, in [0, 1].
        size: height and width of the network's output, multiples of 2**scales.
        key: of weights, input and jitter.
        config: the settings.
        observe: takes the output to what y is compared with.
        watch: takes the output of an iteration to what is kept of it.

    Returns:
        The answer, (height, width, 3) in [0, 1], and what was kept, stacked.
    """
    network = Skip(config.channels, config.skips)
    optimizer = optax.adam(config.learning_rate)
    z_key, theta_key, jitter_key = jax.random.split(key, 3)
    z = jax.random.uniform(z_key, (*size, config.input_channels), jnp.float32)
    z = config.input_scale * z

    def energy(theta: Any, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.asarray(network.apply(theta, z))
        return jnp.mean(jnp.square(observe(x) - y)), x

    def step(state: State, k: jax.Array) -> tuple[State, Any]:
        noise = jax.random.normal(jax.random.fold_in(jitter_key, k), z.shape)
        (loss, x), gradient = jax.value_and_grad(energy, has_aux=True)(
            state.theta, z + config.jitter * noise
        )
        psnr = -10 * jnp.log10(loss)
        fell = psnr - state.psnr < -config.fall
        theta = jax.tree.map(
            functools.partial(jnp.where, fell), state.good, state.theta
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state)
        decay = jnp.where(k == 0, 0.0, config.ema_decay)
        return State(
            theta=optax.apply_updates(theta, updates),
            opt_state=opt_state,
            good=theta,
            psnr=jnp.where(fell, state.psnr, psnr),
            mean=decay * state.mean + (1 - decay) * x,
        ), watch(x)

    theta = network.init(theta_key, z)
    blank = jnp.zeros((*size, 3), jnp.float32)
    state = State(theta, optimizer.init(theta), theta, jnp.float32(-jnp.inf), blank)
    state, kept = lax.scan(step, state, jnp.arange(config.iterations))
    if config.answer == "ema":
        return state.mean, kept
    return jnp.asarray(network.apply(state.theta, z)), kept


def restore(
    prior: Prior,
    y: jax.Array,
    key: jax.Array,
    config: Config = DEFAULT,
    operator: Operator | None = None,
) -> Restored:
    """Restore by the Deep Image Prior.

    Args:
        prior: not used; the network is untrained.
        y: degraded image, (H, W, 3) in [0, 1], or the measurement of the operator.
        key: of weights, input and jitter.
        config: the settings.
        operator: the known degradation, for the non-blind variant.
    """
    del prior
    image, _ = fit_any(y, key, config, operator, lambda x: None)
    return Restored(image, jnp.int32(0), jnp.int32(0))


def follow(
    y: jax.Array, key: jax.Array, config: Config, watch: Callable[[jax.Array], Any]
) -> Any:
    """Return what the blind method goes through, stacked over iterations.

    Args:
        y: degraded image, (H, W, 3) in [0, 1].
        key: of weights, input and jitter.
        config: the settings.
        watch: takes the output of an iteration, (H, W, 3) in [0, 1], of the jittered
            input, to what is kept of it.
    """
    return fit_any(y, key, config, None, watch)[1]


def fit_any(
    y: jax.Array,
    key: jax.Array,
    config: Config,
    operator: Operator | None,
    watch: Callable[[jax.Array], Any],
) -> tuple[jax.Array, Any]:
    """Return the answer of `fit` for an image of any size, and what was kept.

    Args:
        y: degraded image, (H, W, 3) in [0, 1], or the measurement of the operator.
        key: of weights, input and jitter.
        config: the settings.
        operator: the known degradation, or None.
        watch: takes the output of an iteration to what is kept of it.
    """
    height, width = y.shape[:2] if operator is None else operator.size
    unit = 2 ** len(config.channels)
    rows, columns = -height % unit, -width % unit
    size = (height + rows, width + columns)
    y = jnp.asarray(y, jnp.float32)

    def cut(x: jax.Array) -> jax.Array:
        return x[:height, :width]

    def observe(x: jax.Array) -> jax.Array:
        return x if operator is None else operator.apply(cut(x))

    if operator is None:
        y = jnp.pad(y, [(0, rows), (0, columns), (0, 0)], mode="reflect")
    image, kept = fit(y, size, key, config, observe, lambda x: watch(cut(x)))
    return cut(image), kept
