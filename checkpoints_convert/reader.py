"""Read a checkpoint file into named tensors, freed of a training script's wrappings.

The tensors are lazy: their shapes are known at once, and their numbers come from the
disk one tensor at a time. A file of several gigabytes never lies in memory twice.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints_convert.tensors import ConversionError, LazyTensor, Tensors
from checkpoints_convert.torch_file import open_torch

SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
WRAPPERS = ("ema", "state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "model.")
# The paper's network has 700 tensors, with names of up to 50 letters.
MOST_TENSORS = 5000
MOST_LETTERS = 250
MOST_WRAPPINGS = 4  # around a state dict
MOST_JSON = 1 << 20  # bytes of a configuration file


@contextlib.contextmanager
def open_tensors(path: str | Path) -> Iterator[Tensors]:
    """Yield the tensors of a checkpoint by name; they can be read in the context.

    Raises:
        ConversionError: no such file, not a checkpoint, or one that would run code.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConversionError(f"{path} {what}; give a .pt, .ckpt or .safetensors file")
    if path.stat().st_size == 0:
        raise ConversionError(f"{path} is empty; download it again")
    read = _open_safetensors if _is_safetensors(path) else open_torch
    with read(path) as loaded:
        yield unwrap(loaded, path)


def unwrap(loaded: Any, path: Path) -> Tensors:
    """Return the state dict inside what a training script saved.

    ermongroup/ddim saves a list, whose last element holds the averaged weights. Other
    scripts save a dict of several things. Averaged weights are preferred. The prefixes
    that wrappers add to every key are dropped.

    Args:
        loaded: content of the file, with lazy tensors in it.
        path: the file, for the error.

    Raises:
        ConversionError: there is no state dict inside.
    """
    found = _state_dict(loaded)
    if found is None:
        raise ConversionError(f"{path} holds {_describe(loaded)}, no state dict")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): t for name, t in found.items()}
    return found


def check_extent(tensors: Tensors, path: Path) -> None:
    """Refuse what no file of this size can hold, before anything is sized by it.

    Args:
        tensors: what the file holds.
        path: the file.

    Raises:
        ConversionError: too many tensors, one that is empty, or more than was written.
    """
    if len(tensors) > MOST_TENSORS:
        raise ConversionError(
            f"{path} holds {len(tensors)} tensors; up to {MOST_TENSORS} are read"
        )
    for name, tensor in tensors.items():
        if len(name) > MOST_LETTERS:
            raise ConversionError(
                f"{path} holds a name of {len(name)} letters, {name[:20]!r}...; up to "
                f"{MOST_LETTERS} are read"
            )
        if not math.prod(tensor.shape):
            raise ConversionError(f"{path}: {name} is empty, of shape {tensor.shape}")
    num_bytes = sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors.values())
    if num_bytes > path.stat().st_size:
        raise ConversionError(
            f"{path} has {path.stat().st_size} bytes, but tensors of {num_bytes}: some "
            "share their numbers, which no network here does"
        )


def _state_dict(loaded: Any, depth: int = 0) -> Tensors | None:
    """Return the first dict of tensors, in order of preference, or None."""
    if depth > MOST_WRAPPINGS:
        return None
    if isinstance(loaded, list | tuple) and loaded:
        last, first = loaded[-1], loaded[0]
        return _state_dict(last, depth + 1) or _state_dict(first, depth + 1)
    if not isinstance(loaded, Mapping) or not loaded:
        return None
    items = dict(loaded)
    if all(isinstance(k, str) for k in items) and all(
        isinstance(v, LazyTensor) for v in items.values()
    ):
        return items
    candidates = (_state_dict(items.get(name), depth + 1) for name in WRAPPERS)
    return next((found for found in candidates if found), None)


def _describe(loaded: Any) -> str:
    if isinstance(loaded, Mapping):
        return f"a dict of {', '.join(sorted(map(str, loaded))[:5]) or 'nothing'}"
    return f"a {type(loaded).__name__}"


def _is_safetensors(path: Path) -> bool:
    """Tell by the start of the file: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or start[8:] == b"{"


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Tensors]:
    try:
        import safetensors
    except ImportError as error:
        raise ConversionError(
            f"reading {path.name} needs safetensors; pip install 'diip-jax[convert]'"
        ) from error
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise ConversionError(
            f"{path} is not a complete safetensors file ({error}); download it again"
        ) from error
    with file as opened:
        yield {name: _from_safetensors(opened, name) for name in opened.keys()}  # noqa: SIM118


def _from_safetensors(opened: Any, name: str) -> LazyTensor:
    part = opened.get_slice(name)
    if (dtype := part.get_dtype()) not in SAFETENSORS_DTYPES:
        raise ConversionError(
            f"{name} is stored as {dtype}; known: {', '.join(SAFETENSORS_DTYPES)}"
        )
    shape = tuple(part.get_shape())
    return LazyTensor(shape, lambda: opened.get_tensor(name), SAFETENSORS_DTYPES[dtype])


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ConversionError: it cannot be read, or is no JSON object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MOST_JSON + 1)
        if len(text) > MOST_JSON:
            raise ConversionError(
                f"{path} is longer than {MOST_JSON} bytes; no configuration is"
            )
        fields = json.loads(text.decode())
    except ConversionError:
        raise
    except RecursionError as error:
        raise ConversionError(f"{path} is nested too deep") from error
    except (OSError, ValueError) as error:
        raise ConversionError(f"cannot read {path}: {error}") from error
    if not isinstance(fields, dict):
        raise ConversionError(f"{path} holds no JSON object")
    return fields
