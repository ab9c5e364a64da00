"""What several benchmarks measure: priors, programs, medians and the record."""

import dataclasses
import gc
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax import canvas, diip, engine
from diip_jax import prior as priors
from diip_jax.config import PAPER, DIIPConfig
from diip_jax.photos import record
from diip_jax.prior import Card, Prior
from diip_jax.schedule import Schedule
from diip_jax.unets.adm import ADMConfig

PAUSE = 0.5  # seconds

# The network of OpenAI's 256x256_diffusion_uncond.pt and of RePaint's CelebA model.
ADM_256 = ADMConfig(
    image_size=256,
    num_channels=256,
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_res_blocks=(2,) * 6,
    attention_factors=(8, 16, 32),
    num_head_channels=64,
    resblock_updown=True,
    learn_sigma=True,
)


def adm_256_card() -> Card:
    """Return the card of the paper's priors: 552,814,086 weights, 256x256."""
    return Card(
        name="adm256",
        family="adm",
        architecture=ADM_256,
        schedule=Schedule(),
        preset=PAPER,
        any_size=False,
        source="no checkpoint: shapes only",
        sha256="",
        licence="",
        training_data="",
        parameters=552_814_086,
    )


def bundled_card(name: str) -> Card:
    """Return the card of a bundled prior without its weights."""
    text = (priors.locate(name) / "card.json").read_text(encoding="utf-8")
    return Card.from_json(text)


def abstract_prior(card: Card, dtype: str = "float32") -> Prior:
    """Return a prior of shapes alone, its weights of a dtype."""
    params = priors.abstract_params(card)
    return Prior(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), params), card
    )


def random_prior(card: Card, dtype: str = "float32") -> Prior:
    """Return a prior with random weights: useless but for its speed.

    Kernels keep the variance of what passes through them, so that nothing overflows.
    """
    leaves, tree = jax.tree.flatten(priors.abstract_params(card))
    keys = jax.random.split(jax.random.key(0), len(leaves))

    def draw(key: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if len(leaf.shape) == 1:  # scales and biases of norms and layers
            return jnp.ones(leaf.shape, dtype)
        deviation = 1 / math.sqrt(math.prod(leaf.shape[:-1]))
        return deviation * jax.random.normal(key, leaf.shape, dtype)

    weights = [draw(key, leaf) for key, leaf in zip(keys, leaves, strict=True)]
    return Prior(jax.tree.unflatten(tree, weights), card)


def cast(prior: Prior, dtype: str) -> Prior:
    """Return a prior whose weights are stored in another dtype."""
    return prior.replace(params=jax.tree.map(lambda a: a.astype(dtype), prior.params))


def weight_bytes(prior: Prior) -> int:
    """Return the bytes that the weights take; they may be abstract."""
    leaves = jax.tree.leaves(prior.params)
    return sum(a.size * a.dtype.itemsize for a in leaves)


def abstract_lanes(
    prior: Prior, size: tuple[int, int], config: DIIPConfig, num_lanes: int
) -> engine.Lanes:
    """Return the shapes of what `engine.advance` works on."""
    side = canvas.canvas_size(prior, config, *size)
    state = engine.abstract_state(prior, size, config)
    y = jax.ShapeDtypeStruct((*side, 3), jnp.float32)
    lane = engine.Lanes(y, state, jax.ShapeDtypeStruct((), jnp.bool_))
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((num_lanes, *a.shape), a.dtype), lane
    )


def start_lanes(y: np.ndarray, config: DIIPConfig) -> engine.Lanes:
    """Return lanes about to restore images (L, H, W, 3) in [0, 1].

    Sides must be those of a canvas.
    """

    @jax.jit
    def start(y: jax.Array) -> engine.Lanes:
        keys = jax.random.split(jax.random.key(0), len(y))
        y = 2 * y - 1
        state = jax.vmap(diip.start, in_axes=(0, 0, None))(y, keys, config)
        return engine.Lanes(y, state, jnp.ones(len(y), bool))

    return start(jnp.asarray(y))


def endless(config: DIIPConfig) -> DIIPConfig:
    """Return settings with which no lane stops and so ends a chunk."""
    return config.replace(criterion="never", max_iterations=10_000)


def iterations(
    prior: Prior,
    y: np.ndarray,
    config: DIIPConfig,
    count: int,
    sharding: jax.sharding.Sharding | None = None,
) -> Callable[[], None]:
    """Return a function that does some iterations of all images, (L, H, W, 3).

    They are one chunk of the engine's compiled loop, as in a restoration. A sharding is
    that of the lanes; the prior must be replicated over the same devices.
    """
    config = endless(config)
    lanes = [start_lanes(y, config)]
    if sharding is not None:
        lanes = jax.device_put(lanes, sharding)

    def iterate() -> None:
        lanes[0], done = engine.jitted_advance()(prior, lanes[0], config, count, 1)
        if int(done) != count:  # int() waits for the device
            raise RuntimeError("no lane is alive: the budget of iterations is spent")

    return iterate


def pictures(count: int, side: int) -> np.ndarray:
    """Return smooth noisy pictures, (count, side, side, 3) float32 in [0, 1]."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, np.pi, side)
    waves = np.sin(ramp)[:, None, None] * np.sin(2 * ramp)[None, :, None]
    noise = 0.1 * rng.standard_normal((count, side, side, 3))
    return np.clip(0.5 + 0.3 * waves + noise, 0, 1).astype(np.float32)


def median_seconds(
    sides: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Return the median seconds of each function over alternating runs.

    Each is called twice before, to compile and to settle. A pause comes before every
    timed run, so that none can meet the worker threads of another library still busy;
    on the machine of the records it made no difference.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
        side()
    gc.collect()
    for _ in range(repeats):
        for name, side in sides.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def write(path: Path | None, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Write a benchmark's record: the command, the machine, and the rows."""
    if path is None:
        return
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    command = " ".join(["python", script, *sys.argv[1:]])
    content = {"command": command, "machine": machine, "env": record.environment()}
    content |= {**more, "rows": list(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def settings(config: DIIPConfig, **changes: Any) -> DIIPConfig:
    """Return a configuration with some settings changed."""
    return dataclasses.replace(config, **changes)
