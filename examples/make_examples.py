"""Make the damaged photos of this folder from scikit-image's own pictures.

    python examples/make_examples.py [--rocket FOLDER]

Needs scikit-image. Each picture is halved, cut to 128x128 and damaged with a fixed
key; the clean original lies beside it. With `--rocket` only a large pair is written,
700x500, to another folder. See README.md here for the licences.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
import skimage.data
from PIL import Image
from skimage.transform import resize

from diip_jax import degradations

FOLDER = Path(__file__).parent


def crop(picture: np.ndarray, top: int, left: int) -> np.ndarray:
    """Halve a picture and cut 128x128 out of it, in [0, 1]."""
    halved = degradations.halve(picture / 255)
    return halved[top : top + 128, left : left + 128]


def save(folder: Path, name: str, x: np.ndarray) -> None:
    """Write an 8-bit PNG."""
    pixels = np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")


def rocket() -> np.ndarray:
    """Return a picture of 700x500 with a smooth sky, where seams would show."""
    enlarged = resize(skimage.data.rocket(), (500, 750), order=3)
    return enlarged[:, 25:725]


def main() -> None:
    """Write the three pairs, or the large one."""
    parser = argparse.ArgumentParser(description="Make the damaged photos.")
    parser.add_argument("--rocket", type=Path, metavar="FOLDER")
    folder, key = parser.parse_args().rocket, jax.random.key(0)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        clean = rocket()
        save(folder, "rocket_clean", clean)
        save(folder, "rocket_noise", degradations.noise_mixture(clean, key))
        return
    astronaut = crop(skimage.data.astronaut(), 0, 50)
    chelsea = crop(skimage.data.chelsea(), 10, 40)
    coffee = crop(skimage.data.coffee(), 30, 100)
    noisy = degradations.gaussian_noise(chelsea, key)
    blurred = degradations.gaussian_blur(coffee, sigma=1.5)
    pairs = {
        "astronaut_noise": (astronaut, degradations.noise_mixture(astronaut, key)),
        "cat_jpeg": (chelsea, degradations.jpeg(noisy, quality=5)),
        "coffee_blur": (coffee, degradations.gaussian_noise(blurred, key)),
    }
    for name, (clean, damaged) in pairs.items():
        save(FOLDER, f"{name}_clean", clean)
        save(FOLDER, name, damaged)


if __name__ == "__main__":
    main()
