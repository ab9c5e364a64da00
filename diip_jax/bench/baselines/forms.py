"""The forms of degradation that partially blind methods assume.

A form says what a picture x, (H, W, 3) in [-1, 1], would be measured as, up to unknown
parameters phi that the method finds together with the picture.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from diip_jax import canvas
from diip_jax.bench.operators import Operator

FormName = Literal["identity", "affine", "kernel", "downsample", "kernel-downsample"]
FORMS = ("identity", "affine", "kernel", "downsample", "kernel-downsample")
SHRINKING = ("downsample", "kernel-downsample")  # what is measured is smaller than x
CODE_SIZE = 200  # of SelfDeblur's kernel network (Ren et al., 2020), as in BIRD's code
HIDDEN = 1000  # likewise


class Form(NamedTuple):
    """A family of degradations.

    Attributes:
        init: key to phi.
        apply: phi and x to the predicted measurement.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array], jax.Array]


def make(name: FormName, shape: tuple[int, ...], kernel_size: int, factor: int) -> Form:
    """Return a form by its name.

    Args:
        name: "identity" (noise), "affine" (f x + M), "kernel" (unknown blur),
            "downsample" (average pooling) or "kernel-downsample" (unknown blur, then
            every factor-th pixel).
        shape: of x, (H, W, 3).
        kernel_size: side of an unknown kernel in pixels, odd.
        factor: of super-resolution.

    Raises:
        ValueError: there is no such form, or the factor does not divide the sides.
    """
    if name not in FORMS:
        raise ValueError(f"form is {name!r}; use one of {', '.join(FORMS)}")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; use an odd number")
    if name in SHRINKING and (shape[0] % factor or shape[1] % factor):
        raise ValueError(
            f"canvas is {shape[1]}x{shape[0]}, but factor is {factor}; use a factor "
            "that divides both sides"
        )
    return {
        "identity": identity,
        "affine": lambda: affine(shape),
        "kernel": lambda: kernel(kernel_size),
        "downsample": lambda: downsample(factor),
        "kernel-downsample": lambda: kernel(kernel_size, factor),
    }[name]()


def size_of(
    operator: Operator | None, y: jax.Array, name: FormName, factor: int
) -> tuple[int, int]:
    """Return height and width of the pictures that a measurement is of.

    Args:
        operator: the known degradation, or None for the form of this name.
        y: the measurement, (h, w, 3).
        name: as in `make`.
        factor: as in `make`.
    """
    if operator is not None:
        return operator.size
    times = factor if name in SHRINKING else 1
    return times * y.shape[0], times * y.shape[1]


def bind(
    operator: Operator | None,
    y: jax.Array,
    size: tuple[int, int],
    name: FormName,
    kernel_size: int,
    factor: int,
) -> tuple[Form, jax.Array]:
    """Return the form of a degradation and what its prediction is compared with.

    Args:
        operator: the known degradation, or None for the form of this name.
        y: the measurement, (h, w, 3) in [0, 1].
        size: height and width of the canvas.
        name: as in `make`.
        kernel_size: as in `make`.
        factor: as in `make`.

    Returns:
        The form, and the measurement in [-1, 1], on the part of the canvas that it has.
    """
    y = jnp.asarray(y, jnp.float32)
    if operator is not None:
        return known(operator), 2 * y - 1
    form = make(name, (*size, 3), kernel_size, factor)
    times = factor if name in SHRINKING else 1
    return form, canvas.place(y, (size[0] // times, size[1] // times))


def identity() -> Form:
    """Return the form of noise: y is x itself."""
    return Form(_no_parameters, lambda phi, x: x)


def downsample(factor: int) -> Form:
    """Return the form of super-resolution: means of factor x factor pixels."""
    return Form(_no_parameters, lambda phi, x: average_pool(x, factor))


def affine(shape: tuple[int, ...]) -> Form:
    """Return GDP's form of changed light: f x + M in [0, 1], M for every pixel."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        f_key, M_key = jax.random.split(key)
        return {  # as released: f ~ N(0, 1) / 100, M ~ U(0, 1) / 10^4
            "f": jax.random.normal(f_key, (), jnp.float32) / 100,
            "M": jax.random.uniform(M_key, shape, jnp.float32) / 1e4,
        }

    def apply(phi: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return 2 * (phi["f"] * (x + 1) / 2 + phi["M"]) - 1

    return Form(init, apply)


def kernel(kernel_size: int, factor: int = 1) -> Form:
    """Return the form of an unknown blur, by default on the grid of x.

    Args:
        kernel_size: side of the kernel in pixels, odd.
        factor: of every so many pixels one is kept, in both directions.
    """
    network, first = KernelNetwork(kernel_size), (factor - 1) // 2

    def init(key: jax.Array) -> dict[str, Any]:
        code_key, weights_key = jax.random.split(key)
        code = 0.1 * jax.random.uniform(code_key, (CODE_SIZE,), jnp.float32)
        return {"code": code, "weights": network.init(weights_key, code)}

    def apply(phi: dict[str, Any], x: jax.Array) -> jax.Array:
        code = lax.stop_gradient(phi["code"])  # fixed: no optimiser moves it
        k = jnp.asarray(network.apply(phi["weights"], code))
        return convolve(x, k)[first::factor, first::factor]

    return Form(init, apply)


def known(operator: Operator) -> Form:
    """Return the form of a degradation without unknowns; y is its measurement."""
    height, width = operator.size

    def apply(phi: tuple[()], x: jax.Array) -> jax.Array:
        return 2 * operator.apply((x[:height, :width] + 1) / 2) - 1

    return Form(_no_parameters, apply)


def _no_parameters(key: jax.Array) -> tuple[()]:
    """Return phi of a form without unknowns."""
    del key
    return ()


def average_pool(x: jax.Array, factor: int) -> jax.Array:
    """Return the means of blocks of factor x factor pixels of (H, W, C)."""
    height, width, channels = x.shape
    blocks = x.reshape(height // factor, factor, width // factor, factor, channels)
    return jnp.mean(blocks, axis=(1, 3))


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve each channel with the same kernel; outside of x is zero.

    Args:
        x: (H, W, C).
        kernel: (k, k), k odd. It is not mirrored, which is of no account where it is
            unknown.
    """
    planes = jnp.moveaxis(x, -1, 0)[..., None]  # a batch of one-channel images
    seen = lax.conv_general_dilated(
        planes,
        kernel[..., None, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jnp.moveaxis(seen[..., 0], 0, -1)


class KernelNetwork(nn.Module):
    """SelfDeblur's kernel from a fixed code: not negative, of sum 1."""

    kernel_size: int

    @nn.compact
    def __call__(self, code: jax.Array) -> jax.Array:
        """Map (CODE_SIZE,) to (kernel_size, kernel_size)."""
        hidden = nn.relu6(linear(HIDDEN, code)(code))
        logits = linear(self.kernel_size**2, hidden)(hidden)
        return nn.softmax(logits).reshape(self.kernel_size, self.kernel_size)


def linear(features: int, x: jax.Array) -> nn.Dense:
    """Return a layer for x, (..., C), that starts as PyTorch's."""
    start = pytorch_start(x.shape[-1])
    return nn.Dense(features, kernel_init=start, bias_init=start)


def pytorch_start(fan_in: int) -> nn.initializers.Initializer:
    """Return how PyTorch starts weights and biases: uniform within 1 / sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
