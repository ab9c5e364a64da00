"""From the samples of a restored image to the bytes of a file; formats, suffixes."""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from diip_jax.images import png, tiff
from diip_jax.images.exif import (
    EXIF_HEADER,
    chromaticities,
    chromaticity_entries,
    exif_directory,
    fits_transfer,
    metadata_entries,
    resolution,
    resolution_entries,
)
from diip_jax.images.metadata import holds_resolution, profile_for, xmp_for
from diip_jax.images.photo import ImageError, Photo, import_extra
from diip_jax.images.tiff import Directory, Entry, Kind, Photometric

WRITERS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
WRITERS |= {".jpg": "JPEG", ".jpeg": "JPEG"}
_APP1, _SEGMENT = b"\xff\xe1", 65527  # JPEG's marker of EXIF; bytes of it in a segment
_LONG_TAGS = {Base.ImageWidth, Base.ImageLength, Base.RowsPerStrip}
_LONG_TAGS |= {Base.StripOffsets, Base.StripByteCounts}
LARGEST_SIDES = {"WEBP": 2**14 - 1, "JPEG": 65_500}  # JPEG's is libjpeg's own


def file_format(path: str | os.PathLike) -> str:
    """Return the output format that the suffix of a path names, as `encode` takes it.

    Raises:
        ImageError: the suffix names no output format.
    """
    suffix = Path(path).suffix
    return WRITERS[output_suffix(path, suffix or "none")]


def output_suffix(source: Photo | str | os.PathLike, ext: str = "auto") -> str:
    """Return the suffix, with its dot, of the file for a restored image.

    Args:
        source: photo, or path of its file.
        ext: output format: "png", "tiff", "webp", "jpg" or "auto". "auto" keeps PNG,
            TIFF and WebP; every other format becomes PNG, so that a JPEG is written
            only on request.

    Raises:
        ImageError: `ext` names no output format.
    """
    if ext != "auto":
        suffix = f".{ext.lower().removeprefix('.')}"
        if suffix not in WRITERS:
            raise ImageError(f"{ext!r} is not an output format; use png, tiff or webp")
        return suffix
    name = f"photo.{source.format}" if isinstance(source, Photo) else source
    suffix = Path(name).suffix.lower()
    return suffix if WRITERS.get(suffix, "JPEG") != "JPEG" else ".png"


def check_sides(kind: str, height: int, width: int) -> None:
    """Raise ImageError where a format cannot hold a picture of this size.

    Args:
        kind: output format: "PNG", "TIFF", "WEBP" or "JPEG".
        height: height of the picture.
        width: width of the picture.
    """
    largest = LARGEST_SIDES.get(kind)
    if largest is not None and max(height, width) > largest:
        raise ImageError(
            f"{kind} has sides of {largest} pixels at most, and the picture is "
            f"{width}x{height}; use --ext png or tiff"
        )


def encode_samples(samples: np.ndarray, like: Photo, kind: str, quality: int) -> bytes:
    """Return the bytes of a file that holds samples and the metadata of a photo.

    Args:
        samples: grey or RGB, then alpha if there is any, (H, W, C) uint8 or uint16.
        like: photo whose EXIF, ICC and XMP are written.
        kind: output format: "PNG", "TIFF", "WEBP" or "JPEG".
        quality: JPEG quality, up to 100.
    """
    if kind == "PNG":
        return _encode_png(samples, like)
    if kind == "TIFF":
        return _encode_tiff(samples, like)
    if kind == "JPEG":
        return _encode_jpeg(samples, like, quality)
    return _encode_webp(samples, like)


def _encode_png(samples: np.ndarray, like: Photo) -> bytes:
    if samples.dtype == np.uint16 and samples.shape[2] > 1:
        data = import_extra("imagecodecs", "16-bit PNG in colour").png_encode(samples)
    else:
        data = _save(samples, "PNG")
    own = (*like.colour, *like.text)
    chunks = b"".join(png.chunk(name, content) for name, content in own)
    if icc := profile_for(like, "PNG"):
        chunks += png.profile_chunk(icc)
    if like.dpi and holds_resolution(like.dpi, "PNG"):
        chunks += png.density_chunk(like.dpi)
    if like.exif:
        chunks += png.chunk("eXIf", like.exif.removeprefix(EXIF_HEADER))
    if like.xmp:
        chunks += png.xmp_chunk(like.xmp)
    return data[: png.HEADER_END] + chunks + data[png.HEADER_END :]


def _encode_tiff(samples: np.ndarray, like: Photo) -> bytes:
    """Return an EXIF block, the directory of the picture, and one deflated strip.

    The block lies at the start of the file, where its offsets count from, so that its
    values stay as they are; the header then points to the directory behind it. Pillow
    and tifffile would write them anew.
    """
    block = bytearray((like.exif or b"").removeprefix(EXIF_HEADER)) or bytearray(8)
    directory = exif_directory(like.exif)
    order = directory.order if directory else "<"
    steps = samples.copy()
    steps[:, 1:] -= samples[:, :-1]  # modulo 2^bits, as the predictor wants it
    stored = steps.astype(np.dtype(f"{order}u{steps.itemsize}"))
    strip = zlib.compress(stored.tobytes())
    entries = {entry.tag: entry for entry in _kept_entries(like, directory, samples)}
    entries |= {entry.tag: entry for entry in _layout(samples, len(strip), order)}
    block += bytes(len(block) % 2)
    at = len(block)
    block[:8] = tiff.file_header(order, at)
    # The strip lies behind the directory, whose size does not depend on this offset.
    size = len(tiff.directory_bytes(entries.values(), order, at))
    entries[Base.StripOffsets] = tiff.integers(
        Base.StripOffsets, Kind.LONG, [at + size], order
    )
    return bytes(block) + tiff.directory_bytes(entries.values(), order, at) + strip


def _kept_entries(
    like: Photo, directory: Directory | None, samples: np.ndarray
) -> list[Entry]:
    """Return the tags of TIFF that hold the metadata of a photo."""
    order, bits = directory.order if directory else "<", 8 * samples.itemsize
    entries = metadata_entries(directory.entries)[0] if directory else []
    entries = [e for e in entries if e.value is not None]
    entries = [e for e in entries if fits_transfer(e, bits, samples.shape[2] < 3)]
    if like.dpi and holds_resolution(like.dpi, "TIFF", directory):
        told = resolution(directory)
        turned = told != like.dpi and told == like.dpi[::-1]
        if told is None or turned:
            entries += resolution_entries(like.dpi, order)
    if not (directory and chromaticities(directory)):
        for content in [content for name, content in like.colour if name == "cHRM"]:
            entries += chromaticity_entries(content, order)
    if icc := profile_for(like, "TIFF"):
        tag = Base.InterColorProfile
        entries.append(Entry(tag, Kind.UNDEFINED, len(icc), icc))
    if like.xmp:
        entries.append(Entry(Base.XMLPacket, Kind.BYTE, len(like.xmp), like.xmp))
    return entries


def _layout(samples: np.ndarray, num_bytes: int, order: str) -> Iterator[Entry]:
    """Yield the tags of TIFF that say how the samples lie in one strip."""
    height, width, channels = samples.shape
    grey = channels < 3
    values: dict[int, tuple[int, ...]] = {
        Base.ImageWidth: (width,),
        Base.ImageLength: (height,),
        Base.BitsPerSample: (8 * samples.itemsize,) * channels,
        Base.Compression: (tiff.ADOBE_DEFLATE,),
        Base.PhotometricInterpretation: (
            Photometric.BLACK_IS_ZERO if grey else Photometric.RGB,
        ),
        Base.StripOffsets: (0,),
        Base.SamplesPerPixel: (channels,),
        Base.RowsPerStrip: (height,),
        Base.StripByteCounts: (num_bytes,),
        Base.Predictor: (tiff.HORIZONTAL_DIFFERENCES,),
    }
    if channels in (2, 4):
        values[Base.ExtraSamples] = (tiff.STRAIGHT_ALPHA,)
    for tag, numbers in values.items():
        kind = Kind.LONG if tag in _LONG_TAGS else Kind.SHORT
        yield tiff.integers(tag, kind, numbers, order)


def _encode_jpeg(samples: np.ndarray, like: Photo, quality: int) -> bytes:
    options = _options(like, "JPEG") | {"quality": quality, "subsampling": 0}
    if like.dpi and holds_resolution(like.dpi, "JPEG"):
        options["dpi"] = like.dpi
    data = _save(samples, "JPEG", **options)
    (length,) = struct.unpack_from(">H", data, 4)  # of JFIF's segment, the first
    return data[: 4 + length] + _exif_segments(like.exif) + data[4 + length :]


def _exif_segments(exif: bytes | None) -> bytes:
    """Return the segments of JPEG for an EXIF block: several if it is too long for one.

    Pillow writes only one. It and ExifTool join several.
    """
    block, segments = (exif or b"").removeprefix(EXIF_HEADER), b""
    for start in range(0, len(block), _SEGMENT):
        content = EXIF_HEADER + block[start : start + _SEGMENT]
        segments += _APP1 + struct.pack(">H", 2 + len(content)) + content
    return segments


def _encode_webp(samples: np.ndarray, like: Photo) -> bytes:
    options = _options(like, "WEBP") | ({"exif": like.exif} if like.exif else {})
    if like.grey:  # WebP has no grey
        samples = np.concatenate([samples[..., :1]] * 2 + [samples], axis=2)
    return _save(samples, "WEBP", lossless=True, exact=True, **options)


def _options(like: Photo, kind: str) -> dict[str, Any]:
    options = {"icc_profile": profile_for(like, kind), "xmp": xmp_for(like, kind)}
    return {name: value for name, value in options.items() if value}


def _save(samples: np.ndarray, kind: str, **options: Any) -> bytes:
    samples = samples[..., 0] if samples.shape[2] == 1 else samples
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, kind, **options)
    return buffer.getvalue()
