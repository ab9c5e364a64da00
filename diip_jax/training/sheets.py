"""Pictures of a training, for a person to look at: samples, and the curve of losses."""

import functools
import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diip_jax import ddim, images
from diip_jax.compilation import compiler_options
from diip_jax.config import DEFAULT
from diip_jax.prior import Prior, noise_predictor
from diip_jax.schedule import ddim_timesteps

NUM_SAMPLES, NUM_STEPS = 8, 25
COARSE = 16  # pixels, side of crops that are compared


def samples(prior: Prior, key: jax.Array) -> jax.Array:
    """Return DDIM samples from noise alone, (NUM_SAMPLES, H, W, 3) in [-1, 1].

    Args:
        prior: the model.
        key: of the noise: the same key gives the same noise.
    """
    schedule, side = prior.card.schedule, prior.card.architecture.image_size
    count = min(NUM_STEPS, schedule.num_train_timesteps)
    timesteps = ddim_timesteps(count, schedule.num_train_timesteps)
    z = jax.random.normal(key, (NUM_SAMPLES, side, side, 3), jnp.float32)
    return jax.vmap(ddim.generator(*noise_predictor(prior, DEFAULT, timesteps)))(z)


@functools.cache
def jitted_samples() -> Any:
    """Return `samples` jitted."""
    return jax.jit(samples, compiler_options=compiler_options())


def sheet(*rows: np.ndarray) -> bytes:
    """Return a PNG file of rows of pictures.

    Args:
        *rows: each (N, H, W, 3) uint8, all of the same shape.
    """
    stacked = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    file = io.BytesIO()
    Image.fromarray(stacked).save(file, "PNG")
    return file.getvalue()


def to_uint8(x: jax.Array | np.ndarray) -> np.ndarray:
    """Return images in [-1, 1] as 8-bit ones."""
    return images.to_uint((np.asarray(x) + 1) / 2, 8)


def nearest(pictures: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """Return the crop nearest to each picture: is it one that the prior remembers?

    By the squared distance of both at COARSE pixels a side, mirrored crops included.

    Args:
        pictures: (N, H, W, 3) uint8.
        crops: of training pictures, (M, H, W, 3) uint8.

    Returns:
        Crops, (N, H, W, 3) uint8.
    """
    crops = np.concatenate([crops, crops[:, :, ::-1]])
    of_crops, of_pictures = _coarse(crops), _coarse(pictures)
    distances = (
        np.square(of_pictures).sum(axis=1)[:, None]
        - 2 * of_pictures @ of_crops.T
        + np.square(of_crops).sum(axis=1)
    )
    return crops[np.argmin(distances, axis=1)]


def _coarse(pictures: np.ndarray) -> np.ndarray:
    """Return pictures at COARSE pixels a side, as rows of numbers."""
    size = (COARSE, COARSE)
    small = [
        np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
        for picture in pictures
    ]
    return np.asarray(small, np.float32).reshape(len(small), -1)


def curve(
    steps: Sequence[int],
    losses: Sequence[float],
    validated: Sequence[tuple[int, float]],
) -> bytes:
    """Return a PNG file of the losses against the steps.

    Args:
        steps: of the losses.
        losses: mean training losses of intervals.
        validated: steps and validation losses.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, linewidth=0.8, marker=".", label="training")
    if validated:
        axes.plot(*zip(*validated, strict=True), marker="o", label="validation (EMA)")
    axes.set(xlabel="step", ylabel="weighted error of eps", yscale="log")
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
