"""The known checkpoints, ours and public, and how a file is recognised as one of them.

The weights reveal neither the number of attention heads nor the noise schedule. Three
places tell them, and a later one overrules an earlier one: the row of a known
checkpoint (`bundled.toml` for ours, `registry.toml` for public ones), the configuration
files beside a diffusers model, and the command line.
"""

import dataclasses
import difflib
import hashlib
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from checkpoints_convert.tensors import ConversionError
from diip_jax.config import DEFAULT, DIIPConfig

CONFIG_FILES = ("config.json", "scheduler_config.json")  # beside a diffusers file


class WeightsError(RuntimeError):
    """Weights are missing, damaged or out of reach; one line with the remedy."""


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub, pinned to a revision."""

    repo: str
    file: str
    revision: str


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint: a row of `bundled.toml` or of `registry.toml`.

    The first four fields are always known: a file that is in neither table shows them
    itself. A later field that nobody told keeps its default. Facts that nobody told are
    absent from `architecture` and `schedule`.

    Attributes:
        name: how users call it; "" for a file that is in neither table.
        layout: "guided_diffusion", "ddim" or "diffusers": whose key names the file has.
        parameters: number of weights.
        file: the publisher's file name.
        architecture: facts that no key reveals, such as `image_size`, `num_heads`.
        schedule: fields of `diip_jax.schedule.Schedule`.
        preset: settings of a restoration that suit the prior.
        any_size: it was trained on crops of many scales, so that any canvas suits.
        licence: terms of the weights.
        training_data: what it was trained on.
        source: where it comes from.
        urls: plain addresses of the file, tried first and in this order.
        hub: its place on the Hugging Face hub, tried after `urls`.
        gdrive: its identifier on Google Drive, tried last.
        bytes: published size of the file.
        sha256: published hash of the file.
        md5: published hash of the file.
        paper: the evaluation of the DIIP paper that the checkpoint serves.
    """

    name: str
    layout: str
    parameters: int
    file: str
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preset: DIIPConfig = DEFAULT
    any_size: bool = False
    licence: str = "unknown"
    training_data: str = "unknown"
    source: str = "unknown"
    urls: tuple[str, ...] = ()
    hub: HubFile | None = None
    gdrive: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    paper: str | None = None

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the files without which the checkpoint cannot be converted."""
        return CONFIG_FILES if self.layout == "diffusers" else ()


# The tables


def known() -> dict[str, Checkpoint]:
    """Return all known checkpoints by name, ours first."""
    return _read("bundled.toml") | public()


def public() -> dict[str, Checkpoint]:
    """Return the public checkpoints by name, in the order of their table."""
    return _read("registry.toml")


def lookup(name: str) -> Checkpoint:
    """Return the known checkpoint called name.

    Raises:
        WeightsError: nothing is called so; the message lists close public names.
    """
    return known().get(name) or lookup_public(name)


def lookup_public(name: str) -> Checkpoint:
    """Return the public checkpoint called name.

    Raises:
        WeightsError: nothing public is called so; the message lists close names.
    """
    rows = public()
    if name in rows:
        return rows[name]
    close = [n for n in rows if name and name in n][:3]
    close = close or difflib.get_close_matches(name, rows, cutoff=0.4)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise WeightsError(
        f"no checkpoint is called {name!r}: {hint}"
        "`python -m checkpoints_convert --list` shows all"
    )


def table() -> str:
    """Return the public checkpoints as aligned text, one line per checkpoint."""
    head = ("name", "layout", "px", "MB", "training data", "licence", "paper")
    rows = [head, *map(_table_row, public().values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _table_row(c: Checkpoint) -> tuple[str, ...]:
    # ">": nobody published the size; the float32 parameters alone need this much
    size = f"{c.bytes / 1e6:.0f}" if c.bytes else f">{4 * c.parameters / 1e6:.0f}"
    side = str(c.architecture["image_size"])
    return c.name, c.layout, side, size, c.training_data, c.licence, c.paper or "-"


def _read(table: str) -> dict[str, Checkpoint]:
    file = resources.files("checkpoints_convert") / table
    rows = tomllib.loads(file.read_text(encoding="utf-8"))
    return {name: _checkpoint(name, row) for name, row in rows.items()}


def _checkpoint(name: str, row: dict[str, Any]) -> Checkpoint:
    row = {**row, "urls": tuple(row.get("urls", ()))}
    for field, kind in (("hub", HubFile), ("preset", DIIPConfig)):
        if field in row:
            row[field] = kind(**row[field])
    return Checkpoint(name=name, **row)


# Files


def identify(path: Path, sha256: str, parameters: int) -> Checkpoint | None:
    """Return the known checkpoint that a file is, or None.

    A published hash decides. Where none is published, the file's name and its number of
    parameters must agree.

    Args:
        path: the file.
        sha256: its hash.
        parameters: its number of weights.
    """
    for row in known().values():
        same_name = row.file == path.name
        if row.sha256 or row.md5:
            same_md5 = row.md5 and same_name and row.md5 == digest(path, "md5")
            if row.sha256 == sha256 or same_md5:
                return row
        elif same_name and row.parameters == parameters:
            return row
    return None


def check_hash(path: Path, sha256: str, row: Checkpoint) -> None:
    """Raise ConversionError if a hash is published and the file's differs.

    Args:
        path: the file.
        sha256: its hash.
        row: the checkpoint that it should be.
    """
    for name, wanted in (("sha256", row.sha256), ("md5", row.md5)):
        if wanted is None:
            continue
        found = sha256 if name == "sha256" else digest(path, name)
        if found != wanted:
            raise ConversionError(
                f"{name} of {path.name} is {found}, but {row.name} was published with "
                f"{wanted}; if it is a relative of it, pass --like {row.name} instead"
            )


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
