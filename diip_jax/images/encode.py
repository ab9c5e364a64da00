"""From the samples of a restored image to the bytes of a file; formats, suffixes."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from diip_jax.images.metadata import (
    ADOBE_DEFLATE,
    EXIF_HEADER,
    HORIZONTAL_DIFFERENCES,
    LAYOUT_TAGS,
    STRAIGHT_ALPHA,
    Photometric,
)
from diip_jax.images.photo import ImageError, Photo, import_extra

WRITERS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
WRITERS |= {".jpg": "JPEG", ".jpeg": "JPEG"}
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
    return _encode_with_pillow(samples, like, kind, quality)


def _encode_png(samples: np.ndarray, like: Photo) -> bytes:
    if samples.dtype == np.uint16 and samples.shape[2] > 1:
        png = import_extra("imagecodecs", "16-bit PNG in colour").png_encode(samples)
    else:
        png = _save(samples, "PNG")
    chunks = b""
    if like.icc:
        chunks += _png_chunk(b"iCCP", b"icc\x00\x00" + zlib.compress(like.icc))
    if like.exif:
        chunks += _png_chunk(b"eXIf", like.exif.removeprefix(EXIF_HEADER))
    if like.xmp:
        chunks += _png_chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + like.xmp)
    return png[:33] + chunks + png[33:]  # after the signature and IHDR


def _png_chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def _encode_tiff(samples: np.ndarray, like: Photo) -> bytes:
    """Return an EXIF block, which is a TIFF header, and after it one deflated strip.

    Pillow writes only 8 bits, and tifffile writes no EXIF directory.
    """
    height, width, channels = samples.shape
    steps = samples.copy()
    steps[:, 1:] -= samples[:, :-1]  # modulo 2^bits, as the predictor wants it
    strip = zlib.compress(steps.astype(steps.dtype.newbyteorder("<")).tobytes())
    exif = Image.Exif()
    if like.exif:
        exif.load(like.exif)
    for tag in LAYOUT_TAGS:
        exif.pop(tag, None)
    exif.endian = "<"
    grey = channels < 3
    exif.update(
        {
            Base.ImageWidth: width,
            Base.ImageLength: height,
            Base.BitsPerSample: (8 * steps.itemsize,) * channels,
            Base.Compression: ADOBE_DEFLATE,
            Base.PhotometricInterpretation: (
                Photometric.BLACK_IS_ZERO if grey else Photometric.RGB
            ),
            Base.StripOffsets: 0,  # Pillow counts from the end of what it writes
            Base.SamplesPerPixel: channels,
            Base.RowsPerStrip: height,
            Base.StripByteCounts: len(strip),
            Base.Predictor: HORIZONTAL_DIFFERENCES,
        }
    )
    if channels in (2, 4):
        exif[Base.ExtraSamples] = STRAIGHT_ALPHA
    if like.icc:
        exif[Base.InterColorProfile] = like.icc
    if like.xmp:
        exif[Base.XMLPacket] = like.xmp
    return exif.tobytes().removeprefix(EXIF_HEADER) + strip


def _encode_with_pillow(
    samples: np.ndarray, like: Photo, kind: str, quality: int
) -> bytes:
    metadata = {"exif": like.exif, "icc_profile": like.icc, "xmp": like.xmp}
    options: dict[str, Any] = {name: value for name, value in metadata.items() if value}
    if kind == "JPEG":
        return _save(samples, kind, quality=quality, subsampling=0, **options)
    if like.grey:  # WebP has no grey
        samples = np.concatenate([samples[..., :1]] * 2 + [samples], axis=2)
    return _save(samples, kind, lossless=True, exact=True, **options)


def _save(samples: np.ndarray, kind: str, **options: Any) -> bytes:
    samples = samples[..., 0] if samples.shape[2] == 1 else samples
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, kind, **options)
    return buffer.getvalue()
