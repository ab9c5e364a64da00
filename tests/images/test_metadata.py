"""EXIF, XMP, ICC, resolution and colour tags: from every format into every format.

Blocks are made, and read back, by `helpers.exif_blocks`; files by Pillow and tifffile.
"""

import io
import itertools
import json
import shutil
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image

from diip_jax import images
from helpers.exif_blocks import (
    NOTE,
    camera_block,
    camera_tiff,
    contents,
    order_of,
    patched,
    place_of,
)
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
)

png = pytest.importorskip("png")
tifffile = pytest.importorskip("tifffile")

XMP = XMP_START + XMP_END
TURNED_XMP = XMP_START + b' tiff:Orientation="6"' + XMP_END
# Rec. 2020 as PNG tells it, and what TIFF makes of it.
CHRM = struct.pack(">8I", 31270, 32900, 70800, 29200, 17000, 79700, 13100, 4600)
COLOUR = {"cHRM": CHRM, "gAMA": struct.pack(">I", 41667), "cICP": b"\x09\x10\0\1"}
COLOUR |= {"mDCV": bytes(range(24)), "cLLI": bytes(range(8))}
DPI = (300, 300)
DENSITY = struct.pack(">IIB", 11811, 11811, 1)
XMP_CHUNK = b"XML:com.adobe.xmp\0\0\0\0\0" + TURNED_XMP
OUTPUTS = ("png", "tiff", "webp", "jpg")

# Sources: (bytes of the file, the EXIF block without "Exif", names of colour tags).


def from_png(bits, order):
    def make():
        block = camera_block(order)
        chunks = COLOUR | {"eXIf": block, "pHYs": DENSITY, "iTXt": XMP_CHUNK}
        chunks["iCCP"] = b"x\0\0" + zlib.compress(SRGB)
        return by_pypng(samples(3, bits), **chunks), block, set(COLOUR)

    return make


def from_pillow(kind, order, **options):
    def make():
        block = camera_block(order)
        meta = {"exif": b"Exif\0\0" + block, "icc_profile": SRGB, "xmp": TURNED_XMP}
        return by_pillow(samples(3), kind, **meta, **options), block, set()

    return make


def from_avif(order):
    """Pillow would write EXIF anew; so it gets a block that it leaves alone."""

    def make():
        block = camera_block(order)
        turn, other = (struct.pack(f"{order}HHI", tag, 3, 1) for tag in (274, 269))
        hidden = block.replace(turn, other)
        meta = {"icc_profile": SRGB, "xmp": TURNED_XMP, "exif": hidden}
        return (
            by_pillow(samples(3), "AVIF", **meta).replace(hidden, block),
            block,
            set(),
        )

    return make


def from_tiff(order):
    def make():
        rational = struct.pack(f"{order}2I", 300, 1)
        points = np.array(struct.unpack(">8I", CHRM), "u4")
        points = np.stack([points, np.full(8, 100_000, "u4")], 1)
        points = points.astype(f"{order}u4").tobytes()
        extra = [
            (282, 5, 1, rational),
            (283, 5, 1, rational),
            (296, 3, 1, struct.pack(f"{order}H", 2)),
            (318, 5, 2, points[:16]),
            (319, 5, 6, points[16:]),
            (700, 1, len(TURNED_XMP), TURNED_XMP),
            (34675, 7, len(SRGB), SRGB),
        ]
        data = camera_tiff(order, samples(3), extra=extra)
        return data, data, {"cHRM"}

    return make


SOURCES = {
    "PNG": from_png(8, "<"),
    "PNG of 16 bits": from_png(16, ">"),
    "JPEG": from_pillow("JPEG", "<", dpi=DPI),
    "JPEG, big-endian": from_pillow("JPEG", ">", dpi=DPI),
    "WEBP": from_pillow("WEBP", ">", lossless=True),
    "AVIF": from_avif("<"),
    "TIFF": from_tiff("<"),
    "TIFF, big-endian": from_tiff(">"),
}
# Tags of TIFF that say how its samples lie, or that are compared apart.
LAYOUT = {256, 257, 258, 259, 262, 273, 277, 278, 279, 317, 338}
APART = {282, 283, 296, 318, 319, 700, 34675}


def chunks_of(path):
    chunks = {}
    for name, content in png.Reader(bytes=path.read_bytes()).chunks():
        chunks.setdefault(name.decode(), content)
    return chunks


def stored_block(path):
    """Return the EXIF block of a file, or the whole file if it is a TIFF."""
    if path.suffix == ".tiff":
        return path.read_bytes()
    if path.suffix == ".png":
        return chunks_of(path)["eXIf"]
    with opened(path) as image:
        return image.info["exif"].removeprefix(b"Exif\0\0")


def metadata_of(block):
    """Return what a block tells, without the thumbnail and what is compared apart."""
    found = contents(block)
    return {
        place: value
        for place, value in found.items()
        if place[0] != "thumbnail" and place[1] not in LAYOUT | APART | {274}
    }


def lost(photo, path):
    """Return what `unkept` says of a file, without the reason."""
    said = images.unkept(photo, images.file_format(path))
    return [sentence.partition(" is not kept")[0] for sentence in said]


@pytest.mark.parametrize("ext", OUTPUTS)
@pytest.mark.parametrize("source", SOURCES)
def test_exif_of_every_format_in_every_format(source, ext, tmp_path):
    """Bytes of a block are equal but for orientation and thumbnail; so is a TIFF's."""
    data, block, _ = SOURCES[source]()
    photo, _, path = round_trip(data, tmp_path, ext)
    # AVIF is turned by a box of its own, which this file lacks.
    assert (photo.orientation, photo.warnings) == (1 if source == "AVIF" else 6, ())
    stored = stored_block(path)
    assert metadata_of(stored) == metadata_of(block)
    assert ("", 513) not in contents(stored)
    assert contents(stored)["", 274][2] == struct.pack(f"{order_of(block)}H", 1)
    # Offsets in the maker's note count from the start of the block.
    assert place_of(stored, NOTE) == place_of(block, NOTE)
    if "TIFF" not in source:
        assert stored[8 : len(block)] == patched(block)[8:]
    if "TIFF" not in source and ext != "tiff":
        assert stored == patched(block)
    again = images.read(path)
    assert (again.orientation, again.rgb.shape) == (1, photo.rgb.shape)


@pytest.mark.parametrize("ext", OUTPUTS)
@pytest.mark.parametrize("source", SOURCES)
def test_icc_and_xmp_of_every_format_in_every_format(source, ext, tmp_path):
    _, _, path = round_trip(SOURCES[source]()[0], tmp_path, ext)
    with opened(path) as image:
        image.load()
        assert image.info["icc_profile"] == SRGB
        assert image.info["xmp"] == XMP


@pytest.mark.parametrize("ext", OUTPUTS)
@pytest.mark.parametrize("source", SOURCES)
def test_dpi_of_every_format_in_every_format(source, ext, tmp_path):
    photo, _, path = round_trip(SOURCES[source]()[0], tmp_path, ext)
    with opened(path) as image:
        dpi = image.info.get("dpi") if ext != "webp" else image.getexif().get(282)
    if source in ("WEBP", "AVIF"):
        assert photo.dpi is None
    elif dpi is None:
        assert "the resolution" in lost(photo, path)
        assert ext == "webp"
    else:  # 1e-5: a PNG counts whole dots in a metre
        np.testing.assert_allclose(np.float64(dpi), DPI, rtol=1e-5)
        assert "the resolution" not in lost(photo, path)


@pytest.mark.parametrize("unit", [2, 3])
def test_dpi_of_a_tiff_keep_fraction_and_unit(unit, tmp_path):
    fraction, unit_value = struct.pack("<2I", 1181000, 10000), struct.pack("<H", unit)
    extra = [(282, 5, 1, fraction), (283, 5, 1, fraction), (296, 3, 1, unit_value)]
    data = camera_tiff("<", samples(3), extra=extra)
    found = contents(round_trip(data, tmp_path)[2].read_bytes())
    assert found["", 282] == found["", 283] == (5, 1, fraction)
    assert found["", 296] == (3, 1, unit_value)


def test_exif_keeps_its_own_dpi_in_a_tiff(tmp_path):
    """A camera's 300, in a file that a program has marked with its default of 72."""
    exif = Image.Exif()
    exif.load(exif_block())
    exif[282], exif[283], exif[296] = 300.0, 300.0, 2
    data = by_pillow(samples(3), "JPEG", exif=exif, dpi=(72, 72))
    photo, _, path = round_trip(data, tmp_path, "tiff")
    assert opened(path).info["dpi"] == (300, 300)
    assert lost(photo, path) == ["the resolution"]
    images.write(tmp_path / "x.jpg", photo.rgb, photo)
    assert opened(tmp_path / "x.jpg").info["jfif_density"] == (72, 72)


@pytest.mark.parametrize("ext", ["png", "tiff", "jpg"])
def test_unequal_dpi_turn_with_the_picture(ext, tmp_path):
    tags = [(274, "H", 1, 6)]
    options = {"photometric": "rgb", "resolution": (100, 200), "resolutionunit": 2}
    data = by_tifffile(samples(3), tags, **options)
    path = round_trip(data, tmp_path, ext)[2]
    # 1e-4: a PNG counts whole dots in a metre
    dpi = np.float64(opened(path).info["dpi"])
    np.testing.assert_allclose(dpi, (200, 100), rtol=1e-4)


@pytest.mark.parametrize("ext", OUTPUTS)
@pytest.mark.parametrize("source", SOURCES)
def test_colour_tags_of_every_format_in_every_format(source, ext, tmp_path):
    """Kept, or named in a warning."""
    data, _, names = SOURCES[source]()
    photo, _, path = round_trip(data, tmp_path, ext)
    assert {name for name, _ in photo.colour} == names
    kept = set()
    if ext == "png":
        kept = {name for name in names if chunks_of(path)[name] == COLOUR[name]}
    stored = contents(stored_block(path))
    if ("", 318) in stored:
        points = stored["", 318][2] + stored["", 319][2]
        order = f"{order_of(stored_block(path))}u4"
        values = np.frombuffer(points, order).reshape(8, 2)
        assert (values[:, 1] == 100_000).all()
        assert tuple(values[:, 0]) == struct.unpack(">8I", CHRM)
        kept.add("cHRM")
    said = {s.removeprefix("the PNG colour tag ") for s in lost(photo, path)}
    assert names - kept == said & set(COLOUR)
    assert not (kept & said)


@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("ext", OUTPUTS)
def test_metadata_of_pillow_as_pillow_reads_it(source, ext, tmp_path):
    """A second opinion, of the library that made the block."""
    exif = Image.Exif()
    exif.load(exif_block(6))
    photo, _, path = round_trip(by_pillow(samples(3), source, exif=exif), tmp_path, ext)
    assert (photo.orientation, photo.warnings) == (6, ())
    assert images.unkept(photo, images.file_format(path)) == ()
    with opened(path) as image:
        exif = image.getexif()
        assert (exif[271], exif[306]) == ("Maker", "2024:05:06 07:08:09")
        assert exif.get_ifd(34665)[36867] == "2023:01:02 03:04:05"
        assert exif.get_ifd(34665)[37500] == b"maker note"
        assert exif.get_ifd(34853)[2] == (52.0, 30.0, 15.0)


def told_by_exiftool(paths):
    """Return what ExifTool finds in the EXIF of files, makers' notes as bytes."""
    command = ["exiftool", "-json", "-G1", "-U", "-n", "-b", "-EXIF:all", *paths]
    out = subprocess.run(command, capture_output=True, check=True).stdout
    groups = ("IFD0:", "ExifIFD:", "GPS:", "InteropIFD:")
    return [{k: v for k, v in one.items() if k.startswith(groups)}
            for one in json.loads(out)]  # fmt: skip


def test_metadata_as_exiftool_reads_them(tmp_path):
    if shutil.which("exiftool") is None:
        pytest.skip("ExifTool is not installed")
    pairs = []
    for number, (source, ext) in enumerate(itertools.product(SOURCES, OUTPUTS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "before").write_bytes(SOURCES[source]()[0])
        data = (folder / "before").read_bytes()
        pairs.append((folder / "before", round_trip(data, folder, ext)[2]))
    told = told_by_exiftool([path for pair in pairs for path in pair])
    # How the samples lie, and what is compared apart.
    apart = ("Image", "Bits", "Compr", "Photom", "Strip", "Samples", "Rows", "Plan")
    apart += ("XRes", "YRes", "Res", "White", "Primary", "Orientation")
    own = tuple(f"IFD0:{name}" for name in apart)
    for before, after in zip(told[::2], told[1::2], strict=True):
        kept = {k: v for k, v in before.items() if not k.startswith(own)}
        assert {"ExifIFD:DateTimeOriginal", "GPS:GPSLatitude"} <= set(kept)
        assert kept["IFD0:Copyright"] == "© Jörg Šimek"
        assert {k: after.get(k) for k in kept} == kept


def test_umlauts_in_exif_survive():
    text = "© Jörg\0".encode()
    head = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 33432, 2, len(text), 26, 0)
    data = by_pillow(samples(3), "JPEG", exif=b"Exif\0\0" + head + text)
    photo = images.read(data)
    assert photo.exif == b"Exif\0\0" + head + text
    for kind in ("PNG", "TIFF", "WEBP", "JPEG"):
        assert text in images.encode(photo.rgb, photo, kind)


@pytest.mark.parametrize(("kind", "value"), [("H", 6), ("I", 6), ("B", 6)])
@pytest.mark.parametrize("order", "<>")
def test_orientation_of_any_integer_type(kind, value, order):
    code = {"B": 1, "H": 3, "I": 4}[kind]
    entry = struct.pack(f"{order}HHI{kind}", 274, code, 1, value).ljust(12, b"\0")
    mark = b"II" if order == "<" else b"MM"
    block = mark + struct.pack(f"{order}HIH", 42, 8, 1) + entry + bytes(4)
    photo = images.read(by_pillow(samples(3), "JPEG", exif=b"Exif\0\0" + block))
    assert photo.orientation == 6
    upright_entry = struct.pack(f"{order}HHIHH", 274, 3, 1, 1, 0)
    assert photo.exif == b"Exif\0\0" + block[:10] + upright_entry + bytes(4)


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
    tags = [(700, "B", len(XMP), XMP), (315, "s", 0, "Artist"), (274, "H", 1, 8)]
    data = by_tifffile(samples(3, 16), tags, photometric="rgb", iccprofile=SRGB)
    _, written, path = round_trip(data, tmp_path)
    np.testing.assert_array_equal(written, upright(samples(3, 16), 8))
    with tifffile.TiffFile(path) as file:
        kept = file.pages.first.tags
        assert kept.valueof(700) == XMP
        assert kept.valueof(34675) == SRGB
        assert kept.valueof(315) == "Artist"
        assert kept.valueof(274) == 1


@pytest.mark.parametrize("byteorder", "<>")
def test_metadata_of_a_bigtiff(byteorder, tmp_path):
    """Its own types of 8 bytes become those of 4, which EXIF knows."""
    tags = [(315, "s", 0, "Artist"), (60000, "Q", 2, (1, 2**32 - 1))]
    options = {"bigtiff": True, "byteorder": byteorder, "photometric": "rgb"}
    data = by_tifffile(samples(3), tags, **options)
    photo, written, path = round_trip(data, tmp_path)
    np.testing.assert_array_equal(written, samples(3))
    assert photo.warnings == ()
    found = contents(path.read_bytes())
    assert found["", 315] == (2, 7, b"Artist\0")
    assert found["", 60000] == (4, 2, struct.pack(f"{byteorder}2I", 1, 2**32 - 1))
    data = by_tifffile(samples(3), [(60000, "Q", 1, 2**32)], **options)
    assert "tag 60000 is damaged or of a type" in images.read(data).warnings[0]


def test_a_makers_note_behind_the_pixels_is_said_to_have_moved():
    rows = np.zeros((200, 200, 3), np.uint8)
    photo = images.read(camera_tiff("<", rows))
    assert photo.exif is not None
    assert NOTE in photo.exif
    assert photo.warnings == (
        "the maker's note has moved: what it refers to by its old place is lost",
    )


DESCRIPTIONS = {
    "ImageJ": "ImageJ=1.53\nimages=3\nframes=3\nhyperstack=true\n",
    "OME": '<?xml version="1.0"?><OME xmlns="ome"><Image SizeZ="3"/></OME>',
    "tifffile": '{"shape": [3, 5, 7]}',
    "older tifffile": "shape=(3, 5, 7)",
}


@pytest.mark.parametrize("ext", OUTPUTS)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_metadata_of_a_stack_are_not_copied(name, ext, tmp_path):
    """A file of one page that tells of three cannot be read by what believes it."""
    io_module = pytest.importorskip("skimage.io")
    tags = [(270, "s", 0, DESCRIPTIONS[name]), (271, "s", 0, "Maker")]
    array = samples(1, 16)[..., 0]
    photo, _, path = round_trip(by_tifffile(array, tags), tmp_path, ext)
    assert photo.warnings == (
        "the description of the file's layout (ImageDescription) is not kept",
    )
    found = contents(stored_block(path))
    assert ("", 270) not in found
    assert found["", 271][2] == b"Maker\0"
    if ext == "tiff":
        np.testing.assert_array_equal(tifffile.imread(path), array)
        np.testing.assert_array_equal(io_module.imread(path), array)


def test_metadata_of_an_imagej_stack(tmp_path):
    """A whole stack as tifffile writes it for ImageJ, with labels in private tags."""
    stack, buffer = (
        np.stack([samples(1, seed=n)[..., 0] for n in range(3)]),
        io.BytesIO(),
    )
    labels = {"Labels": ["a", "b", "c"], "axes": "ZYX"}
    tifffile.imwrite(buffer, stack, imagej=True, metadata=labels)
    photo, _, path = round_trip(buffer.getvalue(), tmp_path)
    assert "only the first frame is used" in photo.warnings
    np.testing.assert_array_equal(tifffile.imread(path), stack[0])


def test_an_ordinary_description_is_kept(tmp_path):
    tags = [(270, "s", 0, "A cup, and {some} <b>braces</b>")]
    photo, _, path = round_trip(by_tifffile(samples(3), tags), tmp_path)
    assert photo.warnings == ()
    assert opened(path).getexif()[270] == "A cup, and {some} <b>braces</b>"


@pytest.mark.parametrize("entries", [256, 768, 65536])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_transfer_function_is_kept_where_it_fits(entries, bits, tmp_path):
    table = tuple(range(entries))
    data = by_tifffile(samples(3, bits), [(301, "H", entries, table)])
    photo, _, path = round_trip(data, tmp_path)
    kept = entries in (2**bits, 3 * 2**bits)
    assert (("", 301) in contents(path.read_bytes())) == kept
    assert ("the transfer function" in lost(photo, path)) == (not kept)


@pytest.mark.parametrize("ext", OUTPUTS)
def test_a_profile_longer_than_pillows_limit(ext, tmp_path):
    """A profile of 1.5 MB, in a PNG too: what was written is read again."""
    icc = SRGB + np.random.default_rng(0).bytes(1_500_000)
    photo = images.read(by_pillow(samples(3), "JPEG", icc_profile=icc))
    images.write(tmp_path / f"x.{ext}", photo.rgb, photo)
    assert images.read(tmp_path / f"x.{ext}").icc == icc


def test_a_png_with_long_compressed_text_is_read():
    text = zlib.compress(bytes(3_000_000))
    data = by_pypng(samples(3), zTXt=b"Comment\0\0" + text, iTXt=XMP_CHUNK)
    assert images.read(data).xmp == XMP


def test_a_block_longer_than_a_segment_of_jpeg(tmp_path):
    """Pillow joins the segments, as it does when it reads such a file of others."""
    note = np.random.default_rng(0).bytes(150_000)
    block = camera_block("<", 1, [(60001, 7, len(note), note)])
    data = by_pypng(samples(3), eXIf=block)
    photo, _, path = round_trip(data, tmp_path, "jpg")
    assert stored_block(path) == patched(block)
    assert images.read(path).exif == photo.exif


def test_what_jpeg_cannot_hold_is_named(tmp_path):
    xmp = XMP_START + b">" + b" " * 70_000 + XMP_END
    density = struct.pack(">IIB", 5_000_000, 5_000_000, 1)
    chunk = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    data = by_pypng(samples(3), iTXt=chunk, pHYs=density)
    photo, _, path = round_trip(data, tmp_path, "jpg")
    assert lost(photo, path) == ["the XMP packet", "the resolution"]


GREY = b"".join([SRGB[:16], b"GRAY", SRGB[20:]])


@pytest.mark.parametrize(
    ("channels", "icc", "kept"),
    [(1, SRGB, False), (1, GREY, True), (3, SRGB, True), (3, GREY, False)],
)
def test_a_profile_for_other_samples_is_not_kept(channels, icc, kept, tmp_path):
    data = by_pypng(samples(channels), iCCP=b"x\0\0" + zlib.compress(icc))
    photo, _, path = round_trip(data, tmp_path)
    assert ("iCCP" in chunks_of(path)) == kept
    assert photo.warnings == () if kept else "not for" in photo.warnings[0]
    # WebP has no grey samples, so a grey profile would be wrong there.
    images.write(tmp_path / "x.webp", photo.rgb, photo)
    in_webp = opened(tmp_path / "x.webp").info.get("icc_profile")
    assert in_webp == (SRGB if kept and channels == 3 else None)
    assert ("the ICC profile" in lost(photo, tmp_path / "x.webp")) == (
        kept and channels == 1
    )


def test_a_palette_of_greys_with_an_rgb_profile_keeps_both(tmp_path):
    image = Image.frombytes("P", (WIDTH, HEIGHT), samples(1).tobytes())
    image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    photo, written, path = round_trip(
        by_pillow(image, "PNG", icc_profile=SRGB), tmp_path
    )
    assert (photo.grey, photo.warnings) == (False, ())
    np.testing.assert_array_equal(written, np.repeat(samples(1), 3, axis=2))
    assert opened(path).info["icc_profile"] == SRGB


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


def test_a_tiff_whose_directories_point_at_themselves_is_read():
    """Exif, GPS and Interoperability are each other; no entry holds what it says."""
    data = bytearray(camera_tiff("<", samples(3)))
    exif = data.index(struct.pack("<HHI", 34665, 4, 1)) + 8
    interop = data.index(struct.pack("<HHI", 40965, 4, 1)) + 8
    data[interop : interop + 4] = data[exif : exif + 4]
    photo = images.read(bytes(data))
    np.testing.assert_array_equal(images.to_uint(photo.rgb, 8), upright(samples(3), 6))


def test_cmyk_profile_is_not_put_into_an_rgb_file(tmp_path):
    image = Image.frombytes("CMYK", (WIDTH, HEIGHT), samples(4).tobytes())
    data = by_pillow(image, "JPEG", icc_profile=b"x" * 16 + b"CMYK")
    photo, _, path = round_trip(data, tmp_path)
    assert "CMYK profile" in photo.warnings[0]
    assert "icc_profile" not in opened(path).info
