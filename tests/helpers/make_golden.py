"""Store outputs of the PyTorch partners, so that tests need not have PyTorch.

Run from the repository root after `pip install torch diffusers` and
`pip install --no-deps azula`: `python tests/make_golden.py`. Inputs and weights are
random numbers by the rule of `seeded.py`, made again by the tests; only the partners'
answers are stored.
"""

from pathlib import Path

import numpy as np
import seeded
import test_adm
import test_ddim

GOLDEN = Path(__file__).parents[1] / "golden"


def ddim() -> dict[str, np.ndarray]:
    """Return the ends of DDIM chains by diffusers."""
    return {
        f"x_{num_steps}": test_ddim.diffusers_chain(num_steps)
        for num_steps in test_ddim.STEP_COUNTS
    }


def adm() -> dict[str, np.ndarray]:
    """Return outputs and input gradients of azula's ADM UNet."""
    outputs = {}
    for name, config in seeded.ADM_CASES.items():
        unet = test_adm.azula_unet(config)
        eps, gradient = test_adm.azula_forward_and_gradient(unet, *test_adm.inputs())
        outputs[f"{name}_eps"], outputs[f"{name}_gradient"] = eps, gradient
    return outputs


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN / "ddim.npz", **ddim())
    np.savez_compressed(GOLDEN / "adm.npz", **adm())
