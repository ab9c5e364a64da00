"""Boxes of AVIF: EXIF as it lies there, and how the samples are coded.

ISO/IEC 14496-12, sections 4.2 and 8.11. Pillow gives EXIF only after it has written it
anew with another orientation.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

_EXIF = b"Exif"
_FULL = 4  # bytes of version and flags
_UNSPECIFIED = 2  # primaries or transfer function of `nclx`
_SRGB = (1, 13)  # primaries and transfer function


class Box(NamedTuple):
    """A box: its four letters, and where its content lies."""

    name: bytes
    start: int
    end: int


def split(data: bytes) -> tuple[bytes, bytes | None]:
    """Take EXIF out of a file.

    Args:
        data: the whole file.

    Returns:
        A file in which a decoder finds no EXIF, and the EXIF block or None.
    """
    meta = _inside(data, _find(data, 0, len(data), b"meta"), _FULL)
    found = [(item, at) for item, kind, at in _items(data, meta) if kind == _EXIF]
    if not found:
        return data, None
    (item, at), *_ = found
    content = _content(data, meta, item) or b""
    skipped = 4 + int.from_bytes(content[:4])  # to the header of TIFF
    return data[:at] + b"none" + data[at + 4 :], content[skipped:] or None


def colour(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """Return PNG's cICP for the colours of the samples, if they are not of sRGB.

    Args:
        data: the whole file.
    """
    for box in _properties(data):
        if box.name == b"colr" and data[box.start : box.start + 4] == b"nclx":
            code = struct.unpack_from(">HH", data, box.start + 4)
            plain = code == _SRGB or _UNSPECIFIED in code
            fits = not plain and max(code) < 256
            # PNG's samples are RGB, matrix 0, of full range.
            return (("cICP", bytes([*code, 0, 1])),) if fits else ()
    return ()


def bits(data: bytes) -> int:
    """Return the bits of a sample, 8 if the file does not tell.

    Args:
        data: the whole file.
    """
    pixi = [box for box in _properties(data) if box.name == b"pixi"]
    depths = [data[b.start + _FULL + 1 : b.end] for b in pixi]
    return max((max(depth, default=8) for depth in depths), default=8)


def _boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            (size,), head = struct.unpack_from(">Q", data, start + 8), 16
        size = size or end - start
        if size < head or start + size > end:
            return
        yield Box(name, start + head, start + size)
        start += size


def _find(data: bytes, start: int, end: int, name: bytes) -> Box:
    empty = Box(name, end, end)
    return next((b for b in _boxes(data, start, end) if b.name == name), empty)


def _inside(data: bytes, box: Box, skipped: int = 0) -> dict[bytes, Box]:
    """Return the boxes in a box; of several with one name, the first."""
    found: dict[bytes, Box] = {}
    for inner in _boxes(data, box.start + skipped, box.end):
        found.setdefault(inner.name, inner)
    return found


def _properties(data: bytes) -> list[Box]:
    box = _find(data, 0, len(data), b"meta")
    for name, skipped in ((b"iprp", _FULL), (b"ipco", 0)):
        box = _find(data, box.start + skipped, box.end, name)
    return list(_boxes(data, box.start, box.end))


def _items(data: bytes, meta: dict[bytes, Box]) -> Iterator[tuple[int, bytes, int]]:
    """Yield the numbers and the types of the items, and where the type lies."""
    if b"iinf" not in meta:
        return
    box = meta[b"iinf"]
    count = 2 if data[box.start] == 0 else 4  # bytes
    for entry in _boxes(data, box.start + _FULL + count, box.end):
        wide = data[entry.start] > 2
        head = ">IH4s" if wide else ">HH4s"
        number, _, kind = struct.unpack_from(head, data, entry.start + _FULL)
        yield number, kind, entry.start + _FULL + struct.calcsize(head) - 4


def _content(data: bytes, meta: dict[bytes, Box], item: int) -> bytes | None:
    """Return the content of an item that lies in the file or in the box `idat`."""
    if b"iloc" not in meta:
        return None
    at = meta[b"iloc"].start
    version, sizes = data[at], struct.unpack_from(">BB", data, at + _FULL)
    of_offset, of_length, of_base, of_index = (
        n for size in sizes for n in (size >> 4, size & 15)
    )
    of_index = of_index if version else 0
    wide = 4 if version > 1 else 2
    at += _FULL + 2

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at])

    for _ in range(number(wide)):
        found, method = number(wide), number(2) if version else 0
        number(2)  # in which file
        base, content = number(of_base), b""
        start = meta[b"idat"].start if method == 1 and b"idat" in meta else 0
        for _ in range(number(2)):
            number(of_index)
            first, length = start + base + number(of_offset), number(of_length)
            content += data[first : first + length] if found == item else b""
        if found == item:
            return content
    return None
