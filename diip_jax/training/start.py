"""The prior that a training starts from, and the prior that it leaves."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diip_jax import prior as priors
from diip_jax.config import DEFAULT
from diip_jax.prior import Card, Prior
from diip_jax.schedule import Schedule
from diip_jax.unets import adm, ddpm

# The last layer of a residual branch starts at zero, so that the branch is not there at
# first (Dhariwal & Nichol, 2021); and so does the output.
ZERO = {
    "adm": ("out_layers_3", "proj_out", "out_2"),
    "ddpm": ("conv2", "to_out_0", "conv_out"),
}
BUNDLED_SHAPE = adm.ADMConfig(
    image_size=64,
    num_channels=32,
    channel_mult=(1, 2, 3, 4),
    num_res_blocks=(1, 1, 1, 1),
    attention_factors=(8,),
    num_heads=1,
    num_head_channels=32,
    resblock_updown=True,
)


def adm_shape(
    image_size: int,
    num_channels: int,
    channel_mult: tuple[int, ...],
    num_res_blocks: int,
    attention_factors: tuple[int, ...],
) -> adm.ADMConfig:
    """Return a guided-diffusion UNet of this size; the rest is as bundled.

    Raises:
        ValueError: the numbers make no network; says which one.
    """
    narrowest = num_channels * min(channel_mult, default=0)
    if narrowest < 32 or num_channels % 32:
        raise ValueError(f"num_channels is {num_channels}; use a multiple of 32")
    stride = 2 ** (len(channel_mult) - 1)
    if image_size < stride or image_size % stride:
        raise ValueError(
            f"image_size is {image_size}; use a multiple of {stride} for "
            f"{len(channel_mult)} levels"
        )
    return dataclasses.replace(
        BUNDLED_SHAPE,
        image_size=image_size,
        num_channels=num_channels,
        channel_mult=channel_mult,
        num_res_blocks=(num_res_blocks,) * len(channel_mult),
        attention_factors=attention_factors,
    )


def ddpm_shape(
    image_size: int,
    num_channels: int,
    channel_mult: tuple[int, ...],
    num_res_blocks: int,
    attention_factors: tuple[int, ...],
) -> ddpm.DDPMConfig:
    """Return a DDPM UNet (Ho et al., 2020); arguments and errors as `adm_shape`."""
    adm_shape(image_size, num_channels, channel_mult, num_res_blocks, attention_factors)
    attended = tuple(2**n in attention_factors for n in range(len(channel_mult)))
    return ddpm.DDPMConfig(
        image_size=image_size,
        widths=tuple(num_channels * mult for mult in channel_mult),
        layers_per_block=num_res_blocks,
        down_attention=attended,
        up_attention=attended[::-1],
    )


def random_prior(name: str, architecture: Any, schedule: Schedule, seed: int) -> Prior:
    """Return an untrained prior.

    Args:
        name: of the prior.
        architecture: configuration of its UNet, of a family of `prior.FAMILIES`.
        schedule: the forward process to train with.
        seed: of the weights.
    """
    (family,) = (
        family
        for family, (kind, _) in priors.FAMILIES.items()
        if isinstance(architecture, kind)
    )
    card = Card(
        name=name,
        family=family,
        architecture=architecture,
        schedule=schedule,
        preset=DEFAULT,
        any_size=True,
        source="python -m diip_jax.training",
        sha256="",
        licence="not stated",
        training_data="not stated",
        parameters=0,
    )
    return Prior(random_params(card, seed), card)


def random_params(card: Card, seed: int) -> Any:
    """Return random weights: norms at 1, biases at 0, kernels as PyTorch draws them.

    A kernel is uniform in +- 1 / sqrt(n), n being the inputs of an output.

    Args:
        card: of the prior.
        seed: of the weights; the same on every device.
    """
    rng = np.random.default_rng(seed)

    def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> np.ndarray:
        *_, layer, kind = (entry.key for entry in path)
        if kind == "scale":
            return np.ones(shape.shape, np.float32)
        if kind == "bias" or layer in ZERO[card.family]:
            return np.zeros(shape.shape, np.float32)
        bound = float(np.prod(shape.shape[:-1])) ** -0.5
        return rng.uniform(-bound, bound, shape.shape).astype(np.float32)

    return jax.tree.map_with_path(leaf, priors.abstract_params(card))


def digest(params: Any) -> str:
    """Return the SHA-256 of the weights, in the order of their leaves."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def trained(prior: Prior, params: Any, name: str, facts: Mapping[str, str]) -> Prior:
    """Return a trained prior with its card.

    Args:
        prior: that the training started from.
        params: the average of the weights, on any device.
        name: of the trained prior.
        facts: `source`, `licence` and `training_data` of its card.
    """
    params = jax.device_get(params)
    card = dataclasses.replace(
        prior.card,
        name=name,
        sha256=digest(params),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        **facts,
    )
    return Prior(params, card)
