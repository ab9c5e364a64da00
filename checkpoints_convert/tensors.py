"""What the readers hand to the layouts: named tensors that still lie on disk."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class ConversionError(ValueError):
    """A checkpoint cannot be converted; the message says why and what to do."""


class FactsError(ConversionError):
    """What was said about a checkpoint is too little, or does not apply to it."""


class LazyTensor(NamedTuple):
    """A tensor on disk: its shape in PyTorch's order, how to read it, and its dtype."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    dtype: np.dtype = np.dtype(np.float32)


Tensors = dict[str, LazyTensor]
