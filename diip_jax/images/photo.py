"""What reading and writing share: the photo, its errors, samples, guarded codecs."""

import contextlib
import importlib
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, UnidentifiedImageError

# What Pillow, tifffile and imagecodecs raise on broken data (ValueError and
# RuntimeError are the parents of the errors of the last two).
CODEC_ERRORS = (
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


def unwritable(path: Path, error: OSError) -> ImageError:
    """Return the error that says why a file cannot be written."""
    reason = error.strerror or error
    return ImageError(one_line(f"cannot write {path}: {reason}; choose another folder"))


@contextlib.contextmanager
def codec_guard(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a codec raises into an ImageError, and keep codecs silent.

    Decoders answer hostile bytes with almost any exception; this is the one place that
    translates them, and the original stays attached as the cause.

    Args:
        what: what fails, the start of the message.
        remedy: what the user can do, its end.

    Raises:
        ImageError: a codec raised anything.
    """
    try:
        with _quiet_codecs():
            yield
    except ImageError as error:
        raise ImageError(one_line(f"{what}: {error}")) from error
    except CODEC_ERRORS as error:
        reason = f" ({type(error).__name__}: {error})"
        if isinstance(error, UnidentifiedImageError):
            reason = ""  # its text is the address of a buffer
        raise ImageError(
            one_line(f"{what}: damaged or unsupported data{reason}; {remedy}")
        ) from error


@contextlib.contextmanager
def _quiet_codecs() -> Iterator[None]:
    """Silence the codecs and lift Pillow's size limit, which `decode` replaces.

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


def one_line(text: str) -> str:
    """Return a message with its line breaks and runs of spaces made single spaces."""
    return " ".join(text.split())


def import_extra(module: str, purpose: str) -> ModuleType:
    """Return a module of the extra `hidepth`.

    Args:
        module: name to import.
        purpose: what the module is needed for, for the message.

    Raises:
        ImageError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImageError(
            f'{purpose} needs {module}: pip install "diip-jax[hidepth]"'
        ) from error
