"""Known linear degradations y = H x, with the singular value decomposition of H.

H acts on each channel alike. H = U S V^T is never written out: a matrix for the rows
and one for the columns, or a Fourier transform, take its place. A spectrum is V^T x or
U^T y, (H, W, 3), complex for a convolution; it is zero where H measures nothing.

H maps photos in [0, 1] to measurements in [0, 1]. The compared methods work in the
prior's range; `to_prior_range` brings a measurement there.
"""

import abc
from collections.abc import Callable
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from diip_jax import degradations

# Singular values below this part of the largest count as zero: float32 leaves three
# digits of what is divided by them.
RANK = 1e-4


class Operator(abc.ABC):
    """A linear degradation H = U S V^T; U and V are orthonormal (unitary).

    Attributes:
        singulars: S at the place of each entry of a spectrum, (H, W, 1), in no order.
    """

    singulars: jax.Array
    replace: Callable[..., Self]  # with some fields changed

    @abc.abstractmethod
    def to_spectrum(self, x: jax.Array) -> jax.Array:
        """Return V^T x of an image, (H, W, 3)."""

    @abc.abstractmethod
    def from_spectrum(self, spectrum: jax.Array) -> jax.Array:
        """Return the image V s of a spectrum, (H, W, 3)."""

    @abc.abstractmethod
    def measured(self, y: jax.Array) -> jax.Array:
        """Return U^T y of a measurement, (h, w, 3), as a spectrum, (H, W, 3)."""

    @abc.abstractmethod
    def from_measured(self, spectrum: jax.Array) -> jax.Array:
        """Return the measurement U s of a spectrum, (h, w, 3)."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of x."""
        return self.singulars.shape[0], self.singulars.shape[1]

    def inverse_singulars(self) -> jax.Array:
        """Return 1 / S, and 0 where S is 0, (H, W, 1)."""
        zero = self.singulars == 0
        return jnp.where(zero, 0.0, 1 / jnp.where(zero, 1.0, self.singulars))

    def apply(self, x: jax.Array) -> jax.Array:
        """Return H x, (H, W, 3) to (h, w, 3)."""
        return self.from_measured(self.singulars * self.to_spectrum(x))

    def adjoint(self, y: jax.Array) -> jax.Array:
        """Return H^T y, (h, w, 3) to (H, W, 3)."""
        return self.from_spectrum(self.singulars * self.measured(y))

    def pseudo_inverse(self, y: jax.Array) -> jax.Array:
        """Return H^+ y, (h, w, 3) to (H, W, 3)."""
        return self.from_spectrum(self.inverse_singulars() * self.measured(y))


Linear = TypeVar("Linear", bound=Operator)


@struct.dataclass
class Separable(Operator):
    """A matrix that acts on the rows and one that acts on the columns.

    Attributes:
        singulars: products of the singular values of both, (H, W, 1).
        u_rows: U of the matrix on the rows, (h, H); columns without a singular value
            are zero.
        v_rows: V of the same, (H, H).
        u_columns: U of the matrix on the columns, (w, W).
        v_columns: V of the same, (W, W).
    """

    singulars: jax.Array
    u_rows: jax.Array
    v_rows: jax.Array
    u_columns: jax.Array
    v_columns: jax.Array

    def to_spectrum(self, x: jax.Array) -> jax.Array:
        """Return V^T x of an image, (H, W, 3)."""
        return _on_both_sides(self.v_rows.T, self.v_columns.T, x)

    def from_spectrum(self, spectrum: jax.Array) -> jax.Array:
        """Return the image V s of a spectrum, (H, W, 3)."""
        return _on_both_sides(self.v_rows, self.v_columns, spectrum)

    def measured(self, y: jax.Array) -> jax.Array:
        """Return U^T y of a measurement, (h, w, 3), as a spectrum, (H, W, 3)."""
        return _on_both_sides(self.u_rows.T, self.u_columns.T, y)

    def from_measured(self, spectrum: jax.Array) -> jax.Array:
        """Return the measurement U s of a spectrum, (h, w, 3)."""
        return _on_both_sides(self.u_rows, self.u_columns, spectrum)


@struct.dataclass
class Convolution(Operator):
    """A circular convolution: the Fourier transform K of the kernel times that of x.

    S = |K|, V^T x = (K / |K|) F x and U^T y = F y, with F unitary.

    Attributes:
        singulars: |K|, (H, W, 1).
        phases: K / |K|, (H, W, 1) complex; 1 where K is 0.
    """

    singulars: jax.Array
    phases: jax.Array

    def to_spectrum(self, x: jax.Array) -> jax.Array:
        """Return V^T x of an image, (H, W, 3), complex."""
        return self.phases * self.measured(x)

    def from_spectrum(self, spectrum: jax.Array) -> jax.Array:
        """Return the image V s of a spectrum, (H, W, 3)."""
        return self.from_measured(jnp.conj(self.phases) * spectrum)

    def measured(self, y: jax.Array) -> jax.Array:
        """Return U^T y of a measurement, (H, W, 3), complex."""
        return jnp.fft.fft2(y, axes=(0, 1), norm="ortho")

    def from_measured(self, spectrum: jax.Array) -> jax.Array:
        """Return the measurement U s of a spectrum, (H, W, 3)."""
        return jnp.fft.ifft2(spectrum, axes=(0, 1), norm="ortho").real


def separable(rows: np.ndarray, columns: np.ndarray) -> Separable:
    """Return the operator rows @ x @ columns.T of each channel.

    Args:
        rows: matrix that acts on the rows, (h, H).
        columns: matrix that acts on the columns, (w, W).
    """
    u_rows, s_rows, v_rows = _decompose(rows)
    u_columns, s_columns, v_columns = _decompose(columns)
    singulars = np.multiply.outer(s_rows, s_columns)[..., None]
    singulars[singulars < RANK * singulars.max()] = 0
    factors = (singulars, u_rows, v_rows, u_columns, v_columns)
    return Separable(*(jnp.asarray(factor, jnp.float32) for factor in factors))


def identity(size: tuple[int, int]) -> Separable:
    """Return the operator that keeps images of this height and width: denoising."""
    return separable(np.eye(size[0]), np.eye(size[1]))


def gaussian_blur(size: tuple[int, int], sigma: float) -> Separable:
    """Return `degradations.gaussian_blur` of images of this height and width."""
    rows, columns = (degradations.blur_matrix(side, sigma) for side in size)
    return separable(rows, columns)


def super_resolution(size: tuple[int, int], factor: int = 4) -> Separable:
    """Return `degradations.downsample` of images of this height and width.

    Raises:
        ValueError: a side is no multiple of the factor.
    """
    rows, columns = (degradations.sampling_matrix(side, factor) for side in size)
    return separable(rows, columns)


def convolution(kernel: jax.Array, size: tuple[int, int]) -> Convolution:
    """Return the circular convolution with a kernel, centred; it may be traced.

    Args:
        kernel: (k, l) with odd sides, no larger than the images.
        size: height and width of the images.
    """
    height, width = kernel.shape
    padded = jnp.pad(kernel, [(0, size[0] - height), (0, size[1] - width)])
    centred = jnp.roll(padded, (-(height // 2), -(width // 2)), (0, 1))
    spectrum = jnp.fft.fft2(centred)[..., None]
    singulars = jnp.abs(spectrum)
    zero = singulars < RANK * singulars.max()
    phases = jnp.where(zero, 1.0, spectrum / jnp.where(zero, 1.0, singulars))
    return Convolution(jnp.where(zero, 0.0, singulars), phases)


def known(operator: Operator | None, method: str) -> Operator:
    """Return the operator that a non-blind method was given.

    Raises:
        ValueError: it was given none.
    """
    if operator is None:
        raise ValueError(
            f"{method} needs the degradation, and operator is None; give one of "
            "diip_jax.bench.operators"
        )
    return operator


def truncated(operator: Linear, rank: float | jax.Array) -> Linear:
    """Return an operator without its singular values below a bound.

    Args:
        operator: H.
        rank: the bound, scalar.
    """
    s = operator.singulars
    return operator.replace(singulars=jnp.where(s < rank, 0.0, s))


def to_prior_range(operator: Operator, y: jax.Array) -> jax.Array:
    """Return the measurement of 2 x - 1, given that of x.

    Args:
        operator: the degradation H.
        y: measurement H x of an image x in [0, 1], (h, w, 3).
    """
    return 2 * y - operator.apply(jnp.ones((*operator.size, y.shape[-1]), y.dtype))


def _on_both_sides(rows: jax.Array, columns: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.einsum("ih,hwc,jw->ijc", rows, x, columns, precision="highest")


def _decompose(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return U (m, n), the n singular values and V (n, n) of a matrix (m, n)."""
    m, n = matrix.shape
    u, s, v_transposed = np.linalg.svd(np.asarray(matrix, np.float64))
    missing = max(n - m, 0)
    u = np.pad(u[:, : min(m, n)], [(0, 0), (0, missing)])
    return u, np.pad(s, (0, missing)), v_transposed.T
