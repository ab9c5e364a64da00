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

import contextlib
import importlib
import io
import logging
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, UnidentifiedImageError

from diip_jax import storage

MAX_PIXELS = 2**30 // 6  # 179 million, where Pillow's own limit is
_MAX_BYTES = 2**31  # of a file, and of its decoded samples
# No codec packs tighter than 1-bit deflate (8256 pixels a byte), except WebP and AVIF
# on one flat colour: a large header with fewer bytes behind it is a lie.
_MAX_PIXELS_PER_BYTE = 10_000
_SMALL = 2**24  # pixels that any header may claim

# What a folder walk takes for a picture. HEIC is here although Pillow needs a plugin
# for it: a refusal by name is better than a picture passed over in silence.
READABLE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif"}
    | {".tiff", ".bmp", ".dib", ".gif", ".avif", ".heic", ".heif", ".hif"}
)
_SIGNATURES = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\x00|MM\x00[*]",
    "BMP": rb"BM",
    "GIF": rb"GIF8[79]a",
    "AVIF": rb"....ftyp(?:avi[fs]|m[is]f1.{4,64}avi[fs])",  # before HEIF: mif1 is both
    "HEIF": rb"....ftyp(?:he[iv][cmsx]|m[is]f1)",
}
_WRITERS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
_WRITERS |= {".jpg": "JPEG", ".jpeg": "JPEG"}
_EXIF_HEADER = b"Exif\x00\x00"
_XMP_ORIENTATION = re.compile(
    rb"""\s+tiff:Orientation\s*=\s*["']([1-8])["']"""
    rb"|<tiff:Orientation>\s*([1-8])\s*</tiff:Orientation>"
)
_ORIENTATION, _XMP, _ICC = 274, 700, 34675
# TIFF tags that say how the samples lie in a file, or repeat the picture (sub-images,
# Photoshop layers). All others are metadata.
_LAYOUT_TAGS = (
    *(*range(254, 260), *range(262, 267), 273, *range(277, 282), 284, *range(288, 294)),
    *(301, *range(317, 326), 330, 332, *range(338, 344), 347, *range(512, 522)),
    *(*range(529, 533), _XMP, 34377, _ICC, 37724),
)
# What Pillow, tifffile and imagecodecs raise on broken data (ValueError and
# RuntimeError are the parents of the errors of the last two).
_CODEC_ERRORS = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error),
)
_PROCESS_SWITCHES = threading.Lock()


class ImageError(ValueError):
    """A file cannot be read or written; one line: what, which file, the remedy."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture as the restoration sees it, and what its file must get back.

    Attributes:
        rgb: (H, W, 3) float32 in [0, 1], upright; a grey picture has equal channels.
        alpha: (H, W) uint8 or uint16 as stored (not premultiplied), upright, or None.
        grey: the file holds one colour channel.
        bits: 8 or 16, the depth to write.
        mode: how the file stores samples, for the record ("P", "CMYK", "RGB;16").
        format: "PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF" or "HEIF".
        orientation: the EXIF orientation that was applied, 1 to 8.
        stored_size: (width, height) before it was applied.
        exif: EXIF block ("Exif" header first) or None; without the Orientation tag and
            the thumbnail, which would show the picture sideways and unrestored.
        icc: ICC profile, or None.
        xmp: XMP packet without tiff:Orientation, or None.
        warnings: what could not be used or kept, one sentence each.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None
    grey: bool
    bits: int
    mode: str
    format: str
    orientation: int
    stored_size: tuple[int, int]
    exif: bytes | None = None
    icc: bytes | None = None
    xmp: bytes | None = None
    warnings: tuple[str, ...] = ()


class _Decoded(NamedTuple):
    samples: np.ndarray  # (H, W, C) uint8, uint16, or float32 in [0, 1]; as stored
    layout: str  # of C: L, RGB or CMYK, then A if there is alpha
    mode: str
    format: str
    exif: Image.Exif | bytes | None
    icc: Any
    xmp: Any
    warnings: tuple[str, ...]


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
    name, data = _load(source)
    with _codec(f"cannot read {name}", "open it elsewhere and save it again"):
        kind = _sniff(data)
        decode = _decode_tiff if kind == "TIFF" else _decode_with_pillow
        return _photo(decode(data, kind, max_pixels))


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


def unwritable(path: Path, error: OSError) -> ImageError:
    """Return the error that says why a file cannot be written."""
    reason = error.strerror or error
    return ImageError(
        _one_line(f"cannot write {path}: {reason}; choose another folder")
    )


def file_format(path: str | os.PathLike) -> str:
    """Return the format that the suffix of an output file names, for `encode`.

    Raises:
        ImageError: none that can be written.
    """
    suffix = Path(path).suffix
    return _WRITERS[output_suffix(path, suffix or "none")]


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
    if kind not in _WRITERS.values():
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
    with _codec(f"{kind} encoder", "use --ext png or tiff"):
        if kind == "PNG":
            return _encode_png(samples, like)
        if kind == "TIFF":
            return _encode_tiff(samples, like)
        return _encode_with_pillow(samples, like, kind, quality)


def to_uint(image: ArrayLike, bits: int) -> np.ndarray:
    """Return values in [0, 1] as the nearest integers of 8 or 16 bits, clipping first.

    It undoes the division of `read` exactly.

    Raises:
        ImageError: a value is NaN.
    """
    image = np.asarray(image)
    if np.isnan(image).any():
        raise ImageError("the image holds NaN; no file can store it")
    scaled = np.clip(image, 0, 1) * np.float32(2**bits - 1)
    return np.rint(scaled).astype(np.uint16 if bits == 16 else np.uint8)


def output_suffix(source: Photo | str | os.PathLike, ext: str = "auto") -> str:
    """Return the suffix, with its dot, of the file for a restored image.

    Args:
        source: the photo, or the path of its file.
        ext: "png", "tiff", "webp" or "jpg"; "auto" keeps PNG, TIFF and WebP and makes
            PNG of every other format, so that JPEG is written only when asked for.

    Raises:
        ImageError: `ext` is none of these.
    """
    if ext != "auto":
        suffix = f".{ext.lower().removeprefix('.')}"
        if suffix not in _WRITERS:
            raise ImageError(f"{ext!r} is not an output format; use png, tiff or webp")
        return suffix
    name = f"photo.{source.format}" if isinstance(source, Photo) else source
    suffix = Path(name).suffix.lower()
    return suffix if _WRITERS.get(suffix, "JPEG") != "JPEG" else ".png"


# Errors, limits, and the bytes of a file.


@contextlib.contextmanager
def _codec(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a codec raises into an ImageError, and keep codecs silent.

    Decoders answer hostile bytes with almost any exception; this is the one place that
    translates them, and the original stays attached as the cause.
    """
    try:
        with _quiet_codecs():
            yield
    except ImageError as error:
        raise ImageError(_one_line(f"{what}: {error}")) from error
    except _CODEC_ERRORS as error:
        reason = f" ({type(error).__name__}: {error})"
        if isinstance(error, UnidentifiedImageError):
            reason = ""  # its text is the address of a buffer
        raise ImageError(
            _one_line(f"{what}: damaged or unsupported data{reason}; {remedy}")
        ) from error


@contextlib.contextmanager
def _quiet_codecs() -> Iterator[None]:
    """Silence the codecs and lift Pillow's size limit, which `_check_size` replaces.

    These are switches of the whole process: one thread at a time, and always restored.
    """
    loggers = [logging.getLogger(n) for n in ("tifffile", "PIL.TiffImagePlugin")]
    with _PROCESS_SWITCHES, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, states = Image.MAX_IMAGE_PIXELS, [log.disabled for log in loggers]
        try:
            Image.MAX_IMAGE_PIXELS = None
            for log in loggers:
                log.disabled = True
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
            for log, state in zip(loggers, states, strict=True):
                log.disabled = state


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _load(source: str | os.PathLike | bytes | BinaryIO) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return "the given bytes", source
    is_path = isinstance(source, str | os.PathLike)
    name = os.fspath(source) if is_path else getattr(source, "name", "the given file")
    try:
        with open(source, "rb") if is_path else contextlib.nullcontext(source) as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, MemoryError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(_one_line(f"cannot read {name}: {reason}")) from error
    if len(data) > _MAX_BYTES:
        raise ImageError(f"cannot read {name}: more than 2 GiB; make it smaller")
    return str(name), data


def _extra(module: str, purpose: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImageError(
            f'{purpose} needs {module}: pip install "diip-jax[hidepth]"'
        ) from error


def _sniff(data: bytes) -> str:
    kinds = [k for k, v in _SIGNATURES.items() if re.match(v, data, re.DOTALL)]
    if not kinds:
        what = "not a picture of a known format" if data else "the file is empty"
        raise ImageError(f"{what}; give a PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF file")
    Image.init()
    if kinds[0] not in Image.OPEN:
        raise ImageError(f"{kinds[0]} is not read here; convert it to PNG or JPEG")
    return kinds[0]


def _check_size(width: int, height: int, num_bytes: int, max_pixels: int) -> None:
    pixels = width * height
    if pixels > max_pixels:
        raise ImageError(
            f"{width}x{height} is more than {max_pixels} pixels; if you trust the file,"
            f" pass --max_pixels {pixels}"
        )
    if min(width, height) < 1 or pixels > max(_SMALL, _MAX_PIXELS_PER_BYTE * num_bytes):
        raise ImageError(
            f"the header says {width}x{height} in a file of {num_bytes} bytes; it is"
            " damaged, save it again"
        )


# From samples to a photo.


def _photo(decoded: _Decoded) -> Photo:
    samples, layout, notes = decoded.samples, decoded.layout, decoded.warnings
    height, width = samples.shape[:2]
    tag, exif, exif_notes = _split_exif(decoded.exif)
    xmp_tag, xmp = _split_xmp(decoded.xmp)
    orientation = tag or xmp_tag or 1
    icc = decoded.icc if isinstance(decoded.icc, bytes) else None
    if layout.startswith("CMYK") and icc:
        icc, notes = None, (*notes, "the CMYK profile is not kept: the output is RGB")
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
        warnings=notes + exif_notes,
    )


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation: 5 to 8 swap the axes, then rows and columns flip."""
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _rgb(samples: np.ndarray) -> np.ndarray:
    """(H, W, C) samples of grey, RGB or CMYK -> (H, W, 3) float32 in [0, 1]."""
    values = samples.astype(np.float32, order="C")
    if samples.dtype.kind == "u":
        values /= np.iinfo(samples.dtype).max
    if values.shape[2] == 4:
        values = (1 - values[..., :3]) * (1 - values[..., 3:])
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


# Decoding.


def _decode_with_pillow(data: bytes, kind: str, max_pixels: int) -> _Decoded:
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        _check_size(*image.size, len(data), max_pixels)
        notes = ("only the first frame is used",) * getattr(image, "is_animated", False)
        xmp = image.info.pop("xmp", None)  # or Pillow may turn a TIFF by it
        image.load()  # before `info` is read: PNG may carry metadata after the pixels
        info, mode, name = image.info, image.mode, image.format or kind
        if kind == "PNG" and _png_depth(data) == 16:
            layout, samples = _deep_png(data, image)
            mode = "I;16" if layout == "L" else f"{layout};16"
        else:
            if kind == "PNG" and mode == "L" and "transparency" in info:
                # Pillow widens 2 and 4-bit samples but not the transparent value.
                info["transparency"] *= 255 // (2 ** _png_depth(data) - 1)
            layout, samples = _pillow_samples(image)
    pixi = data.find(b"pixi") + 9 if kind == "AVIF" else 0  # its depth property
    if pixi > 9 and data[pixi : pixi + 1] > b"\x08":
        notes += ("samples of more than 8 bits are read as 8",)
    exif, icc, xmp = info.get("exif"), info.get("icc_profile"), info.get("xmp", xmp)
    if exif is None and "Raw profile type exif" in info:  # from older ImageMagick
        exif = bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))
    return _Decoded(samples, layout, mode, name, exif, icc, xmp, notes)


def _pillow_samples(image: Image.Image) -> tuple[str, np.ndarray]:
    if image.mode == "CMYK":
        return "CMYK", np.asarray(image)
    grey = image.mode in ("1", "L", "LA", "La")
    if not grey and image.mode not in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX"):
        raise ImageError(f"colour mode {image.mode} is not supported; save it as RGB")
    layout = ("L" if grey else "RGB") + "A" * image.has_transparency_data
    samples = np.asarray(image if image.mode == layout else image.convert(layout))
    samples = samples.reshape(*samples.shape[:2], -1)
    if image.mode == "P" and (samples[..., 1:3] == samples[..., :1]).all():
        # A palette of greys holds one colour channel.
        layout, samples = layout.replace("RGB", "L"), np.delete(samples, (1, 2), axis=2)
    return layout, samples


def _png_depth(data: bytes) -> int:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ImageError("the PNG header is missing; the file is damaged")
    return data[24]


def _deep_png(data: bytes, image: Image.Image) -> tuple[str, np.ndarray]:
    if image.mode.startswith("I") and "transparency" not in image.info:
        return "L", np.asarray(image).astype(np.uint16)[..., None]
    samples = _extra("imagecodecs", "16-bit PNG in colour").png_decode(data)
    samples = samples.reshape(*samples.shape[:2], -1)
    return ("L", "LA", "RGB", "RGBA")[samples.shape[2] - 1], samples


def _decode_tiff(data: bytes, kind: str, max_pixels: int) -> _Decoded:
    tags = _tiff_tags(data)
    for width, height in ((256, 257), (322, 323)):  # of the picture, of a tile
        size = _integer(tags, width, 1), _integer(tags, height, 1)
        _check_size(*size, len(data), max_pixels)
    if _integer(tags, 254, 0) & 1 or 50706 in tags:
        raise ImageError("a camera raw file; develop it to TIFF or PNG first")
    # Sample formats: 1 is unsigned, 4 is not stated.
    if _integer(tags, 258, 1) > 8 or _integer(tags, 339, 1) not in (1, 4):
        return _decode_deep_tiff(data)._replace(exif=tags)
    decoded = _decode_with_pillow(data, kind, max_pixels)
    # Pillow turns a TIFF while loading it: turn it back, so that every format goes
    # through the same steps.
    orientation = _orientation(tags) or 1
    stored = _upright(decoded.samples, {6: 8, 8: 6}.get(orientation, orientation))
    return decoded._replace(samples=stored, exif=tags)


def _decode_deep_tiff(data: bytes) -> _Decoded:
    tifffile = _extra("tifffile", "TIFF deeper than 8 bits")
    _extra("imagecodecs", "TIFF deeper than 8 bits")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        layout = {0: "L", 1: "L", 2: "RGB", 5: "CMYK"}.get(int(page.photometric), "")
        colours = {"L": 1, "RGB": 3, "CMYK": 4}.get(layout, 99)
        if page.samplesperpixel < colours or page.axes not in ("YX", "YXS", "SYX"):
            raise ImageError("not a grey, RGB or CMYK TIFF; save it as RGB")
        if page.nbytes > _MAX_BYTES:
            raise ImageError("its samples take more than 2 GiB; make it smaller")
        # tifffile would fill what is missing with zeros.
        segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        missing = len(segments) < np.prod(page.chunked)
        if missing or any(n < 1 or start + n > len(data) for start, n in segments):
            raise ImageError("the TIFF data are truncated; save the file again")
        stored = page.asarray(maxworkers=1)
        icc, xmp = (page.tags.valueof(tag) for tag in (_ICC, _XMP))
        notes = ("only the first frame is used",) * file.pages.is_multipage
    if page.axes == "SYX":
        stored = np.moveaxis(stored, 0, -1)
    samples = _by_value(stored.reshape(*stored.shape[:2], -1), page.bitspersample)
    if page.photometric == 0:  # white is zero
        white = 1 if samples.dtype.kind == "f" else 65535
        samples[..., 0] = white - samples[..., 0]
    extra = page.extrasamples
    alpha = samples.shape[2] > colours and (not extra or extra[0] in (1, 2))
    if samples.shape[2] > colours + alpha:
        notes += ("channels that are neither colour nor alpha are not kept",)
    samples = samples[..., : colours + alpha]
    if alpha and extra and extra[0] == 1:
        samples = _unpremultiplied(samples)
    layout += "A" * alpha
    mode = f"{layout};{page.bitspersample}" + "F" * (stored.dtype.kind == "f")
    mode = "I;16" if mode == "L;16" else mode
    return _Decoded(samples, layout, mode, "TIFF", None, icc, xmp, notes)


def _by_value(samples: np.ndarray, bits: int) -> np.ndarray:
    """Map TIFF samples to uint16, or to float32 in [0, 1]; see the module's rules."""
    kind, low, high = samples.dtype.kind, samples.min(), samples.max()
    if kind == "f" and low >= 0 and high <= 1:  # False for NaN
        return samples.astype(np.float32)
    if kind in "iu" and bits >= 16 and low >= 0 and high <= 65535:
        return samples.astype(np.uint16)
    if kind == "u" and bits < 16:
        return samples.astype(np.float32) / np.float32(2**bits - 1)
    allowed = "[0, 1]" if kind == "f" else "0..65535"
    raise ImageError(
        f"{samples.dtype} samples from {low} to {high}, not in {allowed}; scale them"
        " and save as 16-bit"
    )


def _unpremultiplied(samples: np.ndarray) -> np.ndarray:
    values = samples.astype(np.float32)
    if samples.dtype == np.uint16:
        values /= 65535
    alpha = values[..., -1:]
    np.divide(values[..., :-1], alpha, out=values[..., :-1], where=alpha > 0)
    return np.minimum(values, 1)


# Metadata.


def _tiff_tags(data: bytes) -> Image.Exif:
    """Return the tags of a TIFF file's first picture: an EXIF block is a small TIFF."""
    tags, start = Image.Exif(), None
    if data[2] == 43:  # BigTIFF
        tags.bigtiff, tags.endian = True, "<"
        (start,) = struct.unpack_from("<8xQ", data)
    tags.load_from_fp(io.BytesIO(data), start)
    if 256 not in tags or 257 not in tags:
        raise ImageError("the TIFF header is damaged; save the file again")
    return tags


def _integer(tags: Image.Exif, tag: int, default: int) -> int:
    """Return an integer tag, or the largest of its values."""
    values = tags.get(tag, default)
    values = values if isinstance(values, tuple) else (values,)
    if not all(isinstance(value, int) for value in values):
        raise ImageError(f"the TIFF tag {tag} is damaged; save the file again")
    return max(values)


def _split_exif(
    source: Image.Exif | bytes | None,
) -> tuple[int | None, bytes | None, tuple[str, ...]]:
    """EXIF or the tags of a TIFF -> orientation, EXIF without it, what is lost."""
    orientation = None
    try:
        exif = source if isinstance(source, Image.Exif) else Image.Exif()
        if isinstance(source, bytes):
            exif.load(source)
        orientation = _orientation(exif)
        for tag in (_ORIENTATION, *(_LAYOUT_TAGS if exif is source else ())):
            exif.pop(tag, None)
        exif.bigtiff = False  # no other format knows it
        block = exif.tobytes() if len(exif) else None
    except _CODEC_ERRORS:
        block, notes = None, ("the EXIF data are damaged and not kept",)
    else:
        notes = ()
    return orientation, block, notes


def _orientation(exif: Image.Exif) -> int | None:
    value = exif.get(_ORIENTATION)
    return value if value in range(1, 9) else None


def _split_xmp(xmp: Any) -> tuple[int | None, bytes | None]:
    """XMP packet -> orientation, the packet without it."""
    if not xmp or not isinstance(xmp, bytes):
        return None, None
    match = _XMP_ORIENTATION.search(xmp)
    value = int(match[1] or match[2]) if match else None
    return value, _XMP_ORIENTATION.sub(b"", xmp)


# Encoding.


def _encode_png(samples: np.ndarray, like: Photo) -> bytes:
    if samples.dtype == np.uint16 and samples.shape[2] > 1:
        png = _extra("imagecodecs", "16-bit PNG in colour").png_encode(samples)
    else:
        png = _save(samples, "PNG")
    chunks = b""
    if like.icc:
        chunks += _png_chunk(b"iCCP", b"icc\x00\x00" + zlib.compress(like.icc))
    if like.exif:
        chunks += _png_chunk(b"eXIf", like.exif.removeprefix(_EXIF_HEADER))
    if like.xmp:
        chunks += _png_chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + like.xmp)
    return png[:33] + chunks + png[33:]  # behind the signature and IHDR


def _png_chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def _encode_tiff(samples: np.ndarray, like: Photo) -> bytes:
    """Put one deflated strip behind an EXIF block, which is a TIFF header already.

    Pillow writes 8 bits only, and tifffile no EXIF directory.
    """
    height, width, channels = samples.shape
    steps = samples.copy()
    steps[:, 1:] -= samples[:, :-1]  # predictor 2, modulo 2^bits as it should be
    strip = zlib.compress(steps.astype(steps.dtype.newbyteorder("<")).tobytes())
    exif = Image.Exif()
    if like.exif:
        exif.load(like.exif)
    for tag in _LAYOUT_TAGS:
        exif.pop(tag, None)
    exif.endian = "<"
    exif[256], exif[257], exif[258] = width, height, (8 * steps.itemsize,) * channels
    exif[259], exif[262], exif[317] = 8, 1 if channels < 3 else 2, 2
    # Pillow counts the offset of the strip (273) from the end of what it writes.
    exif[273], exif[277], exif[278], exif[279] = 0, channels, height, len(strip)
    optional = {338: 2 if channels in (2, 4) else None, _ICC: like.icc, _XMP: like.xmp}
    for tag, value in optional.items():
        if value:
            exif[tag] = value
    return exif.tobytes().removeprefix(_EXIF_HEADER) + strip


def _encode_with_pillow(
    samples: np.ndarray, like: Photo, kind: str, quality: int
) -> bytes:
    metadata = {"exif": like.exif, "icc_profile": like.icc, "xmp": like.xmp}
    options: dict[str, Any] = {name: value for name, value in metadata.items() if value}
    if kind == "JPEG":
        return _save(samples, kind, quality=quality, subsampling=0, **options)
    if like.grey:  # WebP has no grey
        samples = np.concatenate([samples[..., :1]] * 2 + [samples], axis=2)
    return _save(samples, kind, lossless=True, exact=True, **options)


def _save(samples: np.ndarray, kind: str, **options: Any) -> bytes:
    samples = samples[..., 0] if samples.shape[2] == 1 else samples
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, kind, **options)
    return buffer.getvalue()
