"""Picture files for the tests of `images`, and how to read what it writes.

Independent here: every input is written, and every output read, by Pillow, pypng,
imagecodecs, tifffile or a few lines of struct in this file, never by `images` itself;
upright pictures are built from the wording of the EXIF standard, one pixel at a time.
"""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from diip_jax import images

pytest.importorskip("imagecodecs")  # `images` needs it for deep samples
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


def tiff(tags: dict[int, tuple[str, tuple[int, ...]]], pixels: bytes) -> bytes:
    """A little-endian TIFF of one strip, from the layout tables of TIFF 6.0."""
    tags = dict(sorted(({273: ("I", (8,)), 279: ("I", (len(pixels),))} | tags).items()))
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


GOOD_PNG = by_pypng(samples(3))
GOOD_JPEG = by_pillow(np.kron(samples(3), np.ones((20, 20, 1), np.uint8)), "JPEG")
GOOD_TIFF = by_tifffile(samples(3, 16), photometric="rgb")
