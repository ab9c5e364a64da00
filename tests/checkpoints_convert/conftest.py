"""Fixtures: a checkpoint of guided-diffusion, and a pipeline of diffusers."""

import json

import pytest

from helpers.checkpoints import (
    DDPM_SCHEDULER,
    SMALL_UNET2D,
    adm_weights,
    save,
    unet2d_weights,
)


@pytest.fixture
def adm_file(tmp_path):
    """Return a checkpoint of guided-diffusion that nobody knows."""
    return save(tmp_path / "mine.safetensors", adm_weights())


@pytest.fixture
def unet2d_folder(tmp_path):
    """Return the folder of a diffusers pipeline with its configuration files."""
    for name, content in (
        ("unet/config.json", SMALL_UNET2D),
        ("scheduler/scheduler_config.json", DDPM_SCHEDULER),
    ):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(json.dumps(content))
    save(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", unet2d_weights())
    return tmp_path
