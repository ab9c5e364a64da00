"""From the bytes of a file to its samples, and from those to a photo."""

import contextlib
import io
import os
import re
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.ExifTags import Base

from diip_jax.images import avif, bmp, png, tiff
from diip_jax.images.metadata import (
    chromaticities,
    exif_of_tiff,
    profile_fits,
    resolution,
    split_exif,
    split_xmp,
    without_appended,
)
from diip_jax.images.photo import (
    CODEC_ERRORS,
    ImageError,
    Photo,
    import_extra,
    one_line,
    to_uint,
)
from diip_jax.images.tiff import (
    MASK,
    PREMULTIPLIED_ALPHA,
    REDUCED_IMAGE,
    STRAIGHT_ALPHA,
    UNDEFINED,
    UNSIGNED,
    Directory,
    Photometric,
)

MAX_PIXELS = 2**30 // 6  # 179 million, Pillow's own limit
_MAX_BYTES = 2**31  # of a file, and of its decoded samples
# A header that claims more is a lie: 1-bit deflate packs 8256 pixels into a byte, LZW
# and JPEG's Huffman codes fewer. The other codecs have no such limit.
_MAX_PIXELS_PER_BYTE = 10_000
_LIMITED = ("PNG", "GIF", "JPEG")
_LIMITED_TIFF = (1, 5, 7, 8, 32946)  # Compression: none, LZW, JPEG, deflate
_SMALL = 2**24  # pixels that any header may claim

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
# Tags with the size of a TIFF's picture, and of one tile.
_TIFF_SIZES = (
    (Base.ImageWidth, Base.ImageLength),
    (Base.TileWidth, Base.TileLength),
)
# Colour channels of the photometric interpretations.
_TIFF_CHANNELS: dict[int, int] = {
    Photometric.WHITE_IS_ZERO: 1,
    Photometric.BLACK_IS_ZERO: 1,
    Photometric.RGB: 3,
    Photometric.PALETTE: 1,
    Photometric.CMYK: 4,
    Photometric.YCBCR: 3,
    Photometric.LAB: 3,
}
# The interpretations that tifffile reads.
_LAYOUTS: dict[int, str] = {
    Photometric.WHITE_IS_ZERO: "L",
    Photometric.BLACK_IS_ZERO: "L",
    Photometric.RGB: "RGB",
    Photometric.CMYK: "CMYK",
}


class _Decoded(NamedTuple):
    samples: np.ndarray  # (H, W, C) uint8, uint16, or float32 in [0, 1]; not turned yet
    layout: str  # what the channels are: L, RGB or CMYK, then A if there is alpha
    mode: str
    format: str
    exif: bytes | None
    icc: Any
    xmp: Any
    warnings: tuple[str, ...]
    dpi: tuple[float, float] | None = None
    colour: tuple[tuple[str, bytes], ...] = ()
    orientation: int | None = None  # of a TIFF; other formats have it in EXIF


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
        with open(source, "rb") if is_path else contextlib.nullcontext(source) as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, MemoryError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(one_line(f"cannot read {name}: {reason}")) from error
    if len(data) > _MAX_BYTES:
        raise ImageError(f"cannot read {name}: more than 2 GiB; make it smaller")
    return str(name), data


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
    decode = {"TIFF": _decode_tiff, "PNG": _decode_png, "JPEG": _decode_jpeg}
    decode |= {"AVIF": _decode_avif, "BMP": _decode_bmp}
    return _photo(decode.get(kind, _decode_with_pillow)(data, kind, max_pixels))


def _sniff(data: bytes) -> str:
    kinds = [k for k, v in _SIGNATURES.items() if re.match(v, data, re.DOTALL)]
    if not kinds:
        what = "not a picture of a known format" if data else "the file is empty"
        raise ImageError(f"{what}; give a PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF file")
    Image.init()
    if kinds[0] not in Image.OPEN:
        raise ImageError(f"{kinds[0]} is not read here; convert it to PNG or JPEG")
    return kinds[0]


def _check_size(
    width: int, height: int, num_bytes: int, max_pixels: int, *, limited: bool
) -> None:
    """Refuse a picture that is too large, or too large for its file.

    Args:
        width: width in the header.
        height: height in the header.
        num_bytes: size of the file.
        max_pixels: largest width times height.
        limited: whether the codec packs no more than so many pixels into a byte.
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


# From samples to a photo.


def _photo(decoded: _Decoded) -> Photo:
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
        warnings=notes + icc_notes + exif_notes,
    )


def _profile(decoded: _Decoded) -> tuple[bytes | None, tuple[str, ...]]:
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


def _decode_png(data: bytes, kind: str, max_pixels: int) -> _Decoded:
    data, metadata = png.split(data)
    decoded = _decode_with_pillow(data, kind, max_pixels, icc=metadata.icc)
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
        warnings=notes,
    )


def _decode_jpeg(data: bytes, kind: str, max_pixels: int) -> _Decoded:
    decoded = _decode_with_pillow(data, kind, max_pixels)
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        segments, info = getattr(image, "applist", []), image.info
    xmp, notes = without_appended(decoded.xmp, segments)
    # Pillow's "dpi" may come from EXIF, which is kept apart.
    scale = {1: 1.0, 2: 2.54}.get(info.get("jfif_unit", 0), 0.0)
    across, down = info.get("jfif_density", (0, 0))
    dpi = (scale * across, scale * down) if scale * across * down else None
    return decoded._replace(xmp=xmp, dpi=dpi, warnings=decoded.warnings + notes)


def _decode_avif(data: bytes, kind: str, max_pixels: int) -> _Decoded:
    data, exif = avif.split(data)
    decoded = _decode_with_pillow(data, kind, max_pixels)
    # A box of AVIF's own turns the picture, whatever EXIF says; Pillow reports it so.
    orientation, _, _ = split_exif(decoded.exif)
    deep = ("samples of more than 8 bits are read as 8",) * (avif.bits(data) > 8)
    return decoded._replace(
        exif=exif,
        orientation=orientation or 1,
        colour=avif.colour(data),
        warnings=decoded.warnings + deep,
    )


def _decode_bmp(data: bytes, kind: str, max_pixels: int) -> _Decoded:
    try:
        decoded = _decode_with_pillow(data, kind, max_pixels)
    except OSError:  # Pillow knows some masks only
        if not bmp.masks(data):
            raise
        decoded = None
    # Pillow knows no alpha in pixels of 16 bits.
    if decoded is None or (decoded.layout == "RGB" and len(bmp.masks(data)) > 3):
        _check_size(*bmp.size(data), len(data), max_pixels, limited=False)
        samples = bmp.decode(data)
        layout = "RGBA"[: samples.shape[2]]
        decoded = _Decoded(samples, layout, layout, "BMP", None, None, None, ())
    return decoded._replace(dpi=bmp.dpi(data))


def _decode_with_pillow(
    data: bytes, kind: str, max_pixels: int, *, icc: bytes | None = None
) -> _Decoded:
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        limited = kind in _LIMITED
        _check_size(*image.size, len(data), max_pixels, limited=limited)
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
    return _Decoded(samples, layout, mode, name, exif, icc, xmp, notes)


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


def _decode_tiff(data: bytes, kind: str, max_pixels: int) -> _Decoded:
    page, notes = _tiff_page(data)
    compression = tiff.integer(page, Base.Compression, 1)
    for width, height in _TIFF_SIZES:
        size = tiff.integer(page, width, 1), tiff.integer(page, height, 1)
        limited = compression in _LIMITED_TIFF
        _check_size(*size, len(data), max_pixels, limited=limited)
    decoded = _tiff_samples(tiff.repointed(data, page), page, max_pixels)
    layout, channels = decoded.layout, tiff.integer(page, Base.SamplesPerPixel, 1)
    photometric = tiff.integer(page, Base.PhotometricInterpretation, 0)
    if channels > _TIFF_CHANNELS.get(photometric, 99) + layout.endswith("A"):
        notes += ("channels that are neither colour nor alpha are not kept",)
    same_colours = photometric not in (Photometric.CMYK, Photometric.LAB)
    exif, exif_notes = exif_of_tiff(data, page, keep_colour=same_colours)
    return decoded._replace(
        exif=exif,
        icc=page.content(Base.InterColorProfile),
        xmp=page.content(Base.XMLPacket),
        dpi=resolution(page),
        colour=chromaticities(page) if same_colours else (),
        orientation=tiff.orientation(page),
        warnings=notes + exif_notes,
    )


def _tiff_page(data: bytes) -> tuple[Directory, tuple[str, ...]]:
    """Return the first page that is not a preview of another, and warnings."""
    found: Directory | None = None
    first = tiff.first_directory(data)
    for page in tiff.pages(data):
        if page.entry(Base.DNGVersion):
            break
        subfile = tiff.integer(page, Base.NewSubfileType, 0)
        is_picture = page.entry(Base.ImageWidth) and page.entry(Base.ImageLength)
        if not is_picture and page.at == first.at:
            raise ImageError("the TIFF header is damaged; save the file again")
        if subfile & (REDUCED_IMAGE | MASK) or not is_picture:
            continue
        if found is not None:
            return found, ("only the first frame is used",)
        found = page
    if found is None:
        raise ImageError("a camera raw file; develop it to TIFF or PNG first")
    return found, ()


def _tiff_samples(data: bytes, page: Directory, max_pixels: int) -> _Decoded:
    bits = tiff.integer(page, Base.BitsPerSample, 1)
    sample_format = tiff.integer(page, Base.SampleFormat, UNSIGNED)
    if bits > 8 or sample_format not in (UNSIGNED, UNDEFINED):
        return _decode_with_tifffile(data)
    if _is_raw_ycbcr(page):
        samples = _raw_ycbcr(data, page)
        return _Decoded(samples, "RGB", "YCbCr", "TIFF", None, None, None, ())
    try:
        return _decode_with_pillow(data, "TIFF", max_pixels)
    except CODEC_ERRORS as error:
        known = tiff.integer(page, Base.Compression, 1) in _LIMITED_TIFF
        if known and not isinstance(error, UnidentifiedImageError):
            raise
    return _decode_with_tifffile(data)


def _is_raw_ycbcr(page: Directory) -> bool:
    """Tell whether a page holds blocks of YCbCr that no codec has packed.

    Pillow takes their chroma for as large as their luma, and tifffile takes no blocks.
    """
    photometric = tiff.integer(page, Base.PhotometricInterpretation, 0)
    return (
        photometric == Photometric.YCBCR
        and tiff.integer(page, Base.Compression, 1) == 1
        and tiff.integer(page, Base.SamplesPerPixel, 3) == 3
        and tiff.integer(page, Base.PlanarConfiguration, 1) == 1
        and page.entry(Base.TileWidth) is None
    )


def _raw_ycbcr(data: bytes, page: Directory) -> np.ndarray:
    """Return RGB samples. TIFF 6.0, section 21: a block is its luma, Cb, then Cr.

    Raises:
        ImageError: the strips are damaged.
    """
    width, height = (tiff.integer(page, tag, 1) for tag in _TIFF_SIZES[0])
    across, down = (*page.integers(Base.YCbCrSubSampling), 2, 2)[:2]
    rows = min(tiff.integer(page, Base.RowsPerStrip, height), height)
    starts = page.integers(Base.StripOffsets)
    if across not in (1, 2, 4) or down not in (1, 2, 4) or rows < 1:
        raise ImageError("the TIFF header is damaged; save the file again")
    columns, pixels = -(-width // across), np.empty((height, width, 3), np.uint8)
    if len(starts) < -(-height // rows):
        raise ImageError("the TIFF data are truncated; save the file again")
    for first, start in zip(range(0, height, rows), starts, strict=False):
        blocks = -(-min(rows, height - first) // down)
        size = across * down + 2
        strip = np.frombuffer(data, np.uint8, blocks * columns * size, start)
        strip = strip.reshape(blocks, columns, size)
        luma = strip[..., :-2].reshape(blocks, columns, down, across)
        luma = luma.swapaxes(1, 2).reshape(blocks * down, columns * across, 1)
        chroma = strip[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
        into = pixels[first : first + rows]
        into[...] = np.dstack([luma, chroma])[: len(into), :width]
    return np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))


def _decode_with_tifffile(data: bytes) -> _Decoded:
    purpose = "TIFF of this kind, or deeper than 8 bits,"
    tifffile = import_extra("tifffile", purpose)
    import_extra("imagecodecs", purpose)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        layout = _LAYOUTS.get(int(page.photometric), "")
        colours = {"L": 1, "RGB": 3, "CMYK": 4}.get(layout, 99)
        if page.samplesperpixel < colours or page.axes not in ("YX", "YXS", "SYX"):
            raise ImageError("not a grey, RGB or CMYK TIFF; save it as RGB")
        if page.nbytes > _MAX_BYTES:
            raise ImageError("its samples take more than 2 GiB; make it smaller")
        _check_segments(page, len(data))
        stored = page.asarray(maxworkers=1)
    if page.axes == "SYX":
        stored = np.moveaxis(stored, 0, -1)
    samples = _by_value(stored.reshape(*stored.shape[:2], -1), page.bitspersample)
    if page.photometric == Photometric.WHITE_IS_ZERO:
        samples[..., 0] = _white(samples) - samples[..., 0]
    extra = page.extrasamples
    known = not extra or extra[0] in (PREMULTIPLIED_ALPHA, STRAIGHT_ALPHA)
    alpha = samples.shape[2] > colours and known
    samples = samples[..., : colours + alpha]
    if alpha and extra and extra[0] == PREMULTIPLIED_ALPHA:
        samples = _unpremultiplied(samples)
    layout += "A" * alpha
    mode = f"{layout};{page.bitspersample}" + "F" * (stored.dtype.kind == "f")
    mode = {"L;16": "I;16", f"{layout};8": layout}.get(mode, mode)
    return _Decoded(samples, layout, mode, "TIFF", None, None, None, ())


def _white(samples: np.ndarray) -> int:
    return 1 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max


def _check_segments(page: Any, num_bytes: int) -> None:
    """Refuse a page with missing data, which tifffile would fill with zeros."""
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    missing = len(segments) < np.prod(page.chunked)
    if missing or any(n < 1 or start + n > num_bytes for start, n in segments):
        raise ImageError("the TIFF data are truncated; save the file again")


def _by_value(samples: np.ndarray, bits: int) -> np.ndarray:
    """Return TIFF samples as integers, or float32 in [0, 1], by the package's rules."""
    kind, low, high = samples.dtype.kind, samples.min(), samples.max()
    if kind == "f" and low >= 0 and high <= 1:  # False for NaN
        return samples.astype(np.float32)
    if kind == "u" and bits <= 8:
        return np.rint(samples * (255 / (2**bits - 1))).astype(np.uint8)
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
    values = samples.astype(np.float32) / np.float32(_white(samples))
    alpha = values[..., -1:]
    np.divide(values[..., :-1], alpha, out=values[..., :-1], where=alpha > 0)
    return np.minimum(values, 1)
