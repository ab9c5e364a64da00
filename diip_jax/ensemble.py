"""The mean of several starts of one image, as a result at any time.

Welford's updates (1962) on NumPy arrays: no start's image has to be kept.
"""

from typing import NamedTuple

import numpy as np


class Ensemble(NamedTuple):
    """What is kept of the images so far.

    Attributes:
        count: how many there are.
        mean: their mean, (H, W, 3).
        squares: sum of squared deviations from it, (H, W, 3).
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray


def empty(shape: tuple[int, ...]) -> Ensemble:
    """Return the ensemble of no image."""
    return Ensemble(0, np.zeros(shape, np.float32), np.zeros(shape, np.float32))


def add(ensemble: Ensemble, image: np.ndarray) -> Ensemble:
    """Return the ensemble with one image more, of the same shape."""
    count = ensemble.count + 1
    before = image - ensemble.mean
    mean = ensemble.mean + before / count
    return Ensemble(count, mean, ensemble.squares + before * (image - mean))


def deviation(ensemble: Ensemble) -> np.ndarray:
    """Return the standard deviation of the images at each pixel, as of `np.std`."""
    return np.sqrt(ensemble.squares / max(ensemble.count, 1))
