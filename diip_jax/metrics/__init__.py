"""PSNR and SSIM with one convention: RGB, range [0, 1], the whole image, no crop.

Arguments come in the order reference, comparison. Images written to 8-bit files should
be rounded before they are measured, as readers of the file would. NumPy, float64: these
score files, where dm-pix, which has the same SSIM, computes in float32 on the device.
"""

import numpy as np

CONVENTION = "RGB, range [0, 1], whole image; SSIM: Gaussian 1.5, 11x11, channel mean"
_SIGMA, _RADIUS = 1.5, 5
SMALLEST_SIDE = 2 * _RADIUS + 1  # pixels, for SSIM
_C1, _C2 = 0.01**2, 0.03**2


def psnr(reference: np.ndarray, comparison: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB; infinite for equal images.

    Args:
        reference: image, (H, W, C) in [0, 1].
        comparison: image of the same shape.
    """
    error = _difference(reference, comparison)
    mean_square = float(np.mean(np.square(error)))
    return float("inf") if mean_square == 0 else -10 * float(np.log10(mean_square))


def ssim(reference: np.ndarray, comparison: np.ndarray) -> float:
    """Return the structural similarity (Wang et al., 2004), averaged over channels.

    Gaussian window of standard deviation 1.5, cut at 11x11; biased covariances; means
    over the pixels whose window lies inside the image.

    Args:
        reference: image, (H, W, C) in [0, 1], sides of at least 11 pixels.
        comparison: image of the same shape.

    Raises:
        ValueError: an image is smaller than the window.
    """
    _difference(reference, comparison)
    if min(reference.shape[:2]) < SMALLEST_SIDE:
        height, width = reference.shape[:2]
        raise ValueError(f"image is {width}x{height}; SSIM needs at least 11x11")
    x, y = np.asarray(reference, np.float64), np.asarray(comparison, np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    return float(np.mean(luminance * structure))


def _difference(reference: np.ndarray, comparison: np.ndarray) -> np.ndarray:
    if reference.shape != comparison.shape:
        raise ValueError(
            f"reference is {reference.shape}, comparison {comparison.shape}; "
            "give images of one size"
        )
    return np.asarray(reference, np.float64) - np.asarray(comparison, np.float64)


def _blur(image: np.ndarray) -> np.ndarray:
    """Average with the Gaussian window where it fits, (H, W, C) to (H-10, W-10, C)."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    window = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    window /= window.sum()
    for axis in (0, 1):
        views = np.lib.stride_tricks.sliding_window_view(image, len(window), axis)
        image = views @ window
    return image
