"""Chunks of PNG: what is not needed for the samples is taken out before decoding.

A decoder then meets neither a damaged chunk of metadata nor one that is too long for
it, and nobody's limits for text have to be changed.
"""

import re
import struct
import zlib
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END = 33  # of the signature and IHDR
# What tells the colours of the samples, apart from an ICC profile, and their lengths.
COLOUR_CHUNKS = {"cICP": 4, "sRGB": 1, "gAMA": 4, "cHRM": 32, "mDCV": 24, "cLLI": 8}
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_TEXT = ("tEXt", "zTXt", "iTXt")
_RAW_PROFILE = re.compile(rb"Raw profile type (exif|APP1|xmp)", re.IGNORECASE)
_METRE = 1  # unit of pHYs
_INCH = 0.0254  # metres
_LARGEST = 2**27  # bytes that a compressed chunk of metadata may unpack to


class Metadata(NamedTuple):
    """What the ancillary chunks hold.

    Attributes:
        exif: content of eXIf, or what older ImageMagick wrote instead, or None.
        icc: ICC profile, or None.
        xmp: XMP packet, or None.
        dpi: (horizontal, vertical) dots per inch, or None.
        colour: names and contents of `COLOUR_CHUNKS`.
        text: names and contents of the chunks with other text.
        animated: whether there are frames besides the picture.
        damaged: names of the chunks that are damaged.
    """

    exif: bytes | None
    icc: bytes | None
    xmp: bytes | None
    dpi: tuple[float, float] | None
    colour: tuple[tuple[str, bytes], ...]
    text: tuple[tuple[str, bytes], ...]
    animated: bool
    damaged: tuple[str, ...]


def split(data: bytes) -> tuple[bytes, Metadata]:
    """Take the metadata out of a PNG.

    Args:
        data: bytes of the file, which begin with the signature.

    Returns:
        A file with the critical chunks and transparency alone, and the metadata.
    """
    kept, ancillary, damaged = [SIGNATURE], [], []
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if not name.isalpha() or end > len(data):
            break
        critical = name[:1].isupper()
        content = b"" if critical else data[at + 8 : end - 4]
        if critical:
            kept.append(data[at:end])
        elif zlib.crc32(name + content) != int.from_bytes(data[end - 4 : end]):
            damaged.append(name.decode())
        elif name != b"tRNS":
            ancillary.append((name.decode(), content))
        elif _is_transparency(content, data[25:26]):
            kept.append(data[at:end])
        else:
            damaged.append("tRNS")
        at = end
        if name == b"IEND":
            break
    kept.append(data[at:] if kept[-1][4:8] != b"IEND" else b"")  # a cut one
    return b"".join(kept), _metadata(ancillary, damaged)


def _is_transparency(content: bytes, colour_type: bytes) -> bool:
    lengths = {b"\0": (2,), b"\2": (6,), b"\3": range(1, 257)}
    return len(content) in lengths.get(colour_type, ())


def _metadata(chunks: list[tuple[str, bytes]], damaged: list[str]) -> Metadata:
    found: dict[str, bytes] = {}
    text: list[tuple[str, bytes]] = []
    for name, content in chunks:
        try:
            key, value = _understood(name, content)
        except (ValueError, zlib.error):
            damaged.append(name)
        else:
            text += [(key, value)] if key in _TEXT else []
            found.setdefault(key, value)
    return Metadata(
        exif=found.get("eXIf") or found.get("exif"),
        icc=found.get("iCCP"),
        xmp=found.get("xmp"),
        dpi=_dpi(found.get("pHYs", b"")),
        colour=tuple((name, found[name]) for name in COLOUR_CHUNKS if name in found),
        text=tuple(text),
        animated="fdAT" in found,
        damaged=tuple(dict.fromkeys(damaged)),
    )


def _understood(name: str, content: bytes) -> tuple[str, bytes]:
    """Return a chunk under the name of what it holds.

    Raises:
        ValueError: the chunk is damaged.
    """
    if len(content) != COLOUR_CHUNKS.get(name, len(content)):
        raise ValueError(name)
    if name == "iCCP":
        _, _, rest = content.partition(b"\0")
        return name, _inflate(rest[1:])
    if name == "iTXt" and content.startswith(_XMP_KEYWORD + b"\0"):
        flags, rest = content[18:20], content[20:]
        text = rest.split(b"\0", 2)[2] if rest.count(b"\0") > 1 else rest
        return "xmp", _inflate(text) if flags[:1] == b"\1" else text
    if name in ("tEXt", "zTXt") and (profile := _RAW_PROFILE.match(content)):
        text = content[profile.end() + 1 :]
        text = _inflate(text[1:]) if name == "zTXt" else text
        return _raw_profile(text)
    return name, content


def _inflate(content: bytes) -> bytes:
    stream = zlib.decompressobj()
    out = stream.decompress(content, _LARGEST)
    if not stream.eof:
        raise ValueError("cut, or too long")
    return out


def _raw_profile(text: bytes) -> tuple[str, bytes]:
    """Return EXIF or XMP from the hexadecimal text of older ImageMagick."""
    profile = bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    head, _, packet = profile.partition(b"\0")
    if head.startswith(b"http://ns.adobe"):
        return "xmp", packet
    return "xmp" if profile.startswith(b"<") else "exif", profile


def _dpi(content: bytes) -> tuple[float, float] | None:
    if len(content) != 9 or content[8] != _METRE:
        return None
    across, down = struct.unpack_from(">II", content)
    return (across * _INCH, down * _INCH) if across and down else None


def chunk(name: str, content: bytes) -> bytes:
    """Return a chunk with its length and checksum.

    Args:
        name: four letters.
        content: what it holds.
    """
    body = name.encode() + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def xmp_chunk(xmp: bytes) -> bytes:
    """Return the chunk for an XMP packet.

    Args:
        xmp: the packet.
    """
    return chunk("iTXt", _XMP_KEYWORD + bytes(5) + xmp)


def density_chunk(dpi: tuple[float, float]) -> bytes:
    """Return the chunk for a resolution.

    Args:
        dpi: (horizontal, vertical) dots per inch.
    """
    across, down = (round(value / _INCH) for value in dpi)
    return chunk("pHYs", struct.pack(">IIB", across, down, _METRE))


def profile_chunk(icc: bytes) -> bytes:
    """Return the chunk for an ICC profile.

    Args:
        icc: the profile.
    """
    return chunk("iCCP", b"icc\x00\x00" + zlib.compress(icc))
