"""EXIF blocks made byte by byte, and what they hold, read by a few lines of struct.

Independent here: nothing of `diip_jax.images` and no library, which would take a value
of an unexpected type for another.
"""

import struct

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 9: 4, 10: 8, 129: 1}
POINTERS = {34665: "exif", 34853: "gps", 40965: "interop"}
MAKER_NOTE = 37500
NOTE = b"Maker\0" + bytes(range(200)) + b"what the note points to"


def table(order: str, at: int, entries, link: int = 0) -> bytes:
    """A directory at an offset and its values.

    Entries are (tag, type, count, value); a number for a value is its offset.
    """
    end, values = at + 2 + 12 * len(entries) + 4, b""
    out = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in sorted(entries, key=lambda entry: entry[0]):
        if isinstance(value, int):
            field = struct.pack(f"{order}I", value)
        elif len(value) > 4:
            values += bytes(len(values) % 2)
            field = struct.pack(f"{order}I", end + len(values))
            values += value
        else:
            field = value.ljust(4, b"\0")
        out += struct.pack(f"{order}HHI", tag, kind, count) + field
    out += struct.pack(f"{order}I", link) + values
    return out + bytes(len(out) % 2)


def camera_block(order: str = "<", orientation: int = 6, extra=(), tail=b"") -> bytes:
    """What a camera writes, without "Exif", and what libraries stumble over.

    Text in UTF-8, text stored as numbers, numbers stored as text, a private tag, a
    maker's note with an offset that counts from the start of the block, directories
    for Exif, GPS and Interoperability, and a thumbnail.

    Args:
        order: byte order.
        orientation: value of Orientation.
        extra: more entries of the first directory.
        tail: bytes to put behind the header, at offset 8.
    """

    def numbers(code, *values):
        return struct.pack(order + code, *values)

    owner, note_at = "© Jörg Šimek\0".encode(), 8 + len(tail) + len(tail) % 2
    note = NOTE + numbers("I", note_at + NOTE.index(b"what"))
    note += bytes(len(note) % 2)
    block = bytes(8) + tail + bytes(len(tail) % 2) + note
    interop = len(block)
    block += table(order, interop, [(1, 2, 4, b"R98\0")])
    gps = len(block)
    degrees = numbers("6I", 52, 1, 30, 1, 15, 1)
    block += table(order, gps, [(1, 2, 2, b"N\0"), (2, 5, 3, degrees)])
    exif = len(block)
    entries = [
        (36867, 2, 20, b"2023:01:02 03:04:05\0"),
        (37386, 2, 3, b"50\0"),  # a focal length as text
        (MAKER_NOTE, 7, len(note), note_at),
        (37510, 7, 14, b"UNICODE\0\xc4\x00\xd6\x00\x00\x00"),
        (40965, 4, 1, interop),
        (42036, 129, 9, "Zeiß 50".encode() + b"\0"),
    ]
    block += table(order, exif, entries)
    first = [
        (270, 3, 3, numbers("3H", 1, 2, 3)),  # a description made of numbers
        (271, 2, 6, b"Maker\0"),
        (274, 3, 1, numbers("H", orientation)),
        (305, 1, 5, b"1.2\0x"),  # a program's name as bytes
        (33432, 2, len(owner), owner),
        (34665, 4, 1, exif),
        (34853, 4, 1, gps),
        (50341, 7, 16, b"PrintIM\0" + bytes(8)),
        (60000, 9, 2, numbers("2i", -1, 7)),
        *extra,
    ]
    mark, start = b"II" if order == "<" else b"MM", len(block)
    block = mark + numbers("HI", 42, start) + block[8:]
    if tail:
        return block + table(order, start, first)
    thumbnail = start + len(table(order, start, first))
    pixels = thumbnail + 2 + 2 * 12 + 4
    entries = [(513, 4, 1, pixels), (514, 4, 1, numbers("I", 8))]
    block += table(order, start, first, thumbnail)
    return block + table(order, thumbnail, entries) + b"\xff\xd8thumb"


def camera_tiff(order: str, samples, orientation: int = 6, extra=()) -> bytes:
    """The same metadata in a TIFF file, 8-bit RGB (H, W, 3) of one strip."""
    height, width, _ = samples.shape
    values = {256: width, 257: height, 258: (8, 8, 8), 259: 1, 262: 2, 273: 8, 277: 3}
    values |= {278: height, 279: samples.nbytes}
    layout = []
    for tag, value in values.items():
        value = value if isinstance(value, tuple) else (value,)
        kind, code = (4, "I") if tag == 279 else (3, "H")
        packed = struct.pack(f"{order}{len(value)}{code}", *value)
        layout.append((tag, kind, len(value), packed))
    return camera_block(order, orientation, [*layout, *extra], samples.tobytes())


def order_of(block: bytes) -> str:
    return "<" if block[:2] == b"II" else ">"


def first_at(block: bytes) -> int:
    return struct.unpack_from(order_of(block) + "I", block, 4)[0]


def contents(block: bytes, at: int | None = None, name: str = "") -> dict:
    """What a block or a TIFF file holds: {(directory, tag): (type, count, bytes)}."""
    order, found = order_of(block), {}
    at = first_at(block) if at is None else at
    (count,) = struct.unpack_from(order + "H", block, at)
    for place in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number, offset = struct.unpack_from(order + "HHII", block, place)
        size = SIZES[kind] * number
        start = place + 8 if size <= 4 else offset
        if tag in POINTERS:
            found |= contents(block, offset, POINTERS[tag])
        else:
            found[name, tag] = (kind, number, block[start : start + size])
    (link,) = struct.unpack_from(order + "I", block, at + 2 + 12 * count)
    if link:
        found |= contents(block, link, "thumbnail")
    return found


def place_of(block: bytes, value: bytes) -> int:
    """The offset of a value that occurs once."""
    assert block.count(value) == 1
    return block.index(value)


def patched(block: bytes) -> bytes:
    """A block after what may change: it is upright and links no thumbnail."""
    order, out, at = order_of(block), bytearray(block), first_at(block)
    (count,) = struct.unpack_from(order + "H", block, at)
    for place in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", block, place)[0] == 274:
            struct.pack_into(order + "HIHH", out, place + 2, 3, 1, 1, 0)
    struct.pack_into(order + "I", out, at + 2 + 12 * count, 0)
    return bytes(out)
