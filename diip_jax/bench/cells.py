"""Results: one cell for each prior, task, method, picture, seed and settings.

OUTPUT/cells.jsonl has one JSON object a line. A line is added by one write, so that a
kill costs no more than the cell in flight: what it may leave of a line has no end, and
is cut off before the next one. A cell that is written twice counts as it was last.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diip_jax import entries
from diip_jax.photos import reference
from diip_jax.photos.reference import PerceptualMetric

FILE = "cells.jsonl"
SCORES = ("psnr", "ssim", "lpips")


class CellsError(ValueError):
    """A file of cells that holds something else."""


class Name(NamedTuple):
    """What a cell is the result of; within a version equal names are equal results.

    Attributes:
        prior: digest of the prior's weights.
        task: a name of `tasks.TASKS`.
        method: a name of `methods.METHODS`, or of `tune.variants`.
        image: name of the picture.
        digest: digest of the picture.
        seed: of the damage and of the method's noise.
        settings: digest of the method's settings for the task, and of the version.
    """

    prior: str
    task: str
    method: str
    image: str
    digest: str
    seed: int
    settings: str


class Cell(NamedTuple):
    """A result; what is not known is None.

    Attributes:
        name: what it is the result of.
        psnr: in dB.
        ssim: structural similarity.
        lpips: of AlexNet.
        evaluations: evaluations of the prior's network.
        gradients: how many of them were differentiated.
        seconds: of the restoration, without compilation.
        compile_seconds: of tracing and compilation, 0 where it was compiled before.
        memory: peak in bytes.
        memory_of: what that is the peak of: "program", as the compiler plans it, its
            weights included, or "process", its resident set.
        device: what it was computed on.
        picture: file of the restored picture, relative to the folder of the cells.
        error: why there is no result, else None.
    """

    name: Name
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    evaluations: int | None = None
    gradients: int | None = None
    seconds: float | None = None
    compile_seconds: float | None = None
    memory: int | None = None
    memory_of: str | None = None
    device: str | None = None
    picture: str | None = None
    error: str | None = None


def digest(*parts: Any) -> str:
    """Return a digest of what its parts print as; of arrays, of their values."""
    seen = hashlib.sha256()
    for part in parts:
        is_array = isinstance(part, np.ndarray)
        seen.update(part.tobytes() if is_array else repr(part).encode())
        seen.update(b"\0")
    return seen.hexdigest()[:16]


def scores(
    perceptual: PerceptualMetric, clean: np.ndarray, restored: np.ndarray
) -> dict[str, float | None]:
    """Return PSNR, SSIM and LPIPS; None for what cannot be had here.

    Args:
        perceptual: of `reference.perceptual_metric`.
        clean: the clean picture, (H, W, 3) in [0, 1].
        restored: what a method made, clipped to [0, 1] here.

    Raises:
        ValueError: the restored picture is not finite, or of another shape.
    """
    if not np.isfinite(restored).all():
        raise ValueError("the restored picture is not finite")
    found = reference.score(perceptual, clean, np.clip(restored, 0, 1))
    return dict(zip(SCORES, found.values(), strict=True))


class Store:
    """The cells of a folder, on disk and in memory."""

    def __init__(self, folder: Path):
        """Read the cells of a folder; it is made where there is none.

        Raises:
            CellsError: a whole line is no cell.
            OSError: the folder cannot be read or written.
        """
        self.folder = folder
        self._path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        self._cells = {cell.name: cell for cell in _read(self._path)}

    def __iter__(self) -> Iterator[Cell]:
        """Go through the cells, the oldest first."""
        return iter(self._cells.values())

    def find(self, name: Name) -> Cell | None:
        """Return the result of this name; None if there is none but an error."""
        cell = self._cells.get(name)
        return None if cell is None or cell.error is not None else cell

    def add(self, cell: Cell) -> None:
        """Write a cell behind the others, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        line = _encode(cell)
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                written = file.write(line)
                if written != len(line):
                    raise OSError(f"wrote {written} of {len(line)} bytes")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
        self._cells[cell.name] = cell

    def chosen(self, names: Sequence[Name]) -> list[Cell]:
        """Return the cells of these names that there are, errors among them."""
        return [self._cells[name] for name in names if name in self._cells]


def _read(path: Path) -> list[Cell]:
    """Read a file of cells and cut off a torn last line."""
    if entries.kind(path) != "file":
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    cells = []
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            cells.append(_decode(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CellsError(
                f"{path}, line {number}, is no cell ({error}); delete the line, or "
                "give another --output"
            ) from error
    return cells


def _encode(cell: Cell) -> bytes:
    fields = cell._asdict() | {"name": cell.name._asdict()}
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            fields[name] = str(value)  # JSON knows no infinity: PSNR of equal pictures
    return json.dumps(fields, allow_nan=False).encode() + b"\n"


def _decode(line: bytes) -> Cell:
    fields = json.loads(line)
    fields["name"] = Name(**fields["name"])
    for name in SCORES:
        if isinstance(fields[name], str):
            fields[name] = float(fields[name])
    return Cell(**fields)
