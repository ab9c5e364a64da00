"""Fixtures: a key, a tiny prior with random weights, stricter JAX where it fits."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

# Most of a test's time is the compilation of what it runs once. The last part of it,
# LLVM's, is left out, and no large program is compiled twice in a session: the workers
# of pytest-xdist and the processes that tests start find it in one folder. (A small one
# takes longer to store.) JAX reads these settings as it is imported.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.mkdtemp(prefix="diip_tests_")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    # XLA compiles a fifth faster without its fusion emitters. A flag that it does not
    # know ends the process, so the flag is for the version it was tried with.
    if metadata.version("jaxlib") == "0.10.2":
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()

import jax
import pytest

from diip_jax import restore
from diip_jax.prior import Prior
from helpers import seeded

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"  # photos and PyTorch priors, where they are present


@pytest.fixture
def key() -> jax.Array:
    """Return a random key."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def tiny_prior() -> Prior:
    """Return a prior of two levels and 32 channels, for any canvas."""
    return seeded.prior()


@pytest.fixture(scope="session")
def restore_jit() -> Callable:
    """Return `jit(restore)`, one for all tests: equal programs compile once."""
    return jax.jit(restore)


@pytest.fixture(scope="session")
def restore_vmap() -> Callable:
    """Return `jit(vmap(restore))` over images and keys, one for all tests."""
    return jax.jit(jax.vmap(restore, (None, 0, 0, None)))


@pytest.fixture
def strict_ranks() -> Iterator[None]:
    """Make JAX refuse to add arrays of different rank.

    Not for the whole suite: a bias per channel is added to (N, H, W, C) in every layer
    of a network, which is what broadcasting is for. The code outside the networks is
    held to it.
    """
    before = jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_rank_promotion", "raise")
    yield
    jax.config.update("jax_numpy_rank_promotion", before)


@pytest.fixture
def x64() -> Iterator[None]:
    """Compute in float64, so that finite differences mean something."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of photos and PyTorch priors, or skip the test."""
    if not (SHARED / "priors").is_dir():
        pytest.skip("no folder of PyTorch priors beside the repository")
    return SHARED
