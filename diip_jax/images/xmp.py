"""XMP packets: what must not be told of the output is taken out, the rest is left."""

import re
from collections.abc import Sequence
from typing import Any

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
_CAMERA = b"http://ns.google.com/photos/1.0/camera/"
_MOTION = rb"(?:MotionPhoto|MicroVideo)\w*"
_ISO_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"
_EXTENDED_XMP = re.compile(rb"""\sxmpNote:HasExtendedXMP\s*=\s*["']\w*["']""")
_GAIN_MAP_LOST = "the HDR gain map is not kept: the output is the standard picture"


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
    xmp: bytes | None, segments: Sequence[bytes]
) -> tuple[bytes | None, tuple[str, ...]]:
    """Take out of XMP what tells of data behind the picture in its file.

    Args:
        xmp: XMP packet of a JPEG, or None.
        segments: contents of the segments of the JPEG.

    Returns:
        The packet without a gain map, a list of what follows in the file, and a
        pointer to more XMP; and warnings.
    """
    packet, notes = xmp or b"", []
    iso = any(content.startswith(_ISO_GAIN_MAP) for content in segments)
    if iso or any(name in packet for name in _GAIN_MAPS):
        notes.append(_GAIN_MAP_LOST)
    if _CAMERA in packet and re.search(_MOTION, packet):
        packet = _without_namespace(packet, _CAMERA, _MOTION)
        notes.append("the video of the motion photo is not kept")
    if notes:
        for name in _APPENDED:
            packet = _without_namespace(packet, name)
    if _EXTENDED_XMP.search(packet):
        packet = _EXTENDED_XMP.sub(b"", packet)
        notes.append("the second part of the XMP packet is not kept")
    if any(content.startswith(b"Photoshop 3.0\0") for content in segments):
        notes.append("the Photoshop and IPTC data are not kept")
    return packet or None, tuple(notes)


def _without_namespace(xmp: bytes, name: bytes, names: bytes = rb"[\w.-]+") -> bytes:
    """Remove the elements and attributes of a namespace that have certain names."""
    declared = rb"""\sxmlns:([\w.-]+)\s*=\s*["']""" + re.escape(name) + rb"""["']"""
    for prefix in {re.escape(match[1]) for match in re.finditer(declared, xmp)}:
        local = prefix + rb":" + names
        element = rb"<(" + local + rb")(?:\s[^<>]*)?(?:/>|(?<!/)>.*?</\1\s*>)"
        attribute = rb"\s" + local + rb"""\s*=\s*(?:"[^"]*"|'[^']*')"""
        xmp = re.sub(element, b"", xmp, flags=re.DOTALL)
        xmp = re.sub(attribute, b"", xmp)
        if not re.search(rb"[\s</]" + prefix + rb":", xmp):
            xmp = re.sub(declared, b"", xmp)
    return xmp
