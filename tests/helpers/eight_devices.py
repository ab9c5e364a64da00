"""Restore twelve pictures on eight lanes, one per device, and store the answers.

`python -m helpers.eight_devices FILE.npz`, in a process that sees eight devices.
"""

import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diip_jax import engine
from helpers import lanes, seeded

FIELDS = ("image", "losses", "reason", "iteration", "num_iterations")


def main(path: str) -> None:
    """Write the restorations' fields, each stacked over the pictures."""
    devices = jax.devices()
    assert len(devices) == 8, devices
    mesh = Mesh(np.array(devices), ("lanes",))
    restorations = engine.restore_many(
        jax.device_put(seeded.prior(), NamedSharding(mesh, PartitionSpec())),
        lanes.images(lanes.TWELVE),
        jax.random.key(7),
        lanes.CONFIG,
        num_lanes=8,
        sharding=NamedSharding(mesh, PartitionSpec("lanes")),
    )
    stacked = {name: [getattr(r, name) for r in restorations] for name in FIELDS}
    np.savez(path, **stacked)


if __name__ == "__main__":
    main(sys.argv[1])
