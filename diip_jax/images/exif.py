"""EXIF blocks: patched, or made from the tags of a TIFF, and what they tell.

An EXIF block is patched, never written anew: makers' notes hold offsets that count from
its start, and a library that parses it and writes it again loses what it does not know.
"""

import re
import struct
from collections.abc import Iterable
from fractions import Fraction

from PIL.ExifTags import IFD, Base

from diip_jax.images import tiff
from diip_jax.images.photo import CODEC_ERRORS, ImageError
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
_CHROMATICITY = 100_000  # denominator of PNG's cHRM


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


def with_tags(page: Directory, other: Directory) -> Directory:
    """Return a page that has the metadata of another one too, where it has no own.

    Args:
        page: directory of a picture.
        other: another directory of the same file.
    """
    own = {entry.tag for entry in page.entries}
    own |= _LAYOUT_TAGS - {Base.XMLPacket, Base.InterColorProfile}
    return page._replace(
        entries=page.entries + tuple(e for e in other.entries if e.tag not in own)
    )


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
