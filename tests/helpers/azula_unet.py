"""azula's ADM UNet, the partner of ours, and what both are asked.

azula's `UNetModel` descends from the released guided-diffusion code and loads its
checkpoints.
"""

import dataclasses

import numpy as np
import pytest

from diip_jax.unets.adm import ADMConfig
from helpers import seeded

TIMESTEP = 333.0

BUNDLED = ADMConfig(  # natural64 and faces64
    image_size=64,
    num_channels=32,
    channel_mult=(1, 2, 3, 4),
    num_res_blocks=(1, 1, 1, 1),
    attention_factors=(8,),
    num_head_channels=32,
    resblock_updown=True,
)

# The switches of the released guided-diffusion models, from its README.
UNCONDITIONAL_256 = ADMConfig(
    image_size=256,
    num_channels=256,
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_res_blocks=(2,) * 6,
    attention_factors=(8, 16, 32),
    num_head_channels=64,
    resblock_updown=True,
    learn_sigma=True,
)
UNCONDITIONAL_512 = dataclasses.replace(
    UNCONDITIONAL_256,
    image_size=512,
    channel_mult=(0.5, 1, 1, 2, 2, 4, 4),
    num_res_blocks=(2,) * 7,
)


def inputs(height=8, width=12, batch=2):
    """Return noisy images and a cotangent of the output, (N, H, W, 3) both."""
    shape = (batch, height, width, 3)
    rng = np.random.default_rng(shape)
    return tuple(rng.standard_normal(shape).astype(np.float32) for _ in range(2))


class PerLevel:
    """Stand in for azula's one block count where every level has its own.

    Its constructor asks for `range(n)` at every level on the way down, then for
    `range(n + 1)` and, in each turn, `i == n` on the way up.
    """

    def __init__(self, counts):
        """Keep the counts in the order in which they will be asked for."""
        self.down, self.up, self.current = list(counts), list(reversed(counts)), 0

    def __index__(self):
        """Answer `range(n)`: the next level on the way down."""
        return self.down.pop(0)

    def __add__(self, one):
        """Answer `range(n + 1)`: the next level on the way up."""
        self.current = self.up.pop(0)
        return self.current + one

    def __eq__(self, i):
        """Answer `i == n`: the last block of the level on the way up."""
        return self.current == i

    __hash__ = None  # type: ignore[assignment]


def build(config, state_dict=None, strict=True):
    """Return azula's UNet of this configuration, with random weights by default."""
    torch = pytest.importorskip("torch")
    unet = pytest.importorskip("azula.plugins.adm._src.unet")
    torch.set_num_threads(1)  # on a busy machine threads mostly wait for each other
    counts = config.num_res_blocks
    model = unet.UNetModel(
        image_size=config.image_size,
        in_channels=3,
        model_channels=config.num_channels,
        out_channels=6 if config.learn_sigma else 3,
        num_res_blocks=counts[0] if len(set(counts)) == 1 else PerLevel(counts),
        attention_resolutions=config.attention_factors,
        channel_mult=config.channel_mult,
        num_heads=config.num_heads,
        num_heads_upsample=config.num_heads_upsample,
        num_head_channels=config.num_head_channels,
        use_scale_shift_norm=config.use_scale_shift_norm,
        resblock_updown=config.resblock_updown,
        use_new_attention_order=config.use_new_attention_order,
    )
    if state_dict is None:
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        state_dict = {n: torch.from_numpy(a) for n, a in seeded.tensors(shapes).items()}
    model.load_state_dict(state_dict, strict=strict)
    return model.eval().requires_grad_(False)


def forward_and_gradient(model, x, cotangent, timestep=TIMESTEP):
    """Return eps and the gradient of <eps, cotangent> with respect to x."""
    import torch

    x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_(True)
    t = torch.full((len(x),), timestep)
    eps = model(x, t)[:, :3].permute(0, 2, 3, 1)  # without sigma
    (eps * torch.from_numpy(cotangent)).sum().backward()
    assert x.grad is not None
    return eps.detach().numpy(), x.grad.permute(0, 2, 3, 1).numpy()
