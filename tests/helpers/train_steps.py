"""Take a few training steps on all devices, and store their losses and weights.

`python -m helpers.train_steps FILE.npz`, in a process that sees several devices.
"""

import sys

import jax
import numpy as np

from diip_jax.prior import Prior
from diip_jax.schedule import Schedule
from diip_jax.training import start, step

CONFIG = step.TrainConfig(batch_size=8, learning_rate=1e-3, warm_up=1)


def prior() -> Prior:
    """Return an untrained prior of one level, whose programs compile in seconds."""
    return start.random_prior("x", start.adm_shape(8, 32, (1,), 0, ()), Schedule(), 0)


def pictures(seed: int, count: int = 8, side: int = 8) -> np.ndarray:
    """Return crops of noise, (count, side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, side, side, 3), np.uint8)


def run(num_steps: int = 3) -> dict[str, np.ndarray]:
    """Return the number of devices, the losses, and the average of the weights."""
    place, untrained = step.placement(CONFIG.batch_size), prior()
    state = jax.device_put(step.init(untrained.params, CONFIG), place.state)
    losses = []
    for number in range(num_steps):
        batch = jax.make_array_from_process_local_data(place.batch, pictures(number))
        state, metrics = step.jitted_train_step()(
            state, batch, number / num_steps, untrained.card, CONFIG
        )
        losses.append(metrics.loss)
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(state.ema)]
    return {
        "devices": np.asarray(len(jax.devices())),
        "losses": np.asarray(losses),
        "ema": np.concatenate(leaves),
    }


if __name__ == "__main__":
    np.savez(sys.argv[1], **run())
