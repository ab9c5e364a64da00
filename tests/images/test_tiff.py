"""Directories of TIFF: found, cut and hostile ones, in each of the four forms."""

import struct

import numpy as np
import pytest

from diip_jax import images
from diip_jax.images import tiff
from helpers.exif_blocks import camera_block, contents, table
from helpers.pictures import by_tifffile, samples

FORMS = [("<", False), (">", False), ("<", True), (">", True)]


@pytest.mark.parametrize(("order", "big"), FORMS)
def test_tags_as_tifffile_wrote_them(order, big):
    tags = [(60000, "H", 1, 7), (60001, "I", 3, (1, 2, 3)), (60002, "b", 2, (-1, 1))]
    tags += [(60003, "s", 0, "text"), (33434, "2I", 1, (3, 7))]
    data = by_tifffile(samples(3), tags, byteorder=order, bigtiff=big)
    directory = tiff.first_directory(data)
    assert (directory.order, directory.big) == (order, big)
    assert directory.integers(60000) == (7,)
    assert directory.integers(60001) == (1, 2, 3)
    assert directory.integers(60002) == (-1, 1)
    assert directory.integers(60003) == ()
    assert directory.content(60003) == b"text\0"
    assert directory.rationals(33434) == ((3, 7),)
    assert (directory.entry(1), directory.content(1)) == (None, None)


@pytest.mark.parametrize(("order", "big"), FORMS)
def test_pages_end_where_they_repeat(order, big):
    pages = np.stack([samples(1)[..., 0]] * 3)
    options = {"byteorder": order, "bigtiff": big, "photometric": "minisblack"}
    data = bytearray(by_tifffile(pages, **options))
    found = list(tiff.pages(bytes(data)))
    assert len(found) == 3
    code = order + ("Q" if big else "I")
    struct.pack_into(code, data, found[2].link, found[0].at)
    assert [page.at for page in tiff.pages(bytes(data))] == [p.at for p in found]
    struct.pack_into(code, data, found[2].link, 2**31)
    assert [page.at for page in tiff.pages(bytes(data))] == [p.at for p in found]


@pytest.mark.parametrize("order", "<>")
def test_a_directory_written_is_the_one_read(order):
    """Against the reader of the tests: values inline, behind, and in their place."""
    values = [
        tiff.integers(5, tiff.Kind.SHORT, [1], order),
        tiff.integers(3, tiff.Kind.LONG, [1, 2**32 - 1], order),
        tiff.integers(4, tiff.Kind.RATIONAL, [1, 3], order),
        tiff.Entry(1, 7, 5, b"12345"),
        tiff.Entry(2, 2, 6, b"there\0", at=8),
    ]
    block = tiff.file_header(order, 14) + b"there\0"
    block += tiff.directory_bytes(values, order, 14)
    found = contents(block)
    assert [tag for _, tag in found] == [1, 2, 3, 4, 5]
    assert found["", 1] == (7, 5, b"12345")
    assert found["", 2] == (2, 6, b"there\0")
    assert found["", 3] == (4, 2, struct.pack(f"{order}2I", 1, 2**32 - 1))
    assert found["", 4] == (5, 1, struct.pack(f"{order}2I", 1, 3))
    assert found["", 5] == (3, 1, struct.pack(f"{order}H", 1))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"II", b"II*\0", b"II*\0\x08\0\0\0", b"JJ*\0" + bytes(20)),
        b"II*\0\x02\0\0\0" + bytes(20),  # a directory inside the header
        b"II*\0\x08\0\0\0\x05\0" + bytes(20),  # more entries than bytes
        b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 60,
    ],
)
def test_what_is_no_directory(data):
    with pytest.raises((images.ImageError, struct.error)):
        tiff.first_directory(data)


def test_values_outside_of_the_data_are_none():
    block = b"II*\0\x08\0\0\0" + table("<", 8, [(1, 7, 99, 1000), (2, 99, 1, b"")])
    directory = tiff.first_directory(block)
    assert directory.content(1) is None
    assert directory.integers(1) == ()
    with pytest.raises(images.ImageError, match="TIFF tag 1 is damaged"):
        tiff.integer(directory, 1, 0)
    assert tiff.integer(directory, 3, 7) == 7


def test_set_orientation_touches_nothing_else():
    block = bytearray(camera_block("<", 6))
    before = bytes(block)
    directory = tiff.first_directory(block)
    tiff.set_orientation(block, directory)
    changed = [n for n, (a, b) in enumerate(zip(before, block, strict=True)) if a != b]
    entry = directory.entry(274)
    assert entry is not None
    assert changed == [entry.place + 8]
