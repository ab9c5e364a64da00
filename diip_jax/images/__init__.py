"""Image files and float arrays: every common format, and nothing is lost on the way.

`read` returns a `Photo`: the upright colours in [0, 1], and what a restoration must
keep (alpha, depth, greyness, EXIF, ICC, XMP, resolution, colour tags). `write` puts a
restored image into a file together with these; `unkept` says what its format cannot
hold. Samples are mapped by value and never clipped:

- Unsigned integers of n <= 16 bits become v / (2^n - 1).
- Signed and 32-bit integers (TIFF) hold 16-bit values in a wider type, as in Pillow's
  mode "I". They become v / 65535. A value outside 0..65535 is refused.
- Floats (TIFF) hold sRGB in [0, 1]. A value outside is refused.
- CMYK becomes (1 - ink) (1 - black), and Lab (TIFF) sRGB. Their profiles are not kept.

Samples of more than 8 bits are written with 16. Pillow silently cuts some files to 8
bits; other libraries read and write those: imagecodecs 16-bit PNG in colour or with
alpha, tifffile (with imagecodecs) TIFF deeper than 8 bits. Both are in the extra
`hidepth`.
"""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from diip_jax import storage
from diip_jax.images.decode import MAX_PIXELS, READABLE_SUFFIXES, decode_photo, load
from diip_jax.images.encode import (
    WRITERS,
    check_sides,
    encode_samples,
    file_format,
    output_suffix,
)
from diip_jax.images.metadata import unkept
from diip_jax.images.photo import ImageError, Photo, codec_guard, to_uint, unwritable

__all__ = [
    "MAX_PIXELS",
    "READABLE_SUFFIXES",
    "ImageError",
    "Photo",
    "check_sides",
    "encode",
    "file_format",
    "output_suffix",
    "read",
    "to_uint",
    "unkept",
    "unwritable",
    "write",
]


def read(
    source: str | os.PathLike | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS
) -> Photo:
    """Read a picture, or the first frame of several.

    Args:
        source: path, bytes of a file, or binary file object.
        max_pixels: largest width times height; checked before anything is decoded.

    Returns:
        The upright picture and its metadata.

    Raises:
        ImageError: the file is missing, unreadable, damaged or too large, or its
            format is not supported.
    """
    name, data = load(source)
    with codec_guard(f"cannot read {name}", "open it elsewhere and save it again"):
        return decode_photo(data, max_pixels)


def write(
    path: str | os.PathLike, image: ArrayLike, like: Photo, *, quality: int = 95
) -> None:
    """Write a restored image with the depth, alpha and metadata of its original.

    The file appears whole or not at all.

    Args:
        path: output path; its suffix names the format: .png, .tif, .tiff, .webp, .jpg
            or .jpeg.
        image: restored image, (H, W, 3) in [0, 1]; values outside are clipped.
        like: photo that `image` restores.
        quality: JPEG quality, up to 100; the other formats are lossless.

    Raises:
        ImageError: the format cannot hold the picture, or the file cannot be written.
    """
    path = Path(path)
    try:
        data = encode(image, like, file_format(path), quality=quality)
        storage.write_bytes(path, data)
    except ImageError as error:
        raise ImageError(f"cannot write {path}: {error}") from error
    except OSError as error:
        raise unwritable(path, error) from error


def encode(image: ArrayLike, like: Photo, kind: str, *, quality: int = 95) -> bytes:
    """Return the bytes of a file that holds a restored image.

    A grey photo stays grey: its one channel is the mean of the three. PNG and TIFF keep
    the depth of the photo. JPEG (4:4:4) and WebP (lossless, never grey) have 8 bits.

    Args:
        image: restored image, (H, W, 3) in [0, 1]; values outside are clipped.
        like: photo that `image` restores.
        kind: output format: "PNG", "TIFF", "WEBP" or "JPEG".
        quality: JPEG quality, up to 100.

    Raises:
        ImageError: `kind` cannot hold the picture.
    """
    image, alpha = np.asarray(image), like.alpha
    if kind not in WRITERS.values():
        raise ImageError(f"{kind!r} is not an output format; use PNG, TIFF or WEBP")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"the image is {image.shape}; it must be (height, width, 3)")
    if alpha is not None and kind == "JPEG":
        raise ImageError("JPEG cannot hold alpha; use --ext png, tiff or webp")
    if alpha is not None and alpha.shape != image.shape[:2]:
        raise ImageError(
            f"alpha is {alpha.shape} and the image {image.shape[:2]}; restore at the"
            " size of the input"
        )
    bits = like.bits if kind in ("PNG", "TIFF") else 8
    samples = to_uint(image.mean(axis=2, keepdims=True) if like.grey else image, bits)
    if alpha is not None:
        alpha = alpha if bits == like.bits else to_uint(alpha / 65535, bits)
        samples = np.dstack([samples, alpha])
    with codec_guard(f"{kind} encoder", "use --ext png or tiff"):
        return encode_samples(samples, like, kind, quality)
