"""The layout of ermongroup/ddim and pesser/pytorch_diffusion: `temb.dense.0.weight`.

It is the network that diffusers calls UNet2DModel, with other names and with 1x1
convolutions for the projections of attention.
"""

import re
from collections.abc import Mapping
from typing import Any

from checkpoints_convert.tensors import ConversionError, Tensors
from diip_jax.unets.ddpm import DDPMConfig

NAME = "ddim"
FAMILY = "ddpm"
FACTS = ("image_size",)
RENAMED = (  # in this order: what this layout calls it, what the parameters do
    (r"^temb\.dense\.0", "time_embedding.linear_1"),
    (r"^temb\.dense\.1", "time_embedding.linear_2"),
    (r"^mid\.attn_1", "mid_block.attentions.0"),
    (r"^mid\.block_1", "mid_block.resnets.0"),
    (r"^mid\.block_2", "mid_block.resnets.1"),
    (r"^down\.(\d+)\.", r"down_blocks.\1."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"\.temb_proj\.", ".time_emb_proj."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
    (r"^norm_out\.", "conv_norm_out."),
)


def matches(tensors: Tensors) -> bool:
    """Tell whether tensor names are of this layout."""
    return {"temb.dense.0.weight", "down.0.block.0.norm1.weight"} <= tensors.keys()


def missing(facts: Mapping[str, Any]) -> list[str]:
    """Return the facts that no key reveals and nobody has told yet."""
    return [name for name in FACTS if name not in facts]


def beta_range(_: int) -> tuple[float, float]:
    """Return the ends of the linear schedule, the same for every T."""
    return 1e-4, 0.02


def architecture(tensors: Tensors, facts: Mapping[str, Any]) -> DDPMConfig:
    """Return the architecture: what the keys reveal, and this code's constants.

    Raises:
        ConversionError: a variant that no published file uses.
    """
    widths = []
    while convolution := tensors.get(f"down.{len(widths)}.block.0.conv1.weight"):
        widths.append(convolution.shape[0])
    num_blocks = 0
    while f"down.0.block.{num_blocks}.conv1.weight" in tensors:
        num_blocks += 1
    conv_in, conv_out = (tensors[f"{n}.weight"].shape for n in ("conv_in", "conv_out"))
    if conv_in[1] != 3 or conv_out[0] != 3:
        raise ConversionError(
            f"the network maps {conv_in[1]} channels to {conv_out[0]}, not RGB to RGB"
        )
    if conv_in[0] != widths[0]:
        raise ConversionError(
            f"the first level is {widths[0]} wide after an input of {conv_in[0]}; a "
            "first ch_mult other than 1 is not supported"
        )
    if wide := [name for name in tensors if ".conv_shortcut." in name]:
        raise ConversionError(f"{wide[0]}: 3x3 shortcuts are not supported")
    levels = range(len(widths))
    return DDPMConfig(
        image_size=facts["image_size"],
        widths=tuple(widths),
        layers_per_block=num_blocks,
        down_attention=tuple(f"down.{i}.attn.0.q.weight" in tensors for i in levels),
        up_attention=tuple(
            f"up.{i}.attn.0.q.weight" in tensors for i in reversed(levels)
        ),
    )


def rename(name: str, config: DDPMConfig) -> tuple[str, ...]:
    """Return the path of a tensor in the tree of parameters.

    `up.5.block.0.conv1.weight` of six levels becomes
    `("up_blocks_0", "resnets_0", "conv1", "weight")`: this layout counts its way up
    from the finest level, though it runs from the coarsest.
    """
    num_levels = len(config.widths)
    name = re.sub(
        r"^up\.(\d+)\.", lambda m: f"up_blocks.{num_levels - 1 - int(m[1])}.", name
    )
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return tuple(re.sub(r"\.(\d+)", r"_\1", name).split("."))
