"""What is at a path, on real files; refusals are those of the system."""

import errno
import os
import pathlib

import pytest

from diip_jax import entries


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


KINDS = {
    "file": "file",
    "folder": "folder",
    "gone": "nothing",
    "link": "folder",
    "loop": None,
    "pipe": "pipe",
}


def test_what_is_where(folder):
    found = entries.listing(folder)
    assert {entry.path.name: entry.kind for entry in found} == KINDS
    assert [entry.path.name for entry in found] == sorted(KINDS)
    links = [entry.path.name for entry in found if entry.is_link]
    assert links == ["gone", "link", "loop"]
    for name, kind in KINDS.items():
        if kind is not None:
            assert entries.kind(folder / name) == kind
    assert entries.kind(folder / "none") == "nothing"
    assert entries.kind(folder / "file" / "below") == "nothing"
    assert entries.kind(pathlib.Path(os.devnull)) == "device"
    assert entries.is_file(folder / "file")
    assert not entries.is_file(folder / "pipe")


REFUSED = {
    "loop": errno.ELOOP,
    "n" * 300: errno.ENAMETOOLONG,
    "a\0b": errno.EINVAL,
    "a\ud800b": errno.EINVAL,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_kind_of_error(folder, name):
    for question in (entries.kind, entries.listing):
        with pytest.raises(OSError) as caught:  # noqa: PT011 (its number is checked)
            question(folder / name)
        assert caught.value.errno == REFUSED[name]
        assert caught.value.strerror
    assert not entries.is_file(folder / name)
    assert entries.resolved(folder / name).name == name


def test_a_path_without_links(folder):
    assert entries.resolved(folder / "link" / "x") == folder / "folder" / "x"
