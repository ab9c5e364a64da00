"""Metadata: EXIF, XMP and ICC profiles, and what a format can hold of them.

An EXIF block is patched, never written anew: makers' notes hold offsets that count from
its start, and a library that parses it and writes it again loses what it does not know.
"""

import math
import re
import struct
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from PIL.ExifTags import IFD, Base

from diip_jax.images import tiff
from diip_jax.images.photo import CODEC_ERRORS, ImageError, Photo
from diip_jax.images.tiff import Directory, Entry, Kind

EXIF_HEADER = b"Exif\x00\x00"

# Tags that say how the samples lie in a TIFF file, that hold the picture again
# (sub-images, Photoshop's layers), or that are handled apart (XMP, ICC). All other tags
# are metadata.
_LAYOUT_NAMES = """
    NewSubfileType SubfileType ImageWidth ImageLength BitsPerSample Compression
    PhotometricInterpretation Thresholding CellWidth CellLength FillOrder StripOffsets
    SamplesPerPixel RowsPerStrip StripByteCounts MinSampleValue MaxSampleValue
    PlanarConfiguration FreeOffsets FreeByteCounts GrayResponseUnit GrayResponseCurve
    T4Options T6Options Predictor ColorMap HalftoneHints TileWidth TileLength
    TileOffsets TileByteCounts SubIFDs InkSet InkNames NumberOfInks DotRange
    ExtraSamples SampleFormat SMinSampleValue SMaxSampleValue ClipPath XClipPathUnits
    YClipPathUnits Indexed OPIProxy JPEGTables JPEGProc JpegIFOffset JpegIFByteCount
    JpegRestartInterval JpegLosslessPredictors JpegPointTransforms JpegQTables
    JpegDCTables JpegACTables YCbCrCoefficients YCbCrSubSampling YCbCrPositioning
    ReferenceBlackWhite XMLPacket ImageResources InterColorProfile
"""
_OLD_JPEG_UNASSIGNED = 516  # the gap in the range of old-style JPEG
_IMAGE_SOURCE_DATA = 37724  # Photoshop's layers
_LAYOUT_TAGS = frozenset(Base[name] for name in _LAYOUT_NAMES.split()) | {
    *(_OLD_JPEG_UNASSIGNED, _IMAGE_SOURCE_DATA)
}
_COLOUR_TAGS = frozenset(
    {Base.TransferFunction, Base.WhitePoint, Base.PrimaryChromaticities}
    | {Base.TransferRange}
)
# Where microscopes say how a stack of pages is to be read: MetaMorph, FluoView, Zeiss,
# NIH Image, ImageJ, Micro-Manager.
_STACK_TAGS = frozenset(
    {*range(33628, 33632), 34361, 34362, 34412, 43314, 50838, 50839, 51023, 51123}
)
_STACK_DESCRIPTION = re.compile(
    rb'\s*(?:ImageJ=|SCIFIO=|\{.{0,4096}?"shape":|shape=\(|Aperio |<scn )'
    rb"|.{0,4096}?(?:<(?:\w+:)?OME[ >]|<PerkinElmer-QPI|DPUfsImport)",
    re.DOTALL,
)
_MAKER_NOTE = Base.MakerNote
_FARTHEST_NOTE = 2**16  # how far into a block a note may keep its place

# One space before an attribute: a pattern of more takes time that is quadratic in the
# spaces at the end of a packet.
_XMP_ORIENTATION = re.compile(
    rb"""\stiff:Orientation\s*=\s*["']([1-8])["']"""
    rb"|<tiff:Orientation>\s*([1-8])\s*</tiff:Orientation>"
)
# Names under which XMP tells of pictures behind the picture: Ultra HDR and its Apple
# counterpart, and the list of what follows in the file.
_APPENDED = (
    b"http://ns.adobe.com/hdr-gain-map/1.0/",
    b"http://ns.apple.com/HDRGainMap/1.0/",
    b"http://ns.google.com/photos/1.0/container/",
    b"http://ns.google.com/photos/1.0/container/item/",
)
_GAIN_MAPS = _APPENDED[:2]
_ISO_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"
_EXTENDED_XMP = re.compile(rb"""\sxmpNote:HasExtendedXMP\s*=\s*["']\w*["']""")
GAIN_MAP_LOST = "the HDR gain map is not kept: the output is the standard picture"

_PROFILE_KIND = slice(16, 20)  # where an ICC profile names its colour space
_LARGEST_XMP = 65502  # bytes in one segment of JPEG
_LARGEST_ICC = 255 * 65519  # bytes in 255 segments of JPEG
# The dots per inch that fit: integers of 16 bits; per metre, of 31; fractions of 32.
_RESOLUTIONS = {"JPEG": (0.5, 65535), "PNG": (0.02, 5e7), "TIFF": (0.01, 4e5)}
_CHROMATICITY = 100_000  # denominator of PNG's cHRM


# EXIF.


def split_exif(
    block: bytes | None,
) -> tuple[int | None, bytes | None, tuple[str, ...]]:
    """Make EXIF say that the picture is upright and has no thumbnail.

    Orientation becomes 1 and the directory of the thumbnail is no longer linked; no
    other byte changes.

    Args:
        block: EXIF block, with or without "Exif" at its start, or None.

    Returns:
        The orientation or None, the block with "Exif" or None, and warnings.
    """
    if not block:
        return None, None, ()
    out = bytearray(block.removeprefix(EXIF_HEADER))
    try:
        directory = tiff.first_directory(out)
        if directory.big:
            raise ImageError("EXIF is not a BigTIFF")
    except CODEC_ERRORS:
        return None, None, ("the EXIF data are damaged and not kept",)
    turned = tiff.orientation(directory)
    entries = directory.entries
    tiff.set_orientation(out, directory)
    if directory.following:
        struct.pack_into(f"{directory.order}I", out, directory.link, 0)
    return turned, EXIF_HEADER + out if entries else None, ()


def exif_of_tiff(
    data: bytes, page: Directory, *, keep_colour: bool
) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the metadata of a TIFF file as an EXIF block.

    Types and values are those of the file. A maker's note keeps its offset where the
    block can reach it.

    Args:
        data: the whole file.
        page: directory of the picture.
        keep_colour: whether the samples are still in the colour space of the file.

    Returns:
        The block or None, and warnings.
    """
    dropped = _LAYOUT_TAGS if keep_colour else _LAYOUT_TAGS | _COLOUR_TAGS
    block, lost = _Block(data, page.order), []
    kept, stack = metadata_entries(page.entries, dropped)
    if stack:
        lost.append("the description of the file's layout (ImageDescription)")
    if any(page.entry(tag) for tag in (Base.ImageResources, _IMAGE_SOURCE_DATA)):
        lost.append("the Photoshop data")
    try:
        entries = block.moved(page, kept)
    except ImageError:
        return None, ("the EXIF data are damaged and not kept",)
    notes = tuple(f"{what} is not kept" for what in lost)
    if not entries:
        return None, notes
    return block.closed(entries), notes + tuple(block.notes)


class _Block:
    """An EXIF block that grows: header, a maker's note in its place, directories."""

    def __init__(self, data: bytes, order: str) -> None:
        self.data, self.order = data, order
        self.out, self.notes = bytearray(8), []
        self.budget = len(data)  # no honest file lists more than it has

    def moved(self, parent: Directory, kept: Iterable[Entry]) -> list[Entry]:
        """Return entries of the file as entries of the block."""
        entries = []
        for entry in kept:
            if entry.tag in (IFD.Exif, IFD.GPSInfo, IFD.Interop):
                moved = self._directory(parent, entry)
            else:
                moved = self._value(entry)
            if moved is not None:
                entries.append(moved)
        return entries

    def closed(self, entries: list[Entry]) -> bytes:
        """Return the block with its first directory."""
        at = self._append(entries)
        self.out[:8] = tiff.file_header(self.order, at)
        return EXIF_HEADER + self.out

    def _append(self, entries: list[Entry]) -> int:
        self.out += bytes(len(self.out) % 2)
        at = len(self.out)
        self.out += tiff.directory_bytes(entries, self.order, at)
        return at

    def _directory(self, parent: Directory, entry: Entry) -> Entry | None:
        try:
            inside = tiff.sub_directory(self.data, parent, entry.tag)
        except ImageError:
            inside = None
        if inside is None:
            self._lose("damaged", entry.tag)
            return None
        notes = [e for e in inside.entries if e.tag == _MAKER_NOTE and e.value and e.at]
        placed = [self._placed(note) for note in notes[:1]]
        # Interoperability, inside of Exif, is the only directory in another one.
        deeper = {IFD.Exif, IFD.GPSInfo, IFD.Interop}
        deeper -= {IFD.Interop} if entry.tag == IFD.Exif else set()
        rest = [e for e in inside.entries if e not in notes and e.tag not in deeper]
        at = self._append([*self.moved(inside, rest), *placed])
        return tiff.integers(entry.tag, Kind.LONG, [at], self.order)

    def _placed(self, note: Entry) -> Entry:
        """Put a maker's note where it was, if that is free and near enough."""
        at = note.at or 0
        self._spend(note)
        if len(self.out) <= at <= len(self.out) + _FARTHEST_NOTE:
            self.out += bytes(at - len(self.out)) + bytes(note.value or b"")
            return note._replace(place=0)
        self.notes.append(
            "the maker's note has moved: what it refers to by its old place is lost"
        )
        return note._replace(value=bytes(note.value or b""), at=None, place=0)

    def _value(self, entry: Entry) -> Entry | None:
        self._spend(entry)
        moved = tiff.classic(entry, self.order)
        if moved is None:
            self._lose("damaged or of a type that EXIF does not know", entry.tag)
        return moved

    def _spend(self, entry: Entry) -> None:
        self.budget -= len(entry.value or b"")
        if self.budget < 0:
            raise ImageError("the tags hold more than the file")

    def _lose(self, why: str, tag: int) -> None:
        self.notes.append(f"the TIFF tag {tag} is {why}, and not kept")


def metadata_entries(
    entries: Iterable[Entry], dropped: Iterable[int] = _LAYOUT_TAGS
) -> tuple[list[Entry], bool]:
    """Return the entries that describe a picture and not its file.

    Args:
        entries: entries of the directory of a picture.
        dropped: tags to leave out.

    Returns:
        The entries, each tag once, and whether one that told how a stack of pages
        lies in the file is left out.
    """
    kept, stack = {}, False
    for entry in entries:
        if entry.tag in _STACK_TAGS or _is_stack_description(entry):
            stack = True
        elif entry.tag not in dropped:
            kept.setdefault(entry.tag, entry)
    return list(kept.values()), stack


def _is_stack_description(entry: Entry) -> bool:
    if entry.tag != Base.ImageDescription or entry.value is None:
        return False
    return _STACK_DESCRIPTION.match(entry.value) is not None


def exif_directory(block: bytes | None) -> Directory | None:
    """Return the first directory of an EXIF block, or None without a block.

    Args:
        block: EXIF block, or None.

    Raises:
        ImageError: the block is damaged.
    """
    return tiff.first_directory(block.removeprefix(EXIF_HEADER)) if block else None


# Resolution and colour tags.


def resolution(directory: Directory | None) -> tuple[float, float] | None:
    """Return (horizontal, vertical) dots per inch, or None if a TIFF tells none.

    Args:
        directory: directory of a picture, or None.
    """
    if directory is None:
        return None
    unit = (*directory.integers(Base.ResolutionUnit), tiff.INCH)[0]
    scale = {tiff.INCH: 1.0, tiff.CENTIMETRE: 2.54}.get(unit)
    tags = (Base.XResolution, Base.YResolution)
    found = [directory.rationals(tag)[:1] for tag in tags]
    if scale is None or not all(found) or 0 in (n for f in found for n in f[0]):
        return None
    across, down = (scale * top / bottom for ((top, bottom),) in found)
    return across, down


def resolution_entries(dpi: tuple[float, float], order: str) -> list[Entry]:
    """Return the tags of TIFF for a resolution.

    Args:
        dpi: (horizontal, vertical) dots per inch.
        order: byte order, "<" or ">".
    """
    tags = (Base.XResolution, Base.YResolution)
    fractions = [Fraction(value).limit_denominator(10_000) for value in dpi]
    return [
        *(
            tiff.integers(tag, Kind.RATIONAL, f.as_integer_ratio(), order)
            for tag, f in zip(tags, fractions, strict=True)
        ),
        tiff.integers(Base.ResolutionUnit, Kind.SHORT, [tiff.INCH], order),
    ]


def chromaticities(directory: Directory) -> tuple[tuple[str, bytes], ...]:
    """Return PNG's cHRM for a TIFF that tells its white point and its primaries.

    Args:
        directory: directory of a picture.
    """
    white = directory.rationals(Base.WhitePoint)
    primaries = directory.rationals(Base.PrimaryChromaticities)
    points = (*white, *primaries)
    if (len(white), len(primaries)) != (2, 6) or not all(b for _, b in points):
        return ()
    values = [round(_CHROMATICITY * top / bottom) for top, bottom in points]
    fits = all(value < 2**31 for value in values)
    return (("cHRM", struct.pack(">8I", *values)),) if fits else ()


def chromaticity_entries(content: bytes, order: str) -> list[Entry]:
    """Return the tags of TIFF for PNG's cHRM.

    Args:
        content: content of the chunk.
        order: byte order, "<" or ">".
    """
    values = [(value, _CHROMATICITY) for value in struct.unpack(">8I", content)]
    white, primaries = sum(values[:2], ()), sum(values[2:], ())
    return [
        tiff.integers(Base.WhitePoint, Kind.RATIONAL, white, order),
        tiff.integers(Base.PrimaryChromaticities, Kind.RATIONAL, primaries, order),
    ]


def fits_transfer(entry: Entry, bits: int, grey: bool) -> bool:
    """Tell whether a transfer function has an entry for every value of a sample.

    Args:
        entry: entry of a directory; every other tag fits.
        bits: bits of a sample.
        grey: whether there is one colour channel.
    """
    tables = (1,) if grey else (1, 3)
    return entry.tag != Base.TransferFunction or entry.count in [
        2**bits * n for n in tables
    ]


# ICC.


def profile_fits(icc: bytes, grey: bool) -> bool:
    """Tell whether a profile is for samples of this kind.

    Args:
        icc: ICC profile.
        grey: whether there is one colour channel, else RGB.
    """
    return icc[_PROFILE_KIND] == (b"GRAY" if grey else b"RGB ")


def profile_for(photo: Photo, kind: str) -> bytes | None:
    """Return the profile to write into a file, or None.

    Args:
        photo: what is written.
        kind: output format. WebP has no grey.
    """
    if not photo.icc or not profile_fits(photo.icc, photo.grey and kind != "WEBP"):
        return None
    return None if kind == "JPEG" and len(photo.icc) > _LARGEST_ICC else photo.icc


def xmp_for(photo: Photo, kind: str) -> bytes | None:
    """Return the XMP packet to write into a file, or None.

    Args:
        photo: what is written.
        kind: output format.
    """
    too_large = kind == "JPEG" and len(photo.xmp or b"") > _LARGEST_XMP
    return None if too_large else photo.xmp


# What a format cannot hold.


def unkept(photo: Photo, kind: str) -> tuple[str, ...]:
    """Return what a format cannot hold of a photo's metadata, one sentence each.

    `photo.warnings` has what was lost in reading already.

    Args:
        photo: what is written.
        kind: output format: "PNG", "TIFF", "WEBP" or "JPEG".
    """
    directory = exif_directory(photo.exif)
    lost = [f"the PNG colour tag {name}" for name in _unkept_colour(photo, kind)]
    if photo.icc and not profile_for(photo, kind):
        lost.append("the ICC profile")
    if photo.xmp and not xmp_for(photo, kind):
        lost.append("the XMP packet")
    if photo.dpi and not holds_resolution(photo.dpi, kind, directory):
        lost.append("the resolution")
    if kind == "TIFF" and directory is not None:
        bits_and_grey = photo.bits, photo.grey
        if not all(fits_transfer(e, *bits_and_grey) for e in directory.entries):
            lost.append("the transfer function")
        if metadata_entries(directory.entries)[1]:
            lost.append("the description of another file's layout")
    return tuple(f"{what} is not kept: {kind} cannot hold it" for what in lost)


def _unkept_colour(photo: Photo, kind: str) -> list[str]:
    names = [] if kind == "PNG" else [name for name, _ in photo.colour]
    directory = exif_directory(photo.exif)
    in_exif = directory is not None and chromaticities(directory)
    return [n for n in names if n != "cHRM" or not (kind == "TIFF" or in_exif)]


def holds_resolution(
    dpi: tuple[float, float], kind: str, directory: Directory | None = None
) -> bool:
    """Tell whether a format, or the EXIF block in it, can hold a resolution.

    TIFF has one place for the resolution of the file and that of EXIF; EXIF's stays.

    Args:
        dpi: (horizontal, vertical) dots per inch.
        kind: output format.
        directory: first directory of the EXIF block, or None without a block.
    """
    told = resolution(directory)
    same = told is not None and math.isclose(sum(told), sum(dpi), rel_tol=0.01)
    if kind == "WEBP" or (kind == "TIFF" and told is not None):
        return same
    least, most = _RESOLUTIONS[kind]
    return all(least <= value <= most for value in dpi)


# XMP.


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


def without_appended(
    xmp: bytes | None, segments: Iterable[tuple[str, bytes]]
) -> tuple[bytes | None, tuple[str, ...]]:
    """Take out of XMP what tells of data behind the picture in its file.

    Args:
        xmp: XMP packet of a JPEG, or None.
        segments: names and contents of the segments of the JPEG.

    Returns:
        The packet without a gain map, a list of what follows in the file, and a
        pointer to more XMP; and warnings.
    """
    segments = list(segments)
    packet, notes = xmp or b"", []
    iso = any(content.startswith(_ISO_GAIN_MAP) for _, content in segments)
    if iso or any(name in packet for name in _GAIN_MAPS):
        notes.append(GAIN_MAP_LOST)
        for name in _APPENDED:
            packet = _without_namespace(packet, name)
    if _EXTENDED_XMP.search(packet):
        packet = _EXTENDED_XMP.sub(b"", packet)
        notes.append("the second part of the XMP packet is not kept")
    if any(content.startswith(b"Photoshop 3.0\0") for _, content in segments):
        notes.append("the Photoshop and IPTC data are not kept")
    return packet or None, tuple(notes)


def _without_namespace(xmp: bytes, name: bytes) -> bytes:
    """Remove the elements and attributes of a namespace, and the namespace."""
    declared = rb"""\sxmlns:([\w.-]+)\s*=\s*["']""" + re.escape(name) + rb"""["']"""
    for prefix in {re.escape(match[1]) for match in re.finditer(declared, xmp)}:
        element = rb"<(" + prefix + rb":[\w.-]+)(?:\s[^<>]*)?(?:/>|(?<!/)>.*?</\1\s*>)"
        attribute = rb"\s" + prefix + rb""":[\w.-]+\s*=\s*(?:"[^"]*"|'[^']*')"""
        xmp = re.sub(element, b"", xmp, flags=re.DOTALL)
        xmp = re.sub(attribute, b"", xmp)
    return re.sub(declared, b"", xmp)
