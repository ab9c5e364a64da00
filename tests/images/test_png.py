"""Chunks of PNG that are damaged or long; the picture is read all the same."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diip_jax import images
from diip_jax.images import png as chunks
from helpers.pictures import (
    GOOD_PNG,
    by_pillow,
    by_pypng,
    round_trip,
    samples,
    with_chunks,
)

NAMES = ("tEXt", "zTXt", "iTXt", "iCCP", "gAMA", "cHRM", "pHYs", "sBIT", "eXIf", "tRNS")


def assert_read(data, *warnings):
    photo = images.read(data)
    np.testing.assert_array_equal(images.to_uint(photo.rgb, 8), samples(3))
    assert photo.warnings == warnings
    return photo


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [8, 16])
def test_a_bad_checksum_of_an_ancillary_chunk(name, bits):
    data = bytearray(by_pypng(samples(3, bits), **{name: b"text\0\0more"}))
    data[data.index(name.encode()) + 4] ^= 1
    photo = images.read(bytes(data))
    np.testing.assert_array_equal(images.to_uint(photo.rgb, bits), samples(3, bits))
    assert photo.warnings == (f"the PNG chunk {name} is damaged and not used",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("zTXt", b"Raw profile type exif\0\0not deflate"),
        ("iTXt", b"XML:com.adobe.xmp\0\1\0\0\0not deflate"),
        ("iTXt", b"XML:com.adobe.xmp\0\1"),
        ("iCCP", b"x\0\0" + zlib.compress(bytes(5000))[:-8]),
        ("iCCP", b""),
        ("gAMA", b"\0"),
        ("cHRM", bytes(31)),
        ("tRNS", b"\0"),
        ("tEXt", b"Raw profile type exif\0\nexif\n4\nzz"),
    ],
)
def test_bad_content_of_an_ancillary_chunk(name, content):
    data = by_pypng(samples(3), **{name: content})
    assert_read(data, f"the PNG chunk {name} is damaged and not used")


@pytest.mark.parametrize("content", [b"", b"no separator", b"K\0\xff\xfe", b"\0\0\0"])
@pytest.mark.parametrize("name", ["tEXt", "zTXt", "iTXt"])
def test_text_that_nobody_needs_is_no_reason_for_anything(name, content):
    assert_read(by_pypng(samples(3), **{name: content}))


def test_text_is_kept_in_a_png_and_else_said_to_be_lost(tmp_path):
    texts = {
        "tEXt": b"Author\0J\xf6rg",
        "zTXt": b"Long\0\0" + zlib.compress(b"x" * 999),
    }
    texts["iTXt"] = b"Title\0\0\0de\0Titel\0" + "Süß".encode()
    photo, _, path = round_trip(by_pypng(samples(3), **texts), tmp_path)
    found = Image.open(path)
    found.load()
    assert found.text == {"Author": "Jörg", "Long": "x" * 999, "Title": "Süß"}
    assert photo.warnings == images.unkept(photo, "PNG") == ()
    lost = ("the text of the PNG is not kept: TIFF cannot hold it",)
    assert images.unkept(photo, "TIFF") == lost


def test_damaged_pixels_are_still_an_error():
    data = bytearray(GOOD_PNG)
    data[data.index(b"IDAT") + 4] ^= 1
    with pytest.raises(images.ImageError, match="damaged"):
        images.read(bytes(data))


def test_metadata_behind_the_pixels_are_found():
    first, *rest = [GOOD_PNG[:-12], GOOD_PNG[-12:]]
    gamma = chunks.chunk("gAMA", struct.pack(">I", 45455))
    photo = assert_read(first + gamma + rest[0])
    assert photo.colour == (("gAMA", struct.pack(">I", 45455)),)


@pytest.mark.parametrize("head", [b"", b"http://ns.adobe.com/xap/1.0/\0"])
def test_xmp_in_the_text_chunk_of_older_imagemagick(head):
    xmp = b"<x:xmpmeta/>"
    text = f"\nxmp\n{len(head + xmp):8}\n{(head + xmp).hex()}\n".encode()
    data = by_pypng(samples(3), tEXt=b"Raw profile type xmp\0" + text)
    assert assert_read(data).xmp == xmp


def test_compressed_xmp():
    xmp = b"<x:xmpmeta/>" * 100
    content = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)
    assert assert_read(by_pypng(samples(3), iTXt=content)).xmp == xmp


def test_a_profile_that_unpacks_without_end_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(chunks, "_LARGEST", 1000)
    data = by_pypng(samples(3), iCCP=b"x\0\0" + zlib.compress(bytes(1001)))
    assert_read(data, "the PNG chunk iCCP is damaged and not used")


@pytest.mark.parametrize("fault", ["sequence", "size", "count"])
def test_an_animation_that_is_broken_behind_its_first_frame(fault):
    frames = [Image.fromarray(samples(3)), Image.fromarray(samples(3, seed=1))]
    data = by_pillow(frames[0], "PNG", save_all=True, append_images=frames[1:])
    out = bytearray(data)
    second = data.index(b"fcTL", data.index(b"IDAT"))
    if fault == "sequence":
        struct.pack_into(">I", out, second + 4, 77)
    elif fault == "size":
        struct.pack_into(">II", out, second + 8, 9999, 9999)
    else:
        struct.pack_into(">I", out, data.index(b"acTL") + 4, 0)
    good = with_chunks(repaired(bytes(out)))
    assert_read(good, "only the first frame is used")


def repaired(data):
    """Return a PNG whose checksums are right again."""
    out, at = io.BytesIO(data[:8]), 8
    out.seek(8)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        out.write(data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return out.getvalue()
