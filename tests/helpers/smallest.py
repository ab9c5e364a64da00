"""The smallest network that is a prior: where what it predicts does not matter."""

from diip_jax.prior import Prior
from diip_jax.unets.adm import ADMConfig
from helpers import seeded

CONFIG = ADMConfig(
    image_size=16,
    num_channels=32,
    channel_mult=(1, 1),
    num_res_blocks=(1, 1),
    attention_factors=(),
    num_heads=1,
)


def prior(**changes) -> Prior:
    """Return a prior with random weights, whose stride is 2."""
    return seeded.prior(CONFIG, **changes)
