"""Checkpoints with the names and shapes of published ones and random numbers.

`python -m helpers.full_size adm|celebahq FILE` writes one: in another process, so that
its memory is given back.
"""

import math
import sys

from helpers import azula_unet, diffusers_unet, transcription


def random_state(model):
    """Return tensors of a network's names and shapes, none of them zero.

    Drawn as seeded.py does, but by PyTorch: four times as fast.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, like in model.state_dict().items():
        values = torch.randn(like.shape, generator=generator)
        if like.ndim > 1:
            values /= math.sqrt(math.prod(like.shape[1:]))
        else:
            values = values * 0.2 + (1 if name.endswith("weight") else 0)
        state[name] = values
    return state


def adm_model():
    """Return azula's 256-pixel network without memory."""
    import torch

    with torch.device("meta"):
        return azula_unet.build(azula_unet.UNCONDITIONAL_256, {}, strict=False)


def celebahq_model():
    """Return diffusers' network of google/ddpm-celebahq-256 without memory."""
    import torch
    from diffusers import UNet2DModel

    with torch.device("meta"):
        return UNet2DModel.from_config(diffusers_unet.CELEBAHQ).eval()


def write_adm(path):
    """Write a checkpoint like 256x256_diffusion_uncond.pt."""
    import torch

    torch.save(random_state(adm_model()), path)


def write_celebahq(path):
    """Write a checkpoint like celeba_hq.ckpt, in the format of its time."""
    import torch

    state = random_state(celebahq_model())
    renamed = {
        transcription.ermongroup_name(name, 6): (
            t[..., None, None] if "attentions" in name and t.ndim == 2 else t
        )
        for name, t in state.items()
    }
    torch.save(renamed, path, _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    {"adm": write_adm, "celebahq": write_celebahq}[sys.argv[1]](sys.argv[2])
