"""Metadata: what a file of each format can hold of EXIF, XMP, ICC and colour tags."""

import math

from diip_jax.images.exif import (
    chromaticities,
    exif_directory,
    fits_transfer,
    metadata_entries,
    resolution,
)
from diip_jax.images.photo import Photo
from diip_jax.images.tiff import Directory

_PROFILE_KIND = slice(16, 20)  # where an ICC profile names its colour space
_LARGEST_XMP = 65502  # bytes in one segment of JPEG
_LARGEST_ICC = 255 * 65519  # bytes in 255 segments of JPEG
# The dots per inch that fit: integers of 16 bits; per metre, of 31; fractions of 32.
_RESOLUTIONS = {"JPEG": (0.5, 65535), "PNG": (0.02, 5e7), "TIFF": (0.01, 4e5)}


def profile_fits(icc: bytes, grey: bool) -> bool:
    """Tell whether a profile is for samples of this kind.

    Args:
        icc: ICC profile.
        grey: whether there is one colour channel, else RGB.
    """
    return icc[_PROFILE_KIND] == (b"GRAY" if grey else b"RGB ")


def profile_for(photo: Photo, kind: str) -> bytes | None:
    """Return the profile to write into a file, or None.

    Args:
        photo: what is written.
        kind: output format. WebP has no grey.
    """
    if not photo.icc or not profile_fits(photo.icc, photo.grey and kind != "WEBP"):
        return None
    return None if kind == "JPEG" and len(photo.icc) > _LARGEST_ICC else photo.icc


def xmp_for(photo: Photo, kind: str) -> bytes | None:
    """Return the XMP packet to write into a file, or None.

    Args:
        photo: what is written.
        kind: output format.
    """
    too_large = kind == "JPEG" and len(photo.xmp or b"") > _LARGEST_XMP
    return None if too_large else photo.xmp


# What a format cannot hold.


def unkept(photo: Photo, kind: str) -> tuple[str, ...]:
    """Return what a format cannot hold of a photo's metadata, one sentence each.

    `photo.warnings` has what was lost in reading already.

    Args:
        photo: what is written.
        kind: output format: "PNG", "TIFF", "WEBP" or "JPEG".
    """
    directory = exif_directory(photo.exif)
    lost = [f"the PNG colour tag {name}" for name in _unkept_colour(photo, kind)]
    if photo.text and kind != "PNG":
        lost.append("the text of the PNG")
    if photo.icc and not profile_for(photo, kind):
        lost.append("the ICC profile")
    if photo.xmp and not xmp_for(photo, kind):
        lost.append("the XMP packet")
    if photo.dpi and not holds_resolution(photo.dpi, kind, directory):
        lost.append("the resolution")
    if kind == "TIFF" and directory is not None:
        bits_and_grey = photo.bits, photo.grey
        if not all(fits_transfer(e, *bits_and_grey) for e in directory.entries):
            lost.append("the transfer function")
        if any(entry.value is None for entry in directory.entries):
            lost.append("an EXIF tag whose value lies outside of EXIF")
        if metadata_entries(directory.entries)[1]:
            lost.append("the description of another file's layout")
    return tuple(f"{what} is not kept: {kind} cannot hold it" for what in lost)


def _unkept_colour(photo: Photo, kind: str) -> list[str]:
    names = [] if kind == "PNG" else [name for name, _ in photo.colour]
    directory = exif_directory(photo.exif)
    in_exif = directory is not None and chromaticities(directory)
    return [n for n in names if n != "cHRM" or not (kind == "TIFF" or in_exif)]


def holds_resolution(
    dpi: tuple[float, float], kind: str, directory: Directory | None = None
) -> bool:
    """Tell whether a format, or the EXIF block in it, can hold a resolution.

    TIFF has one place for the resolution of the file and that of EXIF; EXIF's stays.

    Args:
        dpi: (horizontal, vertical) dots per inch.
        kind: output format.
        directory: first directory of the EXIF block, or None without a block.
    """
    told = resolution(directory)
    same = told is not None and math.isclose(sum(told), sum(dpi), rel_tol=0.01)
    if kind == "WEBP" or (kind == "TIFF" and told is not None):
        return same
    least, most = _RESOLUTIONS[kind]
    return all(least <= value <= most for value in dpi)
