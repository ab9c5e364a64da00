"""What each public prior costs: computed from shapes, nothing downloaded or run.

    python benchmarks/priors.py [--rows REGEX] [--json benchmarks/results/priors.json]

One row per architecture of the registry, at its own size, float32, with the paper's 10
DDIM steps. GFLOP of one evaluation of the network is XLA's count for the program
before optimisation. Memory is weights and temporaries, as XLA's CPU backend plans them
for the frozen gradient and for the full one with one step recomputed at a time.
Seconds are PREDICTIONS: the FLOP of an iteration (frozen: 10 evaluations; full: 10
forward, 10 again, and 10 backward) over `--flops` per second, nothing measured. For a
whole photo of the default settings the least is their looks, and the most has every
iteration of every start, an iteration being a forward and two in the backward pass.
"""

import argparse
import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import cases
import jax
import jax.numpy as jnp

from checkpoints_convert import registry
from diip_jax import PAPER, diip, engine
from diip_jax import prior as priors
from diip_jax.config import DEFAULT
from diip_jax.prior import Card, Prior
from diip_jax.schedule import Schedule
from diip_jax.unets.adm import ADMConfig
from diip_jax.unets.ddpm import DDPMConfig

STEPS = 10
LIGHT = dataclasses.replace(
    cases.ADM_256, num_channels=128, num_res_blocks=(1,) * 6, attention_factors=(16,)
)
IDDPM_64 = ADMConfig(
    image_size=64,
    num_channels=128,
    channel_mult=(1, 2, 3, 4),
    num_res_blocks=(3,) * 4,
    attention_factors=(4, 8),
    learn_sigma=True,
)
DDPM_256 = DDPMConfig(
    image_size=256,
    widths=(128, 128, 256, 256, 512, 512),
    layers_per_block=2,
    down_attention=(False,) * 4 + (True, False),
    up_attention=(False, True) + (False,) * 4,
)
DDPM_32 = DDPMConfig(
    image_size=32,
    widths=(128, 256, 256, 256),
    layers_per_block=2,
    down_attention=(False, True, False, False),
    up_attention=(False, False, True, False),
)
# By the number of weights, which tells the registry's architectures apart.
ARCHITECTURES: dict[int, ADMConfig | DDPMConfig] = {
    552_814_086: cases.ADM_256,
    557_973_638: dataclasses.replace(
        cases.ADM_256,
        image_size=512,
        channel_mult=(0.5, 1, 1, 2, 2, 4, 4),
        num_res_blocks=(2,) * 7,
        attention_factors=(16, 32, 64),
    ),
    159_788_454: dataclasses.replace(
        cases.ADM_256,
        image_size=512,
        num_channels=32,
        channel_mult=(1, 2, 4, 8, 8, 16, 16),
        num_res_blocks=(1, 2, 2, 2, 2, 3, 4),
        resblock_updown=False,
        attention_factors=(16, 32, 64),
    ),
    93_563_910: LIGHT,
    121_063_942: IDDPM_64,
    52_546_438: dataclasses.replace(
        IDDPM_64, image_size=32, channel_mult=(1, 2, 2, 2), attention_factors=(2, 4)
    ),
    113_676_678: dataclasses.replace(
        LIGHT,
        num_res_blocks=(2,) * 6,
        num_heads=1,
        num_head_channels=-1,
        resblock_updown=False,
        use_scale_shift_norm=False,
    ),
    113_673_219: DDPM_256,
    35_746_307: DDPM_32,
    78_700_803: dataclasses.replace(
        DDPM_32,
        image_size=64,
        widths=(128, 256, 256, 256, 512),
        down_attention=(False, False, True, False, False),
        up_attention=(False, False, True, False, False),
    ),
}


def card(parameters: int) -> Card:
    """Return the card of an architecture, checked against its number of weights."""
    architecture = ARCHITECTURES[parameters]
    family = "adm" if isinstance(architecture, ADMConfig) else "ddpm"
    result = dataclasses.replace(
        cases.adm_256_card(),
        family=family,
        architecture=architecture,
        schedule=Schedule(),
        preset=PAPER,
        parameters=parameters,
    )
    shapes = jax.tree.leaves(priors.abstract_params(result))
    if (count := sum(a.size for a in shapes)) != parameters:
        raise SystemExit(f"error: {architecture} has {count} weights, not {parameters}")
    return result


def evaluation_flops(prior: Prior) -> float:
    """Return the FLOP of one evaluation of the network on one image."""
    side = prior.card.architecture.image_size
    network = functools.partial(priors.network(prior.card).apply, method="initialise")
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((), jnp.float32)
    lowered = jax.jit(network).lower({"params": prior.params}, x, t)
    return float(lowered.cost_analysis()["flops"])


def measure(parameters: int, flops: float) -> dict[str, Any]:
    """Return a row of the table."""
    prior = cases.abstract_prior(card(parameters))
    side = prior.card.architecture.image_size
    evaluation = evaluation_flops(prior)
    row: dict[str, Any] = {
        "priors": [
            c.name for c in registry.public().values() if c.parameters == parameters
        ],
        "parameters": parameters,
        "size": side,
        "weights": 4 * parameters,
        "evaluation_flops": evaluation,
        "frozen_seconds": STEPS * evaluation / flops,
        "full_seconds": 3 * STEPS * evaluation / flops,
    }
    looks = 1 + DEFAULT.num_starts  # at the photo, and at each start
    iterations = DEFAULT.num_starts * diip.budget(DEFAULT, (side, side))
    row["default_seconds"] = looks * evaluation / flops
    row["default_most_seconds"] = (looks + 3 * iterations) * evaluation / flops
    tiled = DEFAULT.replace(tile=side)
    row["default_bytes"] = engine.rough_memory(prior, (side, side), tiled)
    for gradient in ("frozen", "full"):
        config = PAPER.replace(gradient=gradient, num_steps=STEPS, remat="step")
        row[f"{gradient}_bytes"] = engine.memory(prior, (side, side), config)
        jax.clear_caches()
    return row


def main() -> None:
    """Print the table as its rows come."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", help="regular expression on the numbers")
    parser.add_argument(
        "--flops", type=float, default=100e12, help="FLOP per second, for predictions"
    )
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()

    print(
        "weights      size   GFLOP   frozen, GB   full, GB   frozen, s   full, s   "
        "default, GB   default, s   at most, s"
    )
    rows = []
    for parameters in ARCHITECTURES:
        if not re.search(flags.rows, str(parameters)):
            continue
        row = measure(parameters, flags.flops)
        rows.append(row)
        print(
            f"{parameters / 1e6:5.1f} M {row['size']:9d} "
            f"{row['evaluation_flops'] / 1e9:7.0f} {row['frozen_bytes'] / 1e9:12.2f} "
            f"{row['full_bytes'] / 1e9:10.2f} {row['frozen_seconds']:11.3f} "
            f"{row['full_seconds']:9.3f} {row['default_bytes'] / 1e9:13.2f} "
            f"{row['default_seconds']:12.3f} {row['default_most_seconds']:12.3f}  "
            f"{row['priors'][0]}",
            flush=True,
        )
        cases.write(flags.json, rows, flops=flags.flops)


if __name__ == "__main__":
    main()
