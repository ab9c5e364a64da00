"""What is written: JPEG to the letter, greyness, refusals, suffixes."""

import dataclasses
import struct

import numpy as np
import pytest

from diip_jax import images
from helpers.pictures import HEIGHT, WIDTH, by_pypng, opened, samples, stored_samples


@pytest.fixture
def photo():
    return images.read(by_pypng(samples(3)))


def jpeg_sampling(data: bytes) -> list[tuple[int, int]]:
    """(H, V) of each component, from the frame header (ITU-T T.81, B.2.2)."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    count = data[at + 9]
    factors = [data[at + 11 + 3 * i] for i in range(count)]
    return [(factor >> 4, factor & 15) for factor in factors]


def test_jpeg_is_444_at_quality_95(tmp_path):
    photo = images.read(by_pypng(samples(3)))
    images.write(tmp_path / "out.JPG", photo.rgb, photo)
    data = (tmp_path / "out.JPG").read_bytes()
    assert jpeg_sampling(data) == [(1, 1)] * 3
    # T.81 Table K.1 starts 16 11 10 16; libjpeg scales it by (100 - 95) / 50.
    table = opened(tmp_path / "out.JPG").quantization[0]
    assert list(table[:4]) == [2, 1, 1, 2]
    images.write(tmp_path / "low.jpeg", photo.rgb, photo, quality=50)
    assert list(opened(tmp_path / "low.jpeg").quantization[0][:4]) == [
        16,
        11,
        10,
        16,
    ]


def test_grey_jpeg_has_one_component(tmp_path):
    photo = images.read(by_pypng(samples(1)))
    images.write(tmp_path / "out.jpg", photo.rgb, photo)
    assert jpeg_sampling((tmp_path / "out.jpg").read_bytes()) == [(1, 1)]


def test_grey_output_is_the_mean_of_the_channels(tmp_path):
    photo = images.read(by_pypng(samples(1)))
    images.write(
        tmp_path / "out.png", np.tile([0.1, 0.2, 0.6], (HEIGHT, WIDTH, 1)), photo
    )
    assert (stored_samples(tmp_path / "out.png") == round(0.3 * 255)).all()


@pytest.mark.parametrize(
    ("channels", "name", "shape", "message"),
    [
        (4, "x.jpg", (HEIGHT, WIDTH, 3), "JPEG cannot hold alpha; use --ext png"),
        (4, "x.png", (HEIGHT, WIDTH + 1, 3), "restore at the size of the input"),
        (3, "x.png", (HEIGHT, WIDTH), r"must be \(height, width, 3\)"),
        (3, "x.bmp", (HEIGHT, WIDTH, 3), "not an output format"),
        (3, "x", (HEIGHT, WIDTH, 3), "not an output format"),
        (3, "x.jpg", (1, 70_000, 3), "JPEG encoder"),
        (3, "x.webp", (1, 17_000, 3), "WEBP encoder"),
    ],
)
def test_what_a_format_cannot_hold(channels, name, shape, message, tmp_path):
    photo = images.read(by_pypng(samples(channels)))
    with pytest.raises(images.ImageError, match=message) as caught:
        images.write(tmp_path / name, np.zeros(shape), photo)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_encode_refuses_a_format_that_is_not_written(photo):
    with pytest.raises(images.ImageError, match="'BMP' is not an output format"):
        images.encode(photo.rgb, photo, "BMP")


def test_encode_gives_the_bytes_that_write_writes(photo, tmp_path):
    images.write(tmp_path / "x.tif", photo.rgb, photo)
    assert (tmp_path / "x.tif").read_bytes() == images.encode(photo.rgb, photo, "TIFF")


@pytest.mark.parametrize(
    ("source", "ext", "suffix"),
    [
        ("a.PNG", "auto", ".png"),
        ("a.jpg", "auto", ".png"),
        ("a.tif", "auto", ".tif"),
        ("a.webp", "auto", ".webp"),
        ("a.bmp", "auto", ".png"),
        ("no_suffix", "auto", ".png"),
        ("a.png", "jpg", ".jpg"),
        ("a.png", ".TIFF", ".tiff"),
    ],
)
def test_output_suffix(source, ext, suffix):
    assert images.output_suffix(source, ext) == suffix


def test_output_suffix_refuses_an_unknown_format():
    with pytest.raises(images.ImageError, match="'heic' is not an output format"):
        images.output_suffix("a.png", "heic")


@pytest.mark.parametrize(("kind", "largest"), [("WEBP", 16383), ("JPEG", 65500)])
def test_the_sides_of_a_format_are_those_of_its_encoder(photo, kind, largest):
    """Told beforehand, and by the encoder itself on a picture of one row."""
    images.check_sides(kind, 1, largest)
    assert images.encode(row(largest), row_of(photo, largest), kind)
    with pytest.raises(images.ImageError, match=f"sides of {largest} pixels at most"):
        images.check_sides(kind, largest + 1, 1)
    with pytest.raises(images.ImageError, match="encoder"):
        images.encode(row(largest + 1), row_of(photo, largest + 1), kind)
    images.check_sides("PNG", largest + 1, 1)


def row(width):
    return np.zeros((1, width, 3), np.float32)


def row_of(photo, width):
    return dataclasses.replace(photo, rgb=row(width), alpha=None)
