"""Photos in, photos out: nothing may be lost between `read` and `write`.

Independent here: every input is written, and every output read, by Pillow, pypng,
imagecodecs, tifffile or a few lines of struct in this file, never by `images` itself;
upright pictures are built from the wording of the EXIF standard, one pixel at a time.
"""

import io
import logging
import os
import resource
import stat
import struct
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from diip_jax import images

imagecodecs = pytest.importorskip("imagecodecs")
tifffile = pytest.importorskip("tifffile")
png = pytest.importorskip("png")

HEIGHT, WIDTH = 5, 7
# EXIF 2.32, tag 274: the visual sides of the stored 0th row and of the 0th column.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP_START = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description dc:title="kept"'
XMP_END = b"></rdf:Description></x:xmpmeta>"
MODES_8 = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def samples(channels: int, bits: int = 8, seed: int = 0) -> np.ndarray:
    """Random samples, (H, W, C)."""
    rng = np.random.default_rng([seed, channels, bits])
    dtype = np.uint16 if bits > 8 else np.uint8
    return rng.integers(0, 2**bits, (HEIGHT, WIDTH, channels), dtype)


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Place every stored pixel where the EXIF standard says that it is seen."""
    rows, columns = stored.shape[:2]
    swapped = SIDES[orientation][0] in ("left", "right")
    height, width = (columns, rows) if swapped else (rows, columns)
    seen = np.zeros((height, width, *stored.shape[2:]), stored.dtype)
    for r in range(rows):
        for c in range(columns):
            place = {}
            for side, index in zip(SIDES[orientation], (r, c), strict=True):
                if side in ("top", "bottom"):
                    place["y"] = index if side == "top" else height - 1 - index
                else:
                    place["x"] = index if side == "left" else width - 1 - index
            seen[place["y"], place["x"]] = stored[r, c]
    return seen


def exif_block(orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    exif[271], exif[306] = "Maker", "2024:05:06 07:08:09"
    exif[34665] = {36867: "2023:01:02 03:04:05", 37500: b"maker note"}
    exif[34853] = {1: "N", 2: (52.0, 30.0, 15.0)}
    if orientation:
        exif[274] = orientation
    return exif.tobytes()


def by_pillow(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pypng(array: np.ndarray, **chunks: bytes) -> bytes:
    buffer, channels = io.BytesIO(), array.shape[2]
    writer = png.Writer(
        array.shape[1],
        array.shape[0],
        greyscale=channels < 3,
        alpha=channels in (2, 4),
        bitdepth=8 * array.itemsize,
    )
    writer.write(buffer, array.reshape(len(array), -1).tolist())
    return with_chunks(buffer.getvalue(), **chunks)


def with_chunks(data: bytes, **chunks: bytes) -> bytes:
    first, *rest = png.Reader(bytes=data).chunks()
    added = [(name.encode(), content) for name, content in chunks.items()]
    buffer = io.BytesIO()
    png.write_chunks(buffer, [first, *added, *rest])
    return buffer.getvalue()


def by_tifffile(array: np.ndarray, extratags=(), **options) -> bytes:
    buffer = io.BytesIO()
    tags = [(*tag, True) for tag in extratags]
    tifffile.imwrite(buffer, array, metadata=None, extratags=tags, **options)
    return buffer.getvalue()


def opened(path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def stored_samples(path) -> np.ndarray:
    """Read an output file, (H, W, C), with its own depth and number of channels."""
    if path.suffix == ".tiff":
        array = tifffile.imread(path)
    elif path.suffix == ".png":
        width, height, rows, info = png.Reader(bytes=path.read_bytes()).read()
        dtype = {8: np.uint8, 16: np.uint16}[info["bitdepth"]]
        array = np.array([list(row) for row in rows], dtype)
        array = array.reshape(height, width, info["planes"])
    else:
        array = np.asarray(opened(path))
    return array.reshape(*array.shape[:2], -1)


def round_trip(data: bytes, tmp_path, ext: str = "auto"):
    photo = images.read(data)
    path = tmp_path / f"out{images.output_suffix(photo, ext)}"
    images.write(path, photo.rgb, photo)
    return photo, stored_samples(path), path


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
        assert image.getexif().get(274) is None
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


@pytest.mark.parametrize("bits", [8, 16])
def test_to_uint_undoes_the_division_for_every_value(bits):
    values = np.arange(2**bits).astype(np.float32) / np.float32(2**bits - 1)
    np.testing.assert_array_equal(images.to_uint(values, bits), np.arange(2**bits))
    np.testing.assert_array_equal(images.to_uint([-1, 2], bits), [0, 2**bits - 1])


def test_to_uint_refuses_nan():
    with pytest.raises(images.ImageError, match="NaN"):
        images.to_uint(np.array([0.5, np.nan]), 8)


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


# Metadata.

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
def test_metadata_are_kept_without_orientation(source, ext, tmp_path):
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
        assert 274 not in exif
        assert (exif[271], exif[306]) == ("Maker", "2024:05:06 07:08:09")
        assert exif.get_ifd(34665)[36867] == "2023:01:02 03:04:05"
        assert exif.get_ifd(34665)[37500] == b"maker note"
        assert exif.get_ifd(34853)[2] == (52.0, 30.0, 15.0)
        assert info["icc_profile"] == SRGB
        assert info["xmp"] == XMP_START + XMP_END


@pytest.mark.parametrize("value", [0, 9])
def test_orientations_that_do_not_exist_are_dropped(value, tmp_path):
    tags = [(274, "H", 1, value)]
    for array in (samples(3), samples(3, 16)):
        data = by_tifffile(array, tags, photometric="rgb")
        photo, written, path = round_trip(data, tmp_path)
        assert photo.orientation == 1
        np.testing.assert_array_equal(written, array)
        assert 274 not in opened(path).getexif()
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
        assert kept.valueof(274) is None


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


# Mapping by value.


def tiff(tags: dict[int, tuple[str, tuple[int, ...]]], pixels: bytes) -> bytes:
    """A little-endian TIFF of one strip, from the layout tables of TIFF 6.0."""
    tags = dict(sorted((tags | {273: ("I", (8,)), 279: ("I", (len(pixels),))}).items()))
    start = 8 + len(pixels) + len(pixels) % 2
    spare, entries = start + 2 + 12 * len(tags) + 4, b""
    tail = b""
    for tag, (code, values) in tags.items():
        packed = struct.pack(f"<{len(values)}{code}", *values)
        if len(packed) > 4:
            tail, packed = tail + packed, struct.pack("<I", spare + len(tail))
        kind = {"H": 3, "I": 4}[code]
        entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", start) + pixels.ljust(start - 8, b"\0")
    return head + struct.pack("<H", len(tags)) + entries + bytes(4) + tail


def grey_tiff(array: np.ndarray, bits: int, photometric: int, sample_format: int):
    values = {256: array.shape[1], 257: array.shape[0], 258: bits, 259: 1, 277: 1}
    values |= {262: photometric, 278: array.shape[0], 339: sample_format}
    return tiff({tag: ("H", (v,)) for tag, v in values.items()}, array.tobytes())


def test_one_bit():
    bits = samples(1)[..., 0] > 127
    photo = images.read(by_pillow(Image.fromarray(bits), "PNG"))
    assert (photo.mode, photo.grey, photo.bits) == ("1", True, 8)
    np.testing.assert_array_equal(photo.rgb[..., 0], bits)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_shallow_grey_png_with_a_transparent_value(depth):
    top = 2**depth - 1
    values = samples(1)[..., 0] % (top + 1)
    buffer = io.BytesIO()
    writer = png.Writer(
        WIDTH, HEIGHT, greyscale=True, bitdepth=depth, transparent=top - 1
    )
    writer.write(buffer, values.tolist())
    photo = images.read(buffer.getvalue())
    np.testing.assert_array_equal(photo.rgb[..., 1], np.float32(values / top))
    np.testing.assert_array_equal(photo.alpha, np.where(values == top - 1, 0, 255))


def test_deep_png_with_a_transparent_value(tmp_path):
    for channels in (1, 3):
        array = samples(channels, 16)
        key = struct.pack(f">{channels}H", *array[2, 3])
        _, written, _ = round_trip(by_pypng(array, tRNS=key), tmp_path)
        hidden = (array == array[2, 3]).all(axis=2)
        np.testing.assert_array_equal(written[..., :-1], array)
        np.testing.assert_array_equal(written[..., -1], np.where(hidden, 0, 65535))


def test_palette_of_greys_is_grey(tmp_path):
    image = Image.frombytes("P", (WIDTH, HEIGHT), samples(1).tobytes())
    image.putpalette(np.repeat(np.arange(255, -1, -1, np.uint8), 3).tobytes())
    photo, written, _ = round_trip(by_pillow(image, "PNG"), tmp_path)
    assert (photo.mode, photo.grey) == ("P", True)
    np.testing.assert_array_equal(written, 255 - samples(1))


def test_ycck_jpeg():
    ink = np.full((8, 8, 4), (10, 80, 150, 40), np.uint8)
    data = imagecodecs.jpeg8_encode(
        ink, level=100, colorspace="CMYK", outcolorspace="YCCK"
    )
    assert Image.open(io.BytesIO(data)).info["adobe_transform"] == 2
    # Adobe stores inverted ink; imagecodecs stores what it is given.
    expected = ink[0, 0, :3] / 255 * (40 / 255)
    # 2/255: the rounding of YCC and of the DCT at quality 100.
    np.testing.assert_allclose(images.read(data).rgb[0, 0], expected, atol=2 / 255)


@pytest.mark.parametrize("dtype", ["<i2", "<i4", "<u4"])
def test_wide_integers_hold_16_bit_values(dtype, tmp_path):
    array = samples(1, 16) % (32768 if dtype == "<i2" else 65535)
    sample_format = 2 if "i" in dtype else 1
    wide = array[..., 0].astype(dtype)
    data = grey_tiff(wide, 8 * wide.itemsize, 1, sample_format)
    photo, written, _ = round_trip(data, tmp_path)
    assert (photo.bits, photo.grey) == (16, True)
    np.testing.assert_array_equal(written, array)


def test_float_samples_are_kept_as_they_are():
    array = np.random.default_rng(0).random((HEIGHT, WIDTH, 3), np.float32)
    photo = images.read(by_tifffile(array, photometric="rgb"))
    assert (photo.mode, photo.bits) == ("RGB;32F", 16)
    np.testing.assert_array_equal(photo.rgb, array)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, 255.0, np.inf])
def test_float_samples_outside_the_range_are_refused(value):
    array = np.full((2, 2), value, np.float32)
    with pytest.raises(images.ImageError, match=r"not in \[0, 1\]"):
        images.read(by_tifffile(array))


@pytest.mark.parametrize(("dtype", "value"), [("i4", -1), ("u4", 70000), ("i2", -5)])
def test_integers_outside_16_bits_are_refused(dtype, value):
    with pytest.raises(images.ImageError, match=r"not in 0\.\.65535"):
        images.read(by_tifffile(np.full((2, 2), value, dtype)))


def test_twelve_bit_tiff_uses_its_own_white():
    values = samples(1, 12)[:, :6, 0]
    packed = np.frombuffer(imagecodecs.packints_encode(values, 12), np.uint8)
    data = tiff(
        {
            256: ("I", (6,)),
            257: ("I", (HEIGHT,)),
            258: ("H", (12,)),
            259: ("H", (1,)),
            262: ("H", (1,)),
            277: ("H", (1,)),
            278: ("I", (HEIGHT,)),
        },
        packed.tobytes(),
    )
    photo = images.read(data)
    # 1e-7: one division in float32.
    np.testing.assert_allclose(photo.rgb[..., 0], values / 4095, atol=1e-7)
    assert (photo.bits, photo.mode) == (16, "L;12")


def test_white_is_zero_tiff(tmp_path):
    array = samples(1, 16)
    data = grey_tiff(array[..., 0], 16, 0, 1)
    _, written, _ = round_trip(data, tmp_path)
    np.testing.assert_array_equal(written, 65535 - array)


TIFF_FORMS = {
    "tiled": {"tile": (16, 16)},
    "big": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "strips": {"rowsperstrip": 2, "compression": "lzw"},
    "predictor": {"compression": "zlib", "predictor": True},
}


@pytest.mark.parametrize("form", TIFF_FORMS)
@pytest.mark.parametrize("bits", [8, 16])
def test_forms_of_tiff(form, bits, tmp_path):
    array = samples(3, bits)
    tags = [(274, "H", 1, 5), (271, "s", 0, "Maker")]
    data = by_tifffile(array, tags, photometric="rgb", **TIFF_FORMS[form])
    photo, written, path = round_trip(data, tmp_path)
    np.testing.assert_array_equal(written, upright(array, 5))
    assert photo.warnings == ()
    assert opened(path).getexif()[271] == "Maker"


@pytest.mark.parametrize("bits", [8, 16])
def test_planar_tiff(bits, tmp_path):
    array = samples(3, bits)
    planes = np.moveaxis(array, 2, 0)
    data = by_tifffile(planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(round_trip(data, tmp_path)[1], array)


def test_cmyk_tiff_of_16_bits():
    ink = samples(4, 16)
    photo = images.read(by_tifffile(ink, photometric="separated"))
    expected = (1 - ink[..., :3] / 65535) * (1 - ink[..., 3:] / 65535)
    np.testing.assert_allclose(photo.rgb, expected, atol=1e-6)  # float32 arithmetic


def test_premultiplied_alpha_is_divided_out(tmp_path):
    straight, alpha = samples(3, 16), samples(1, 16)
    alpha[0, 0] = 0
    stored = np.rint(straight * (alpha / 65535)).astype(np.uint16)
    data = by_tifffile(
        np.dstack([stored, alpha]), photometric="rgb", extrasamples=["assocalpha"]
    )
    photo, written, _ = round_trip(data, tmp_path)
    np.testing.assert_array_equal(written[..., 3:], alpha)
    assert (photo.rgb[0, 0] == 0).all()
    # The stored product is rounded to 0.5, which dividing by alpha magnifies.
    slack = 0.5 / np.maximum(alpha, 1) + 1e-6
    error = np.abs(photo.rgb - straight / 65535)
    assert (error <= slack)[alpha[..., 0] > 0].all()


def test_channels_that_are_not_alpha_are_reported():
    array = samples(4, 16)
    data = by_tifffile(array, photometric="rgb", extrasamples=["unspecified"])
    photo = images.read(data)
    assert photo.alpha is None
    assert "neither colour nor alpha" in photo.warnings[0]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_only_the_first_frame_is_used(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = by_pillow(
        frames[0], kind, save_all=True, append_images=frames[1:], **(
            {"lossless": True} if kind == "WEBP" else {}
        )
    )  # fmt: skip
    photo = images.read(data)
    assert photo.warnings == ("only the first frame is used",)
    assert (photo.rgb == [1, 0, 0]).all()


def test_deep_tiff_pages_are_reported():
    pages = np.stack([samples(1, 16)[..., 0]] * 2)
    photo = images.read(by_tifffile(pages, photometric="minisblack"))
    assert photo.warnings == ("only the first frame is used",)


def test_ten_bit_avif_is_reported():
    try:
        data = imagecodecs.avif_encode(samples(3, 10), bitspersample=10)
        Image.open(io.BytesIO(data))
    except (OSError, AttributeError, ImportError):
        pytest.skip("no AVIF here")
    assert images.read(data).warnings == ("samples of more than 8 bits are read as 8",)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_bmp(mode, tmp_path):
    image = Image.fromarray(samples(3)).convert(mode)
    photo, written, path = round_trip(by_pillow(image, "BMP"), tmp_path)
    assert (photo.format, path.suffix) == ("BMP", ".png")
    assert photo.grey == (mode in ("L", "1"))
    target = {"P": "RGB", "1": "L"}.get(mode, mode)
    expected = np.asarray(image.convert(target)).reshape(HEIGHT, WIDTH, -1)
    np.testing.assert_array_equal(written, expected)


def test_mpo_of_a_phone():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = by_pillow(frames[0], "MPO", save_all=True, append_images=frames[1:])
    photo = images.read(data)
    assert photo.format == "MPO"
    assert images.output_suffix(photo) == ".png"


def test_avif_under_its_general_brand():
    data = by_pillow(samples(3), "AVIF")
    general = data.replace(b"ftypavif", b"ftypmif1", 1)
    np.testing.assert_array_equal(images.read(general).rgb, images.read(data).rgb)


def test_heic_gets_a_clear_line(monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(images.ImageError, match=r"HEIF is not read here; convert it"):
        images.read(b"\0\0\0\x18ftypheic" + bytes(40))


# Writing.


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
        (tmp_path / "folder.png", "Is a directory"),
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


# Reading what cannot be read.

GOOD_PNG = by_pypng(samples(3))
GOOD_JPEG = by_pillow(np.kron(samples(3), np.ones((20, 20, 1), np.uint8)), "JPEG")
GOOD_TIFF = by_tifffile(samples(3, 16), photometric="rgb")
BOMB = struct.pack(">II", 60_000, 60_000) + GOOD_PNG[24:29]
SPARSE = tiff(
    {
        256: ("I", (4000,)),
        257: ("I", (4000,)),
        258: ("H", (16,)),
        262: ("H", (1,)),
        277: ("H", (1,)),
        278: ("I", (4000,)),
    },
    b"",
)
# The width as text: Pillow hands out a string, and "text" * height is a long one.
TEXT_WIDTH = GOOD_TIFF.replace(
    struct.pack("<HHI", 256, 4, 1), struct.pack("<HHI", 256, 2, 4)
)
BAD = {
    "empty": b"",
    "text": b"I am not a picture\n" * 20,
    "signature only": GOOD_PNG[:8],
    "cut header": GOOD_PNG[:20],
    "cut pixels": GOOD_PNG[:60],
    "cut jpeg": GOOD_JPEG[: len(GOOD_JPEG) // 2],
    "cut deep tiff": GOOD_TIFF[:-10],
    "tiff without samples": SPARSE,
    "tiff with text for numbers": TEXT_WIDTH,
    "bmp header": b"BM" + bytes(60),
    "cut webp": by_pillow(samples(3), "WEBP")[:40],
    "cut gif": by_pillow(samples(1), "GIF")[:20],
    "bomb": GOOD_PNG[:16] + BOMB + struct.pack(">I", zlib.crc32(b"IHDR" + BOMB))
    + GOOD_PNG[33:],
    "lying png": with_chunks(GOOD_PNG)[:16] + b"\0\0\x30\0\0\0\x30\0" + GOOD_PNG[24:],
    "raw": by_tifffile(samples(3), [(50706, "B", 4, (1, 4, 0, 0))], photometric="rgb"),
    "lab": by_pillow(Image.new("LAB", (4, 4)), "TIFF"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_line_with_the_name(name, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(BAD[name])
    with pytest.raises(images.ImageError) as caught:
        images.read(path)
    message = str(caught.value)
    assert message.startswith(f"cannot read {path}: ")
    assert ";" in message  # the remedy
    assert "\n" not in message
    assert " 0x" not in message  # no address of a Python object


def test_bad_places(tmp_path):
    for path, reason in (
        (tmp_path / "missing.png", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "nul\0.png", "null byte"),
    ):
        with pytest.raises(images.ImageError, match=reason):
            images.read(path)


def test_a_bomb_names_the_flag_and_is_not_decoded():
    with pytest.raises(images.ImageError, match="pass --max_pixels 3600000000"):
        images.read(BAD["bomb"])
    with pytest.raises(images.ImageError, match="7x5 is more than 34 pixels"):
        images.read(GOOD_PNG, max_pixels=34)
    assert images.read(GOOD_PNG, max_pixels=35).rgb.shape == (HEIGHT, WIDTH, 3)


def test_the_limit_is_ours_and_pillows_is_put_back(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    before = list(warnings.filters)
    assert images.read(GOOD_PNG).rgb.shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(images.ImageError):
        images.read(BAD["cut jpeg"])
    assert Image.MAX_IMAGE_PIXELS == 10
    assert list(warnings.filters) == before
    assert not logging.getLogger("tifffile").disabled


def test_threads_read_without_disturbing_each_other():
    before = list(warnings.filters)
    found = []

    def work():
        for _ in range(20):
            found.append(images.read(GOOD_TIFF).rgb.sum())
            found.append(images.read(GOOD_PNG).rgb.sum())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 160
    assert len(set(found)) == 2
    assert list(warnings.filters) == before
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("module", ["imagecodecs", "tifffile"])
def test_a_missing_extra_is_named(module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    deep = by_pypng(samples(3, 16)) if module == "imagecodecs" else GOOD_TIFF
    with pytest.raises(images.ImageError, match=r'pip install "diip-jax\[hidepth\]"'):
        images.read(deep)
    # Grey PNG of 16 bits, and everything of 8, needs Pillow only.
    np.testing.assert_array_equal(
        round_trip(by_pypng(samples(1, 16)), tmp_path)[1], samples(1, 16)
    )
    assert images.read(GOOD_JPEG).bits == 8


def test_bytes_files_and_paths_give_the_same(tmp_path):
    path = tmp_path / "päth.png"
    path.write_bytes(GOOD_PNG)
    photos = [images.read(s) for s in (GOOD_PNG, io.BytesIO(GOOD_PNG), path, str(path))]
    for other in photos[1:]:
        np.testing.assert_array_equal(other.rgb, photos[0].rgb)
    with open(path, "rb") as file:
        assert images.read(file).format == "PNG"
        assert not file.closed


def test_suffixes_of_every_format_that_is_read_or_written():
    assert {".png", ".jpg", ".tif", ".webp", ".bmp"} <= images.READABLE_SUFFIXES
    assert all(s == s.lower() and s[0] == "." for s in images.READABLE_SUFFIXES)
