"""Stored runs whose numbers are chosen, for what reads such runs."""

import numpy as np

from diip_jax.bench.traces import Subject, Trace
from helpers import seeded

SIDE = 16


def subject(task="made-up", image="x.png", seed=0, sigma=0.1):
    clean = seeded.image(SIDE, SIDE, seed=seed)
    noise = np.random.default_rng(seed).standard_normal(clean.shape)
    degraded = np.clip(clean + sigma * noise, 0, 1).astype(np.float32)
    return Subject(task, image, seed, clean, degraded, sigma)


def run(losses, sharpnesses=None, psnrs=None, images=None, about=None):
    """Return a run with these numbers; what is not given is of no interest."""
    losses = np.asarray(losses, np.float32)
    count, about = len(losses), about or subject()
    if images is None:
        images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    flat, zeros = np.ones(count, np.float32), np.zeros(count)
    return Trace(
        subject=about,
        losses=losses,
        sharpnesses=flat if sharpnesses is None else np.float32(sharpnesses),
        images=images,
        psnrs=zeros if psnrs is None else np.asarray(psnrs, np.float64),
        ssims=zeros,
    )


def random_run(seed, count=60, about=None):
    """Return a run whose numbers wander as those of real ones do."""
    rng = np.random.default_rng(seed)
    factors = 1 - 0.03 * rng.random(count) ** 3 + 0.004 * rng.standard_normal(count)
    sharpnesses = np.exp(np.cumsum(0.05 * rng.standard_normal(count)))
    psnrs = 20 + np.cumsum(0.2 * rng.standard_normal(count))
    images = rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return run(0.3 * np.cumprod(factors), sharpnesses, psnrs, images, about)
