"""From the bytes of a file to its samples, and from those to a photo."""

import contextlib
import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from diip_jax.images import avif, bmp, jpeg, png
from diip_jax.images.exif import split_exif
from diip_jax.images.metadata import profile_fits
from diip_jax.images.photo import ImageError, Photo, one_line, to_uint
from diip_jax.images.samples import MAX_BYTES, Decoded, check_size, decode_with_pillow
from diip_jax.images.tiff_samples import decode_tiff
from diip_jax.images.xmp import split_xmp, without_appended

MAX_PIXELS = 2**30 // 6  # 179 million, Pillow's own limit

# A folder walk takes files of these suffixes for pictures. HEIC is among them although
# Pillow needs a plugin for it: to refuse it by name is better than to skip it silently.
READABLE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif"}
    | {".tiff", ".bmp", ".dib", ".gif", ".avif", ".heic", ".heif", ".hif"}
)
_SIGNATURES = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\x00|MM\x00[*+]",
    "BMP": rb"BM",
    "GIF": rb"GIF8[79]a",
    "AVIF": rb"....ftyp(?:avi[fs]|m[is]f1.{4,64}avi[fs])",  # before HEIF: mif1 is both
    "HEIF": rb"....ftyp(?:he[iv][cmsx]|m[is]f1)",
}


def load(source: str | os.PathLike | bytes | BinaryIO) -> tuple[str, bytes]:
    """Return a name for messages, and the bytes of a file.

    Args:
        source: path, bytes of a file, or binary file object.

    Raises:
        ImageError: the file cannot be read, or is larger than 2 GiB.
    """
    if isinstance(source, bytes):
        return "the given bytes", source
    is_path = isinstance(source, str | os.PathLike)
    name = os.fspath(source) if is_path else getattr(source, "name", "the given file")
    try:
        with _opened(source) if is_path else contextlib.nullcontext(source) as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, MemoryError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(one_line(f"cannot read {name}: {reason}")) from error
    if len(data) > MAX_BYTES:
        raise ImageError(f"cannot read {name}: more than 2 GiB; make it smaller")
    return str(name), data


def _opened(path: str | os.PathLike) -> BinaryIO:
    # An address opens itself.
    return path.open("rb") if isinstance(path, Path) else open(path, "rb")


def decode_photo(data: bytes, max_pixels: int) -> Photo:
    """Return the picture in the bytes of a file.

    Args:
        data: bytes of the whole file.
        max_pixels: largest width times height; checked before anything is decoded.

    Raises:
        ImageError: the format is not supported, the picture is too large, or the file
            is damaged. Codecs raise other errors too; `codec_guard` translates them.
    """
    kind = _sniff(data)
    decode = {"TIFF": decode_tiff, "PNG": _decode_png, "JPEG": _decode_jpeg}
    decode |= {"AVIF": _decode_avif, "BMP": _decode_bmp}
    return _photo(decode.get(kind, decode_with_pillow)(data, kind, max_pixels))


def _sniff(data: bytes) -> str:
    kinds = [k for k, v in _SIGNATURES.items() if re.match(v, data, re.DOTALL)]
    if not kinds:
        what = "not a picture of a known format" if data else "the file is empty"
        raise ImageError(f"{what}; give a PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF file")
    Image.init()
    if kinds[0] not in Image.OPEN:
        raise ImageError(f"{kinds[0]} is not read here; convert it to PNG or JPEG")
    return kinds[0]


# From samples to a photo.


def _photo(decoded: Decoded) -> Photo:
    samples, layout, notes = decoded.samples, decoded.layout, decoded.warnings
    height, width = samples.shape[:2]
    tag, exif, exif_notes = split_exif(decoded.exif)
    xmp_tag, xmp = split_xmp(decoded.xmp)
    orientation = decoded.orientation or tag or xmp_tag or 1
    icc, icc_notes = _profile(decoded)
    dpi = decoded.dpi
    if dpi and orientation >= 5:
        dpi = dpi[1], dpi[0]
    samples, alpha = _upright(samples, orientation), None
    if layout.endswith("A"):
        samples, alpha = samples[..., :-1], samples[..., -1]
        alpha = to_uint(alpha, 16) if alpha.dtype.kind == "f" else alpha.copy()
    return Photo(
        rgb=_rgb(samples),
        alpha=alpha,
        grey=layout.startswith("L"),
        bits=8 if samples.dtype == np.uint8 else 16,
        mode=decoded.mode,
        format=decoded.format,
        orientation=orientation,
        stored_size=(width, height),
        exif=exif,
        icc=icc,
        xmp=xmp,
        dpi=dpi,
        colour=decoded.colour,
        text=decoded.text,
        warnings=notes + icc_notes + exif_notes,
    )


def _profile(decoded: Decoded) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the ICC profile, if the output can have it, and warnings."""
    icc, grey = decoded.icc, decoded.layout.startswith("L")
    if not icc or not isinstance(icc, bytes):
        return None, ()
    if decoded.layout.startswith("CMYK") or decoded.mode == "LAB":
        name = decoded.mode.partition(";")[0].removesuffix("A")
        return None, (f"the {name} profile is not kept: the output is RGB",)
    if not profile_fits(icc, grey):
        kind = "grey" if grey else "RGB"
        return None, (f"the ICC profile is not kept: it is not for {kind} samples",)
    return icc, ()


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation: swap the axes (5 to 8), then flip rows and columns."""
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _rgb(samples: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) float32 in [0, 1] for samples of grey, RGB or CMYK."""
    values = samples.astype(np.float32, order="C")
    if samples.dtype.kind == "u":
        values /= np.iinfo(samples.dtype).max
    if values.shape[2] == 4:
        values = (1 - values[..., :3]) * (1 - values[..., 3:])
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


# Decoding.


def _decode_png(data: bytes, kind: str, max_pixels: int) -> Decoded:
    data, metadata = png.split(data)
    decoded = decode_with_pillow(data, kind, max_pixels, icc=metadata.icc)
    notes = ("only the first frame is used",) * metadata.animated
    notes += tuple(
        f"the PNG chunk {name} is damaged and not used" for name in metadata.damaged
    )
    return decoded._replace(
        exif=metadata.exif,
        icc=metadata.icc,
        xmp=metadata.xmp,
        dpi=metadata.dpi,
        colour=metadata.colour,
        text=metadata.text,
        warnings=notes,
    )


def _decode_jpeg(data: bytes, kind: str, max_pixels: int) -> Decoded:
    data, metadata = jpeg.split(data)
    try:
        decoded = decode_with_pillow(data, kind, max_pixels)
    except UnidentifiedImageError:  # perhaps for a damaged list of more pictures
        decoded = decode_with_pillow(jpeg.bare(data), kind, max_pixels)
    xmp, notes = without_appended(metadata.xmp, metadata.contents)
    return decoded._replace(
        exif=metadata.exif,
        icc=metadata.icc,
        xmp=xmp,
        dpi=metadata.dpi,
        warnings=decoded.warnings + notes,
    )


def _decode_avif(data: bytes, kind: str, max_pixels: int) -> Decoded:
    data, exif = avif.split(data)
    decoded = decode_with_pillow(data, kind, max_pixels)
    # A box of AVIF's own turns the picture, whatever EXIF says; Pillow reports it so.
    orientation, _, _ = split_exif(decoded.exif)
    deep = ("samples of more than 8 bits are read as 8",) * (avif.bits(data) > 8)
    return decoded._replace(
        exif=exif,
        orientation=orientation or 1,
        colour=avif.colour(data),
        warnings=decoded.warnings + deep,
    )


def _decode_bmp(data: bytes, kind: str, max_pixels: int) -> Decoded:
    try:
        decoded = decode_with_pillow(data, kind, max_pixels)
    except OSError:  # Pillow knows some masks only
        if not bmp.masks(data):
            raise
        decoded = None
    # Pillow knows no alpha in pixels of 16 bits.
    if decoded is None or (decoded.layout == "RGB" and len(bmp.masks(data)) > 3):
        check_size(*bmp.size(data), len(data), max_pixels, limited=False)
        samples = bmp.decode(data)
        layout = "RGBA"[: samples.shape[2]]
        decoded = Decoded(samples, layout, layout, "BMP", None, None, None, ())
    return decoded._replace(dpi=bmp.dpi(data))
