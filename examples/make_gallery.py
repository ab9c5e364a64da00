"""Draw every damage on one photo: .github/images/degradations.png.

    python examples/make_gallery.py [PNG]

The photo is the astronaut of this folder, which is in the public domain.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diip_jax import degradations, images

FOLDER = Path(__file__).parent
GALLERY = FOLDER.parent / ".github" / "images" / "degradations.png"
COLUMNS, GAP, LINE = 5, 6, 16  # of the montage; pixels
SEED = 3  # its drops lie on the face
Damage = Callable[[np.ndarray, jax.Array], np.ndarray]


def shrunk(x: np.ndarray, key: jax.Array, factor: int) -> np.ndarray:
    """Shrink as for super-resolution and put the small picture on the large grid."""
    return degradations.enlarge(degradations.downsample(x, factor), factor)


DAMAGES: Mapping[str, Damage] = {
    "original": lambda x, key: x,
    "noise_mixture": degradations.noise_mixture,
    "gaussian_noise, 0.12": partial(degradations.gaussian_noise, sigma=0.12),
    "jpeg, quality 5": degradations.jpeg,
    "gaussian_blur": degradations.gaussian_blur,
    "motion_blur": degradations.motion_blur,
    "nonuniform_blur": degradations.nonuniform_blur,
    "downsample, factor 4": partial(shrunk, factor=4),
    "downsample, factor 8": partial(shrunk, factor=8),
    "deform": degradations.deform,
    "tilt": degradations.tilt,
    "turbulence": degradations.turbulence,
    "elastic, severity 5": degradations.elastic,
    "spatter, severity 3": degradations.spatter,
    "water_drops": degradations.water_drops,
}


def montage(pictures: Mapping[str, np.ndarray]) -> Image.Image:
    """Return pictures of one size in rows, each under its name."""
    height, width = next(iter(pictures.values())).shape[:2]
    row, column = height + LINE + GAP, width + GAP
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * column - GAP, rows * row - GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (name, x) in enumerate(pictures.items()):
        left, top = i % COLUMNS * column, i // COLUMNS * row
        draw.text((left, top), name, "black", font)
        pixels = np.rint(255 * x).astype(np.uint8)
        sheet.paste(Image.fromarray(pixels), (left, top + LINE))
    return sheet


def main() -> None:
    """Write the gallery."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else GALLERY
    x = images.read(FOLDER / "astronaut_noise_clean.png").rgb
    damaged = {
        name: damage(x, jax.random.key(SEED)) for name, damage in DAMAGES.items()
    }
    montage(damaged).quantize(256).save(path, optimize=True)  # half the size


if __name__ == "__main__":
    main()
