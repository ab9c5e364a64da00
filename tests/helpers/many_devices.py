"""Restore pictures with lanes and priors on four devices in every way.

`python -m helpers.many_devices FILE.npz`, in a process that sees four devices. Stores
the images of each way, stacked, under its name.
"""

import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diip_jax import engine, restore
from diip_jax.prior import Prior
from helpers import lanes, seeded

# A matched start, as by default: what y says is computed where the prior is.
CONFIG = lanes.CONFIG.replace(start="matched", num_steps=1, max_iterations=2)
FULL = CONFIG.replace(start="random", gradient="full", remat="none")
PICTURES = lanes.images([(8, 8)] * 4)
KEY = 7
# Each place of a prior, each kind of sharding and each way to choose lanes.
WAYS = [
    ("third", "none", None),
    ("explicit", "none", 2),
    ("host", "automatic", None),
    ("third", "explicit", 4),
]


def priors() -> dict[str, Prior]:
    """Return a prior at every kind of place."""
    prior, devices = seeded.prior(), np.array(jax.devices())
    explicit = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    return {
        "host": prior,
        "third": jax.device_put(prior, devices[2]),
        "explicit": jax.device_put(prior, NamedSharding(explicit, PartitionSpec())),
    }


def shardings() -> dict[str, NamedSharding | None]:
    """Return every kind of sharding of the lanes."""
    explicit = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    spec = PartitionSpec("d")
    return {
        "none": None,
        "automatic": NamedSharding(Mesh(np.array(jax.devices()), ("d",)), spec),
        "explicit": NamedSharding(explicit, spec),
    }


def restored(prior: Prior, **options: Any) -> np.ndarray:
    """Return the pictures' restorations, stacked."""
    key = jax.random.key(KEY)
    many = engine.restore_many(prior, PICTURES, key, CONFIG, **options)
    return np.stack([one.image for one in many])


def together(
    prior: Prior, across: dict[str, NamedSharding | None]
) -> dict[str, np.ndarray]:
    """Return what `vmap` of `restore` gives, each picture on a device of its own."""
    restore_all = jax.vmap(restore, (None, 0, 0, None))
    key, explicit, mesh = jax.random.key(KEY), across["explicit"], across["automatic"]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(len(PICTURES)))
    arguments = prior, np.stack(PICTURES), keys, FULL
    over_mesh = jax.shard_map(
        restore_all,
        mesh=mesh.mesh,
        in_specs=(PartitionSpec(), mesh.spec, mesh.spec, PartitionSpec()),
        out_specs=mesh.spec,
    )
    placed = prior, *jax.device_put(arguments[1:3], explicit), FULL
    return {
        "restore explicit": np.asarray(jax.jit(restore_all)(*placed).image),
        "restore shard_map": np.asarray(jax.jit(over_mesh)(*arguments).image),
    }


def main(path: str) -> None:
    """Write the images of every way."""
    assert len(jax.devices()) == 4
    at, across, answers = priors(), shardings(), {}
    for place, kind, num_lanes in WAYS:
        options = {"num_lanes": num_lanes, "sharding": across[kind]}
        answers[f"engine {place} {kind}"] = restored(at[place], **options)
    prior, sharding = engine.spread(at["host"], None, len(PICTURES))
    answers["engine spread"] = restored(prior, sharding=sharding, num_lanes=None)
    answers |= together(at["host"], across)
    np.savez(path, **answers)


if __name__ == "__main__":
    main(sys.argv[1])
