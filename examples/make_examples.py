"""Make the damaged photos of this folder from scikit-image's own pictures.

    python examples/make_examples.py

Needs scikit-image. Each picture is halved, cut to 128x128 and damaged with a fixed
seed; the clean original lies beside it. See README.md here for the licences.
"""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from diip_jax import degradations

FOLDER = Path(__file__).parent


def crop(picture: np.ndarray, top: int, left: int) -> np.ndarray:
    """Halve a picture and cut 128x128 out of it, in [0, 1]."""
    halved = degradations.halve(picture / 255)
    return halved[top : top + 128, left : left + 128]


def save(name: str, x: np.ndarray) -> None:
    """Write an 8-bit PNG."""
    pixels = np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)
    Image.fromarray(pixels).save(FOLDER / f"{name}.png")


def main() -> None:
    """Write the three pairs."""
    rng = np.random.default_rng(0)
    astronaut = crop(skimage.data.astronaut(), 0, 50)
    chelsea = crop(skimage.data.chelsea(), 10, 40)
    coffee = crop(skimage.data.coffee(), 30, 100)
    noisy = degradations.gaussian_noise(chelsea, rng)
    blurred = degradations.gaussian_blur(coffee, 1.5)
    pairs = {
        "astronaut_noise": (astronaut, degradations.noise_mixture(astronaut, rng)),
        "cat_jpeg": (chelsea, degradations.jpeg(noisy, quality=5)),
        "coffee_blur": (coffee, degradations.gaussian_noise(blurred, rng)),
    }
    for name, (clean, damaged) in pairs.items():
        save(f"{name}_clean", clean)
        save(name, damaged)


if __name__ == "__main__":
    main()
