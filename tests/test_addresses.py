"""Addresses: as paths, and as what a store has; memory:// is the store here.

What pathlib says of the same path of files is the partner for names; for contents,
fsspec itself.
"""

import errno
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from diip_jax import addresses, entries, storage
from diip_jax.addresses import Address

ODD = "b c é照[1].png"


@pytest.fixture
def store():
    """Return fsspec's store in memory, empty."""
    fsspec = pytest.importorskip("fsspec")
    found = fsspec.filesystem("memory")
    found.store.clear()
    found.pseudo_dirs[:] = [""]
    return found


@pytest.mark.parametrize(
    "text", ["photo.png", "in/photo.png", "/tmp/x.png", "C:/x.png", "-", "a:b/c"]
)
def test_what_is_no_url_is_a_path_as_before(text):
    assert addresses.path(text) == Path(text)
    assert not addresses.is_address(text)


def test_files_have_a_url_too():
    assert addresses.path("file:///tmp/b%20c.png") == Path("/tmp/b c.png")
    assert not addresses.is_address("file:///tmp/x.png")


def test_an_address_is_taken_apart_like_a_path():
    address = addresses.path(f"s3://bucket/scans//sub/{ODD}")
    assert str(address) == f"s3://bucket/scans/sub/{ODD}"
    assert isinstance(address, Address)
    like = Path(f"/bucket/scans/sub/{ODD}")
    assert (address.name, address.stem, address.suffix) == (ODD, like.stem, ".png")
    assert str(address.with_suffix(".json").parent) == "s3://bucket/scans/sub"
    assert str(address.with_name("y") / "z") == "s3://bucket/scans/sub/y/z"
    below = address.relative_to(addresses.path("s3://bucket/scans"))
    assert below.as_posix() == f"sub/{ODD}"
    assert address == addresses.path(str(address))
    assert address != addresses.path(str(address).replace("s3", "gs"))
    assert str(pickle.loads(pickle.dumps(address))) == str(address)
    assert address.absolute() == address


@pytest.mark.parametrize(
    "text", ["s3://key:secret@bucket/x", "https://host/x.png?X-Amz-Signature=secret"]
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(text):
    with pytest.raises(OSError, match="own means") as caught:
        addresses.path(text)
    assert "secret" not in str(caught.value)


def test_what_a_store_has(store):
    folder = addresses.path("memory://bucket/scans")
    assert entries.kind(folder) == "nothing"
    (folder / ODD).write_bytes(b"one")
    (folder / "sub" / "x.png").write_bytes(b"two")
    assert store.cat_file(f"/bucket/scans/{ODD}") == b"one"
    assert entries.kind(folder) == "folder"
    assert entries.kind(folder / ODD) == "file"
    assert entries.is_file(folder / ODD)
    assert not entries.is_file(folder / "sub")
    found = [(entry.path, entry.kind) for entry in entries.listing(folder)]
    assert found == [(folder / ODD, "file"), (folder / "sub", "folder")]
    assert sorted(folder.tree()) == sorted([ODD, "sub/x.png"])
    assert folder.read_together([ODD, "sub/x.png"]) == [b"one", b"two"]
    assert (folder / ODD).read_text() == "one"
    assert (folder / ODD).head(2) == b"on"
    before = entries.listing(folder)[0].version
    assert before is not None
    (folder / ODD).write_bytes(b"three")
    assert entries.listing(folder)[0].version != before


def test_files_of_a_store_are_written_in_order_and_nothing_is_left(store):
    folder = addresses.path("memory://bucket/out")
    storage.check_writable(folder / "x.png")
    assert folder.tree() == []
    storage.write_together([(folder / "x", b"a"), (folder / "x", b"b")])
    assert folder.tree() == ["x"]
    assert (folder / "x").read_bytes() == b"b"


def test_where_a_write_could_be_seen_half_done_it_is_moved_into_place(
    store, monkeypatch
):
    monkeypatch.setattr(addresses, "_WHOLE", frozenset())
    whole = []
    monkeypatch.setattr(type(store), "mv", lambda self, a, b: whole.append((a, b)))
    addresses.path("memory://bucket/x.png").write_bytes(b"one")
    ((part, name),) = whole
    assert name == "/bucket/x.png"
    assert store.cat_file(part) == b"one"
    assert not store.exists(name)


class Refusal(Exception):
    """What a store raises that is no OSError."""


@pytest.mark.parametrize(
    ("raised", "number", "reason"),
    [
        (FileNotFoundError("/bucket/x"), errno.ENOENT, "nothing is there"),
        (PermissionError("Access\n Denied"), errno.EACCES, "Access Denied"),
        (Refusal("no credentials"), errno.EIO, "no credentials"),
        (ImportError("Install s3fs"), errno.ENOTSUP, "Install s3fs"),
    ],
)
def test_a_refusal_is_one_line(store, monkeypatch, raised, number, reason):
    def refuse(*_, **__):
        raise raised

    monkeypatch.setattr(type(store), "cat_file", refuse)
    with pytest.raises(OSError, match=reason) as caught:
        addresses.path("memory://bucket/x").read_bytes()
    assert caught.value.errno == number
    assert caught.value.filename == "memory://bucket/x"
    assert "\n" not in str(caught.value)


def test_local_paths_need_no_fsspec():
    code = (
        "import sys\n"
        "sys.modules['fsspec'] = None\n"  # importing it is an ImportError
        "from diip_jax import addresses, entries\n"
        "from diip_jax.photos import cluster, command, find\n"
        "assert entries.kind(addresses.path('.')) == 'folder'\n"
        "assert find.sources(['x.png'])\n"
        "assert not {'ray', 'pyarrow', 's3fs'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1]
    )
