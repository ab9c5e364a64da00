"""The samples of a TIFF file: which page, and which library reads it."""

import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

from diip_jax.images import tiff
from diip_jax.images.exif import chromaticities, exif_of_tiff, resolution, with_tags
from diip_jax.images.photo import CODEC_ERRORS, ImageError, import_extra
from diip_jax.images.samples import MAX_BYTES, Decoded, check_size, decode_with_pillow
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

_LIMITED_TIFF = (1, 5, 7, 8, 32946)  # Compression: none, LZW, JPEG, deflate
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


def decode_tiff(data: bytes, kind: str, max_pixels: int) -> Decoded:
    """Return the first picture of a TIFF, and its metadata.

    Args:
        data: the whole file.
        kind: "TIFF".
        max_pixels: largest width times height; checked before anything is decoded.

    Raises:
        ImageError: the file is damaged, a camera raw file, too large, or holds samples
            that are not read.
    """
    page, notes = _tiff_page(data)
    compression = tiff.integer(page, Base.Compression, 1)
    for width, height in _TIFF_SIZES:
        size = tiff.integer(page, width, 1), tiff.integer(page, height, 1)
        limited = compression in _LIMITED_TIFF
        check_size(*size, len(data), max_pixels, limited=limited)
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
    """Return the first page that is not a preview of another, and warnings.

    Behind a preview, a page has the tags of the first one too, where it has no own.
    """
    found: Directory | None = None
    first = tiff.first_directory(data)
    if not _has_size(first):
        raise ImageError("the TIFF header is damaged; save the file again")
    for page in tiff.pages(data):
        if page.entry(Base.DNGVersion):
            break
        subfile = max(page.integers(Base.NewSubfileType), default=0)
        if subfile & (REDUCED_IMAGE | MASK) or not _has_size(page):
            continue
        if found is not None:
            return with_tags(found, first), ("only the first frame is used",)
        found = page
    if found is None:
        raise ImageError("a camera raw file; develop it to TIFF or PNG first")
    return with_tags(found, first), ()


def _has_size(page: Directory) -> bool:
    return all(page.entry(tag) is not None for tag in _TIFF_SIZES[0])


def _tiff_samples(data: bytes, page: Directory, max_pixels: int) -> Decoded:
    bits = tiff.integer(page, Base.BitsPerSample, 1)
    sample_format = tiff.integer(page, Base.SampleFormat, UNSIGNED)
    if bits > 8 or sample_format not in (UNSIGNED, UNDEFINED):
        return _decode_with_tifffile(data)
    if _is_raw_ycbcr(page):
        samples = _raw_ycbcr(data, page)
        return Decoded(samples, "RGB", "YCbCr", "TIFF", None, None, None, ())
    try:
        return decode_with_pillow(data, "TIFF", max_pixels)
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
        and tiff.integer(page, Base.BitsPerSample, 1) == 8
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


def _decode_with_tifffile(data: bytes) -> Decoded:
    purpose = "TIFF of this kind, or deeper than 8 bits,"
    tifffile = import_extra("tifffile", purpose)
    import_extra("imagecodecs", purpose)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        layout = _LAYOUTS.get(int(page.photometric), "")
        colours = {"L": 1, "RGB": 3, "CMYK": 4}.get(layout, 99)
        if page.samplesperpixel < colours or page.axes not in ("YX", "YXS", "SYX"):
            raise ImageError("not a grey, RGB or CMYK TIFF; save it as RGB")
        if page.nbytes > MAX_BYTES:
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
    return Decoded(samples, layout, mode, "TIFF", None, None, None, ())


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
