"""The pictures and settings with which lanes are tested, on one device and on many."""

from helpers import seeded

CONFIG = seeded.PRESET.replace(k_min=1000, epsilon=0.012)
# Sizes of two canvases, (16, 16) and (8, 8); two images fill their canvas partly.
SIZES = [(16, 16), (15, 16), (8, 8), (16, 16), (15, 16), (16, 16)]
TWELVE = [(8, 8)] * 12


def images(sizes=SIZES):
    """Return pictures of which no two are equally hard."""
    return [
        0.5 + (0.2 + 0.05 * i) * (seeded.image(*size, seed=i) - 0.5)
        for i, size in enumerate(sizes)
    ]
