"""The tasks: how a clean picture is damaged, and what each method may know of it.

Tables 4 and 5 of the paper, and kinds of damage beside them. Section 4 of the paper:
"All tasks include additive Gaussian noise with sigma = 0.02"; here of [0, 1], on what
the camera sees: on the small picture of super-resolution, before JPEG compresses. The
mixture of the denoising tasks has Gaussian noise of its own, 0.03. The web page that
made the paper's deformation and its water cannot be used by a program: published damage
stands in, BlindDPS's turbulence and ImageNet-C's spatter.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from diip_jax import degradations

SIGMA = 0.02  # noise of all tasks but the denoising ones, in [0, 1]
STRONG_SIGMA = 0.12  # of the task of Gaussian noise: 30 of 255


class Separable(NamedTuple):
    """The arguments of `operators.separable`: rows @ x @ columns.T of each channel.

    Attributes:
        rows: matrix that acts on the rows, (h, H).
        columns: matrix that acts on the columns, (w, W).
    """

    rows: np.ndarray
    columns: np.ndarray


class Convolution(NamedTuple):
    """What `operators.convolution` needs besides the size: edges wrap around.

    Attributes:
        kernel: (K, K), K odd, with a sum of 1.
    """

    kernel: np.ndarray


class Observation(NamedTuple):
    """What is left of a clean picture x, (H, W, 3).

    Attributes:
        y: the degraded picture on the grid of x, (H, W, 3) float32 in [0, 1]: what
            blind methods are given.
        measurement: as it was measured, float32 in [0, 1]: the small picture of
            super-resolution, else y.
        operator: the linear damage that measurement = clip(operator(x) + noise) went
            through; None where it is not linear, or draws a field that no method knows.
        sigma: deviation of the noise in [0, 1]; that of a mixture is the RMS of what it
            did to this picture.
    """

    y: np.ndarray
    measurement: np.ndarray
    operator: Separable | Convolution | None
    sigma: float


class Task(NamedTuple):
    """A kind of damage.

    Attributes:
        name: in `TASKS`, on the command line and in records.
        title: in tables.
        observe: from a clean picture, (H, W, 3) in [0, 1], and a key to the
            observation; a pure function.
    """

    name: str
    title: str
    observe: Callable[[np.ndarray, jax.Array], Observation]


def denoise(x: np.ndarray, key: jax.Array) -> Observation:
    """Observe through the mixture of speckle and Gaussian noise of BIRD."""
    y = degradations.noise_mixture(x, key)
    rms = float(np.sqrt(np.mean(np.square(y - x))))
    return _seen(y, _identity(x), rms)


def gaussian_noise(x: np.ndarray, key: jax.Array) -> Observation:
    """Observe through Gaussian noise alone, of deviation 0.12."""
    y = degradations.gaussian_noise(x, key, STRONG_SIGMA)
    return _seen(y, _identity(x), STRONG_SIGMA)


def super_resolution(factor: int) -> Callable[[np.ndarray, jax.Array], Observation]:
    """Return the observation of a small noisy picture; y is bicubic.

    The small picture is that of `degradations.downsample`, whose sides must divide.
    """

    def observe(x: np.ndarray, key: jax.Array) -> Observation:
        small = degradations.downsample(x, factor)
        small = degradations.gaussian_noise(small, key, SIGMA)
        y = degradations.enlarge(small, factor)
        sides = (degradations.sampling_matrix(side, factor) for side in x.shape[:2])
        return Observation(_float32(y), _float32(small), Separable(*sides), SIGMA)

    return observe


def gaussian_blur(x: np.ndarray, key: jax.Array) -> Observation:
    """Observe through a Gaussian blur, 1.6 of 64 pixels, and noise."""
    sigma = min(x.shape[:2]) / 40
    y = degradations.gaussian_blur(x, sigma=sigma)
    sides = (degradations.blur_matrix(side, sigma) for side in x.shape[:2])
    return _noisy(y, key, Separable(*sides))


def motion_blur(x: np.ndarray, key: jax.Array) -> Observation:
    """Observe through the blur of a shaken camera, 8 of 64 pixels, and noise.

    Edges wrap around, so that the operator of methods that know the kernel is exact.
    """
    of_path, of_noise = jax.random.split(key)
    kernel = degradations.motion_kernel(of_path, min(x.shape[:2]) / 8)
    y = degradations.convolve(x, kernel, "wrap")
    return _noisy(y, of_noise, Convolution(kernel))


def jpeg(x: np.ndarray, key: jax.Array) -> Observation:
    """Observe through noise and then JPEG of quality 5."""
    noisy = degradations.gaussian_noise(x, key, SIGMA)
    return _seen(degradations.jpeg(noisy, quality=5), None, SIGMA)


def drawn(
    damage: Callable[[np.ndarray, jax.Array], np.ndarray],
) -> Callable[[np.ndarray, jax.Array], Observation]:
    """Return the observation through a damage that no method knows, and noise."""

    def observe(x: np.ndarray, key: jax.Array) -> Observation:
        of_damage, of_noise = jax.random.split(key)
        return _noisy(damage(x, of_damage), of_noise, None)

    return observe


def _identity(x: np.ndarray) -> Separable:
    return Separable(np.eye(x.shape[0]), np.eye(x.shape[1]))


def _noisy(
    y: np.ndarray, key: jax.Array, operator: Separable | Convolution | None
) -> Observation:
    """Return the observation of a damaged picture that gets its noise here."""
    return _seen(degradations.gaussian_noise(y, key, SIGMA), operator, SIGMA)


def _seen(
    y: np.ndarray, operator: Separable | Convolution | None, sigma: float
) -> Observation:
    """Return the observation of a picture that was measured on the grid of x."""
    return Observation(_float32(y), _float32(y), operator, sigma)


def _float32(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32)


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("denoise", "Denoising", denoise),
            Task("sr4", "Super-resolution (×4)", super_resolution(4)),
            Task("sr8", "Super-resolution (×8)", super_resolution(8)),
            Task("jpeg", "JPEG de-artifacting", jpeg),
            Task(
                "deformation",
                "Non-uniform deformation",
                drawn(degradations.turbulence),
            ),
            Task("water", "Water-drop removal", drawn(degradations.spatter)),
            Task("drops", "Drops on the lens", drawn(degradations.water_drops)),
            Task(
                "nonuniform_blur",
                "Non-uniform blur",
                drawn(degradations.nonuniform_blur),
            ),
            Task("gaussian_blur", "Gaussian blur", gaussian_blur),
            Task("motion_blur", "Motion blur", motion_blur),
            Task("gaussian_noise", "Gaussian noise", gaussian_noise),
        )
    }
)
TABLE4 = ("denoise", "sr4", "sr8")
TABLE5 = ("jpeg", "deformation", "water")
# beside those of the paper's tables: linear damage, and other
STRUCTURED = ("gaussian_blur", "motion_blur", "gaussian_noise")
UNSTRUCTURED = ("drops", "nonuniform_blur")
