"""Image files and float arrays: every common format, and nothing lost on the way.

`read` gives a `Photo`: upright colour in [0, 1], and beside it what a restoration must
hand back untouched (alpha, depth, greyness, EXIF, ICC, XMP). `write` puts a restored
image into a file of the same kind. Samples are mapped by value and never clipped:

- unsigned integers of n <= 16 bits are v / (2^n - 1);
- signed and 32-bit integers (TIFF) are taken for 16-bit values in a wider type, as in
  Pillow's mode "I": v / 65535, and anything outside 0..65535 is refused;
- floats (TIFF) are taken for sRGB in [0, 1], and anything outside is refused;
- CMYK becomes (1 - ink) (1 - black), and its profile is not kept.

More than 8 bits come back as 16. Only Pillow is needed, except for what it would cut to
8 bits without a word: 16-bit PNG in colour or with alpha (imagecodecs), and TIFF deeper
than 8 bits (tifffile). Both are in the extra `hidepth`.
"""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from diip_jax import storage
from diip_jax.images.decode import MAX_PIXELS, READABLE_SUFFIXES, decode_photo, load
from diip_jax.images.encode import WRITERS, encode_samples, file_format, output_suffix
from diip_jax.images.photo import ImageError, Photo, codec_guard, to_uint, unwritable

__all__ = [
    "MAX_PIXELS",
    "READABLE_SUFFIXES",
    "ImageError",
    "Photo",
    "encode",
    "file_format",
    "output_suffix",
    "read",
    "to_uint",
    "unwritable",
    "write",
]


def read(
    source: str | os.PathLike | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS
) -> Photo:
    """Read a picture; the first frame if there are several.

    Args:
        source: a path, the bytes of a file, or a binary file object.
        max_pixels: largest width times height, checked before anything is decoded.

    Returns:
        The upright picture and its metadata.

    Raises:
        ImageError: the file is missing, unreadable, damaged, too large, or of a kind
            that is not supported.
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
        path: where to; .png, .tif, .tiff, .webp, .jpg or .jpeg names the format.
        image: (H, W, 3) in [0, 1]; values outside are clipped.
        like: the photo that `image` restores.
        quality: of JPEG; the other formats are lossless.

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

    A grey photo stays grey: its one channel is the mean of the three. Asking for JPEG
    (4:4:4) or WebP (lossless, three channels) by name is asking for 8 bits.

    Args:
        image: (H, W, 3) in [0, 1]; values outside are clipped.
        like: the photo that `image` restores.
        kind: "PNG", "TIFF", "WEBP" or "JPEG".
        quality: of JPEG.

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
