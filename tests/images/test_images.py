"""Photos in, photos out: nothing may be lost between `read` and `write`.

`pictures` says what is independent here.
"""

import io
import os
import resource
import stat

import numpy as np
import pytest
from PIL import Image, ImageOps

from diip_jax import images
from helpers.pictures import (
    GOOD_PNG,
    HEIGHT,
    SIDES,
    WIDTH,
    by_pillow,
    by_pypng,
    by_tifffile,
    exif_block,
    opened,
    round_trip,
    samples,
    upright,
)

# Eight orientations of nine kinds of file: (bytes, samples as stored, before turning).


def make_p(orientation):
    index, palette = samples(1)[..., 0] % 16, samples(3, seed=1).reshape(-1, 3)[:16]
    alpha = np.arange(0, 256, 17, np.uint8)
    image = Image.frombytes("P", (WIDTH, HEIGHT), index.tobytes())
    image.putpalette(palette.tobytes())
    data = by_pillow(
        image, "PNG", transparency=alpha.tobytes(), exif=exif_block(orientation)
    )
    return data, np.concatenate([palette, alpha[:, None]], axis=1)[index]


def make_png(channels, bits=8):
    def make(orientation):
        array = samples(channels, bits)
        return by_pypng(array, eXIf=exif_block(orientation)[6:]), array

    return make


def make_tiff(orientation):
    tags = [(274, "H", 1, orientation), (271, "s", 0, "Maker")]
    array = samples(3, 16)
    return by_tifffile(array, tags, photometric="rgb", compression="zlib"), array


def make_cmyk(orientation):
    image = Image.frombytes("CMYK", (WIDTH, HEIGHT), samples(4).tobytes())
    data = by_pillow(image, "JPEG", quality=95, exif=exif_block(orientation))
    ink = np.asarray(Image.open(io.BytesIO(data))) / 255
    return data, np.rint(255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])).astype(np.uint8)


MATRIX = {
    "L": make_png(1),
    "LA": make_png(2),
    "P": make_p,
    "RGB": make_png(3),
    "RGBA": make_png(4),
    "I;16": make_png(1, 16),
    "RGB;16": make_png(3, 16),
    "RGB;16 TIFF": make_tiff,
    "CMYK": make_cmyk,
}


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("kind", MATRIX)
def test_matrix_keeps_size_depth_alpha_and_greyness(kind, orientation, tmp_path):
    data, stored = MATRIX[kind](orientation)
    expected = upright(stored, orientation)
    photo, written, path = round_trip(data, tmp_path)
    assert photo.mode == kind.removesuffix(" TIFF")
    assert photo.orientation == orientation
    assert photo.stored_size == (WIDTH, HEIGHT)
    assert photo.warnings == ()
    assert photo.rgb.dtype == np.float32
    assert photo.rgb.flags.c_contiguous
    assert photo.rgb.shape == (*expected.shape[:2], 3)
    assert photo.grey == (expected.shape[2] < 3)
    assert (photo.alpha is not None) == (expected.shape[2] in (2, 4))
    assert written.dtype == expected.dtype
    np.testing.assert_array_equal(written, expected)  # depth, greyness, alpha: all bits
    with opened(path) as image:
        assert image.getexif().get(274, 1) == 1
        assert image.getexif()[271] == "Maker"


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP", "AVIF", "PNG"])
@pytest.mark.parametrize("orientation", SIDES)
def test_upright_as_pillow_turns_it(kind, orientation):
    """A second opinion on the eight orientations, for the formats not in the matrix."""
    array = np.kron(samples(3), np.ones((8, 8, 1), np.uint8))
    data = by_pillow(array, kind, exif=exif_block(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    read = images.read(data)
    np.testing.assert_array_equal(images.to_uint(read.rgb, 8), np.asarray(expected))
    assert read.stored_size == (8 * WIDTH, 8 * HEIGHT)
    assert read.orientation == orientation


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("ext", ["png", "tiff", "webp"])
def test_smallest_pictures_of_every_layout(size, channels, bits, ext, tmp_path):
    rng = np.random.default_rng(channels)
    array = rng.integers(0, 2**bits, (*size, channels)).astype(f"u{bits // 8}")
    _, written, _ = round_trip(by_pypng(array), tmp_path, ext)
    expected = array
    if ext == "webp":  # three channels of 8 bits are all it has
        expected = np.rint(array / (2**bits - 1) * 255).astype(np.uint8)
        if channels < 3:
            expected = np.concatenate([expected[..., :1]] * 2 + [expected], axis=2)
    np.testing.assert_array_equal(written, expected)


@pytest.fixture
def photo():
    return images.read(by_pypng(samples(3)))


def fail_with(error):
    def call(*args, **kwargs):
        raise error

    return call


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(call, photo, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"old")
    monkeypatch.setattr(os, call, fail_with(OSError(28, "No space left on device")))
    with pytest.raises(images.ImageError, match="No space left on device"):
        images.write(tmp_path / "x.png", photo.rgb, photo)
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"old"


def test_ctrl_c_while_writing_leaves_nothing(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", fail_with(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        images.write(tmp_path / "x.png", photo.rgb, photo)
    assert list(tmp_path.iterdir()) == []


def test_a_write_cut_short_by_the_system_leaves_nothing(photo, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(images.ImageError, match="File too large"):
            images.write(tmp_path / "x.png", photo.rgb, photo)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_unwritable_places(photo, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for path, reason in (
        (tmp_path / "file" / "x.png", "Not a directory"),
        (tmp_path / "missing" / "x.png", "No such file or directory"),
        (tmp_path / "folder.png", "it is a folder"),
    ):
        with pytest.raises(images.ImageError, match=reason):
            images.write(path, photo.rgb, photo)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_written_files_follow_the_umask(photo, tmp_path):
    old = os.umask(0o027)
    try:
        images.write(tmp_path / "x.png", photo.rgb, photo)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x.png").stat().st_mode) == 0o640


def test_bytes_files_and_paths_give_the_same(tmp_path):
    path = tmp_path / "päth.png"
    path.write_bytes(GOOD_PNG)
    photos = [images.read(s) for s in (GOOD_PNG, io.BytesIO(GOOD_PNG), path, str(path))]
    for other in photos[1:]:
        np.testing.assert_array_equal(other.rgb, photos[0].rgb)
    with open(path, "rb") as file:
        assert images.read(file).format == "PNG"
        assert not file.closed
