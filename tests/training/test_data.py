"""Pictures in, crops out: what is found, split, cut and left out."""

import contextlib
import errno
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diip_jax.training import __main__ as command
from diip_jax.training import data

SIDE = 16


def picture(seed, size=(40, 32), mode="RGB"):
    rng = np.random.default_rng(seed)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    return Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode)


def save(folder, name, seed=0, **kwargs):
    folder.mkdir(parents=True, exist_ok=True)
    picture(seed, **kwargs).save(folder / name)
    return folder / name


def content(found):
    with found.open() as file:
        return file.read()


@pytest.fixture
def folder(tmp_path):
    for n in range(6):
        save(tmp_path / "a", f"{n}.png", n)
    return tmp_path


def test_folders_and_zip_files_are_walked(folder):
    save(folder / "a" / "deep", "x.jpg", 7)
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.write(save(folder / "out", "y.png", 8), "inside/y.png")
        archive.writestr("readme.txt", "no picture")
    (folder / "notes.txt").write_text("no picture")
    found = data.find([folder], SIDE)
    names = {p.name.removeprefix(f"{folder}/") for p in found.train + found.validation}
    expected = {f"a/{n}.png" for n in range(6)}
    assert names == expected | {"a/deep/x.jpg", "more.zip/inside/y.png", "out/y.png"}
    assert not found.rejected


def test_files_that_cannot_be_used_are_listed(folder):
    (folder / "a" / "broken.png").write_bytes(b"\x89PNG, or not")
    save(folder / "a", "small.png", size=(6, 40))
    rejected = dict(data.find([folder], SIDE).rejected)
    assert "6x40, smaller than 7 pixels" in rejected[str(folder / "a" / "small.png")]
    assert "cannot identify" in rejected[str(folder / "a" / "broken.png")]


def test_what_cannot_be_walked_is_told_and_the_rest_is_used(folder, monkeypatch):
    """A folder that nobody may read, and a link that points at itself."""
    closed, endless = folder / "closed", folder / "endless.png"
    save(closed, "x.png", 9)
    endless.symlink_to(endless)
    listing = data.entries.listing

    def refused(path):
        if path == closed:  # also for root, who may read all
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(data.entries, "listing", refused)
    found = data.find([folder], SIDE)
    assert len(found.train) + len(found.validation) == 6
    assert dict(found.rejected) == {
        str(closed): "cannot be read: Permission denied",
        str(endless): "cannot be read: the system does not tell what it is",
    }


def test_a_name_that_no_file_has_is_one_clear_line():
    with pytest.raises(data.DataError, match="cannot read .*cannot hold a NUL"):
        data.find([Path("a\0b")], SIDE)


@pytest.mark.parametrize("kind", ["missing", "empty", "tiny", "no zip"])
def test_nothing_to_train_on_is_one_clear_line(tmp_path, kind):
    place = tmp_path / kind
    if kind == "tiny":
        save(place, "x.png", size=(3, 3))
    elif kind == "no zip":
        place = tmp_path / "x.zip"
        place.write_bytes(b"no zip")
    elif kind == "empty":
        place.mkdir()
    reason = {
        "missing": "does not exist",
        "empty": "0 of 0 files are pictures of at least 7 pixels",
        "tiny": "is 3x3, smaller than 7 pixels",
        "no zip": "no zip file that can be read",
    }[kind]
    with pytest.raises(data.DataError, match=reason) as caught:
        data.find([place], SIDE)
    assert "\n" not in str(caught.value)


def test_the_split_is_by_content(folder):
    for n in range(60):
        save(folder / "b", f"{n}.png", 100 + n)
    first = data.find([folder], SIDE, validation_share=0.3)
    contents = {content(p) for p in first.validation}
    assert 8 <= len(contents) <= 32  # of 66: 20 expected, within three deviations
    assert not contents & {content(p) for p in first.train}
    for n, path in enumerate(sorted((folder / "b").iterdir())):
        path.rename(path.with_name(f"renamed{n}.png"))
    again = data.find([folder], SIDE, validation_share=0.3)
    assert {content(p) for p in again.validation} == contents


def test_grey_pictures_are_counted_and_repeated(folder):
    path = save(folder / "a", "grey.png", mode="L")
    found = data.find([folder], SIDE)
    assert found.num_grey == 1
    (grey,) = (p for p in [*found.train, *found.validation] if p.is_grey)
    rgb = data.decode(grey, SIDE)
    with Image.open(path) as original:
        np.testing.assert_array_equal(rgb, np.asarray(original)[..., None].repeat(3, 2))


@pytest.mark.parametrize(("quality", "halved"), [(50, True), (98, False)])
def test_jpeg_blocks_are_halved_away(tmp_path, quality, halved):
    picture(0, (48, 36)).save(tmp_path / "x.jpg", quality=quality)
    found = data.Picture(tmp_path / "x.jpg", None, is_grey=False, part=0)
    assert data.decode(found, SIDE).shape == ((18, 24, 3) if halved else (36, 48, 3))
    assert data.decode(found, 32).shape == (36, 48, 3)  # else too small


def test_batches_are_a_function_of_seed_and_number(folder):
    pictures = data.find([folder], SIDE).train

    def take(count, **kwargs):
        stream = data.batches(pictures, SIDE, 4, **{"seed": 1, **kwargs})
        return [next(stream)["image"] for _ in range(count)]

    straight = take(5)
    assert straight[0].shape == (4, SIDE, SIDE, 3)
    assert straight[0].dtype == np.uint8
    for a, b in zip(take(2, first=3), straight[3:], strict=True):
        np.testing.assert_array_equal(a, b)
    parts = [take(3, part=part, parts=2) for part in (0, 1)]
    for number, whole in enumerate(straight[:3]):
        np.testing.assert_array_equal(parts[0][number], whole[::2])
        np.testing.assert_array_equal(parts[1][number], whole[1::2])
    assert not np.array_equal(take(1, seed=2)[0], straight[0])


@pytest.mark.slow  # starts processes
def test_processes_decode_the_same_batches(folder):
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        for n in range(6):
            archive.write(save(folder / "out", f"{n}.png", 20 + n), f"{n}.png")
    pictures = data.find([folder / "more.zip"], SIDE).train
    streams = [
        data.batches(pictures, SIDE, 4, seed=1, num_workers=workers)
        for workers in (0, 2)
    ]
    for _ in range(6):
        here, there = (next(stream)["image"] for stream in streams)
        np.testing.assert_array_equal(here, there)


def test_every_picture_comes_once_an_epoch(tmp_path):
    for n in range(8):  # one colour each; their sides leave no choice of a window
        Image.new("RGB", (SIDE, SIDE), (10 * n, 0, 0)).save(tmp_path / f"{n}.png")
    found = [
        data.Picture(tmp_path / f"{n}.png", None, is_grey=False, part=0)
        for n in range(8)
    ]
    stream = data.batches(found, SIDE, 4, seed=3)
    seen = np.concatenate([next(stream)["image"][:, 0, 0, 0] for _ in range(4)])
    assert sorted(seen[:8]) == sorted(seen[8:]) == [10 * n for n in range(8)]
    assert list(seen[:8]) != list(seen[8:])  # shuffled again


def test_a_picture_that_cannot_be_decoded_is_told_and_replaced(folder):
    whole = io.BytesIO()
    picture(50, (200, 200)).save(whole, "PNG")
    (folder / "a" / "cut.png").write_bytes(whole.getvalue()[:5000])  # a good header
    found = data.find([folder], SIDE)
    pictures = [*found.train, *found.validation]
    (cut,) = (n for n, p in enumerate(pictures) if p.name.endswith("cut.png"))
    stream = data.batches(pictures, SIDE, 7, seed=0)
    batch = next(stream)
    assert sorted(set(batch["broken"].tolist())) == [-1, cut]
    assert batch["image"].std(axis=(1, 2, 3)).min() > 1  # none is blank


@pytest.mark.parametrize(
    "kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]
)
def test_a_damaged_member_of_a_zip_file_is_told_and_replaced(tmp_path, kind):
    """Damaged behind what is looked at before; each compression tells it otherwise."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", kind) as archive:
        for n in range(4):
            whole = io.BytesIO()
            picture(n, (300, 300)).save(whole, "PNG")
            archive.writestr(f"{n}.png", whole.getvalue())
        start = archive.getinfo("1.png").header_offset
    content = bytearray(path.read_bytes())
    assert start + 200_000 < archive.getinfo("2.png").header_offset
    content[start + 150_000 : start + 200_000] = b"\xff" * 50_000
    path.write_bytes(content)
    found = data.find([path], SIDE)
    assert not found.rejected
    pictures = sorted([*found.train, *found.validation])
    batch = next(data.batches(pictures, SIDE, 4, seed=0))
    assert sorted(batch["broken"].tolist()) == [-1, -1, -1, 1]


def test_the_table_of_brightness_may_have_any_number(tmp_path):
    whole = io.BytesIO()
    picture(0, (48, 36), "L").save(whole, "JPEG", quality=50)
    content = bytearray(whole.getvalue())
    content[content.index(b"\xff\xdb") + 4] = 1  # DQT: the number of the table
    content[content.index(b"\xff\xc0") + 12] = 1  # SOF: the one that is used
    (tmp_path / "x.jpg").write_bytes(content)
    found = data.Picture(tmp_path / "x.jpg", None, is_grey=True, part=0)
    assert data.decode(found, SIDE).shape == (18, 24, 3)


def test_crops_have_all_scales_and_flat_ones_are_mostly_skipped():
    ramp = np.zeros((120, 120, 3), np.uint8)
    ramp[..., 0] = np.arange(0, 240, 2)  # tells the scale
    ramp[..., 1] = 255 * ((np.indices((120, 120)) // 2).sum(axis=0) % 2)  # not flat
    rng = np.random.default_rng(0)
    slopes = []
    for _ in range(600):
        square = data.crop(ramp, SIDE, rng).astype(float)
        slopes.append(np.abs(np.diff(square[..., 0].mean(axis=0)))[4:-4].mean())
    windows = SIDE * np.array(slopes) / 2  # a window of w pixels rises by 2 w
    assert windows.min() >= SIDE / 2.2 - 1
    assert windows.max() <= 120.5
    native = np.mean(np.abs(windows - SIDE) < 0.5)
    assert 0.25 < native < 0.5  # about a third is at the native scale
    assert 0.02 < np.mean(windows < SIDE - 1) < 0.2  # a few are enlarged

    half = np.zeros((64, 128, 3), np.uint8)
    half[:, 64:] = np.random.default_rng(1).integers(0, 256, (64, 64, 3))
    stds = [data.crop(half, SIDE, rng).std(axis=(0, 1)).max() for _ in range(300)]
    flat = np.array(stds) < 255 * data.FLAT
    assert np.mean(flat) < 0.1  # by chance it would be about a third


def test_the_whole_picture_is_cut_where_it_is_hardly_larger_than_a_crop():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (10, 12, 3), np.uint8)  # enlarged to 16
    assert data.crop(rgb, SIDE, rng).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("flags", [["--images={}"], ["--images=x", "--{}"]])
def test_names_reach_the_terminal_escaped(tmp_path, capsys, flags):
    """Neither a folder's name nor a flag can clear the screen."""
    name = "clear\x1b[2J"
    output = f"--output={tmp_path / 'out'}"
    with contextlib.suppress(SystemExit):  # of a flag that is not known
        command.main([output, *(flag.format(name) for flag in flags)])
    said = capsys.readouterr().err
    assert "clear\\x1b[2J" in said
    assert all(line.isprintable() for line in said.splitlines())
