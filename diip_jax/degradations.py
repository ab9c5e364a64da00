"""The damage used in experiments: photo in, damaged photo out, (H, W, 3) in [0, 1]."""

import io

import numpy as np
from PIL import Image


def noise_mixture(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the mixture of speckle and Gaussian noise of BIRD's denoising experiment.

    y = 0.8 (x + x n1) + 0.2 (x + n2) with n1 ~ N(0, 0.4^2) and n2 ~ N(0, 0.15^2)
    per pixel and channel, clipped to [0, 1].
    """
    speckle = 0.4 * rng.standard_normal(x.shape)
    additive = 0.15 * rng.standard_normal(x.shape)
    return np.clip(0.8 * (x + x * speckle) + 0.2 * (x + additive), 0, 1)


def gaussian_noise(
    x: np.ndarray, rng: np.random.Generator, sigma: float = 0.02
) -> np.ndarray:
    """Add Gaussian noise of this standard deviation, clipped to [0, 1]."""
    return np.clip(x + sigma * rng.standard_normal(x.shape), 0, 1)


def jpeg(x: np.ndarray, quality: int = 5) -> np.ndarray:
    """Compress as JPEG (4:2:0) and read back."""
    buffer = io.BytesIO()
    pixels = np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float64) / 255


def gaussian_blur(x: np.ndarray, sigma: float) -> np.ndarray:
    """Convolve with a Gaussian of this deviation in pixels, edges reflected."""
    radius = max(1, round(4 * sigma))
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    window /= window.sum()
    for axis in (0, 1):
        margins = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
        padded = np.pad(x, margins, mode="symmetric")
        x = np.lib.stride_tricks.sliding_window_view(padded, len(window), axis) @ window
    return x


def halve(x: np.ndarray) -> np.ndarray:
    """Halve both sides by averaging 2x2 blocks; an odd last row or column is cut."""
    height, width = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    blocks = x[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return blocks.mean(axis=(1, 3))


def centre_crop(x: np.ndarray, side: int) -> np.ndarray:
    """Cut a square out of the middle."""
    top, left = ((n - side) // 2 for n in x.shape[:2])
    return x[top : top + side, left : left + side]
