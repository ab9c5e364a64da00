"""Metadata: EXIF, XMP, ICC profiles and the tags of TIFF."""

import io
import re
import struct
from enum import IntEnum
from typing import Any

from PIL import Image
from PIL.ExifTags import Base

from diip_jax.images.photo import CODEC_ERRORS, ImageError

EXIF_HEADER = b"Exif\x00\x00"
_XMP_ORIENTATION = re.compile(
    rb"""\s+tiff:Orientation\s*=\s*["']([1-8])["']"""
    rb"|<tiff:Orientation>\s*([1-8])\s*</tiff:Orientation>"
)
_BIGTIFF_VERSION = 43
# Tags that say how the samples lie in a TIFF file, that hold the picture again
# (sub-images, Photoshop's layers), or that are handled apart (XMP, ICC). All other tags
# are metadata.
_LAYOUT_NAMES = """
    NewSubfileType SubfileType ImageWidth ImageLength BitsPerSample Compression
    PhotometricInterpretation Thresholding CellWidth CellLength FillOrder StripOffsets
    SamplesPerPixel RowsPerStrip StripByteCounts MinSampleValue MaxSampleValue
    PlanarConfiguration FreeOffsets FreeByteCounts GrayResponseUnit GrayResponseCurve
    T4Options T6Options TransferFunction Predictor WhitePoint PrimaryChromaticities
    ColorMap HalftoneHints TileWidth TileLength TileOffsets TileByteCounts SubIFDs
    InkSet ExtraSamples SampleFormat SMinSampleValue SMaxSampleValue TransferRange
    ClipPath JPEGTables JPEGProc JpegIFOffset JpegIFByteCount JpegRestartInterval
    JpegLosslessPredictors JpegPointTransforms JpegQTables JpegDCTables JpegACTables
    YCbCrCoefficients YCbCrSubSampling YCbCrPositioning ReferenceBlackWhite
    XMLPacket ImageResources InterColorProfile
"""
_OLD_JPEG_UNASSIGNED = 516  # the gap in the range of old-style JPEG
_IMAGE_SOURCE_DATA = 37724  # Photoshop's layers
LAYOUT_TAGS = (
    *(Base[name] for name in _LAYOUT_NAMES.split()),
    *(_OLD_JPEG_UNASSIGNED, _IMAGE_SOURCE_DATA),
)

# Values of TIFF tags, from TIFF 6.0 and its supplements.
REDUCED_IMAGE = 1  # a bit of NewSubfileType: a preview of another picture
ADOBE_DEFLATE = 8  # Compression
HORIZONTAL_DIFFERENCES = 2  # Predictor
UNSIGNED, UNDEFINED = 1, 4  # SampleFormat
PREMULTIPLIED_ALPHA, STRAIGHT_ALPHA = 1, 2  # ExtraSamples


class Photometric(IntEnum):
    """What the samples of a TIFF mean: values of PhotometricInterpretation."""

    WHITE_IS_ZERO = 0
    BLACK_IS_ZERO = 1
    RGB = 2
    CMYK = 5


def tiff_tags(data: bytes) -> Image.Exif:
    """Return the tags of the first picture of a TIFF file.

    An EXIF block is a small TIFF, so `Image.Exif` reads both.

    Args:
        data: bytes of the file.

    Raises:
        ImageError: the width or the height is missing.
    """
    tags, start = Image.Exif(), None
    if data[2] == _BIGTIFF_VERSION:
        tags.bigtiff, tags.endian = True, "<"
        (start,) = struct.unpack_from("<8xQ", data)
    tags.load_from_fp(io.BytesIO(data), start)
    if Base.ImageWidth not in tags or Base.ImageLength not in tags:
        raise ImageError("the TIFF header is damaged; save the file again")
    return tags


def integer_tag(tags: Image.Exif, tag: int, default: int) -> int:
    """Return the value of an integer tag, or the largest of several.

    Args:
        tags: tags of a TIFF.
        tag: number of the tag.
        default: value if the tag is missing.

    Raises:
        ImageError: a value is not an integer.
    """
    values = tags.get(tag, default)
    values = values if isinstance(values, tuple) else (values,)
    if not all(isinstance(value, int) for value in values):
        raise ImageError(f"the TIFF tag {tag} is damaged; save the file again")
    return max(values)


def split_exif(
    source: Image.Exif | bytes | None,
) -> tuple[int | None, bytes | None, tuple[str, ...]]:
    """Take the orientation out of EXIF.

    Args:
        source: EXIF block, or tags of a TIFF, or None. The layout tags of a TIFF are
            removed too.

    Returns:
        The orientation or None, the rest as an EXIF block or None, and warnings.
    """
    orientation = None
    try:
        exif = source if isinstance(source, Image.Exif) else Image.Exif()
        if isinstance(source, bytes):
            exif.load(source)
        orientation = read_orientation(exif)
        for tag in (Base.Orientation, *(LAYOUT_TAGS if exif is source else ())):
            exif.pop(tag, None)
        exif.bigtiff = False  # no other format knows it
        block = exif.tobytes() if len(exif) else None
    except CODEC_ERRORS:
        block, notes = None, ("the EXIF data are damaged and not kept",)
    else:
        notes = ()
    return orientation, block, notes


def read_orientation(exif: Image.Exif) -> int | None:
    """Return the orientation, 1 to 8; None if it is missing or another value."""
    value = exif.get(Base.Orientation)
    return value if value in range(1, 9) else None


def split_xmp(xmp: Any) -> tuple[int | None, bytes | None]:
    """Take the orientation out of XMP.

    Args:
        xmp: XMP packet, or None; what is not bytes is ignored.

    Returns:
        The orientation or None, and the rest of the packet or None.
    """
    if not xmp or not isinstance(xmp, bytes):
        return None, None
    match = _XMP_ORIENTATION.search(xmp)
    value = int(match[1] or match[2]) if match else None
    return value, _XMP_ORIENTATION.sub(b"", xmp)
