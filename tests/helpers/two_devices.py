"""Restore pictures with a prior and lanes on two devices.

`python -m helpers.two_devices FILE.npz`, in a process that sees two devices. g is a
formula of one weight, so that everything compiles in a moment; `many_devices` has a
network. Stores the images of each way, stacked, under its name.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diip_jax import diip, engine, restore
from diip_jax.prior import Prior
from helpers import lanes, seeded

CONFIG = lanes.CONFIG.replace(max_iterations=2)
PICTURES = lanes.images([(8, 8)] * 2)
KEY = 7


def generator(prior: Prior, *_: Any) -> Any:
    """Return g: waves of the noise, as high as the prior's one weight says."""
    return lambda z: jnp.sin(prior.params["rate"] * (z + jnp.roll(z, 1, 0)))


PARTS = diip.Parts(generator=generator)


def prior() -> Prior:
    """Return a prior of one weight, on the host."""
    return Prior({"rate": np.float32(0.75)}, seeded.card(seeded.TINY))


def restored(prior: Prior, **options: Any) -> np.ndarray:
    """Return the pictures' restorations, stacked."""
    key = jax.random.key(KEY)
    many = engine.restore_many(prior, PICTURES, key, CONFIG, parts=PARTS, **options)
    return np.stack([one.image for one in many])


def main(path: str) -> None:
    """Write the images of every way."""
    _, second = jax.devices()
    explicit = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))
    spread = NamedSharding(explicit, PartitionSpec("d"))
    on_second = jax.device_put(prior(), second)
    everywhere = jax.device_put(prior(), NamedSharding(explicit, PartitionSpec()))
    answers = {
        "second": restored(on_second, num_lanes=None),
        "everywhere": restored(everywhere, sharding=spread, num_lanes=None),
    }
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(KEY), np.arange(2))
    placed = jax.device_put((np.stack(PICTURES), keys), spread)

    def one(y: jax.Array, key: jax.Array) -> jax.Array:
        return restore(everywhere, y, key, CONFIG, PARTS).image

    answers["vmap"] = np.asarray(jax.jit(jax.vmap(one))(*placed))
    np.savez(path, **answers)


if __name__ == "__main__":
    main(sys.argv[1])
