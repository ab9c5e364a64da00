"""Every kind of file against the values it was made of; what cannot be read."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diip_jax import images
from helpers.pictures import (
    GOOD_JPEG,
    GOOD_PNG,
    GOOD_TIFF,
    HEIGHT,
    WIDTH,
    by_pillow,
    by_pypng,
    by_tifffile,
    grey_tiff,
    opened,
    round_trip,
    samples,
    tiff,
    upright,
    with_chunks,
)

imagecodecs = pytest.importorskip("imagecodecs")
png = pytest.importorskip("png")
tifffile = pytest.importorskip("tifffile")


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


def test_tiff_kinds_that_only_tifffile_reads():
    """8-bit CMYK with alpha, and codecs that Pillow does not have."""
    array = samples(5)
    photo = images.read(
        by_tifffile(array, photometric="separated", extrasamples=["unassalpha"])
    )
    ink = array[..., :4] / 255
    expected = (1 - ink[..., :3]) * (1 - ink[..., 3:])
    np.testing.assert_allclose(photo.rgb, expected, atol=1e-6)  # float32 arithmetic
    np.testing.assert_array_equal(photo.alpha, array[..., 4])
    assert (photo.bits, photo.mode) == (8, "CMYKA")
    for codec in ("webp", "jpegxl"):
        array = np.kron(samples(3), np.ones((8, 8, 1), np.uint8))
        options = {"compressionargs": {"lossless": True}, "photometric": "rgb"}
        data = by_tifffile(array, compression=codec, **options)
        photo = images.read(data)
        np.testing.assert_array_equal(images.to_uint(photo.rgb, 8), array)
        assert (photo.bits, photo.mode) == (8, "RGB")


@pytest.mark.parametrize("bits", [8, 16])
def test_big_endian_bigtiff(bits, tmp_path):
    array = samples(3, bits)
    data = by_tifffile(array, photometric="rgb", bigtiff=True, byteorder=">")
    np.testing.assert_array_equal(round_trip(data, tmp_path)[1], array)


def test_lab_tiff():
    """Against the closed forms of CIE Lab and sRGB: white, a grey, and sRGB's red."""
    stored = struct.pack("3B Bbb Bbb", 255, 0, 0, 137, 0, 0, 138, 81, 70)
    photo = images.read(by_pillow(Image.frombytes("LAB", (3, 1), stored), "TIFF"))
    assert (photo.mode, photo.grey, photo.bits) == ("LAB", False, 8)
    # L* = 137 / 2.55: Y = ((L* + 16) / 116)^3 = 0.2170, which sRGB codes as 128.8.
    # The red of sRGB is L*a*b* = 54.3, 80.8, 69.9 under D50.
    expected = [[255, 255, 255], [128.8, 128.8, 128.8], [255, 0, 0]]
    # 3: steps of 0.4 in L* and 1 in a* and b*
    np.testing.assert_allclose(photo.rgb[0] * 255, expected, atol=3)


@pytest.mark.parametrize("strips", [1, 2])
@pytest.mark.parametrize(("across", "down"), [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_ycbcr_tiff(across, down, strips):
    """Blocks of luma with one pair of chroma, against the equations of BT.601."""
    height, width = 12, 16
    luma = np.random.default_rng(0).integers(0, 256, (height, width))
    small = (height // down, width // across, 2)
    chroma = np.random.default_rng(1).integers(90, 160, small)
    stored = bytearray()
    for row, column in np.ndindex(small[:2]):
        block = luma[row * down :, column * across :][:down, :across]
        stored += bytes([*block.ravel().tolist(), *chroma[row, column].tolist()])
    size = len(stored) // strips
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 6, 277: 3}
    values |= {278: height // strips}
    tags: dict = {tag: ("H", (value,)) for tag, value in values.items()}
    tags |= {258: ("H", (8, 8, 8)), 530: ("H", (across, down))}
    tags |= {273: ("I", (8, 8 + size)[:strips]), 279: ("I", (size,) * strips)}
    blue, red = np.moveaxis(chroma.repeat(down, 0).repeat(across, 1) - 128.0, 2, 0)
    green = luma - 0.344136 * blue - 0.714136 * red
    expected = np.dstack([luma + 1.402 * red, green, luma + 1.772 * blue])
    got = images.read(tiff(tags, bytes(stored))).rgb * 255
    # 1: Pillow rounds in tables
    np.testing.assert_allclose(got, expected.clip(0, 255), atol=1)


def test_a_tiff_that_begins_with_a_thumbnail(tmp_path):
    """The first page that is not a preview is the picture; its tags come first."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        options = {"photometric": "rgb", "metadata": None}
        tags = [(271, "s", 0, "small", True), (315, "s", 0, "Artist", True)]
        file.write(samples(3)[::2, ::2], subfiletype=1, extratags=tags, **options)
        tags = [(274, "H", 1, 6, True), (271, "s", 0, "large", True)]
        file.write(samples(3), extratags=tags, **options)
    photo, written, path = round_trip(buffer.getvalue(), tmp_path)
    np.testing.assert_array_equal(written, upright(samples(3), 6))
    assert photo.warnings == ()
    exif = opened(path).getexif()
    assert (exif[271], exif[315]) == ("large", "Artist")


@pytest.mark.parametrize("bits", [8, 16])
def test_an_extra_channel_of_a_tiff_is_reported(bits):
    data = by_tifffile(
        samples(4, bits), photometric="rgb", extrasamples=["unspecified"]
    )
    photo = images.read(data)
    assert photo.alpha is None
    np.testing.assert_array_equal(
        images.to_uint(photo.rgb, bits), samples(4, bits)[..., :3]
    )
    assert photo.warnings == (
        "channels that are neither colour nor alpha are not kept",
    )


@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_a_very_compressible_picture_is_not_damaged(kind, monkeypatch):
    """WebP of one colour and an empty fax; the limits are scaled down with the size."""
    monkeypatch.setattr("diip_jax.images.samples._SMALL", 1000)
    monkeypatch.setattr("diip_jax.images.samples._MAX_PIXELS_PER_BYTE", 1000)
    options = {"WEBP": {"lossless": True}, "TIFF": {"compression": "group4"}}[kind]
    image = Image.new("1" if kind == "TIFF" else "L", (1500, 1000), 1)
    data = by_pillow(image, kind, **options)
    assert 1000 * len(data) < 1500 * 1000
    assert images.read(data).stored_size == (1500, 1000)


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
    "camera raw": by_tifffile(samples(3), subfiletype=1, photometric="rgb"),
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


def test_suffixes_of_every_format_that_is_read_or_written():
    assert {".png", ".jpg", ".tif", ".webp", ".bmp"} <= images.READABLE_SUFFIXES
    assert all(s == s.lower() and s[0] == "." for s in images.READABLE_SUFFIXES)
