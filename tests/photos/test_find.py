"""Which files a command names, checked on real folders that are listed by hand here.

The expected names are written out; the partner of the hash of a name is `binascii`.
"""

import binascii
import errno
import glob
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from diip_jax.entries import Entry
from diip_jax.photos import find
from diip_jax.photos.find import InputError, OutputError, Source


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Return a folder of empty files; what a picture holds does not matter here."""
    names = [
        "b.png",
        "a.JPG",
        "čeština 照片.webp",
        "notes.txt",
        "Thumbs.db",
        "desktop.ini",
        ".hidden.png",
        ".DS_Store",
        "._a.JPG",
        "sub/a.tif",
        "sub/deep/c.bmp",
        ".cache/d.png",
    ]
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def names(sources):
    return [source.relative.as_posix() for source in sources]


def test_a_folder_gives_its_images_and_no_junk(tree):
    found = find.sources([str(tree)])
    assert names(found) == ["a.JPG", "b.png", "čeština 照片.webp"]
    assert all(source.path.is_file() for source in found)


def test_recursive_keeps_the_tree(tree):
    found = find.sources([str(tree)], recursive=True)
    assert names(found) == [
        "a.JPG",
        "b.png",
        "čeština 照片.webp",
        "sub/a.tif",
        "sub/deep/c.bmp",
    ]


def test_a_file_named_outright_is_taken_whatever_it_is(tree):
    found = find.sources(["photos/notes.txt", "photos/.hidden.png"])
    assert names(found) == ["notes.txt", ".hidden.png"]


def test_a_missing_file_is_left_for_the_reader_to_report():
    assert find.sources(["nowhere/x.png"]) == [
        Source(Path("nowhere/x.png"), Path("x.png"))
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.png", ["b.png"]),
        ("photos/*", ["a.JPG", "b.png", "čeština 照片.webp"]),
        ("photos/*/*.tif", ["sub/a.tif"]),
        ("photos/**/*.[bt]*", ["sub/a.tif", "sub/deep/c.bmp"]),
    ],
)
@pytest.mark.usefixtures("tree")
def test_a_glob_keeps_the_tree_below_its_last_fixed_folder(pattern, expected):
    assert names(find.sources([pattern])) == expected


def test_a_file_with_brackets_in_its_name_is_no_glob(tree):
    (tree / "a[1].png").touch()
    assert names(find.sources(["photos/a[1].png"])) == ["a[1].png"]
    assert not find.names_many(["photos/a[1].png"])


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [("photos/sub/deep/empty", "--recursive"), ("photos/*.gif", "photos/*.gif")],
)
def test_nothing_found_is_said(tree, pattern, remedy):
    (tree / "sub/deep/empty").mkdir()
    with pytest.raises(InputError, match="no image") as caught:
        find.sources([pattern])
    assert remedy in str(caught.value)
    assert pattern in str(caught.value)


def test_the_same_file_twice_is_one_input(tree):
    patterns = ["photos/b.png", "./photos/b.png", "photos/*.png"]
    assert len(find.sources(patterns)) == 1


def test_results_of_earlier_runs_are_not_restored_again(tree):
    for stem, schema, output in [
        ("b_diip", "diip.result/1", "elsewhere/b_diip.png"),
        ("mine", "diip.result/1", "other.png"),  # a record, but not of this picture
        ("theirs", "somebody/2", "theirs.png"),
    ]:
        (tree / f"{stem}.png").touch()
        record = {"schema": schema, "output": {"path": output}}
        (tree / f"{stem}.json").write_text(json.dumps(record))
    (tree / "broken.png").touch()
    (tree / "broken.json").write_text("{")
    (tree / "list.png").touch()
    (tree / "list.json").write_text("[1]")
    found = names(find.sources(["photos/*.png"]))
    assert found == ["b.png", "broken.png", "list.png", "mine.png", "theirs.png"]


@pytest.mark.parametrize(
    ("patterns", "many"),
    [
        (["photos/b.png"], False),
        (["photos/missing.png"], False),
        (["-"], False),
        (["photos"], True),
        (["photos/*.png"], True),
        (["photos/b.png", "photos/a.JPG"], True),
        ([], False),
    ],
)
@pytest.mark.usefixtures("tree")
def test_many(patterns, many):
    assert find.names_many(patterns) is many


def test_standard_input_is_one_source():
    (source,) = find.sources(["-"], data=b"bytes")
    assert source.content().read() == b"bytes"
    assert source.content().name == "standard input"


# Trouble.


def test_an_unreadable_folder_is_told_and_the_rest_found(tree, monkeypatch):
    """Root may read all, so the system's answer is played."""
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("deep"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    for patterns in (["photos"], ["photos/**/*.*"], ["photos/*/*/*.bmp", "photos"]):
        found = find.sources(patterns, recursive=True)
        problems = {s.relative.name: s.problem for s in found if s.problem}
        assert list(problems) == ["deep"]
        assert problems["deep"].endswith("sub/deep: Permission denied")
        assert "sub/a.tif" in names(found)
    (source,) = find.sources(["photos/sub/deep"])
    assert source.problem == "cannot read photos/sub/deep: Permission denied"
    assert source.path.name == "deep"


def test_a_folder_is_not_waited_for(tree):
    os.mkfifo(tree / "sub/deep/pipe.png")
    os.mkfifo(tree / "sub/deep/c.json")
    found = find.sources(["photos/sub/deep"])
    assert {s.relative.name: bool(s.problem) for s in found} == {
        "c.bmp": False,
        "pipe.png": True,
    }


def test_a_deep_tree_is_walked_to_its_end(monkeypatch):
    """Deeper than Python's own stack; a real one is more than others can delete."""
    depth = sys.getrecursionlimit() + 10
    bottom = Path("top", *["d"] * depth, "a.png")

    def listing(folder):
        kind = "file" if len(folder.parts) == depth + 1 else "folder"
        return [Entry(Path(*bottom.parts[: len(folder.parts) + 1]), kind, False)]

    monkeypatch.setattr(find.entries, "listing", listing)
    monkeypatch.setattr(find, "is_folder", lambda _: True)
    (found,) = find.sources(["top"], recursive=True)
    assert found.path == bottom


def test_a_pipe_named_outright_is_read_once(tmp_path):
    path = tmp_path / "x"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"bytes",))
    writer.start()
    (source,) = find.sources([str(path), str(path)])
    writer.join()
    for _ in range(2):
        assert source.content().read() == b"bytes"
    assert source.content().name == str(path)
    assert not source.is_standard


def test_what_nobody_can_ask_about_is_left_for_the_reader_to_report(tmp_path):
    for name in ("n" * 300, "a\0b", "a\ud800b"):
        (source,) = find.sources([name])
        assert "cannot read" in source.problem
        assert not find.names_many([name])
        assert not find.is_file_name(name)
        assert find.is_file_name(f"{name}.png")
        with pytest.raises(InputError, match="cannot look for"):
            find.namesake(Path(name), tmp_path)


@pytest.mark.usefixtures("tree")
def test_a_folder_that_looks_like_a_glob_is_meant_as_it_is_written(tree):
    tree.rename(tree.with_name("photos [1]"))
    assert names(find.sources(["photos [1]/*.png"])) == ["b.png"]
    assert names(find.sources(["photos [1]/*/a.*"])) == ["sub/a.tif"]
    assert find.names_many(["photos [1]/*.png"])
    (missing,) = find.sources(["photos [1]/none.png"])
    assert missing.relative == Path("none.png")
    assert not find.names_many(["photos [1]/none.png"])


@pytest.mark.parametrize(
    "pattern",
    ["photos/*", "photos/*/*", "photos/**", "photos/**/*", "photos/**/[ab].*"]
    + ["photos/*/../b.png", "p*/s*/**/*.bmp", "photos/.*/*", "*/sub/**/c.bmp"]
    + ["photos/*/none/*", "photos/*/*/..", "photos/*/a.tif", "p*/sub/deep/*"],
)
def test_globs_are_those_of_python(tree, pattern):
    (tree / "sub" / "again").symlink_to(tree)  # `glob` goes round and round here
    try:
        found = find.sources([pattern])
    except InputError:
        found = []
    expected = [
        path for path in glob.glob(pattern, recursive=True) if "again" not in path
    ]
    expected = {path for path in map(Path, expected) if path.is_file()}
    assert {s.path for s in found} == {path for path in expected if find.is_image(path)}


# Outputs.


def sources(*names):
    return [Source(Path("in", name), Path(name)) for name in names]


@pytest.mark.parametrize(
    ("output", "many", "expected"),
    [
        (None, False, "in/x.y_diip"),
        ("out.v2.png", False, "out.v2"),
        ("out", False, "out/x.y_diip"),
        (None, True, "results/x.y_diip"),
        ("out", True, "out/x.y_diip"),
    ],
)
def test_where_a_photo_goes(output, many, expected):
    found = find.stems(sources("x.y.png"), output, suffix="diip", many=many)
    assert found == [Path(expected)]


def test_subfolders_are_mirrored():
    found = find.stems(sources("a.png", "s/t/a.png"), "out", suffix="d", many=True)
    assert found == [Path("out/a_d"), Path("out/s/t/a_d")]


def test_an_existing_folder_with_an_image_suffix_is_a_folder(tmp_path):
    folder = tmp_path / "out.png"
    folder.mkdir()
    found = find.stems(sources("a.png"), str(folder), suffix="d", many=False)
    assert found == [folder / "a_d"]


def test_one_output_file_for_many_images_is_refused():
    with pytest.raises(OutputError, match=r"one.png is one file"):
        find.stems(sources("a.png", "b.png"), "one.png", suffix="diip", many=True)


# Names and shards.


def test_every_input_is_in_exactly_one_shard():
    all_of_them = sources(*(f"{n}.png" for n in range(100)))
    shards = [find.shard(all_of_them, i, 3) for i in (1, 2, 3)]
    together = sorted(s.relative.name for part in shards for s in part)
    assert together == sorted(s.relative.name for s in all_of_them)
    assert all(len(part) > 20 for part in shards)  # of 33; the hash spreads them


def test_the_hash_of_a_name_never_changes():
    # Python's own hash differs from process to process; this number is CRC-32's.
    assert find.name_hash(Path("sub/čeština.png")) == 3647360777


def test_a_name_that_is_not_utf8_has_a_hash():
    assert find.name_hash(Path(os.fsdecode(b"\xff.png"))) == binascii.crc32(b"\xff.png")
