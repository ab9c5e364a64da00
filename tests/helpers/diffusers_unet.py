"""diffusers' UNet2DModel, the partner of the DDPM UNet, and what both are asked."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from checkpoints_convert import diffusers
from diip_jax import prior as priors
from diip_jax.prior import Card, Prior
from diip_jax.unets.ddpm import DDPMConfig
from helpers import seeded

TIMESTEP = 333.0

# config.json of google/ddpm-cifar10-32 and google/ddpm-celebahq-256, without the width.
GOOGLE = {
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "time_embedding_type": "positional",
}
CIFAR10 = {
    **GOOGLE,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"] + ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2 + ["AttnUpBlock2D", "UpBlock2D"],
    "sample_size": 32,
}
CELEBAHQ = {
    **GOOGLE,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    "sample_size": 256,
}
LIBRARY = {  # the defaults of the library do the rest
    "_class_name": "UNet2DModel",
    "block_out_channels": [32, 64, 64, 64],
    "sample_size": 64,
}

SMALL = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "sample_size": 16,
}

CONFIGS: Mapping[str, dict[str, Any]] = {
    "cifar10": {**CIFAR10, "block_out_channels": [32, 64, 64, 64]},
    "celebahq": {**CELEBAHQ, "block_out_channels": [32, 32, 64, 64, 64, 64]},
    "library": LIBRARY,
    "small_google": {**GOOGLE, **SMALL},
    "small_library": {**LIBRARY, **SMALL},
    "scale_shift": {
        **LIBRARY,
        **SMALL,
        "out_channels": 6,
        "resnet_time_scale_shift": "scale_shift",
    },
    "without_mid_attention": {
        **LIBRARY,
        **SMALL,
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
        "add_attention": False,
    },
}
NORMS_AND_OUTPUT = r"norm|(in|out)_layers\.0|^out\.|^conv_out"  # in all layouts
FEEBLE = ("small_google", "small_library")  # also with features of small variance


def torch_shapes(config: DDPMConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of diffusers' twin of a DDPM UNet."""
    card = dataclasses.replace(seeded.card(seeded.TINY), family="ddpm")
    card = dataclasses.replace(card, architecture=config)
    shapes = {}

    def visit(tree: Mapping[str, Any], path: tuple[str, ...]):
        for key, value in tree.items():
            if isinstance(value, Mapping):
                visit(value, (*path, key))
                continue
            name = re.sub(r"_(\d+)", r".\1", ".".join(path))
            name = name.replace("linear.", "linear_")
            rank, shape = len(value.shape), value.shape
            order = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[rank]
            leaf = "bias" if key == "bias" else "weight"
            shapes[f"{name}.{leaf}"] = tuple(shape[axis] for axis in order)

    visit(priors.abstract_params(card), ())
    return shapes


def state_dict(
    shapes: Mapping[str, tuple[int, ...]], *, feeble: bool = False
) -> dict[str, np.ndarray]:
    """Return random weights; feeble ones keep the variance of all features near 1e-4.

    There the epsilon of a group normalisation matters, which ordinary features hide.
    """
    tensors = seeded.tensors(shapes)
    for name, tensor in tensors.items():
        if feeble and not re.search(NORMS_AND_OUTPUT, name):
            tensor *= 0.01
    return tensors


def card(name: str) -> Card:
    """Return the card of a prior of this configuration."""
    config = diffusers.described({"config": CONFIGS[name]})
    return dataclasses.replace(
        seeded.card(seeded.TINY), family="ddpm", architecture=config
    )


def prior(name: str) -> Prior:
    """Return a prior of this configuration, with random weights."""
    its = card(name)
    return Prior(seeded.to_tree(state_dict(torch_shapes(its.architecture))), its)


def image() -> np.ndarray:
    """Return noise, (1, 32, 32, 3)."""
    return np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)


def unet2d(config: Mapping[str, Any], weights: Mapping[str, Any] | None = None) -> Any:
    """Return diffusers' model, by default with random weights."""
    import torch
    from diffusers import UNet2DModel

    model = UNet2DModel.from_config(dict(config))
    if weights is None:
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        weights = state_dict(shapes)
    tensors = {name: torch.from_numpy(a) for name, a in weights.items()}
    model.load_state_dict(tensors, strict=True)
    return model.eval().requires_grad_(False)


def torch_forward(model: Any, x: np.ndarray, t: float = TIMESTEP) -> np.ndarray:
    """Return a PyTorch model's eps, (N, H, W, 3)."""
    import torch

    nchw = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        out = model(nchw, torch.full((len(x),), t))
    out = getattr(out, "sample", out)
    return out[:, :3].permute(0, 2, 3, 1).numpy()
