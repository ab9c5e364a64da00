"""Boxes of AVIF, written by Pillow and imagecodecs or by a few lines of struct."""

import struct

import pytest

from diip_jax import images
from diip_jax.images import avif
from helpers.exif_blocks import camera_block
from helpers.pictures import by_pillow, exif_block, samples

imagecodecs = pytest.importorskip("imagecodecs")


def box(name, content):
    return struct.pack(">I4s", 8 + len(content), name) + content


def meta(iinf, iloc, *more):
    return box(
        b"meta", bytes(4) + box(b"iinf", iinf) + box(b"iloc", iloc) + b"".join(more)
    )


EXIF = struct.pack(">I", 2) + b"??" + camera_block()


def test_an_item_in_two_parts_of_the_file():
    entry = box(b"infe", b"\2\0\0\0" + struct.pack(">HH4s", 7, 0, b"Exif"))
    iinf = bytes(4) + struct.pack(">H", 1) + entry

    def file(first):
        parts = (first, 20, first + 30, len(EXIF) - 20)
        iloc = bytes(4) + b"\x44\0" + struct.pack(">HHHH4I", 1, 7, 0, 2, *parts)
        return meta(iinf, iloc)

    head = file(0)
    data = file(len(head)) + EXIF[:20] + bytes(10) + EXIF[20:]
    plain, found = avif.split(data)
    assert found == camera_block()
    assert plain == data.replace(b"Exif", b"none", 1)


def test_an_item_inside_of_the_directory():
    entry = box(b"infe", b"\3\0\0\0" + struct.pack(">IH4s", 7, 0, b"Exif"))
    iinf = b"\1\0\0\0" + struct.pack(">I", 1) + entry
    place = struct.pack(">IHHHQQ", 7, 1, 0, 1, 3, len(EXIF))
    iloc = b"\2\0\0\0" + b"\x88\0" + struct.pack(">I", 1) + place
    data = meta(iinf, iloc, box(b"idat", b"abc" + EXIF))
    assert avif.split(data)[1] == camera_block()


@pytest.mark.parametrize("data", [b"", bytes(40), box(b"meta", bytes(4)), b"x" * 99])
def test_no_boxes_no_exif(data):
    assert avif.split(data) == (data, None)
    assert avif.colour(data) == ()
    assert avif.bits(data) == 8


def test_exif_that_is_no_tiff_does_not_refuse_the_picture():
    data = by_pillow(samples(3), "AVIF", exif=exif_block())
    tiff = exif_block()[6:]
    assert data.count(tiff) == 1
    photo = images.read(data.replace(tiff, bytes(len(tiff))))
    assert photo.warnings == ("the EXIF data are damaged and not kept",)


@pytest.mark.parametrize(
    ("code", "kept"), [((9, 16), True), ((1, 13), False), ((2, 2), False)]
)
def test_colours_that_are_not_of_srgb_become_a_tag(code, kept):
    data = by_pillow(samples(3), "AVIF")
    at = data.index(b"nclx")
    data = data[: at + 4] + struct.pack(">HH", *code) + data[at + 8 :]
    photo = images.read(data)
    assert photo.colour == ((("cICP", b"\x09\x10\0\1"),) if kept else ())
    said = images.unkept(photo, "JPEG")
    assert said == ("the PNG colour tag cICP is not kept: JPEG cannot hold it",) * kept
    assert images.unkept(photo, "PNG") == ()
