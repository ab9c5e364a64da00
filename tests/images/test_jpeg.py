"""Segments of JPEG that are damaged; the picture is read all the same."""

import struct

import numpy as np
import pytest
from PIL import Image

from diip_jax import images
from helpers.exif_blocks import table
from helpers.pictures import GOOD_JPEG, by_pillow, exif_block, samples


def with_segments(*segments, data=GOOD_JPEG):
    """Put segments of (marker, content) behind JFIF's."""
    (length,) = struct.unpack_from(">H", data, 4)
    added = b"".join(
        bytes([0xFF, marker]) + struct.pack(">H", 2 + len(content)) + content
        for marker, content in segments
    )
    return data[: 4 + length] + added + data[4 + length :]


def assert_read(data):
    photo = images.read(data)
    np.testing.assert_array_equal(photo.rgb, images.read(GOOD_JPEG).rgb)
    return photo


def test_a_resolution_without_a_value_in_exif():
    entries = [(282, 5, 0, b""), (283, 5, 0, b""), (296, 3, 1, b"\2\0")]
    block = b"II*\0\x08\0\0\0" + table("<", 8, entries)
    data = by_pillow(samples(3), "JPEG")
    bare = data[:2] + data[20:]  # without JFIF, so that Pillow looks into EXIF
    segment = struct.pack(">BBH", 0xFF, 0xE1, 8 + len(block)) + b"Exif\0\0" + block
    photo = images.read(bare[:2] + segment + bare[2:])
    assert photo.exif == b"Exif\0\0" + block
    assert photo.dpi is None


@pytest.mark.parametrize(
    "segment",
    [
        (0xE1, b"Exif\0\0"),
        (0xE1, b"Exif\0\0MM"),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10abc"),
        (0xE2, b"MPF\0MM\0*\0\0\0\x08" + bytes(40)),
        (0xE2, b"MPF\0II*\0" + b"\xff" * 40),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\1\2abc"),
        (0xEE, b"Adobe"),
        (0xE0, b"JFIF\0"),
    ],
)
def test_damaged_segments(segment):
    assert_read(with_segments(segment))


def test_exif_in_several_segments_is_joined():
    block = exif_block(1)
    parts = [(0xE1, block[:60]), (0xE1, b"Exif\0\0" + block[60:])]
    assert assert_read(with_segments(*parts)).exif == block


@pytest.mark.parametrize(
    ("unit", "dpi"), [(0, None), (1, (30, 40)), (2, (76.2, 101.6))]
)
def test_the_units_of_jfif(unit, dpi):
    data = bytearray(GOOD_JPEG)
    data[13:18] = struct.pack(">BHH", unit, 30, 40)
    found = images.read(bytes(data)).dpi
    assert found == (dpi and pytest.approx(dpi))


def test_a_second_picture_is_said_to_be_left_out():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = by_pillow(frames[0], "MPO", save_all=True, append_images=frames[1:])
    photo = images.read(data)
    assert (photo.format, photo.warnings) == ("MPO", ("only the first frame is used",))
