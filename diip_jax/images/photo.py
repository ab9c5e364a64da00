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

# What Pillow, tifffile and imagecodecs raise on broken data. tifffile's errors are
# ValueErrors, those of imagecodecs are RuntimeErrors.
CODEC_ERRORS = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error),
)
_PROCESS_SWITCHES = threading.Lock()


class ImageError(ValueError):
    """A file cannot be read or written; one line says what, which file, the remedy."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture, and what the file of its restoration must keep.

    Attributes:
        rgb: upright colours, (H, W, 3) float32 in [0, 1]; a grey picture has three
            equal channels.
        alpha: upright alpha, (H, W) uint8 or uint16, or None; colours are not
            premultiplied by it.
        grey: whether the file holds one colour channel.
        bits: depth to write, 8 or 16.
        mode: how the file stores samples, for the record ("P", "CMYK", "RGB;16").
        format: "PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF" or "HEIF".
        orientation: EXIF orientation that was applied, 1 to 8.
        stored_size: (width, height) in the file, before the orientation was applied.
        exif: EXIF block, which starts with "Exif", or None. Its Orientation, if it has
            one, is 1, and it links no thumbnail, which would show the picture
            unrestored; all else is as the file had it.
        icc: ICC profile for samples of this greyness, or None.
        xmp: XMP packet without tiff:Orientation, or None.
        warnings: what could not be used or kept, one sentence each.
        dpi: (horizontal, vertical) dots per inch of the upright picture, which the file
            tells outside of EXIF, or None.
        colour: names and contents of PNG's chunks for the colours of the samples,
            without the profile.
        text: names and contents of PNG's chunks with text.
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
    dpi: tuple[float, float] | None = None
    colour: tuple[tuple[str, bytes], ...] = ()
    text: tuple[tuple[str, bytes], ...] = ()


def to_uint(image: ArrayLike, bits: int) -> np.ndarray:
    """Return values in [0, 1] as the nearest integers of 8 or 16 bits.

    The division in `read` is undone exactly.

    Args:
        image: values in [0, 1], of any shape; values outside are clipped.
        bits: depth of the integers, 8 or 16.

    Raises:
        ImageError: a value is NaN.
    """
    image = np.asarray(image)
    if np.isnan(image).any():
        raise ImageError("the image holds NaN; no file can store it")
    scaled = np.clip(image, 0, 1) * np.float32(2**bits - 1)
    return np.rint(scaled).astype(np.uint16 if bits == 16 else np.uint8)


def unwritable(path: Path, error: OSError) -> ImageError:
    """Return the error that says why a file cannot be written.

    Args:
        path: path of the file.
        error: what the system raised.
    """
    reason = error.strerror or error
    return ImageError(one_line(f"cannot write {path}: {reason}; choose another folder"))


@contextlib.contextmanager
def codec_guard(what: str, remedy: str) -> Iterator[None]:
    """Turn what codecs raise into an ImageError, and keep codecs silent.

    Decoders answer hostile bytes with almost any exception. This is the one place that
    translates them. The original stays attached as the cause.

    Args:
        what: start of the message: what fails.
        remedy: end of the message: what the user can do.

    Raises:
        ImageError: a codec failed, or the guarded code raised an ImageError; both
            messages start with `what`.
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
    """Silence the codecs and lift Pillow's size limit; `decode` has its own.

    These are switches of the whole process: one thread at a time may hold them, and
    they are always restored.
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
        module: name of the module.
        purpose: what needs the module, the start of the message.

    Raises:
        ImageError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImageError(
            f'{purpose} needs {module}: pip install "diip-jax[hidepth]"'
        ) from error
