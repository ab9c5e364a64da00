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


def super_resolution(x: np.ndarray, factor: int = 4) -> np.ndarray:
    """Shrink by a factor and enlarge again, so that only the detail is missing.

    Blurred by a Gaussian of deviation factor / 4, every factor-th pixel kept, and
    bicubic in between, clipped to [0, 1]. Nothing moves: pixels kept stay in place.
    """
    first = (factor - 1) // 2  # of the pixels kept
    small = gaussian_blur(x, factor / 4)[first::factor, first::factor]
    margin = 2  # pixels, the reach of the bicubic window
    small = np.pad(small, [(margin, margin), (margin, margin), (0, 0)], mode="edge")
    height, width = x.shape[:2]
    # Pillow counts from the edges of pixels: a pixel kept has its centre at + 0.5.
    start = margin + 0.5 - (first + 0.5) / factor
    box = (start, start, start + width / factor, start + height / factor)
    bicubic = Image.Resampling.BICUBIC
    y = np.empty_like(x, np.float64)
    for i in range(x.shape[-1]):  # Pillow has one channel of floats at most
        channel = Image.fromarray(np.float32(small[..., i]))
        y[..., i] = np.asarray(channel.resize((width, height), bicubic, box))
    return np.clip(y, 0, 1)


def deform(
    x: np.ndarray,
    rng: np.random.Generator,
    amplitude: float = 2.0,
    smoothness: float = 4.0,
) -> np.ndarray:
    """Move every pixel a little, its neighbours nearly the same way.

    Args:
        x: photo.
        rng: source of the displacements.
        amplitude: length of the largest displacement in pixels.
        smoothness: deviation in pixels of the Gaussian that smooths them.
    """
    field = gaussian_blur(rng.standard_normal((*x.shape[:2], 2)), smoothness)
    field *= amplitude / np.linalg.norm(field, axis=-1).max()
    rows, columns = np.indices(x.shape[:2])
    return _sample(x, rows + field[..., 0], columns + field[..., 1])


def water_drops(
    x: np.ndarray,
    rng: np.random.Generator,
    num_drops: int = 5,
    radius: tuple[float, float] = (3.0, 6.0),
) -> np.ndarray:
    """Put drops of water on the lens; what lies between them is unchanged.

    As in ROLE (github.com/ricky40403/ROLE), simplified: a drop is a disc that is drawn
    out at its top. It shows twice its surroundings, blurred, upside down and a little
    brighter, and its rim is soft.

    Args:
        x: photo.
        rng: source of places and sizes.
        num_drops: how many there are; they may overlap.
        radius: smallest and largest, in pixels.
    """
    rows, columns = np.indices(x.shape[:2])
    blurred = gaussian_blur(x, 1.0)
    y = x
    for _ in range(num_drops):
        centre = rng.uniform(0, x.shape[:2])
        size = rng.uniform(*radius)
        down, right = rows - centre[0], columns - centre[1]
        tall = np.where(down < 0, 1.5 * size, size)
        inside = (down / tall) ** 2 + (right / size) ** 2 <= 1
        alpha = gaussian_blur(inside[..., None].astype(np.float64), size / 5)
        seen = _sample(blurred, centre[0] - 2 * down, centre[1] + 2 * right)
        y = (1 - alpha) * y + alpha * np.minimum(1.15 * seen, 1)
    return np.clip(y, 0, 1)


def _sample(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Read a photo between its pixels, bilinearly; its edges go on outside."""
    height, width = x.shape[:2]
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = np.intp(np.floor(rows)), np.intp(np.floor(columns))
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    bottom, beside = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    above = (1 - right) * x[top, left] + right * x[top, beside]
    below = (1 - right) * x[bottom, left] + right * x[bottom, beside]
    return (1 - down) * above + down * below


def halve(x: np.ndarray) -> np.ndarray:
    """Halve both sides by averaging 2x2 blocks; an odd last row or column is cut."""
    height, width = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    blocks = x[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return blocks.mean(axis=(1, 3))


def centre_crop(x: np.ndarray, side: int) -> np.ndarray:
    """Cut a square out of the middle."""
    top, left = ((n - side) // 2 for n in x.shape[:2])
    return x[top : top + side, left : left + side]
