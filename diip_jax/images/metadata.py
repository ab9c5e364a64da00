"""Metadata: EXIF, XMP, ICC profiles and the tags of TIFF."""

import io
import re
import struct
from typing import Any

from PIL import Image

from diip_jax.images.photo import CODEC_ERRORS, ImageError

EXIF_HEADER = b"Exif\x00\x00"
_XMP_ORIENTATION = re.compile(
    rb"""\s+tiff:Orientation\s*=\s*["']([1-8])["']"""
    rb"|<tiff:Orientation>\s*([1-8])\s*</tiff:Orientation>"
)
_ORIENTATION, XMP, ICC = 274, 700, 34675
# TIFF tags that say how the samples lie in a file, or repeat the picture (sub-images,
# Photoshop layers). All others are metadata.
LAYOUT_TAGS = (
    *(*range(254, 260), *range(262, 267), 273, *range(277, 282), 284, *range(288, 294)),
    *(301, *range(317, 326), 330, 332, *range(338, 344), 347, *range(512, 522)),
    *(*range(529, 533), XMP, 34377, ICC, 37724),
)


def tiff_tags(data: bytes) -> Image.Exif:
    """Return the tags of a TIFF file's first picture: an EXIF block is a small TIFF.

    Args:
        data: bytes of the file.

    Raises:
        ImageError: the width or the height is missing.
    """
    tags, start = Image.Exif(), None
    if data[2] == 43:  # BigTIFF
        tags.bigtiff, tags.endian = True, "<"
        (start,) = struct.unpack_from("<8xQ", data)
    tags.load_from_fp(io.BytesIO(data), start)
    if 256 not in tags or 257 not in tags:
        raise ImageError("the TIFF header is damaged; save the file again")
    return tags


def integer_tag(tags: Image.Exif, tag: int, default: int) -> int:
    """Return an integer tag, or the largest of its values.

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
        source: EXIF block, or the tags of a TIFF, from which those of its layout are
            removed too; None if there is none.

    Returns:
        The orientation or None, the EXIF block without it or None, and warnings.
    """
    orientation = None
    try:
        exif = source if isinstance(source, Image.Exif) else Image.Exif()
        if isinstance(source, bytes):
            exif.load(source)
        orientation = read_orientation(exif)
        for tag in (_ORIENTATION, *(LAYOUT_TAGS if exif is source else ())):
            exif.pop(tag, None)
        exif.bigtiff = False  # no other format knows it
        block = exif.tobytes() if len(exif) else None
    except CODEC_ERRORS:
        block, notes = None, ("the EXIF data are damaged and not kept",)
    else:
        notes = ()
    return orientation, block, notes


def read_orientation(exif: Image.Exif) -> int | None:
    """Return the orientation, 1 to 8, or None if it is missing or none of these."""
    value = exif.get(_ORIENTATION)
    return value if value in range(1, 9) else None


def split_xmp(xmp: Any) -> tuple[int | None, bytes | None]:
    """Take the orientation out of XMP.

    Args:
        xmp: packet as a codec gives it; anything but bytes is ignored.

    Returns:
        The orientation or None, and the packet without it or None.
    """
    if not xmp or not isinstance(xmp, bytes):
        return None, None
    match = _XMP_ORIENTATION.search(xmp)
    value = int(match[1] or match[2]) if match else None
    return value, _XMP_ORIENTATION.sub(b"", xmp)
