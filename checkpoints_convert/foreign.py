"""Checkpoints that are something else: told by their names, refused with a reason."""

import re
from collections.abc import Iterable

# What a name looks like, and what it betrays; the first pattern that fits counts.
SIGNS = (
    (
        r"map_noise|map_layer\d|(^|\.)(enc|dec)\.\d+x\d+_",
        "an EDM network (NVlabs/edm), which is preconditioned in another way",
    ),
    (r"(^|\.)u_net\.[du]_blocks\.", "a k-diffusion network with its own layers"),
    (
        r"^(model\.)?diffusion_model\.|first_stage_model|cond_stage_model"
        r"|post_quant_conv|attn2\.",
        "a latent or text-conditional diffusion model, which does not work on pixels",
    ),
    (r"^downsamples\.level_", "a ddpm-torch network (tqch/ddpm-torch)"),
    (r"^all_modules\.\d", "a score_sde network (NCSN++ or DDPM++)"),
    (
        r"^(denoise_fn\.)?(init_conv|downs\.0)\.",
        "a denoising-diffusion-pytorch network",
    ),
    (r"class_embedding\.|label_emb", "a class-conditional network"),
)


def recognise(names: Iterable[str]) -> str | None:
    """Return what tensors of these names belong to and the name that says so."""
    ordered = sorted(names)
    for pattern, what in SIGNS:
        for name in ordered:
            if re.search(pattern, name):
                return f"{what} (it has {name})"
    return None
