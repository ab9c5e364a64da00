"""The lower bounds in pyproject.toml hold: what they name is installed and used."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from helpers.checkpoints import ADM_FLAGS, adm_weights, save

ROOT = Path(__file__).parents[1]
BOUND = re.compile(r"([\w-]+)>=([\w.]+)")


def lowest():
    """Return the dependencies at their lower bounds, and safetensors."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["convert"]]
    bounds = dict(BOUND.fullmatch(line).groups() for line in wanted)
    return [f"{name}=={version}" for name, version in bounds.items()]


def call(*command, folder):
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_lowest_versions_convert_and_restore(tmp_path):
    """From the network, in an environment of their own; weights in BF16, too."""
    source, environment = tmp_path / "source", tmp_path / "environment"
    parts = ("diip_jax", "checkpoints_convert", "main.py", "pyproject.toml")
    for name in (*parts, "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    call(sys.executable, "-m", "venv", environment, folder=tmp_path)
    programs = environment / ("Scripts" if sys.platform == "win32" else "bin")
    call(programs / "pip", "install", "-q", source, *lowest(), folder=tmp_path)

    weights = {n: a.astype(ml_dtypes.bfloat16) for n, a in adm_weights().items()}
    save(tmp_path / "x.safetensors", weights)
    convert = (programs / "python", "-m", "checkpoints_convert", "x.safetensors")
    call(*convert, "prior", *ADM_FLAGS, folder=tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    flags = ("--prior=prior", "--max_iterations=2", "--num_steps=2")
    call(programs / "diip", "--image=photo.png", *flags, folder=tmp_path)
    with Image.open(tmp_path / "photo_diip.png") as restored:
        assert restored.size == (16, 16)
