"""Random weights by a rule: the same numbers for PyTorch and for JAX, stored nowhere.

Every tensor is drawn in PyTorch's shape from a generator seeded by its PyTorch name, so
that both sides make it without meeting. The way from there to Flax's tree is written
out here once more, apart from `checkpoints_convert`, which has tests of its own.
"""

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax import prior as priors
from diip_jax.config import DIIPConfig
from diip_jax.prior import Card, Prior
from diip_jax.schedule import Schedule
from diip_jax.unets.adm import ADMConfig

# Every kind of layer of a network of stride 2, each as seldom as can be: for tests of
# what is around a network, whose time is mostly the network's compilation.
TINY = ADMConfig(
    image_size=16,
    num_channels=32,
    channel_mult=(1, 1),
    num_res_blocks=(0, 0),
    attention_factors=(),
    num_heads=2,
)
# Levels of two widths, blocks on both ways and attention: for tests of the network.
SMALL = dataclasses.replace(
    TINY, channel_mult=(1, 2), num_res_blocks=(1, 1), attention_factors=(2,)
)

# Frozen, and five steps in a loop rather than two written out: compiled in a fraction
# of the time, where neither the gradient nor the chain is what is tested.
PRESET = DIIPConfig(
    learning_rate=0.05,
    k_min=4,
    epsilon=1e-3,
    num_steps=5,
    gradient="frozen",
    max_iterations=40,
)

# Configurations that together set every switch of the ADM UNet both ways.
ADM_CASES = {
    "modern": ADMConfig(
        image_size=16,
        num_channels=64,
        channel_mult=(0.5, 1, 1.5),
        num_res_blocks=(1, 1, 1),
        attention_factors=(2, 4),
        num_head_channels=16,
        resblock_updown=True,
        use_scale_shift_norm=True,
        use_new_attention_order=True,
        learn_sigma=True,
    ),
    "early": ADMConfig(
        image_size=16,
        num_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=(2, 2),
        attention_factors=(1, 2),
        num_heads=4,
        resblock_updown=False,
        use_scale_shift_norm=False,
        use_new_attention_order=False,
        learn_sigma=False,
    ),
    "uneven": ADMConfig(
        image_size=16,
        num_channels=32,
        channel_mult=(1, 1, 2),
        num_res_blocks=(2, 1, 3),
        attention_factors=(4,),
        num_heads=1,
        resblock_updown=False,
        use_scale_shift_norm=True,
        use_new_attention_order=True,
        learn_sigma=True,
    ),
    "mixed": ADMConfig(
        image_size=16,
        num_channels=32,
        channel_mult=(2, 1),
        num_res_blocks=(1, 2),
        attention_factors=(),
        num_head_channels=32,
        resblock_updown=True,
        use_scale_shift_norm=False,
        use_new_attention_order=False,
        learn_sigma=True,
    ),
}


# Little noise, so that g, whose network knows nothing of images, does not magnify every
# rounding by 1 / sqrt(alpha_bar) = 60, step after step.
MILD = Schedule(beta_end=2e-3)


def tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return the tensor of this PyTorch name and shape, float32, nowhere all zero."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(shape)
    if len(shape) > 1:  # kernels keep the size of what passes through them
        values /= np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):  # the scale of a norm
        values = 1 + 0.2 * values
    else:
        values *= 0.2
    return values.astype(np.float32)


def tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Any]:
    """Return a whole state dict as NumPy arrays, given its names and shapes."""
    return {name: tensor(name, tuple(shape), seed) for name, shape in shapes.items()}


def to_tree(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return PyTorch tensors as Flax's tree: OIHW to HWIO, (O, I[, 1]) to (I, O)."""
    tree: dict[str, Any] = {}
    for name, array in state_dict.items():
        *parents, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
        if leaf == "weight":
            leaf = "scale" if array.ndim == 1 else "kernel"
        if array.ndim == 4:
            array = np.transpose(array, (2, 3, 1, 0))
        elif array.ndim > 1:
            array = np.transpose(array.reshape(array.shape[:2]))
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.ascontiguousarray(array, np.float32)
    return tree


def torch_shapes(config: ADMConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the PyTorch twin of an ADM UNet."""
    shapes = {}

    def visit(tree: Mapping[str, Any], path: tuple[str, ...]):
        for key, value in tree.items():
            if isinstance(value, Mapping):
                visit(value, (*path, key))
                continue
            name = re.sub(r"_(\d+)", r".\1", ".".join(path))
            leaf = "bias" if key == "bias" else "weight"
            shape = value.shape
            if len(shape) == 4:
                shape = (shape[3], shape[2], *shape[:2])
            elif len(shape) == 2:
                one_by_one = path[-1] in ("qkv", "proj_out")  # Conv1d in PyTorch
                shape = (shape[1], shape[0], *((1,) if one_by_one else ()))
            shapes[f"{name}.{leaf}"] = shape

    visit(priors.abstract_params(card(config)), ())
    return shapes


def card(config: ADMConfig, **changes: Any) -> Card:
    """Return the card of a made-up prior."""
    fields: dict[str, Any] = {
        "name": "seeded",
        "family": "adm",
        "architecture": config,
        "schedule": MILD,
        "preset": PRESET,
        "any_size": True,
        "source": "random numbers",
        "sha256": "0" * 64,
        "licence": "Apache-2.0",
        "training_data": "none",
        "parameters": 0,
    }
    return Card(**{**fields, **changes})


def prior(config: ADMConfig = TINY, seed: int = 0, **changes: Any) -> Prior:
    """Return a prior with random weights."""
    return Prior(to_tree(tensors(torch_shapes(config), seed)), card(config, **changes))


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth picture with some noise, (H, W, 3) float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    phases, rates = rng.uniform(0, 6, (2, 3)), rng.uniform(0.1, 0.6, (2, 3))
    waves = np.sin(rates[0] * rows[..., None] + phases[0])
    waves = waves * np.cos(rates[1] * columns[..., None] + phases[1])
    noisy = 0.5 + 0.3 * waves + 0.1 * rng.standard_normal(waves.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)


# Options for `lowered.compile`: half the time to compile, a slower program.
RUN_ONCE = {"xla_backend_optimization_level": 0}


def compile_quickly(function: Callable, *args: Any) -> Callable:
    """Return `jit(function)` for such arguments, compiled to be run once or twice."""
    return jax.jit(function).lower(*args).compile(RUN_ONCE)


def predicted(prior, x, timestep, config=None):
    """Return eps of one image by the package, at a timestep of the T-step table."""
    predict_noise, steps = priors.noise_predictor(
        prior, config or prior.card.preset, np.array([timestep])
    )
    conditioning = jax.tree.map(lambda leaf: leaf[0], steps.conditioning)
    return jax.jit(predict_noise)(jnp.asarray(x), conditioning)


def relative_error(actual: Any, expected: Any) -> float:
    """Return |actual - expected| / |expected| in the Euclidean norm, in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise AssertionError(f"shapes differ: {actual.shape} and {expected.shape}")
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
