"""BMP whose pixels are divided by masks, made by a few lines of struct."""

import struct

import numpy as np
import pytest

from diip_jax import images
from helpers.pictures import HEIGHT, WIDTH, samples


def bitfields(bits, masks, values, *, header=124, top_down=False):
    """A BMP of (H, W, C) values, each below the largest that its mask can hold."""
    height, width, _ = values.shape
    pixels = np.zeros((height, width), np.uint64)
    for channel, mask in enumerate(masks):
        shift = (mask & -mask).bit_length() - 1
        pixels |= values[..., channel].astype(np.uint64) << np.uint64(shift)
    rows = pixels.astype(f"<u{bits // 8}")
    rows = rows if top_down else rows[::-1]
    stored = b"".join(
        r.tobytes().ljust(-(-width * bits // 32) * 4, b"\0") for r in rows
    )
    size = (width, -height if top_down else height)
    info = struct.pack("<IiiHHIIiiII", header, *size, 1, bits, 3, 0, 3937, 3937, 0, 0)
    info += struct.pack(f"<{len(masks)}I", *masks)
    info = info.ljust(header, b"\0")
    start = 14 + len(info)
    return (
        struct.pack("<2sIHHI", b"BM", start + len(stored), 0, 0, start) + info + stored
    )


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF00, 0xF0, 0xF)),
        (16, (0xF00, 0xF0, 0xF, 0xF000)),
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
        (32, (0xFF, 0xFF00, 0xFF0000)),
        (32, (0x3F, 0xFC0, 0x3F000, 0xFC0000)),
    ],
)
def test_masks_that_pillow_does_not_know(bits, masks, top_down):
    tops = [mask >> ((mask & -mask).bit_length() - 1) for mask in masks]
    values = samples(len(masks), 16) % (np.array(tops) + 1)
    photo = images.read(bitfields(bits, masks, values, top_down=top_down))
    expected = np.rint(values / tops * 255)
    got = images.to_uint(photo.rgb, 8)
    np.testing.assert_array_equal(got, expected[..., :3])
    if len(masks) > 3:
        np.testing.assert_array_equal(photo.alpha, expected[..., 3])
    assert (photo.alpha is not None) == (len(masks) > 3)
    assert (photo.bits, photo.format) == (8, "BMP")
    np.testing.assert_allclose(photo.dpi, (100, 100), rtol=1e-4)  # whole dots a metre


def test_masks_of_more_than_eight_bits_are_deep():
    values = samples(3, 10)
    data = bitfields(32, (0x3FF00000, 0xFFC00, 0x3FF), values, header=40)
    # A header of 40 bytes is followed by the masks.
    masks = struct.pack("<3I", 0x3FF00000, 0xFFC00, 0x3FF)
    data = data[:10] + struct.pack("<I", 66) + data[14:54] + masks + data[54 + 12 :]
    photo = images.read(data)
    assert photo.bits == 16
    np.testing.assert_allclose(photo.rgb, values / 1023, atol=1 / 65535)


def test_cut_pixels_and_empty_masks_are_refused_or_black():
    data = bitfields(16, (0xF00, 0xF0, 0xF), samples(3, 4))
    with pytest.raises(images.ImageError, match="pixels are cut"):
        images.read(data[:-1])
    masks = data.index(struct.pack("<3I", 0xF00, 0xF0, 0xF))
    data = data[:masks] + bytes(12) + data[masks + 12 :]
    photo = images.read(data)
    assert photo.rgb.shape == (HEIGHT, WIDTH, 3)
    assert (photo.rgb == 0).all()
