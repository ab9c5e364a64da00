"""Directories of TIFF: what an EXIF block and a TIFF file have in common.

TIFF 6.0, section 2, and BigTIFF. Entries are taken as they lie, and a value that stays
in its place is never converted, so that nothing which refers to it can break.
"""

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from PIL.ExifTags import Base

from diip_jax.images.photo import ImageError

# Values of TIFF tags, from TIFF 6.0 and its supplements.
REDUCED_IMAGE, MASK = 1, 4  # bits of NewSubfileType
ADOBE_DEFLATE = 8  # Compression
HORIZONTAL_DIFFERENCES = 2  # Predictor
UNSIGNED, UNDEFINED = 1, 4  # SampleFormat
PREMULTIPLIED_ALPHA, STRAIGHT_ALPHA = 1, 2  # ExtraSamples
INCH, CENTIMETRE = 2, 3  # ResolutionUnit

_VERSION, _BIG_VERSION = 42, 43
_MOST_ENTRIES = 65535  # of a directory; BigTIFF's own limit is no limit
_MOST_PAGES = 10_000


class Photometric(IntEnum):
    """What the samples of a TIFF mean: values of PhotometricInterpretation."""

    WHITE_IS_ZERO = 0
    BLACK_IS_ZERO = 1
    RGB = 2
    PALETTE = 3
    CMYK = 5
    YCBCR = 6
    LAB = 8


class Kind(IntEnum):
    """Types of values that are written here."""

    BYTE = 1
    SHORT = 3
    LONG = 4
    RATIONAL = 5
    UNDEFINED = 7


# Bytes of one value of each type; 129 is EXIF 3.0's UTF-8.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
SIZES |= {13: 4, 16: 8, 17: 8, 18: 8, 129: 1}
# The types that hold integers, as codes of `struct`.
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I"}
_INTEGERS |= {16: "Q", 17: "q", 18: "Q"}
_CLASSIC = {16: 4, 17: 9, 18: 13}  # BigTIFF's own types and their narrow counterparts


class Entry(NamedTuple):
    """One entry of a directory.

    Attributes:
        tag: number of the tag.
        kind: type of the values.
        count: number of values.
        value: bytes of the values; of an unknown type, what the entry itself holds;
            None if they lie outside the data.
        at: offset of the values, or None if the entry itself holds them.
        place: offset of the entry itself.
    """

    tag: int
    kind: int
    count: int
    value: bytes | memoryview | None
    at: int | None = None
    place: int = 0


class Directory(NamedTuple):
    """Entries, in the order of the file, and where the next directory is.

    Attributes:
        order: byte order as `struct` writes it, "<" or ">".
        big: whether offsets have the 8 bytes of BigTIFF.
        at: offset of the directory.
        entries: its entries; a tag may occur twice.
        link: offset of the place that holds `following`.
        following: offset of the next directory, or 0.
    """

    order: str
    big: bool
    at: int
    entries: tuple[Entry, ...]
    link: int
    following: int

    def entry(self, tag: int) -> Entry | None:
        """Return the first entry of a tag, or None."""
        return next((entry for entry in self.entries if entry.tag == tag), None)

    def integers(self, tag: int) -> tuple[int, ...]:
        """Return the values of a tag, or nothing if it is missing or not integers."""
        entry = self.entry(tag)
        if entry is None or entry.value is None or entry.kind not in _INTEGERS:
            return ()
        return struct.unpack(
            f"{self.order}{entry.count}{_INTEGERS[entry.kind]}", entry.value
        )

    def rationals(self, tag: int) -> tuple[tuple[int, int], ...]:
        """Return the values of a tag, or nothing if it is missing or not fractions."""
        entry = self.entry(tag)
        if entry is None or entry.value is None or entry.kind != Kind.RATIONAL:
            return ()
        return tuple(struct.iter_unpack(f"{self.order}2I", entry.value))

    def content(self, tag: int) -> bytes | None:
        """Return the bytes of a tag, or None if it is missing or outside the data."""
        entry = self.entry(tag)
        return None if entry is None or entry.value is None else bytes(entry.value)


def integer(directory: Directory, tag: int, default: int) -> int:
    """Return the value of an integer tag, or the largest of several.

    Args:
        directory: directory of a TIFF.
        tag: number of the tag.
        default: value if the tag is missing.

    Raises:
        ImageError: a value is not an integer.
    """
    if directory.entry(tag) is None:
        return default
    values = directory.integers(tag)
    if not values:
        raise ImageError(f"the TIFF tag {tag} is damaged; save the file again")
    return max(values)


def first_directory(data: bytes | bytearray) -> Directory:
    """Return the first directory of a TIFF file or of an EXIF block without "Exif".

    Args:
        data: the whole file or block.

    Raises:
        ImageError: it has none.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]), "")
    form = struct.unpack_from(f"{order}H", data, 2)[0] if order else 0
    if form not in (_VERSION, _BIG_VERSION):
        raise ImageError("the TIFF header is damaged; save the file again")
    big = form == _BIG_VERSION
    (at,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, 4 * (1 + big))
    return directory_at(data, at, order, big)


def directory_at(
    data: bytes | bytearray, at: int, order: str, big: bool = False
) -> Directory:
    """Return the directory at an offset.

    Args:
        data: the whole file or block.
        at: offset of the directory.
        order: byte order, "<" or ">".
        big: whether the file is a BigTIFF.

    Raises:
        ImageError: there is no room for a directory.
    """
    head, item, width = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    step = struct.calcsize(f"<{item}") + width
    start = at + struct.calcsize(f"<{head}")
    if not 8 <= at < start <= len(data):
        raise ImageError("the TIFF header is damaged; save the file again")
    (count,) = struct.unpack_from(order + head, data, at)
    link = start + count * step
    if count > _MOST_ENTRIES or link > len(data):
        raise ImageError("the TIFF header is damaged; save the file again")
    view, entries = memoryview(data), []
    for place in range(start, link, step):
        tag, kind, number = struct.unpack_from(order + item, data, place)
        value_at, offset = place + step - width, None
        size = SIZES[kind] * number if kind in SIZES else width
        if size > width:
            (offset,) = struct.unpack_from(order + "IQ"[big], data, value_at)
            value_at = offset
        value = view[value_at : value_at + size]
        value = value if len(value) == size else None
        entries.append(Entry(tag, kind, number, value, offset, place))
    whole = link + width <= len(data)  # some cameras write no link
    following = struct.unpack_from(order + "IQ"[big], data, link)[0] if whole else 0
    return Directory(order, big, at, tuple(entries), link, following)


def pages(data: bytes) -> Iterator[Directory]:
    """Yield the directories of a file, one a page.

    Args:
        data: the whole file.

    Raises:
        ImageError: the first is damaged. A later one that is damaged ends the file.
    """
    page, seen = first_directory(data), set()
    while len(seen) < _MOST_PAGES:
        yield page
        seen.add(page.at)
        if page.following in seen or not page.following:
            return
        try:
            page = directory_at(data, page.following, page.order, page.big)
        except ImageError:
            return


def sub_directory(
    data: bytes | bytearray, parent: Directory, tag: int
) -> Directory | None:
    """Return the directory that a tag points to, or None if the tag is missing.

    Args:
        data: the whole file or block.
        parent: directory with the tag.
        tag: number of the tag.

    Raises:
        ImageError: the tag points to no directory.
    """
    if parent.entry(tag) is None:
        return None
    at = (*parent.integers(tag), 0)[0]
    return directory_at(data, at, parent.order, parent.big)


def classic(entry: Entry, order: str) -> Entry | None:
    """Return an entry as a TIFF that is not a BigTIFF can hold it, with its value.

    Args:
        entry: entry of any TIFF.
        order: byte order, "<" or ">".

    Returns:
        The entry without a place, or None if its type or its values do not fit.
    """
    if entry.value is None or entry.kind not in SIZES or entry.count >= 2**32:
        return None
    entry = entry._replace(value=bytes(entry.value), at=None, place=0)
    if entry.kind not in _CLASSIC:
        return entry
    kind, value = _CLASSIC[entry.kind], entry.value or b""
    values = struct.unpack(f"{order}{entry.count}{_INTEGERS[entry.kind]}", value)
    try:
        value = struct.pack(f"{order}{entry.count}{_INTEGERS[kind]}", *values)
    except struct.error:
        return None
    return entry._replace(kind=kind, value=value)


def integers(tag: int, kind: Kind, values: Iterable[int], order: str) -> Entry:
    """Return an entry of integers; of a fraction, numerator and denominator.

    Args:
        tag: number of the tag.
        kind: SHORT, LONG or RATIONAL.
        values: the values.
        order: byte order, "<" or ">".
    """
    values = tuple(values)
    code, each = ("H", 1) if kind == Kind.SHORT else ("I", 1 + (kind == Kind.RATIONAL))
    value = struct.pack(f"{order}{len(values)}{code}", *values)
    return Entry(tag, kind, len(values) // each, value)


def directory_bytes(entries: Iterable[Entry], order: str, at: int) -> bytes:
    """Return a directory, and behind it the values that have no place yet.

    Args:
        entries: entries in any order; `at` of an entry says that its values lie
            somewhere else already.
        order: byte order, "<" or ">".
        at: offset, even, at which the directory will lie.
    """
    entries = sorted(entries, key=lambda entry: entry.tag)
    table = bytearray(struct.pack(f"{order}H", len(entries)))
    values, end = bytearray(), at + 2 + 12 * len(entries) + 4
    for entry in entries:
        value, offset = entry.value or b"", entry.at
        if offset is None and len(value) > 4:
            values += bytes(len(values) % 2)  # TIFF 6.0: values begin on even offsets
            offset = end + len(values)
            values += value
        table += struct.pack(f"{order}HHI", entry.tag, entry.kind, entry.count)
        table += (
            bytes(value).ljust(4, b"\0")
            if offset is None
            else struct.pack(f"{order}I", offset)
        )
    return bytes(table + bytes(4) + values)


def file_header(order: str, at: int) -> bytes:
    """Return the eight bytes at the start of a TIFF.

    Args:
        order: byte order, "<" or ">".
        at: offset of the first directory.
    """
    return struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", _VERSION, at)


def repointed(data: bytes, page: Directory) -> bytes:
    """Return a file that begins with one of its pages, which lies upright.

    Decoders take the first page, and some turn it by its Orientation.

    Args:
        data: the whole file.
        page: the page.
    """
    if first_directory(data).at == page.at and page.entry(Base.Orientation) is None:
        return data
    out = bytearray(data)
    code, start = ("Q", 8) if page.big else ("I", 4)
    struct.pack_into(page.order + code, out, start, page.at)
    set_orientation(out, page)
    return bytes(out)


def set_orientation(out: bytearray, directory: Directory) -> None:
    """Write 1, upright, into every Orientation entry of a directory.

    Args:
        out: the whole file or block, changed in place.
        directory: one of its directories.
    """
    for entry in directory.entries:
        if entry.tag == Base.Orientation:
            item = "HHQHHI" if directory.big else "HHIHH"
            values = (Base.Orientation, Kind.SHORT, 1, 1, 0, 0)[: len(item)]
            struct.pack_into(directory.order + item, out, entry.place, *values)


def orientation(directory: Directory) -> int | None:
    """Return the orientation, 1 to 8; None if it is missing or another value.

    Args:
        directory: directory of a picture.
    """
    values = directory.integers(Base.Orientation)
    return values[0] if values and values[0] in range(1, 9) else None
