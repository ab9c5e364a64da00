"""What XMP says of the file that it came from, and not of the output, is taken out."""

import struct

import pytest
from PIL import Image

from diip_jax import images
from helpers.pictures import HEIGHT, WIDTH, XMP_END, XMP_START, by_pillow, samples

ULTRA_HDR = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description
 xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"
 xmlns:Container="http://ns.google.com/photos/1.0/container/"
 xmlns:Item="http://ns.google.com/photos/1.0/container/item/"
 hdrgm:Version="1.0" dc:title="kept"><Container:Directory><rdf:Seq><rdf:li
 rdf:parseType="Resource"><Container:Item Item:Semantic="Primary"
 Item:Mime="image/jpeg"/></rdf:li><rdf:li rdf:parseType="Resource"><Container:Item
 Item:Semantic="GainMap" Item:Mime="image/jpeg" Item:Length="9"/></rdf:li></rdf:Seq>
</Container:Directory></rdf:Description></rdf:RDF></x:xmpmeta>"""


def test_a_lost_gain_map_is_said_and_not_announced():
    data = by_pillow(samples(3), "JPEG", xmp=ULTRA_HDR)
    photo = images.read(data + by_pillow(samples(1), "JPEG"))
    assert photo.warnings == (
        "the HDR gain map is not kept: the output is the standard picture",
    )
    assert photo.xmp is not None
    for word in (b"hdrgm", b"GainMap", b"Container", b"Item"):
        assert word not in photo.xmp
    assert b'<rdf:Description dc:title="kept">' in b" ".join(photo.xmp.split())


def test_a_gain_map_of_iso_is_said():
    data = by_pillow(samples(3), "JPEG")
    content = b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0"
    segment = b"\xff\xe2" + struct.pack(">H", 2 + len(content)) + content
    photo = images.read(data[:20] + segment + data[20:])
    assert "HDR gain map" in photo.warnings[0]


@pytest.mark.parametrize(
    "xmp",
    [
        XMP_START + b"\n tiff:Orientation='8'" + XMP_END,
        XMP_START + b"><tiff:Orientation> 8 </tiff:Orientation" + XMP_END,
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP"])
def test_orientation_only_in_xmp(kind, xmp):
    """Viewers such as Pillow's exif_transpose fall back on XMP."""
    exif = Image.Exif()
    options = {"xmp": xmp}
    if kind == "TIFF":
        exif[700] = xmp
        options = {"exif": exif}
    photo = images.read(by_pillow(samples(3), kind, **options))
    assert (photo.orientation, photo.rgb.shape) == (8, (WIDTH, HEIGHT, 3))
    assert photo.xmp is not None
    assert b"Orientation" not in photo.xmp
    assert b'dc:title="kept"' in photo.xmp


MOTION = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description
 xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MotionPhoto="1"
 xmlns:C="http://ns.google.com/photos/1.0/container/" GCamera:MicroVideoOffset='9'
 GCamera:Burst="kept"><C:Directory><C:Item/></C:Directory></rdf:Description>"""


def test_a_lost_motion_photo_is_said_and_not_announced():
    photo = images.read(by_pillow(samples(3), "JPEG", xmp=MOTION))
    assert photo.warnings == ("the video of the motion photo is not kept",)
    assert photo.xmp is not None
    for word in (b"MotionPhoto", b"MicroVideo", b"Directory", b"Item"):
        assert word not in photo.xmp
    assert b'GCamera:Burst="kept"' in photo.xmp


def test_a_pointer_to_more_xmp_is_said_to_lead_nowhere():
    xmp = XMP_START + b' xmpNote:HasExtendedXMP="0123456789ABCDEF"' + XMP_END
    photo = images.read(by_pillow(samples(3), "JPEG", xmp=xmp))
    assert photo.warnings == ("the second part of the XMP packet is not kept",)
    assert photo.xmp == XMP_START + XMP_END


def test_iptc_is_said_to_be_lost():
    content = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\0"
    segment = b"\xff\xed" + struct.pack(">H", 2 + len(content)) + content
    data = by_pillow(samples(3), "JPEG")
    photo = images.read(data[:20] + segment + data[20:])
    assert photo.warnings == ("the Photoshop and IPTC data are not kept",)


def test_spaces_at_the_end_of_a_packet_take_no_time():
    """Editors leave room there; time that is quadratic in it would be half a minute."""
    xmp = XMP_START + b">" + b" " * 60_000 + XMP_END
    assert images.read(by_pillow(samples(3), "JPEG", xmp=xmp)).xmp == xmp
