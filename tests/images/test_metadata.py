"""EXIF, XMP, ICC and TIFF tags, written and read back by Pillow and tifffile."""

import zlib

import numpy as np
import pytest
from PIL import Image

from diip_jax import images
from helpers.pictures import (
    HEIGHT,
    SRGB,
    WIDTH,
    XMP_END,
    XMP_START,
    by_pillow,
    by_pypng,
    by_tifffile,
    exif_block,
    opened,
    round_trip,
    samples,
    upright,
    with_chunks,
)

tifffile = pytest.importorskip("tifffile")

SOURCES = {
    "PNG": lambda meta: by_pillow(samples(3), "PNG", **meta),
    "JPEG": lambda meta: by_pillow(samples(3), "JPEG", **meta),
    "WEBP": lambda meta: by_pillow(samples(3), "WEBP", lossless=True, **meta),
    "AVIF": lambda meta: by_pillow(samples(3), "AVIF", **meta),
    "TIFF": lambda meta: by_pillow(samples(3), "TIFF", **meta),
    "PNG;16": lambda meta: with_chunks(
        by_pypng(samples(3, 16)),
        eXIf=meta["exif"][6:],
        iCCP=b"x\0\0" + zlib.compress(meta["icc_profile"]),
        iTXt=b"XML:com.adobe.xmp\0\0\0\0\0" + meta["xmp"],
    ),
}


@pytest.mark.parametrize("ext", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("source", SOURCES)
def test_metadata_are_kept_upright(source, ext, tmp_path):
    """EXIF with its sub-directories, ICC and XMP, between every pair of formats."""
    tag = b' tiff:Orientation="6"'
    meta = {
        "exif": exif_block(6),
        "icc_profile": SRGB,
        "xmp": XMP_START + tag + XMP_END,
    }
    if source == "PNG":  # Pillow 11 has no xmp= for PNG
        data = with_chunks(
            SOURCES[source](meta),
            iTXt=b"XML:com.adobe.xmp\0\0\0\0\0" + meta.pop("xmp"),
        )
    elif source == "TIFF":
        exif = Image.Exif()
        exif.load(meta["exif"])
        exif[700] = meta.pop("xmp")
        data = SOURCES[source](meta | {"exif": exif})
    else:
        data = SOURCES[source](meta)
    photo, _, path = round_trip(data, tmp_path, ext)
    assert photo.orientation == 6
    assert photo.warnings == ()
    assert images.read(path).orientation == 1
    with opened(path) as image:
        assert image.size == (HEIGHT, WIDTH)
        image.load()
        exif, info = image.getexif(), image.info
        assert exif[274] == 1
        assert (exif[271], exif[306]) == ("Maker", "2024:05:06 07:08:09")
        assert exif.get_ifd(34665)[36867] == "2023:01:02 03:04:05"
        assert exif.get_ifd(34665)[37500] == b"maker note"
        assert exif.get_ifd(34853)[2] == (52.0, 30.0, 15.0)
        assert info["icc_profile"] == SRGB
        assert info["xmp"] == XMP_START + XMP_END


@pytest.mark.parametrize("value", [0, 9])
def test_orientations_that_do_not_exist_become_upright(value, tmp_path):
    tags = [(274, "H", 1, value)]
    for array in (samples(3), samples(3, 16)):
        data = by_tifffile(array, tags, photometric="rgb")
        photo, written, path = round_trip(data, tmp_path)
        assert photo.orientation == 1
        np.testing.assert_array_equal(written, array)
        assert opened(path).getexif()[274] == 1
    photo = images.read(by_pillow(samples(3), "JPEG", exif=exif_block(9)))
    assert (photo.orientation, photo.rgb.shape) == (1, (HEIGHT, WIDTH, 3))


def test_metadata_of_a_deep_tiff(tmp_path):
    xmp = XMP_START + XMP_END
    tags = [(700, "B", len(xmp), xmp), (315, "s", 0, "Artist"), (274, "H", 1, 8)]
    data = by_tifffile(samples(3, 16), tags, photometric="rgb", iccprofile=SRGB)
    _, written, path = round_trip(data, tmp_path)
    np.testing.assert_array_equal(written, upright(samples(3, 16), 8))
    with tifffile.TiffFile(path) as file:
        kept = file.pages.first.tags
        assert kept.valueof(700) == xmp
        assert kept.valueof(34675) == SRGB
        assert kept.valueof(315) == "Artist"
        assert kept.valueof(274) == 1


@pytest.mark.parametrize(
    "xmp",
    [
        XMP_START + b"\n tiff:Orientation='8'" + XMP_END,
        XMP_START + b"><tiff:Orientation> 8 </tiff:Orientation" + XMP_END,
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP"])
def test_orientation_only_in_xmp(kind, xmp):
    """Viewers such as Pillow's exif_transpose fall back on XMP."""
    exif = Image.Exif()
    options = {"xmp": xmp}
    if kind == "TIFF":
        exif[700] = xmp
        options = {"exif": exif}
    photo = images.read(by_pillow(samples(3), kind, **options))
    assert (photo.orientation, photo.rgb.shape) == (8, (WIDTH, HEIGHT, 3))
    assert photo.xmp is not None
    assert b"Orientation" not in photo.xmp
    assert b'dc:title="kept"' in photo.xmp


def test_exif_in_the_text_chunk_of_older_imagemagick():
    block = exif_block(6)
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    data = by_pypng(samples(3), zTXt=b"Raw profile type exif\0\0" + zlib.compress(text))
    photo = images.read(data)
    assert photo.orientation == 6
    assert photo.exif is not None


def test_damaged_exif_is_reported_and_the_picture_read():
    data = by_pillow(samples(3), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    photo = images.read(data)
    assert photo.exif is None
    data = by_pypng(samples(3), eXIf=b"not a TIFF")
    photo = images.read(data)
    assert photo.warnings == ("the EXIF data are damaged and not kept",)


def test_cmyk_profile_is_not_put_into_an_rgb_file(tmp_path):
    image = Image.frombytes("CMYK", (WIDTH, HEIGHT), samples(4).tobytes())
    data = by_pillow(image, "JPEG", icc_profile=b"x" * 16 + b"CMYK")
    photo, _, path = round_trip(data, tmp_path)
    assert "CMYK profile" in photo.warnings[0]
    assert "icc_profile" not in opened(path).info
