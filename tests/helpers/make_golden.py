"""Store outputs of the PyTorch partners, so that tests need not have PyTorch.

Run from the folder `tests` after `pip install torch diffusers` and
`pip install --no-deps azula`: `python -m helpers.make_golden`. Inputs and weights are
random numbers by the rule of `seeded.py`, made again by the tests; only the partners'
answers are stored.
"""

from pathlib import Path
from typing import Any

import numpy as np

from helpers import azula_unet, ddim_chain, diffusers_unet, seeded

GOLDEN = Path(__file__).parents[1] / "golden"


def ddim() -> dict[str, np.ndarray]:
    """Return the ends of DDIM chains by diffusers."""
    return {
        f"x_{num_steps}": ddim_chain.diffusers_chain(num_steps)
        for num_steps in ddim_chain.STEP_COUNTS
    }


def adm() -> dict[str, np.ndarray]:
    """Return outputs and input gradients of azula's ADM UNet."""
    outputs = {}
    for name, config in seeded.ADM_CASES.items():
        unet = azula_unet.build(config)
        answers = azula_unet.forward_and_gradient(unet, *azula_unet.inputs())
        outputs[f"{name}_eps"], outputs[f"{name}_gradient"] = answers
    return outputs


def ddpm() -> dict[str, np.ndarray]:
    """Return the answers of diffusers to all configurations, and one of azula."""
    outputs = {}
    image = diffusers_unet.image()
    for name, config in diffusers_unet.CONFIGS.items():
        model = diffusers_unet.unet2d(config)
        outputs[name] = diffusers_unet.torch_forward(model, image)
        if name in diffusers_unet.FEEBLE:
            shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
            weights = diffusers_unet.state_dict(shapes, feeble=True)
            weak = diffusers_unet.unet2d(config, weights)
            outputs[f"{name}_feeble"] = diffusers_unet.torch_forward(weak, image)
    x, _ = azula_unet.inputs()
    outputs["early_feeble"] = diffusers_unet.torch_forward(early_feeble(), x)
    return outputs


def early_feeble() -> Any:
    """Return azula's network with improved-diffusion's options and feeble weights."""
    import torch

    config = seeded.ADM_CASES["early"]
    shapes = seeded.torch_shapes(config)
    weights = diffusers_unet.state_dict(shapes, feeble=True)
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    return azula_unet.build(config, tensors)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN / "ddim.npz", **ddim())
    np.savez_compressed(GOLDEN / "adm.npz", **adm())
    np.savez_compressed(GOLDEN / "ddpm.npz", **ddpm())
