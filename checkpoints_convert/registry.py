"""What is known of a checkpoint besides its tensors, and how a file is recognised.

Nobody can read the number of attention heads or the noise schedule off the weights.
They come from, in rising order of authority: the row of a known checkpoint
(`diip_jax/registry.toml` for public ones, `bundled.toml` here for our own), the
configuration files beside a diffusers model, and the command line.
"""

import dataclasses
import hashlib
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from checkpoints_convert import download as weights
from checkpoints_convert.tensors import ConversionError
from diip_jax.config import PAPER, DIIPConfig


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of a checkpoint; None and absent entries where nobody said.

    Attributes:
        name: how users call the prior.
        architecture: facts that no key reveals, such as `image_size`, `num_heads`.
        schedule: fields of `diip_jax.schedule.Schedule`.
        preset: settings of a restoration that suit the prior.
        any_size: trained on crops of many scales.
        licence: terms of the weights.
        training_data: what it was trained on.
        source: where it comes from.
        layout: whose key names the file has.
        parameters: number of weights.
        file: the publisher's file name.
        sha256: published hash of the file.
        md5: published hash of the file.
    """

    name: str
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preset: DIIPConfig = PAPER
    any_size: bool = False
    licence: str = "unknown"
    training_data: str = "unknown"
    source: str = "unknown"
    layout: str | None = None
    parameters: int | None = None
    file: str | None = None
    sha256: str | None = None
    md5: str | None = None


def known() -> dict[str, Description]:
    """Return the known checkpoints by name, ours first."""
    file = resources.files("checkpoints_convert") / "bundled.toml"
    rows = tomllib.loads(file.read_text(encoding="utf-8"))
    ours = {name: _ours(name, row) for name, row in rows.items()}
    return ours | {name: _public(row) for name, row in weights.registry().items()}


def lookup(name: str) -> Description:
    """Return the known checkpoint called name.

    Raises:
        WeightsError: nothing is called so; the message lists close names.
    """
    rows = known()
    return rows[name] if name in rows else _public(weights.lookup(name))


def identify(path: Path, sha256: str, parameters: int) -> Description | None:
    """Return the known checkpoint that a file is, or None.

    Where a hash is published, it decides. Elsewhere the file's name and its number of
    parameters must agree.
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


def check_hash(path: Path, sha256: str, row: Description) -> None:
    """Raise ConversionError if a hash is published and the file's differs."""
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


def _ours(name: str, row: dict[str, Any]) -> Description:
    row = dict(row)
    row["architecture"] = {**row["architecture"], "image_size": row.pop("image_size")}
    row["preset"] = DIIPConfig(**row["preset"])
    return Description(name=name, **row)


def _public(row: weights.Checkpoint) -> Description:
    shared = {field.name for field in dataclasses.fields(Description)} & {
        field.name for field in dataclasses.fields(row)
    }
    values = {name: getattr(row, name) for name in shared}
    heads = dict(row.architecture)
    if heads.get("num_head_channels") == -1:
        del heads["num_head_channels"]
    values["architecture"] = {**heads, "image_size": row.image_size}
    values["schedule"] = dataclasses.asdict(row.schedule)
    return Description(**values)
