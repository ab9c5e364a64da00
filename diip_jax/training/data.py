"""Clean pictures in, batches of random crops out.

A folder, or zip files in it, become a `grain` dataset: batch number k is a function of
the seed and k alone, so a training run that goes on from step k needs no other
position. Workers decode, in threads or in processes.
"""

import functools
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import IO, Any, NamedTuple

import grain
import numpy as np
from absl import flags
from PIL import Image

from diip_jax import entries, images
from diip_jax.images import ImageError

HASHED_BYTES = 2**16  # of a file, from its start; they and its size decide its part
PARTS = 1000  # that files are split into by hash
LARGEST_ENLARGEMENT = 2.2  # camera pictures are smooth at their own scale
NATIVE, ENLARGED = 0.35, 0.15  # shares of the crops; the others are made smaller
BLOCKED_STEP = 8  # mean quantisation of brightness from which JPEG blocks show
FLAT, TRIES = 0.04, 4  # a crop whose channels deviate less is drawn again, so often


class Picture(NamedTuple):
    """Where a picture is.

    Attributes:
        path: the picture, or the zip file that it is in.
        member: its name in the zip file, else None.
        is_grey: it has no colours.
        part: 0 to PARTS - 1, by its content.
    """

    path: Path
    member: str | None
    is_grey: bool
    part: int

    @property
    def name(self) -> str:
        """The name to tell people."""
        return str(self.path if self.member is None else self.path / self.member)

    def open(self) -> IO[bytes]:
        """Return the file, to be read and closed.

        A member of a damaged zip file fails in any way it likes, now or as it is read.
        """
        if self.member is None:
            return self.path.open("rb")
        return _opened(self.path, os.getpid()).open(self.member)

    def read(self) -> bytes:
        """Return the content of the file.

        Raises:
            OSError: it cannot be read.
        """
        try:
            with self.open() as file:
                return file.read()
        except OSError:
            raise
        except Exception as error:  # each compression has errors of its own
            raise OSError(f"{self.name}: {error}") from error

    def num_bytes(self) -> int:
        """Return the size of the file."""
        if self.member is None:
            return self.path.stat().st_size
        return _opened(self.path, os.getpid()).getinfo(self.member).file_size


class Pictures(NamedTuple):
    """What a folder holds.

    Attributes:
        train: pictures to train on.
        validation: pictures to validate on; none of them is in `train`.
        rejected: (name, reason) of files that cannot be used.
    """

    train: list[Picture]
    validation: list[Picture]
    rejected: list[tuple[str, str]]

    @property
    def num_grey(self) -> int:
        """How many pictures have no colours."""
        return sum(picture.is_grey for picture in [*self.train, *self.validation])


class DataError(ValueError):
    """There is nothing to train on; the message says the remedy."""


def find(
    folders: Sequence[Path], side: int, validation_share: float = 0.02
) -> Pictures:
    """Find the pictures to train on, and set some aside by the hash of their content.

    Args:
        folders: folders with pictures and zip files, at any depth; or such files.
        side: side of the crops in pixels; smaller pictures may be enlarged a little.
        validation_share: share of the pictures to validate on; at least one.

    Raises:
        DataError: fewer than two pictures are usable.
    """
    walked = [place for folder in folders for place in _places(folder)]
    places = [place for place in walked if isinstance(place, Place)]
    unreadable = [place for place in walked if not isinstance(place, Place)]
    least = round(side / LARGEST_ENLARGEMENT)
    with futures.ThreadPoolExecutor() as pool:
        looked = list(pool.map(functools.partial(_look, least=least), places))
    found = [picture for picture in looked if isinstance(picture, Picture)]
    rejected = unreadable + [r for r in looked if not isinstance(r, Picture)]
    if len(found) < 2:
        why = f"; {rejected[0][0]}: {rejected[0][1]}" if rejected else ""
        raise DataError(
            f"{', '.join(map(str, folders))}: {len(found)} of {len(places)} files are "
            f"pictures of at least {least} pixels a side, and training needs two{why}"
        )
    validated = max(1, round(PARTS * validation_share))
    validation = [picture for picture in found if picture.part < validated]
    if len(validation) in (0, len(found)):
        validation = [min(found, key=lambda picture: picture.part)]
    aside = set(validation)
    train = [picture for picture in found if picture not in aside]
    return Pictures(train, validation, rejected)


class Place(NamedTuple):
    """A file to look at: a picture, or a member of a zip file."""

    path: Path
    member: str | None = None


def _places(folder: Path) -> Iterator[Place | tuple[str, str]]:
    """Yield places in the order of their names; of what cannot be read, why.

    Raises:
        DataError: nothing is there, or a zip file cannot be read.
    """
    try:
        kind = entries.kind(folder)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror or error}") from error
    if kind == "nothing":
        raise DataError(f"{folder} does not exist; give a folder of pictures")
    yield from _walk(folder) if kind == "folder" else _in_file(folder)


def _walk(folder: Path) -> Iterator[Place | tuple[str, str]]:
    """Yield the places in a folder and its subfolders; no link to a folder counts."""
    try:
        inside = entries.listing(folder)
    except OSError as error:
        yield str(folder), f"cannot be read: {error.strerror or error}"
        return
    for entry in inside:
        if entry.kind == "folder" and not entry.is_link:
            yield from _walk(entry.path)
        elif entry.kind == "file" and not entry.path.name.startswith("."):
            yield from _in_file(entry.path)
        elif entry.kind is None:
            yield str(entry.path), "cannot be read: the system does not tell what it is"


def _in_file(path: Path) -> Iterator[Place]:
    """Yield a picture, or the pictures in a zip file."""
    if path.suffix.lower() != ".zip":
        if path.suffix.lower() in images.READABLE_SUFFIXES:
            yield Place(path)
        return
    try:
        members = sorted(_opened(path, os.getpid()).namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no zip file that can be read: {error}") from error
    for member in members:
        if Path(member).suffix.lower() in images.READABLE_SUFFIXES:
            yield Place(path, member)


def _look(place: Place, least: int) -> Picture | tuple[str, str]:
    """Return a picture by its header, or its name and why it cannot be used."""
    picture = Picture(*place, is_grey=False, part=0)
    try:
        with picture.open() as file:
            head = file.read(HASHED_BYTES)
            file.seek(0)
            with Image.open(file) as header:
                size, mode = header.size, header.mode
        num_bytes = picture.num_bytes()
    except Exception as error:  # Pillow's decoders raise many kinds
        return picture.name, str(error).splitlines()[0] if str(error) else repr(error)
    if min(size) < least:
        return picture.name, f"is {size[0]}x{size[1]}, smaller than {least} pixels"
    digest = hashlib.sha256(head + str(num_bytes).encode())
    part = int.from_bytes(digest.digest()[:8], "big") % PARTS
    return picture._replace(
        is_grey=mode in ("1", "L", "LA", "I", "I;16", "F"), part=part
    )


@functools.lru_cache(maxsize=64)
def _opened(path: Path, process: int) -> zipfile.ZipFile:
    """Return an open zip file, which the threads of this process may share.

    Args:
        path: the file.
        process: number of this process: a fork must not share the place in the file.
    """
    return zipfile.ZipFile(path)


def decode(picture: Picture, side: int) -> np.ndarray:
    """Return a picture, (H, W, 3) uint8; halved if its JPEG blocks would show.

    Args:
        picture: where it is.
        side: of the crops to come: no picture is halved to less.

    Raises:
        ImageError: it cannot be decoded.
        OSError: it cannot be read.
    """
    content = picture.read()
    rgb = images.to_uint(images.read(content).rgb, 8)
    if min(rgb.shape[:2]) >= 2 * side and _has_blocks(content):
        height, width = rgb.shape[0] // 2, rgb.shape[1] // 2
        halved = Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX)
        return np.asarray(halved)
    return rgb


def _has_blocks(content: bytes) -> bool:
    """Tell by its tables whether a JPEG was quantised so coarsely that blocks show."""
    with Image.open(io.BytesIO(content)) as header:
        tables = list(getattr(header, "quantization", {}).values())
        # That of brightness is written first, whatever its number.
        return bool(tables) and float(np.mean(tables[0])) >= BLOCKED_STEP


def crop(rgb: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random square of a picture at a random scale, perhaps mirrored.

    Args:
        rgb: the picture, (H, W, 3) uint8.
        side: of the result in pixels.
        rng: what chance is drawn from.

    Returns:
        (side, side, 3) uint8.
    """
    for _ in range(TRIES):
        window = _window(min(rgb.shape[:2]), side, rng)
        top, left = (rng.integers(0, n - window + 1) for n in rgb.shape[:2])
        square = rgb[top : top + window, left : left + window]
        if window != side:
            resized = Image.fromarray(square).resize(
                (side, side), Image.Resampling.LANCZOS
            )
            square = np.asarray(resized)
        if square.std(axis=(0, 1)).max() >= 255 * FLAT:
            break
    return square[:, ::-1] if rng.random() < 0.5 else square


def _window(largest: int, side: int, rng: np.random.Generator) -> int:
    """Return the side of a window in a picture whose shorter side is `largest`."""
    smallest = min(largest, round(side / LARGEST_ENLARGEMENT))
    kind, scale = rng.random(), rng.random()
    if kind < NATIVE:
        return min(side, largest)
    low, high = (smallest, side) if kind < NATIVE + ENLARGED else (side, largest)
    low, high = min(low, largest), min(high, largest)
    return int(np.clip(round(low * (high / low) ** scale), low, high))


class _Crops(grain.transforms.RandomMap):
    """Decode a picture and cut a crop; one that cannot be decoded gives another one."""

    def __init__(self, pictures: Sequence[Picture], side: int):
        self.pictures, self.side = pictures, side

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a crop, and the index of a picture that could not be decoded or -1."""
        broken = -1
        for other in range(len(self.pictures)):
            at = (index + other) % len(self.pictures)
            try:
                rgb = decode(self.pictures[at], self.side)
            except (ImageError, OSError):
                broken = at
                continue
            return {"image": crop(rgb, self.side, rng), "broken": np.int32(broken)}
        raise DataError("no picture can be decoded; look at the folder")


def batches(
    pictures: Sequence[Picture],
    side: int,
    batch_size: int,
    *,
    seed: int,
    first: int = 0,
    num_workers: int = 0,
    part: int = 0,
    parts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of crops without end; all pictures in turn, shuffled each time.

    Args:
        pictures: to cut crops from.
        side: of a crop in pixels.
        batch_size: crops of a batch.
        seed: of order and crops.
        first: number of the first batch: those before are left out.
        num_workers: processes that decode; 0 for threads of this one.
        part: which part of every batch this process makes.
        parts: number of processes that make parts, a divisor of `batch_size`.

    Yields:
        `image`, (batch_size / parts, side, side, 3) uint8, and `broken`: indices of
        pictures that could not be decoded, -1 for the others.
    """
    dataset = (
        grain.MapDataset.range(len(pictures))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_Crops(pictures, side))
    )
    dataset = dataset[part::parts].batch(batch_size // parts, drop_remainder=True)
    stream = dataset[first:].to_iter_dataset(
        grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
    )
    if num_workers:
        if not flags.FLAGS.is_parsed():  # grain has flags; where nobody parses any,
            flags.FLAGS.mark_as_parsed()  # their defaults count
        options = grain.multiprocessing.MultiprocessingOptions(num_workers)
        stream = stream.mp_prefetch(options)
    return iter(stream)


def fixed_crops(
    pictures: Sequence[Picture], side: int, count: int, seed: int = 0
) -> np.ndarray:
    """Return crops that are the same in every run, (count, side, side, 3) uint8.

    Args:
        pictures: to cut them from, each in turn.
        side: of a crop in pixels.
        count: how many.
        seed: of the crops.
    """
    one = _Crops(pictures, side)
    drawn = [
        one.random_map(i % len(pictures), np.random.default_rng([seed, i]))["image"]
        for i in range(count)
    ]
    return np.stack(drawn)
