"""Restore pictures in every way in which lanes and a prior can be on four devices.

`python -m helpers.many_devices FILE.npz`, in a process that sees four devices. Stores
the images of each way, stacked, under its name.
"""

import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diip_jax import engine
from diip_jax.prior import Prior
from helpers import lanes, seeded

# A matched start and a look, as by default: what y says is computed for each image.
CONFIG = lanes.CONFIG.replace(
    start="matched", criterion="discrepancy", num_steps=1, max_iterations=2
)
PICTURES = lanes.images([(8, 8)] * 3)
KEY = 7
# Each place of a prior, each kind of sharding and each way to choose lanes.
WAYS = [
    ("alone", "host", "none", 1),
    ("third", "third", "none", None),
    ("everywhere", "everywhere", "none", None),
    ("explicit", "explicit", "none", 2),
    ("host, shared out", "host", "automatic", None),
    ("third, shared out", "third", "explicit", None),
]


def priors() -> dict[str, Prior]:
    """Return a prior at every kind of place."""
    prior, devices = seeded.prior(), np.array(jax.devices())
    everywhere = NamedSharding(Mesh(devices, ("d",)), PartitionSpec())
    explicit = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    return {
        "host": prior,
        "third": jax.device_put(prior, devices[2]),
        "everywhere": jax.device_put(prior, everywhere),
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


def main(path: str) -> None:
    """Write the images of every way."""
    assert len(jax.devices()) == 4
    at, across, answers = priors(), shardings(), {}
    for name, place, sharding, num_lanes in WAYS:
        options = {"num_lanes": num_lanes, "sharding": across[sharding]}
        answers[name] = restored(at[place], **options)
    for num_lanes in (None, 2):
        prior, sharding = engine.spread(at["host"], num_lanes, len(PICTURES))
        options = {"num_lanes": num_lanes, "sharding": sharding}
        answers[f"spread {num_lanes}"] = restored(prior, **options)
    np.savez(path, **answers)


if __name__ == "__main__":
    main(sys.argv[1])
