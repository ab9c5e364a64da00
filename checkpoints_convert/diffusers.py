"""The layout of diffusers' `UNet2DModel`, described by the config.json beside it."""

import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from checkpoints_convert.reader import read_json
from checkpoints_convert.tensors import ConversionError, Tensors
from diip_jax.unets.ddpm import DDPMConfig

NAME = "diffusers"
FAMILY = "ddpm"
FACTS = ("image_size", "config", "scheduler_config")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

# The options of UNet2DModel: its default where config.json is silent, and the values
# that this package supports. None: any value.
FIELDS: Mapping[str, tuple[Any, tuple[Any, ...] | None]] = {
    "_class_name": ("UNet2DModel", ("UNet2DModel",)),
    "sample_size": (None, None),
    "in_channels": (3, (3,)),
    "out_channels": (3, (3, 6)),
    "center_input_sample": (False, (False,)),
    "time_embedding_type": ("positional", ("positional",)),
    "time_embedding_dim": (None, (None,)),
    "freq_shift": (0, (0, 1)),
    "flip_sin_to_cos": (True, (True, False)),
    "down_block_types": (("DownBlock2D",) + ("AttnDownBlock2D",) * 3, None),
    "mid_block_type": ("UNetMidBlock2D", ("UNetMidBlock2D",)),
    "up_block_types": (("AttnUpBlock2D",) * 3 + ("UpBlock2D",), None),
    "block_out_channels": ((224, 448, 672, 896), None),
    "layers_per_block": (2, None),
    "mid_block_scale_factor": (1, (1,)),
    "downsample_padding": (1, (0, 1)),
    "downsample_type": ("conv", ("conv",)),
    "upsample_type": ("conv", ("conv",)),
    "dropout": (0.0, None),
    "act_fn": ("silu", ("silu", "swish")),
    "attention_head_dim": (8, None),
    "norm_num_groups": (32, (32,)),
    "attn_norm_num_groups": (None, (None, 32)),
    "norm_eps": (1e-5, None),
    "resnet_time_scale_shift": ("default", ("default", "scale_shift")),
    "add_attention": (True, (True, False)),
    "class_embed_type": (None, (None,)),
    "num_class_embeds": (None, (None,)),
    "num_train_timesteps": (None, None),
}
BLOCKS = {  # type of block: it has attention
    "DownBlock2D": False,
    "AttnDownBlock2D": True,
    "UpBlock2D": False,
    "AttnUpBlock2D": True,
}
SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out_0"}


def matches(tensors: Tensors) -> bool:
    """Tell whether tensor names are of this layout."""
    has_levels = any(name.startswith("down_blocks.") for name in tensors)
    return has_levels and "time_embedding.linear_1.weight" in tensors


def missing(facts: Mapping[str, Any]) -> list[str]:
    """Return the facts that no key reveals and nobody has told yet."""
    if not facts.get("config"):
        return ["config (the config.json of the model)"]
    sizes = (facts.get("image_size"), facts["config"].get("sample_size"))
    return [] if any(sizes) else ["image_size (config.json has no sample_size)"]


def beta_range(_: int) -> tuple[float, float]:
    """Return the ends of the linear schedule, the library's defaults."""
    return 1e-4, 0.02


def architecture(tensors: Tensors, facts: Mapping[str, Any]) -> DDPMConfig:
    """Return the architecture that config.json describes.

    Raises:
        ConversionError: config.json asks for something that this package's DDPM UNet
            cannot do, or for more than the file holds.
    """
    found = described(facts)
    _check_against_file(found, tensors)
    return found


def described(facts: Mapping[str, Any]) -> DDPMConfig:
    """Return the architecture that config.json describes, whatever the file holds.

    Raises:
        ConversionError: config.json asks for something that this package's DDPM UNet
            cannot do.
    """
    config = _checked(facts["config"])
    widths = tuple(config["block_out_channels"])
    down = _attention(config, "down_block_types", "Down", len(widths))
    up = _attention(config, "up_block_types", "Up", len(widths))
    scale_shift = config["resnet_time_scale_shift"] == "scale_shift"
    found = DDPMConfig(
        image_size=_image_size(config["sample_size"], facts.get("image_size")),
        widths=widths,
        layers_per_block=config["layers_per_block"],
        down_attention=down,
        up_attention=up,
        mid_attention=config["add_attention"],
        mid_attention_norm=not scale_shift or bool(config["attn_norm_num_groups"]),
        head_channels=config["attention_head_dim"],
        symmetric_padding=config["downsample_padding"] == 1,
        sin_first=not config["flip_sin_to_cos"],
        divisor_shift=int(config["freq_shift"]),
        norm_epsilon=config["norm_eps"],
        scale_shift=scale_shift,
        out_channels=config["out_channels"],
    )
    _check_widths(found)
    return found


def rename(name: str, _: DDPMConfig) -> tuple[str, ...]:
    """Return the path of a tensor in the tree of parameters, old names included."""
    parts = re.sub(r"\.(\d+)", r"_\1", name).split(".")
    for i in range(1, len(parts)):
        if parts[i - 1].startswith("attentions_"):
            parts[i] = OLD_NAMES.get(parts[i], parts[i])
        elif parts[i - 1].startswith("downsamplers_") and parts[i] == "op":
            parts[i] = "conv"
    return tuple(parts)


def locate(folder: Path) -> Path:
    """Return the weights in the folder of a model or of a pipeline.

    Raises:
        ConversionError: there are none.
    """
    places = [folder / part / name for part in ("", "unet") for name in WEIGHTS]
    for path in places:
        if path.is_file():
            return path
    raise ConversionError(f"{folder} is a folder without {' or '.join(WEIGHTS)}")


def read_config(path: Path | None, weights: Path) -> dict[str, Any] | None:
    """Return config.json, by default the one beside the weights; None without one."""
    if path is None and not (weights.parent / "config.json").is_file():
        return None
    return read_json(path or weights.parent / "config.json")


def read_schedule(path: Path | None, weights: Path) -> dict[str, Any]:
    """Return what scheduler_config.json says of the training, {} without one.

    Raises:
        ConversionError: the model was trained in a way that is not supported.
    """
    folder = weights.parent
    places = [folder, folder.parent / "scheduler"]
    found = [place / "scheduler_config.json" for place in places]
    path = path or next((file for file in found if file.is_file()), None)
    if path is None:
        return {}
    config = read_json(path)
    unsupported = {
        "prediction_type": config.get("prediction_type", "epsilon") != "epsilon",
        "trained_betas": config.get("trained_betas") is not None,
        "rescale_betas_zero_snr": config.get("rescale_betas_zero_snr", False),
        "beta_schedule": config.get("beta_schedule") not in list(SCHEDULES),
    }
    for name in (name for name, bad in unsupported.items() if bad):
        raise ConversionError(
            f"{path.name} asks for {name} = {reprlib.repr(config.get(name))}, which is "
            "not supported; a DDPM that predicts epsilon on linear or cosine betas is"
        )
    return {
        "kind": SCHEDULES[config["beta_schedule"]],
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "beta_start": config.get("beta_start", 1e-4),
        "beta_end": config.get("beta_end", 0.02),
    }


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all fields of config.json, or refuse one by name."""
    config = {name: default for name, (default, _) in FIELDS.items()}
    for name, value in given.items():
        if name not in FIELDS:
            if name.startswith("_") or value is None:
                continue
            raise _unsupported(name, value)
        allowed = FIELDS[name][1]
        if allowed is not None and value not in allowed:
            raise _unsupported(name, value, allowed)
        config[name] = value
    for name, (what, fits) in KINDS.items():
        if not fits(config[name]):
            raise _unsupported(name, config[name], (what,))
    return config


def _check_against_file(config: DDPMConfig, tensors: Tensors) -> None:
    """Refuse more layers, or wider ones, than a file holds, before any is made."""
    num_blocks = len(config.widths) * config.layers_per_block
    if num_blocks > len(tensors):
        raise ConversionError(
            f"config.json asks for {len(config.widths)} levels of layers_per_block = "
            f"{reprlib.repr(config.layers_per_block)}, but the file holds only "
            f"{len(tensors)} tensors"
        )
    widest = max(max(tensor.shape, default=0) for tensor in tensors.values())
    if max(config.widths) > widest:
        raise ConversionError(
            f"config.json asks for block_out_channels = {reprlib.repr(config.widths)}, "
            f"but no tensor of the file has a side above {widest}"
        )


def _unsupported(
    name: str, value: Any, allowed: tuple[Any, ...] | None = None
) -> ConversionError:
    remedy = f"; supported: {', '.join(map(repr, allowed))}" if allowed else ""
    return ConversionError(
        f"config.json asks for {name} = {reprlib.repr(value)}, which this package "
        f"cannot do{remedy}"
    )


def _attention(
    config: Mapping[str, Any], name: str, direction: str, num_levels: int
) -> tuple[bool, ...]:
    """Return which levels have attention, one per type of block."""
    known = tuple(block for block in BLOCKS if direction in block)
    types = config[name]
    for block in types:
        if block not in known:
            raise _unsupported(name, block, known)
    if len(types) != num_levels:
        raise ConversionError(
            f"config.json has {len(types)} {name} for {num_levels} block_out_channels"
        )
    return tuple(BLOCKS[block] for block in types)


def _image_size(sample_size: Any, given: Any) -> int:
    """Return the side of the training images, from config.json or a flag."""
    sides = sample_size if isinstance(sample_size, list | tuple) else [sample_size]
    if not all(side is None or _is_count(side) for side in sides):
        raise _unsupported("sample_size", sample_size, ("a whole number",))
    if len(set(sides)) != 1:
        raise _unsupported("sample_size", sample_size, ("a square",))
    side = given if sides[0] is None else sides[0]
    if given not in (None, side):
        raise ConversionError(
            f"image_size is {given}, but config.json has sample_size {side}"
        )
    return side


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_counts(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(map(_is_count, value))
    )


# What a field of config.json must be besides: in words, and as a test.
KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "block_out_channels": ("positive whole numbers", _are_counts),
    "layers_per_block": ("a positive whole number", _is_count),
    "attention_head_dim": (
        "a positive whole number or null",
        lambda value: value is None or _is_count(value),
    ),
    "norm_eps": (
        "a number above 0 and below 1",
        lambda value: isinstance(value, float) and 0 < value < 1,
    ),
}


def _check_widths(config: DDPMConfig) -> None:
    attended = {
        width
        for width, down, up in zip(
            config.widths, config.down_attention, config.up_attention[::-1], strict=True
        )
        if down or up
    }
    if config.mid_attention:
        attended.add(config.widths[-1])
    head = config.head_channels
    for width in sorted(attended):
        if head is not None and (head < 1 or width % head):
            raise _unsupported("attention_head_dim", head, (f"a divisor of {width}",))
