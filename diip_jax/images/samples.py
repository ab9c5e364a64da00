"""The samples of a file as Pillow decodes them, and what else a decoder finds."""

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from diip_jax.images.metadata import profile_fits
from diip_jax.images.photo import ImageError, import_extra

MAX_BYTES = 2**31  # of a file, and of its decoded samples
# A header that claims more is a lie: 1-bit deflate packs 8256 pixels into a byte, LZW
# and JPEG's Huffman codes fewer. The other codecs have no such limit.
_MAX_PIXELS_PER_BYTE = 10_000
_LIMITED = ("PNG", "GIF", "JPEG")
_SMALL = 2**24  # pixels that any header may claim


class Decoded(NamedTuple):
    """What a decoder finds in a file.

    Attributes:
        samples: (H, W, C) uint8, uint16, or float32 in [0, 1]; not turned yet.
        layout: what the channels are: L, RGB or CMYK, then A if there is alpha.
        mode: as in `Photo`.
        format: as in `Photo`.
        exif: EXIF block as the file has it, or None.
        icc: ICC profile, if it is bytes.
        xmp: XMP packet, if it is bytes.
        warnings: what could not be used or kept, one sentence each.
        dpi: (horizontal, vertical) dots per inch of the samples, or None.
        colour: as in `Photo`.
        text: as in `Photo`.
        orientation: orientation that the file tells outside of EXIF, or None.
    """

    samples: np.ndarray
    layout: str
    mode: str
    format: str
    exif: bytes | None
    icc: Any
    xmp: Any
    warnings: tuple[str, ...]
    dpi: tuple[float, float] | None = None
    colour: tuple[tuple[str, bytes], ...] = ()
    text: tuple[tuple[str, bytes], ...] = ()
    orientation: int | None = None


def check_size(
    width: int, height: int, num_bytes: int, max_pixels: int, *, limited: bool
) -> None:
    """Refuse a picture that is too large, or too large for its file.

    Args:
        width: width in the header.
        height: height in the header.
        num_bytes: size of the file.
        max_pixels: largest width times height.
        limited: whether the codec packs no more than so many pixels into a byte.

    Raises:
        ImageError: the picture is too large, or empty.
    """
    pixels = width * height
    if pixels > max_pixels:
        raise ImageError(
            f"{width}x{height} is more than {max_pixels} pixels; if you trust the file,"
            f" pass --max_pixels {pixels}"
        )
    most = max(_SMALL, _MAX_PIXELS_PER_BYTE * num_bytes) if limited else pixels
    if min(width, height) < 1 or pixels > most:
        raise ImageError(
            f"the header says {width}x{height} in a file of {num_bytes} bytes; it is"
            " damaged, save it again"
        )


def decode_with_pillow(
    data: bytes, kind: str, max_pixels: int, *, icc: bytes | None = None
) -> Decoded:
    """Return what Pillow finds in a file, and imagecodecs in a deep PNG.

    Args:
        data: the whole file.
        kind: its format.
        max_pixels: largest width times height; checked before anything is decoded.
        icc: ICC profile, if it is not in `data`.

    Raises:
        ImageError: the picture is too large, or of a colour mode that is not read.
    """
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        limited = kind in _LIMITED
        check_size(*image.size, len(data), max_pixels, limited=limited)
        notes = ("only the first frame is used",) * getattr(image, "is_animated", False)
        xmp = image.info.pop("xmp", None)  # else Pillow may turn a TIFF by it
        image.load()
        info, mode, name = image.info, image.mode, image.format or kind
        if kind == "PNG" and _png_depth(data) == 16:
            layout, samples = _deep_png(data, image)
            mode = "I;16" if layout == "L" else f"{layout};16"
        else:
            if kind == "PNG" and mode == "L" and "transparency" in info:
                # Pillow widens 2 and 4-bit samples but not the transparent value.
                info["transparency"] *= 255 // (2 ** _png_depth(data) - 1)
            icc = icc or info.get("icc_profile")
            layout, samples = _pillow_samples(image, icc)
    exif, xmp = info.get("exif"), info.get("xmp", xmp)
    return Decoded(samples, layout, mode, name, exif, icc, xmp, notes)


def _pillow_samples(image: Image.Image, icc: bytes | None) -> tuple[str, np.ndarray]:
    if image.mode == "CMYK":
        return "CMYK", np.asarray(image)
    if image.mode == "LAB":
        image = _srgb_of_lab(image)
    grey = image.mode in ("1", "L", "LA", "La")
    colour = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")
    if not grey and image.mode not in colour:
        raise ImageError(f"colour mode {image.mode} is not supported; save it as RGB")
    layout = ("L" if grey else "RGB") + "A" * image.has_transparency_data
    samples = np.asarray(image if image.mode == layout else image.convert(layout))
    samples = samples.reshape(*samples.shape[:2], -1)
    has_colour_profile = icc is not None and profile_fits(icc, grey=False)
    is_grey = image.mode == "P" and (samples[..., 1:3] == samples[..., :1]).all()
    if is_grey and not has_colour_profile:
        # A palette of greys holds one colour channel.
        layout, samples = layout.replace("RGB", "L"), np.delete(samples, (1, 2), axis=2)
    return layout, samples


def _srgb_of_lab(image: Image.Image) -> Image.Image:
    lab, srgb = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
    exact = ImageCms.Flags.NOOPTIMIZE  # no table in place of the curves
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB", flags=exact)
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise ImageError("the Lab colours cannot be converted; save it as RGB")
    return converted


def _png_depth(data: bytes) -> int:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ImageError("the PNG header is missing; the file is damaged")
    return data[24]


def _deep_png(data: bytes, image: Image.Image) -> tuple[str, np.ndarray]:
    if image.mode.startswith("I") and "transparency" not in image.info:
        return "L", np.asarray(image).astype(np.uint16)[..., None]
    samples = import_extra("imagecodecs", "16-bit PNG in colour").png_decode(data)
    samples = samples.reshape(*samples.shape[:2], -1)
    return ("L", "LA", "RGB", "RGBA")[samples.shape[2] - 1], samples
