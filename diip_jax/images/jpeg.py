"""Segments of JPEG: metadata are taken out before decoding, so that none prevents it.

ITU-T T.81, B.1.1; JFIF 1.02; ICC.1, B.4. Pillow, when it opens a file, looks into EXIF
for a resolution, and refuses the picture if some of the segments are damaged.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from diip_jax.images.exif import EXIF_HEADER

_APP0, _APP1, _APP2, _APP13, _APP14 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE
_ENDS = (0xD9, 0xDA)  # of the picture, of what lies before the samples
_BARE = (0x01, *range(0xD0, 0xD8))  # markers without a segment
_JFIF, _ICC, _PHOTOSHOP = b"JFIF\0", b"ICC_PROFILE\0", b"Photoshop 3.0\0"
_XMP, _ADOBE = b"http://ns.adobe.com/xap/1.0/\0", b"Adobe"
_SHORTEST_JFIF, _SHORTEST_ADOBE = 14, 12
_UNITS = {1: 1.0, 2: 2.54}  # inch and centimetre, as inches


class Metadata(NamedTuple):
    """What the segments hold.

    Attributes:
        exif: EXIF block, which may have taken several segments, or None.
        icc: ICC profile, or None.
        xmp: XMP packet, or None.
        dpi: (horizontal, vertical) dots per inch that JFIF tells, or None.
        contents: what the segments for applications hold.
    """

    exif: bytes | None
    icc: bytes | None
    xmp: bytes | None
    dpi: tuple[float, float] | None
    contents: tuple[bytes, ...]


class _Segment(NamedTuple):
    marker: int
    start: int
    content: bytes


def split(data: bytes) -> tuple[bytes, Metadata]:
    """Take the metadata out of a JPEG.

    Args:
        data: the whole file.

    Returns:
        A file of the same length in which a decoder finds no metadata but the list of
        more pictures, and the metadata.
    """
    segments = list(_segments(data))

    def found(marker: int, head: bytes) -> list[bytes]:
        contents = [s.content for s in segments if s.marker == marker]
        return [c[len(head) :] for c in contents if c.startswith(head)]

    profile = sorted(found(_APP2, _ICC))  # each part begins with its number
    metadata = Metadata(
        exif=b"".join(found(_APP1, EXIF_HEADER)) or None,
        icc=b"".join(part[2:] for part in profile) or None,
        xmp=next(reversed(found(_APP1, _XMP)), None),
        dpi=_dpi(*found(_APP0, _JFIF)[:1]),
        contents=tuple(segment.content for segment in segments),
    )
    heads = (EXIF_HEADER, _XMP, _ICC, _PHOTOSHOP)
    return _hidden(data, [s for s in segments if s.content.startswith(heads)]), metadata


def bare(data: bytes) -> bytes:
    """Return a JPEG in which a decoder finds what it needs for the samples alone.

    Args:
        data: the whole file.
    """
    needed = {_APP0: (_JFIF, _SHORTEST_JFIF), _APP14: (_ADOBE, _SHORTEST_ADOBE)}
    hidden = []
    for segment in _segments(data):
        head, shortest = needed.get(segment.marker, (b"", 2**16))
        whole = len(segment.content) >= shortest and segment.content.startswith(head)
        hidden += [] if whole else [segment]
    return _hidden(data, hidden)


def _hidden(data: bytes, segments: list[_Segment]) -> bytes:
    """Change the first byte of segments, by which a decoder knows them."""
    out = bytearray(data)
    for segment in segments:
        if segment.content:
            out[segment.start] = 0
    return bytes(out)


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yield the segments for applications that lie before the samples."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _ENDS:
            return
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _BARE:
            at += 2
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            if _APP0 <= marker <= _APP0 + 15:
                yield _Segment(marker, at + 4, data[at + 4 : at + 2 + length])
            at += 2 + max(length, 2)


def _dpi(jfif: bytes = b"") -> tuple[float, float] | None:
    """Return the resolution in a segment of JFIF, without its head."""
    if len(jfif) < 7 or jfif[2] not in _UNITS:
        return None
    across, down = struct.unpack_from(">HH", jfif, 3)
    scale = _UNITS[jfif[2]]
    return (scale * across, scale * down) if across and down else None
