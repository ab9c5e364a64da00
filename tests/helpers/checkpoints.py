"""Small checkpoints of each layout, what they do not reveal, and the command."""

import dataclasses

import jax
import numpy as np
import pytest

from checkpoints_convert import __main__, convert, diffusers
from checkpoints_convert.tensors import LazyTensor
from diip_jax import prior as priors
from helpers import diffusers_unet, seeded

SMALL_ADM = seeded.SMALL
ADM_FACTS = {
    "image_size": 16,
    "num_heads": 2,
    "num_heads_upsample": 2,
    "new_attention_order": False,
}
LINEAR = {"kind": "linear", "num_train_timesteps": 1000}
SMALL_UNET2D = diffusers_unet.CONFIGS["small_google"]
DDPM_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "clip_sample": True,
    "trained_betas": None,
    "variance_type": "fixed_small",
}
ADM_FLAGS = (
    "--image-size=16",
    "--num_heads=2",
    "--num_heads_upsample=2",
    "--no-new-attention-order",
    "--schedule=linear",
    "--num_train_timesteps=1000",
    "--licence=CC0",
    "--training_data=none",
    "--any_size",
)


def adm_weights(config=SMALL_ADM):
    """Return tensors by the names of guided-diffusion."""
    return seeded.tensors(seeded.torch_shapes(config))


def unet2d_weights(config=SMALL_UNET2D):
    """Return tensors by the names of diffusers."""
    architecture = diffusers.described({"config": config})
    return diffusers_unet.state_dict(diffusers_unet.torch_shapes(architecture))


def lazy(arrays):
    """Return arrays as the readers hand out tensors."""
    return {n: LazyTensor(a.shape, lambda a=a: a) for n, a in arrays.items()}


def save(path, arrays):
    """Write a .safetensors file."""
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, path)
    return path


def converted(arrays, layout, architecture):
    """Return the tree of weights that a layout's names lead to."""
    card = dataclasses.replace(
        seeded.card(seeded.TINY), family=layout.FAMILY, architecture=architecture
    )
    shapes = priors.abstract_params(card)
    return convert.fill(
        shapes, lazy(arrays), lambda name: layout.rename(name, architecture)
    )


def assert_trees_equal(actual, expected):
    """Compare two trees of float32 weights, to the last bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.float32


def run(*arguments):
    """Run the command in this process; return its exit code."""
    try:
        return __main__.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse ends like this
        return error.code
