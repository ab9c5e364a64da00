# ruff: noqa: T201 - time and memory are what one wants to see
"""Checkpoints of the published sizes, as long and as heavy as the real ones.

The files are written here: the names and shapes that azula's and diffusers' networks
have in the published configurations, filled with random numbers. What they cannot
show is what the real numbers look like. Run with
`-m slow -n 0 -s` to see time and memory.
"""

import gc
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert import diffusers
from diip_jax import prior as priors
from helpers import azula_unet, diffusers_unet, full_size, seeded, transcription

ROOT = Path(__file__).parents[1]
MOST_MEMORY = 1.6  # of the size of the file, at the peak of a conversion
# Twice the depth and eight times the width of the networks in unets/test_adm.py.
FORWARD = 1e-5
TIMESTEP = 666

pytestmark = [pytest.mark.slow, pytest.mark.parity]

CONVERT = """
import json, sys, time
start = time.perf_counter()
from checkpoints_convert.__main__ import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:
    fields = dict(line.split(":", 1) for line in status)
peak = 1024 * int(fields["VmHWM"].split()[0])
print(json.dumps({"code": code, "peak": peak, "s": time.perf_counter() - start}))
"""


def python(*arguments):
    """Run Python in another process; return what it prints last."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition("\n")[2]


def write(kind, path):
    python("-m", "helpers.full_size", kind, path)


def convert(path, out, *flags):
    """Convert in a process of its own; check and print its memory."""
    report = json.loads(python("-c", CONVERT, path, out, *flags))
    size = path.stat().st_size
    peak = report["peak"]
    print(
        f"\n{path.name}: {size / 1e9:.2f} GB, converted in {report['s']:.0f} s, "
        f"peak of memory {peak / 1e9:.2f} GB = {peak / size:.2f} times the file"
    )
    assert report["code"] == 0
    return peak / size


def predicted(prior, x):
    """Return eps by the package and print how long that took."""
    start = time.perf_counter()
    eps = np.asarray(seeded.predicted(prior, x, TIMESTEP))
    print(f"compiled and ran one forward pass in {time.perf_counter() - start:.0f} s")
    return eps


def torch_predicted(model, state, x):
    """Return eps by a PyTorch network that takes over the tensors of a state dict."""
    import torch

    model.load_state_dict(state, strict=True, assign=True)
    nchw = torch.from_numpy(x.transpose(2, 0, 1)[None].copy())
    start = time.perf_counter()
    with torch.no_grad():
        out = model(nchw, torch.tensor([TIMESTEP], dtype=torch.float32))
    print(f"PyTorch ran it in {time.perf_counter() - start:.0f} s")
    return getattr(out, "sample", out)[0, :3].permute(1, 2, 0).numpy()


def image():
    return np.random.default_rng(0).standard_normal((256, 256, 3)).astype(np.float32)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_adm_256_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("azula")
    path, out = tmp_path / "256x256_diffusion_uncond.pt", tmp_path / "prior"
    model = full_size.adm_model()
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert len(shapes) == 566
    assert sum(math.prod(shape) for shape in shapes.values()) == 552_814_086
    assert shapes["output_blocks.0.0.in_layers.2.weight"] == (1024, 2048, 3, 3)
    assert shapes["middle_block.1.qkv.weight"] == (3072, 1024, 1)

    write("adm", path)
    assert convert(path, out, "--like", "adm-imagenet256-uncond") < MOST_MEMORY

    start = time.perf_counter()
    prior = priors.load(out)
    print(f"loaded in {time.perf_counter() - start:.0f} s")
    assert prior.card.parameters == 552_814_086
    assert prior.card.architecture == azula_unet.UNCONDITIONAL_256
    actual = predicted(prior, image())
    del prior
    gc.collect()
    state = torch.load(path, weights_only=True, mmap=True)
    expected = torch_predicted(model, state, image())
    assert seeded.relative_error(actual, expected) < FORWARD


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_celeba_hq_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    path, out = tmp_path / "celeba_hq.ckpt", tmp_path / "prior"
    write("celebahq", path)
    # Close to the limit, since the libraries alone take 0.26 GB of the 0.72 GB.
    assert convert(path, out, "--like", "celebahq256-ddpm") < MOST_MEMORY
    prior = priors.load(out)
    assert prior.card.parameters == 113_673_219
    assert prior.card.architecture == diffusers.described(
        {"config": diffusers_unet.CELEBAHQ}
    )
    actual = predicted(prior, image())
    del prior
    stored = torch.load(path, weights_only=True)
    model = full_size.celebahq_model()
    state = {
        name: stored[transcription.ermongroup_name(name, 6)].reshape(like.shape)
        for name, like in model.state_dict().items()
    }
    expected = torch_predicted(model, state, image())
    assert seeded.relative_error(actual, expected) < FORWARD
