"""Which photos of a folder earlier runs finished, told by one listing of its output.

Many machines leave small files in OUTPUT/.diip/, a folder for each digest of settings:
a line of JSON for each photo that was written, whose record holds the same digest. So
a million records need not be read to know what is left.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import NamedTuple

from diip_jax import entries, storage
from diip_jax.addresses import Address

FOLDER = ".diip"


class Done(NamedTuple):
    """A photo that was restored and written.

    Attributes:
        photo: its name relative to what the command named.
        version: what a listing told of its content, as `find.Source.version`.
        output: name of the restored picture relative to the output.
    """

    photo: str
    version: str
    output: str


class Ledger(NamedTuple):
    """What is known of an output.

    Attributes:
        there: names of all files, relative to the output.
        outputs: names of finished pictures that are there, by photo and version.
    """

    there: Set[str]
    outputs: Mapping[tuple[str, str], str]


def read(output: Path, digest: str) -> Ledger:
    """Return what is in an output and which photos are finished, by one listing.

    Args:
        output: the folder.
        digest: of the settings, as `plan.digest`.

    Raises:
        OSError: it cannot be listed.
    """
    there = frozenset(entries.tree(output))
    below = f"{FOLDER}/{digest}/"
    names = sorted(name for name in there if name.startswith(below))
    found = {}
    for content in _contents(output, names):
        for photo, version, picture in map(json.loads, content.splitlines()):
            record = f"{picture.rpartition('.')[0]}.json"
            if picture in there and record in there:
                found[photo, version] = picture
    return Ledger(there, found)


def write(output: Path, digest: str, done: Iterable[Done]) -> None:
    """Note photos as finished, once their pictures and records are written.

    Raises:
        OSError: it cannot be written.
    """
    lines = [json.dumps(entry) for entry in done]
    if not lines:
        return
    path = output / FOLDER / digest / f"{secrets.token_hex(8)}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def _contents(output: Path, names: list[str]) -> list[bytes]:
    if isinstance(output, Address):
        return output.read_together(names)
    return [(output / name).read_bytes() for name in names]
