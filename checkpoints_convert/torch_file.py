"""Read what `torch.save` wrote, without PyTorch and without running any of it.

A PyTorch file is a pickle plus raw storages: a zip archive since version 1.6, a stream
before. A pickle may name any function to be called. This reader has stand-ins for the
few names that weights need; any other name ends the reading before it is called.
"""

import collections
import contextlib
import io
import math
import pickle
import reprlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from checkpoints_convert import pickle_limits
from checkpoints_convert.tensors import ConversionError, LazyTensor

ZIP_START = b"PK\x03\x04"
STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a stream
STREAM_VERSION = 1001
DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
MOST_AXES = 8  # of a tensor
FOREIGN = {  # modules that betray who wrote a pickle
    "torch_utils": "an EDM or StyleGAN pickle, which brings its own code",
    "pytorch_lightning": "a training checkpoint of Lightning",
    "ldm": "a latent diffusion model",
}


class Storage(NamedTuple):
    """A flat array on disk."""

    dtype: np.dtype
    length: int
    read: Callable[[], bytes]


OpenStorage = Callable[[np.dtype, str, int], Storage]  # dtype, key, length


class _ForbiddenError(Exception):
    """The pickle names something that weights do not need."""


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[Any]:
    """Yield what the file holds; its tensors can be read in the context.

    Raises:
        ConversionError: not a PyTorch file, damaged, or one that would run code.
    """
    with path.open("rb") as file:
        try:
            is_zip = file.read(4) == ZIP_START
            file.seek(0)
            loaded = _read_zip(file) if is_zip else _read_stream(file)
        except _ForbiddenError as error:
            raise ConversionError(
                f"{path} was not loaded, as its pickle would run {error}; "
                "only bare weights (a state_dict) are read"
            ) from error
        except ConversionError as error:
            raise ConversionError(
                f"{path} was not loaded: {error}; only bare weights (a state_dict) "
                "are read"
            ) from error
        except Exception as error:  # a damaged pickle fails in any way it likes
            raise _damaged(f"{path} is damaged or no PyTorch file", error) from error
        yield loaded


def _damaged(what: str, error: Exception) -> ConversionError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ConversionError(f"{what} ({reason}); download the file again")


def _read_zip(file: IO[bytes]) -> Any:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError("the archive holds no data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    big = order in names and _small(archive, order) == b"big"

    def storage(dtype: np.dtype, key: str, length: int) -> Storage:
        entry = archive.getinfo(f"{folder}data/{key}")
        if entry.file_size != length * dtype.itemsize:
            raise ValueError(f"storage {key} has {entry.file_size} bytes")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"storage {key} is compressed")
        if big:
            dtype = dtype.newbyteorder(">")
        return Storage(dtype, length, lambda: archive.read(entry))

    return _load(io.BytesIO(_small(archive, pickles[0])), storage)


def _small(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a file of an archive, which is no longer than a pickle may be."""
    num_bytes = archive.getinfo(name).file_size
    if num_bytes > pickle_limits.MOST_BYTES:
        raise ConversionError(
            f"its {name.rpartition('/')[2]} has {num_bytes} bytes, more than "
            f"{pickle_limits.MOST_BYTES}"
        )
    return archive.read(name)


def _load(stream: IO[bytes], storage: OpenStorage) -> Any:
    return _Unpickler(pickle_limits.read(stream), storage).load()


def _read_stream(file: IO[bytes]) -> Any:
    """Read the format before PyTorch 1.6: five pickles, then the storages in a row."""
    storages: dict[str, Storage] = {}
    offsets: dict[str, int] = {}

    def storage(dtype: np.dtype, key: str, length: int) -> Storage:
        def read() -> bytes:
            file.seek(offsets[key])
            return file.read(length * dtype.itemsize)

        return storages.setdefault(key, Storage(dtype, length, read))

    def load() -> Any:
        return _load(file, storage)

    if load() != STREAM_MAGIC:
        raise ValueError("torch.save did not write it")
    version, system, loaded, keys = load(), load(), load(), load()
    if version != STREAM_VERSION or not system["little_endian"]:
        raise ValueError(f"unknown stream {reprlib.repr([version, system])}")
    for key in keys:
        length = int.from_bytes(file.read(8), "little")
        dtype = storages[key].dtype
        if length != storages[key].length:
            raise ValueError(f"storage {key} has {length} elements")
        offsets[key] = file.tell()
        file.seek(length * dtype.itemsize, io.SEEK_CUR)
    if missing := storages.keys() - offsets:
        raise ValueError(f"storage {min(missing)} is missing")
    if file.tell() > file.seek(0, io.SEEK_END):
        raise ValueError("the file is cut short")
    return loaded


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows nothing but weights.

    A pickle gets only objects that are new or cannot be changed. So it cannot alter the
    reader.
    """

    def __init__(self, stream: IO[bytes], storage: OpenStorage):
        super().__init__(stream, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, or refuse."""
        if module in ("torch", "torch.storage") and name in DTYPES:
            return name  # looked up by persistent_load; a string cannot be called
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch", "Size"):
            return lambda sizes: tuple(sizes)
        if module == "torch._utils" and name in (
            "_rebuild_tensor",
            "_rebuild_tensor_v2",
        ):
            return lambda storage, offset, shape, strides, *_: _tensor(
                storage, offset, shape, strides
            )
        if module == "torch._utils" and name.startswith("_rebuild_parameter"):
            return lambda tensor, *_: tensor
        origin = FOREIGN.get(module.partition(".")[0])
        raise _ForbiddenError(f"{module}.{name}" + (f" ({origin})" if origin else ""))

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a tensor refers to."""
        kind, name, key, _device, length, *view = pid
        if kind != "storage" or any(part is not None for part in view):
            raise ValueError(f"unknown reference {reprlib.repr(kind)}")
        if not isinstance(key, str) or not _is_length(length):
            raise ValueError(f"a storage {reprlib.repr(key)} of {reprlib.repr(length)}")
        return self.storage(np.dtype(DTYPES[name]), key, length)


def _tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> LazyTensor:
    """Return a view into a storage, checked to lie inside of it."""
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise ValueError("a tensor without storage or strides")
    what = f"a tensor of shape {reprlib.repr(shape)}"
    if not all(map(_is_length, [offset, *shape, *strides])) or len(shape) > MOST_AXES:
        raise ValueError(f"{what} and strides {reprlib.repr(strides)}")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.length:
        raise ValueError(f"{what} reaches beyond its storage")
    if math.prod(shape) > storage.length:
        raise ValueError(f"{what} has more elements than its storage")

    def read() -> np.ndarray:
        try:
            flat = np.frombuffer(storage.read(), storage.dtype, storage.length)
        except Exception as error:  # as many kinds as there are bytes to be wrong
            raise _damaged("the weights are damaged", error) from error
        steps = [s * flat.itemsize for s in strides]
        return np.lib.stride_tricks.as_strided(
            flat[offset:], shape, steps, writeable=False
        )

    return LazyTensor(tuple(shape), read, storage.dtype)


def _is_length(value: Any) -> bool:
    """Tell whether a value can count elements; longer numbers take long to multiply."""
    return isinstance(value, int) and 0 <= value < 2**63
