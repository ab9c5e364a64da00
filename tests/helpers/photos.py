"""Small photos in files, and plans for them."""

import numpy as np
from PIL import Image

from diip_jax.photos import find, plan
from diip_jax.photos.plan import Options
from helpers import seeded

# Few sizes and settings in all tests: their programs are then the same.
SIZE = (16, 16)
# Stops long before its budget, by the sharpness, and returns an earlier iterate.
CONFIG = seeded.PRESET.replace(max_iterations=12)
LONG = CONFIG.replace(criterion="never")
ONE = Options(num_lanes=1)


def save(path, image=None, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = seeded.image(*SIZE, seed=seed) if image is None else image
    Image.fromarray(np.uint8(255 * image)).save(path, **options)
    return path


def planned(prior, patterns, config=CONFIG, options=ONE, *, recursive=False):
    patterns = [str(pattern) for pattern in patterns]
    many = find.names_many(patterns)
    sources = find.sources(patterns, recursive=recursive)
    return plan.decide(prior, sources, config, options, many=many)
