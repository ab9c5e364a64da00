"""Layers that the UNets share: NHWC, exact group statistics, float32 where it counts.

Every layer stores its parameters under the names `kernel`, `bias` and `scale`, so that
a PyTorch state dict maps onto the tree by renaming alone. The values always come from a
file. Only the shape of an initial value counts, and zeros are the quickest to trace.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from diip_jax.unets import ops

Time = tuple[jax.Array, ...]  # what a residual block computes from the timestep alone
Conditioning = tuple[Time, ...]  # of all residual blocks, in order


def _weights(layer: nn.Module, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Return a parameter of a layer: float32, as whatever it is stored."""
    initial = nn.initializers.ones if name == "scale" else nn.initializers.zeros
    return layer.param(name, initial, shape, jnp.float32).astype(jnp.float32)


class Dense(nn.Module):
    """Affine map of the last axis."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x @ kernel + bias."""
        kernel = _weights(self, "kernel", (x.shape[-1], self.features))
        bias = _weights(self, "bias", (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        y = x @ kernel
        return y + jnp.broadcast_to(bias, y.shape)  # one line of the program, not two


class Conv(nn.Module):
    """2-D convolution with explicit padding, (N, H, W, C_in) to (N, H', W', C_out).

    Attributes:
        features: C_out.
        size: side of the kernel.
        stride: step of the window.
        padding: number of zeros before the first and after the last pixel of each side.
        upsampled: convolve `ops.upsample(x)` instead of x; needs the default size,
            stride and padding.
        dtype: dtype of the computation.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
    upsampled: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the convolution of x plus the bias."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = _weights(self, "kernel", shape)
        bias = _weights(self, "bias", (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if self.upsampled:
            y = ops.convolve_upsampled(x, kernel)
        elif self.size == 1:
            y = x @ kernel[0, 0]
        elif self.stride == 1 and self.padding == (self.size // 2, self.size // 2):
            y = ops.convolve(x, kernel)
        else:
            y = lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=[self.padding, self.padding],
                dimension_numbers=ops.DIMENSIONS,
            )
        return y + jnp.broadcast_to(bias, y.shape)


class GroupNorm(nn.Module):
    """Group normalisation with a scale and a bias per channel.

    The statistics are exact (two passes) and in float32 for every dtype of x.

    Attributes:
        epsilon: number added to the variance.
        silu: apply SiLU to the result.
    """

    epsilon: float = 1e-5
    silu: bool = False

    @nn.compact
    def affine(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Return scale and bias, each (channels,)."""
        return _weights(self, "scale", (channels,)), _weights(self, "bias", (channels,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise x, (N, H, W, C)."""
        return ops.group_norm(x, *self.affine(x.shape[-1]), self.epsilon, self.silu)


class TimedGroupNorm(GroupNorm):
    """The group normalisation of a residual block at which the timestep enters.

    Attributes:
        scale_shift: time scales and shifts the normalised features; otherwise it is
            added to the features before they are normalised.
    """

    scale_shift: bool = True

    def condition(self, projection: jax.Array) -> Time:
        """Return what the norm needs from the time.

        Args:
            projection: projected time embedding: factor and shift, (..., 2 C), or the
                addend, (..., C).

        Returns:
            Scale and bias of `norm(x) * (1 + factor) + shift`, or the addend; (..., C).
        """
        if not self.scale_shift:
            return (projection,)
        factor, shift = jnp.split(projection, 2, axis=-1)
        affine = self.affine(factor.shape[-1])
        scale, bias = (jnp.broadcast_to(a, factor.shape) for a in affine)
        return scale * (1 + factor), bias * (1 + factor) + shift

    def __call__(self, x: jax.Array, time: Time) -> jax.Array:
        """Normalise x, (N, H, W, C), with the result of `condition`."""
        if self.scale_shift:
            scale, bias = time
            return ops.group_norm(x, scale, bias, self.epsilon, self.silu)
        addend = time[0][..., None, None, :]  # to every pixel
        return super().__call__(x + jnp.broadcast_to(addend, x.shape).astype(x.dtype))
