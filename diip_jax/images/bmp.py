"""BMP with masks: which bits of a pixel hold which channel.

Pillow knows a dozen of the possible masks. Microsoft's BITMAPV4HEADER has them.
"""

import struct

import numpy as np

from diip_jax.images.photo import ImageError

# Offsets in the file.
_PIXELS, _HEADER, _WIDTH, _BITS, _DENSITY, _MASKS = 10, 14, 18, 28, 38, 54
_FIRST_WITH_DENSITY = 40  # size of that header
_ALPHA_FROM = 56  # size of the first header with a mask for alpha
_BITFIELDS, _ALPHA_BITFIELDS = 3, 6  # compression


def masks(data: bytes) -> tuple[int, ...]:
    """Return the masks of red, green, blue and perhaps alpha, or nothing without masks.

    Args:
        data: the whole file.
    """
    if len(data) < _MASKS + 16:
        return ()
    (header,) = struct.unpack_from("<I", data, _HEADER)
    bits, compression = struct.unpack_from("<HI", data, _BITS)
    if bits not in (16, 32) or compression not in (_BITFIELDS, _ALPHA_BITFIELDS):
        return ()
    found = struct.unpack_from("<4I", data, _MASKS)
    has_alpha = header >= _ALPHA_FROM or compression == _ALPHA_BITFIELDS
    found = found if has_alpha and found[3] else found[:3]
    return tuple(mask & (2**bits - 1) for mask in found)


def size(data: bytes) -> tuple[int, int]:
    """Return the width and the height.

    Args:
        data: the whole file.
    """
    width, height = struct.unpack_from("<ii", data, _WIDTH)
    return width, abs(height)


def dpi(data: bytes) -> tuple[float, float] | None:
    """Return (horizontal, vertical) dots per inch, or None if the file tells none.

    Args:
        data: the whole file.
    """
    (header,) = struct.unpack_from("<I", data, _HEADER)
    if header < _FIRST_WITH_DENSITY:
        return None
    across, down = struct.unpack_from("<ii", data, _DENSITY)  # dots in a metre
    return (across * 0.0254, down * 0.0254) if across > 0 and down > 0 else None


def decode(data: bytes) -> np.ndarray:
    """Return RGB or RGBA samples, (H, W, C) uint8, or uint16 if a mask is longer.

    Args:
        data: the whole file, which has masks.

    Raises:
        ImageError: the pixels are cut.
    """
    (bits,), (width, height) = struct.unpack_from("<H", data, _BITS), size(data)
    row = -(-width * bits // 32) * 4  # rows end on multiples of four bytes
    (start,) = struct.unpack_from("<I", data, _PIXELS)
    if start + row * height > len(data):
        raise ImageError("the pixels are cut; save the file again")
    stored = np.frombuffer(data, f"<u{bits // 8}", row * height * 8 // bits, start)
    pixels = stored.reshape(height, -1)[:, :width]
    if struct.unpack_from("<i", data, _WIDTH + 4)[0] > 0:  # the last row comes first
        pixels = pixels[::-1]
    found = masks(data)
    deep = max(mask.bit_count() for mask in found) > 8
    top, dtype = (65535, np.uint16) if deep else (255, np.uint8)
    channels = [_channel(pixels, mask, top).astype(dtype) for mask in found]
    return np.stack(channels, axis=2)


def _channel(pixels: np.ndarray, mask: int, top: int) -> np.ndarray:
    """Return the values under a mask, whose largest becomes `top`."""
    shift = (mask & -mask).bit_length() - 1 if mask else 0
    largest = max(mask >> shift, 1)
    values = (pixels & np.asarray(mask, pixels.dtype)) >> shift
    return np.rint(values * (top / largest))
