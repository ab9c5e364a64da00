"""Cells, tasks and methods that cost nothing, and a run of slow ones to kill."""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax.bench import run
from diip_jax.bench.baselines.restored import Restored
from diip_jax.bench.cells import Cell, Name, Store
from diip_jax.bench.methods import Method, Problem, Ready
from diip_jax.photos.reference import PerceptualMetric
from diip_jax.prior import Prior
from helpers import seeded

NO_LPIPS = PerceptualMetric("alex", None, "not wanted")
SIDE = 16
PRIOR = Prior({}, seeded.card(seeded.TINY))


def name(**changes):
    """Return the name of a cell."""
    fields = {
        "prior": "p",
        "task": "denoise",
        "method": "diip",
        "image": "a.png",
        "digest": "a",
        "seed": 0,
        "settings": "s",
    }
    return Name(**(fields | changes))


def cell(value, error=None, **changes):
    """Return a cell whose scores are this number, of a picture of a digest."""
    scores = {"psnr": value, "ssim": value / 100, "lpips": 1 - value / 100}
    if error is not None:
        return Cell(name(**changes), error=error)
    costs = {"evaluations": 10, "gradients": 5, "seconds": 2.0, "memory": 10**6}
    return Cell(name(**changes), **scores, **costs, memory_of="program")


def pictures(count):
    """Return names and clean pictures."""
    made = ((f"{i}.png", seeded.image(SIDE, SIDE, i)) for i in range(count))
    return list(made)


def noisy(clean, key):
    """Add noise to a picture: a task."""
    noise = 0.1 * jax.random.normal(key, clean.shape)
    return Problem(clean, np.clip(clean + noise, 0, 1).astype(np.float32))


def method(restore, settings="fake", is_compiled=True, **fields):
    """Return a method that is this function of a problem and a key."""

    def restored(prior, problem, key):
        return Restored(restore(problem, key), jnp.int32(3), jnp.int32(1))

    ready = Ready(restored, settings, is_compiled)
    return Method("fake", lambda setting: ready, **fields)


def plan(methods, num_pictures=2, **fields):
    """Return a plan of one task."""
    return run.Plan({"denoise": noisy}, methods, pictures(num_pictures), **fields)


def compute(folder, chosen, prior=PRIOR):
    """Run a plan in a folder; return its store and what it came to."""
    store = Store(folder)
    return store, run.run(prior, chosen, store, NO_LPIPS, run.Options(), "test")


def slow(problem, key):
    """Take so long that somebody can be killed meanwhile."""
    sys.stdout.write("computing\n")
    sys.stdout.flush()
    time.sleep(0.3)
    return problem.y


if __name__ == "__main__":
    compute(Path(sys.argv[1]), plan({"slow": method(slow, is_compiled=False)}, 50))
