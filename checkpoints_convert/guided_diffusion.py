"""The layout of guided-diffusion and improved-diffusion: `input_blocks.0.0.weight`."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from checkpoints_convert.tensors import ConversionError, FactsError, Tensors
from diip_jax.unets.adm import ADMConfig

NAME = "guided_diffusion"
FAMILY = "adm"
HEADS = ("num_heads", "num_head_channels", "num_heads_upsample")
FACTS = ("image_size", *HEADS, "new_attention_order")


def matches(tensors: Tensors) -> bool:
    """Tell whether tensor names are of this layout."""
    return "input_blocks.0.0.weight" in tensors


def missing(facts: Mapping[str, Any]) -> list[str]:
    """Return the facts that no key reveals and nobody has told yet."""
    wanted = [
        name for name in ("image_size", "new_attention_order") if name not in facts
    ]
    if not {"num_heads", "num_head_channels"} & facts.keys():
        wanted.append("num_heads or num_head_channels")
    return wanted


def beta_range(num_train_timesteps: int) -> tuple[float, float]:
    """Return the ends of the linear schedule, which this code scales with T."""
    scale = 1000 / num_train_timesteps
    return 1e-4 * scale, 0.02 * scale


def architecture(tensors: Tensors, facts: Mapping[str, Any]) -> ADMConfig:
    """Return the architecture: what the keys reveal, the rest from `facts`.

    Raises:
        ConversionError: class-conditional, or made for something else than images.
        FactsError: the heads do not fit, or those on the way up were not told.
    """
    if "label_emb.weight" in tensors:
        raise ConversionError(
            "the checkpoint is class-conditional (it has label_emb.weight); use an "
            "unconditional one"
        )
    num_channels = tensors["time_embed.0.weight"].shape[1]
    first, last = (tensors[f"{n}.weight"].shape for n in ("input_blocks.0.0", "out.2"))
    if first[1] != 3 or last[0] not in (3, 6):
        raise ConversionError(
            f"the network maps {first[1]} channels to {last[0]}, not RGB to RGB; "
            "latent models and super-resolution models cannot be used"
        )
    _check_resampling(tensors)
    levels = _levels(tensors)
    time_width = tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    found = ADMConfig(
        image_size=facts["image_size"],
        num_channels=num_channels,
        channel_mult=tuple(_ratio(level.width, num_channels) for level in levels),
        num_res_blocks=tuple(level.num_blocks for level in levels),
        attention_factors=tuple(2**i for i, lv in enumerate(levels) if lv.attended),
        num_heads=facts.get("num_heads", 1),
        num_head_channels=facts.get("num_head_channels", -1),
        resblock_updown=any(level.resamples for level in levels),
        use_scale_shift_norm=time_width == 2 * levels[0].width,
        use_new_attention_order=facts["new_attention_order"],
        learn_sigma=last[0] == 6,
        num_heads_upsample=_heads_on_the_way_up(levels, facts),
    )
    attended = {lv.width for lv in levels if lv.attended} | {levels[-1].width}
    _check_heads(found, attended)
    return found


def rename(name: str, _: ADMConfig) -> tuple[str, ...]:
    """Return the path of a tensor in the tree of parameters.

    `input_blocks.3.0.in_layers.2.weight` becomes
    `("input_blocks_3_0", "in_layers_2", "weight")`.
    """
    return tuple(re.sub(r"\.(\d+)", r"_\1", name).split("."))


class _Level(NamedTuple):
    width: int
    num_blocks: int  # on the way down; there is one more on the way up
    attended: bool
    resamples: bool  # its upsampler is a residual block


def _levels(tensors: Tensors) -> list[_Level]:
    """Return the levels, finest first, as the names on the way up show them.

    On the way up every level but the finest ends with its upsampler, which has names
    like no other block. On the way down a halving block has names like any other.
    """
    levels, num_blocks, i = [], 0, 0
    while (
        convolution := tensors.get(f"output_blocks.{i}.0.out_layers.3.weight")
    ) is not None:
        prefix = f"output_blocks.{i}"
        attended = f"{prefix}.1.qkv.weight" in tensors
        upsampler = f"{prefix}.{2 if attended else 1}"
        resamples = f"{upsampler}.in_layers.2.weight" in tensors
        is_last = f"output_blocks.{i + 1}.0.out_layers.3.weight" not in tensors
        if resamples or f"{upsampler}.conv.weight" in tensors or is_last:
            width = convolution.shape[0]
            levels.append(_Level(width, num_blocks, attended, resamples))
            num_blocks = -1
        num_blocks, i = num_blocks + 1, i + 1
    return levels[::-1]


def _check_resampling(tensors: Tensors) -> None:
    """Refuse a network that halves by pooling: such a block has no weights."""
    found = {
        int(m[1]) for m in map(re.compile(r"input_blocks\.(\d+)\.").match, tensors) if m
    }
    if absent := set(range(len(found))) - found:
        raise ConversionError(
            f"input_blocks.{min(absent)} has no weights: the network resamples without "
            "convolutions (conv_resample off), which is not supported, or the file is "
            "incomplete"
        )


def _heads_on_the_way_up(levels: list[_Level], facts: Mapping[str, Any]) -> int:
    """Return `num_heads_upsample`, -1 where it is nothing of its own.

    Raises:
        FactsError: it matters, no key reveals it, and nobody has told it.
    """
    by_width = facts.get("num_head_channels", -1) != -1
    if by_width or not any(level.attended for level in levels):
        return -1
    if "num_heads_upsample" not in facts:
        raise FactsError(
            "the file does not reveal num_heads_upsample, the heads on the way up; it "
            f"is {facts['num_heads']} like num_heads unless the training set it: pass "
            "--num_heads_upsample"
        )
    number = facts["num_heads_upsample"]
    return -1 if number == facts["num_heads"] else number


def _ratio(width: int, num_channels: int) -> float:
    """Return width / num_channels, as an int where it is one."""
    ratio = width / num_channels
    return int(ratio) if ratio.is_integer() else ratio


def _check_heads(config: ADMConfig, attended: set[int]) -> None:
    names = ["num_head_channels"]
    if config.num_head_channels == -1:
        names = ["num_heads", "num_heads_upsample"]
        names = names[: 1 if config.num_heads_upsample == -1 else 2]
    for name in names:
        number = getattr(config, name)
        for width in sorted(attended):
            if number < 1 or width % number:
                raise FactsError(
                    f"{name} is {number}, which does not divide the {width} channels "
                    "of an attention layer"
                )
