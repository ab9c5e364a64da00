"""EXIF blocks made of hostile or damaged TIFF files."""

import struct

import numpy as np
import pytest

from diip_jax import images
from helpers.exif_blocks import NOTE, camera_block, camera_tiff, contents, patched
from helpers.pictures import by_pillow, samples, upright


def test_tags_that_hold_more_than_the_file_are_not_copied():
    """Sixty tags that share one value; copied, each would take its size."""
    extra = [(60100 + n, 7, 6000, 8) for n in range(60)]
    rows = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    photo = images.read(camera_tiff("<", rows, 1, extra))
    assert photo.exif is None
    assert photo.warnings == ("the EXIF data are damaged and not kept",)
    np.testing.assert_array_equal(images.to_uint(photo.rgb, 8), rows)


@pytest.mark.parametrize("tag", [34665, 34853])
def test_a_directory_that_is_none_is_named(tag):
    data = bytearray(camera_tiff("<", samples(3)))
    at = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
    data[at : at + 4] = b"\xff\xff\xff\x7f"
    photo = images.read(bytes(data))
    np.testing.assert_array_equal(images.to_uint(photo.rgb, 8), upright(samples(3), 6))
    assert photo.warnings == (f"the TIFF tag {tag} is damaged, and not kept",)
    assert photo.exif is not None
    assert (NOTE in photo.exif) == (tag == 34853)


def test_a_value_outside_of_the_block_stays_there_and_is_left_out_of_a_tiff():
    block = camera_block("<", 1, [(60100, 7, 99, 10**6)])
    photo = images.read(by_pillow(samples(3), "JPEG", exif=b"Exif\0\0" + block))
    assert photo.exif == b"Exif\0\0" + patched(block)
    assert images.unkept(photo, "PNG") == ()
    (said,) = images.unkept(photo, "TIFF")
    assert said.startswith("an EXIF tag whose value lies outside of EXIF is not kept")
    assert ("", 60100) not in contents(images.encode(photo.rgb, photo, "TIFF"))
