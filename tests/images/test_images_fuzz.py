"""Damaged image files through `images.read`: a picture or one ImageError, nothing else.

Run as a script, this file is the child: `python test_images_fuzz.py SEQUENCE START
COUNT` mutates and reads files START to START + COUNT - 1 of a fixed sequence, so every
finding can be repeated by its number. The sequence "files" damages whole files,
"metadata" only what describes the picture: entries of directories and their values,
XMP, profiles, chunks. The parent watches from outside: a crash, an
exception of another class, five seconds on one file (SIGALRM kills even a decoder that
holds the interpreter lock), 2 GiB of memory, or a Python warning on stderr fails the
test. (The C libraries inside Pillow and imagecodecs may write lines of their own.)
"""

import contextlib
import io
import resource
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from diip_jax import images
from helpers.exif_blocks import camera_block, camera_tiff
from helpers.pictures import with_chunks

SEED = 20250
SECONDS = 5
MEMORY = 2 * 2**30
BATCH = 300


def picture(channels: int, bits: int = 8) -> np.ndarray:
    """A smooth (48, 64, C) picture with some noise, so that codecs have work to do."""
    rng = np.random.default_rng([channels, bits])
    ramp = np.linspace(0.1, 0.8, 64) * np.linspace(0.5, 1, 48)[:, None]
    values = ramp[..., None] + rng.random((48, 64, channels)) * 0.1
    return (values * (2**bits - 1)).astype(np.uint16 if bits > 8 else np.uint8)


def save(image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    if options.get("save_all"):  # a fresh one: Pillow keeps encoder settings in it
        options["append_images"] = [image.rotate(90)]
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    """Return one good file per format, layout and compression."""
    import imagecodecs
    import tifffile

    rgb, rgba = Image.fromarray(picture(3)), Image.fromarray(picture(4))
    grey, deep = Image.fromarray(picture(1)[..., 0]), picture(3, 16)
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    exif.get_ifd(34665)[36867] = "2023:01:02 03:04:05"
    meta = {"exif": exif.tobytes(), "icc_profile": bytes(200), "xmp": b"<x/>"}
    frames = {"save_all": True}
    files = {
        "png rgb": save(rgb, "PNG", exif=meta["exif"], icc_profile=bytes(200)),
        "png la": save(Image.fromarray(picture(2)), "PNG"),
        "png palette": save(rgb.quantize(16), "PNG", transparency=bytes(range(16))),
        "png 1": save(grey.convert("1"), "PNG"),
        "apng": save(rgb, "PNG", **frames),
        "png 16": save(Image.fromarray(picture(1, 16)[..., 0]), "PNG"),
        "png rgb 16": imagecodecs.png_encode(deep),
        "png rgba 16": imagecodecs.png_encode(picture(4, 16)),
        "jpeg": save(rgb, "JPEG", **meta),
        "jpeg progressive": save(rgb, "JPEG", progressive=True, **meta),
        "jpeg grey": save(grey, "JPEG"),
        "jpeg cmyk": save(rgb.convert("CMYK"), "JPEG"),
        "mpo": save(rgb, "MPO", **frames),
        "webp": save(rgb, "WEBP", **meta),
        "webp lossless": save(rgba, "WEBP", lossless=True, **meta),
        "webp animated": save(rgb, "WEBP", **frames),
        "bmp": save(rgb, "BMP"),
        "bmp palette": save(rgb.quantize(16), "BMP"),
        "bmp 1": save(grey.convert("1"), "BMP"),
        "gif": save(rgb, "GIF", **frames),
        "tiff": save(rgb, "TIFF", exif=exif),
        "tiff lzw": save(rgba, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": save(rgb, "TIFF", compression="jpeg"),
        "tiff g4": save(grey.convert("1"), "TIFF", compression="group4"),
        "tiff deflate": save(grey, "TIFF", compression="tiff_adobe_deflate"),
        "tiff pages": save(rgb, "TIFF", **frames),
    }
    forms = {
        "strips": (deep, {"rowsperstrip": 7}),
        "tiles": (deep, {"tile": (16, 16), "compression": "zlib", "predictor": True}),
        "lzw": (deep, {"compression": "lzw"}),
        "big": (deep, {"bigtiff": True}),
        "big-endian": (deep, {"byteorder": ">"}),
        "planes": (np.moveaxis(deep, 2, 0), {"planarconfig": "separate"}),
        "float": (picture(3).astype(np.float32) / 255, {}),
        "8 tiles": (picture(3), {"tile": (32, 32), "compression": "zlib"}),
    }
    for name, (array, options) in forms.items():
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, array, photometric="rgb", metadata=None, **options)
        files[f"tiff {name}"] = buffer.getvalue()
    if "AVIF" in Image.SAVE:
        files["avif"] = save(rgb, "AVIF", **meta)
        files["avif alpha"] = save(rgba, "AVIF")
    return files


def described() -> dict[str, bytes]:
    """Return one file per format with all the metadata that it can hold."""
    import tifffile

    rgb, grey = Image.fromarray(picture(3)), Image.fromarray(picture(1)[..., 0])
    xmp = (
        b'<x:xmpmeta xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"'
        b' tiff:Orientation="6" xmpNote:HasExtendedXMP="0A" hdrgm:Version="1.0">'
        b"<hdrgm:a>1</hdrgm:a></x:xmpmeta>"
    )
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {}
    for order in "<>":
        block = camera_block(order)
        meta = {"exif": b"Exif\0\0" + block, "icc_profile": icc, "xmp": xmp}
        files[f"jpeg {order}"] = save(rgb, "JPEG", dpi=(300, 300), **meta)
        files[f"webp {order}"] = save(rgb, "WEBP", **meta)
        chunks = {"eXIf": block, "iCCP": b"x\0\0" + zlib.compress(icc)}
        chunks |= {"iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + xmp, "tRNS": bytes(6)}
        chunks |= {"zTXt": b"Comment\0\0" + zlib.compress(b"text"), "gAMA": bytes(4)}
        chunks |= {"cHRM": bytes(range(32)), "pHYs": bytes(9), "cICP": b"\x09\x10\0\1"}
        files[f"png {order}"] = with_chunks(save(rgb, "PNG"), **chunks)
        files[f"tiff {order}"] = camera_tiff(order, picture(3))
        options = {"byteorder": order, "bigtiff": True, "photometric": "rgb"}
        tags = [(271, "s", 0, "Maker", True), (60000, "Q", 2, (1, 2**40), True)]
        tags += [(301, "H", 256, tuple(range(256)), True), (700, "B", 4, xmp[:4], True)]
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, picture(3), extratags=tags, **options)
        files[f"tiff big {order}"] = buffer.getvalue()
        if "AVIF" in Image.SAVE:  # without Orientation, so that Pillow keeps the block
            plain = block.replace(
                *(struct.pack(f"{order}HHI", tag, 3, 1) for tag in (274, 269))
            )
            options = meta | {"exif": plain}
            files[f"avif {order}"] = save(rgb, "AVIF", **options)
    files["jpeg grey"] = save(grey, "JPEG", icc_profile=icc)
    return files


def directory_entries(data: bytes) -> list[tuple[int, str, int]]:
    """Where the entries of every directory of TIFF in a file are.

    Each is (offset in the file, byte order, length); directories are found by the
    header of a TIFF, and those that they point to by following every LONG.
    """
    found = []
    for mark, order in ((b"II*\0", "<"), (b"MM\0*", ">"), (b"II+\0", "<"),
                        (b"MM\0+", ">")):  # fmt: skip
        base = data.find(mark)
        if base < 0:
            continue
        big = 43 in mark
        head, step = ("Q", 20) if big else ("H", 12)
        start = struct.unpack_from(order + ("8xQ" if big else "4xI"), data, base)[0]
        starts, seen = [start], set()
        while starts and len(seen) < 20:
            at = base + starts.pop()
            if at in seen or at + 8 > len(data):
                continue
            seen.add(at)
            (count,) = struct.unpack_from(order + head, data, at)
            first = at + struct.calcsize(order + head)
            if count > 100 or first + count * step > len(data):
                continue
            for place in range(first, first + count * step, step):
                found.append((place, order, step))
                tag, kind = struct.unpack_from(order + "HH", data, place)
                if kind in (4, 13) and tag in (34665, 34853, 40965):
                    starts += struct.unpack_from(order + "I", data, place + step - 4)
    return found


def redescribed(name: str, data: bytes, rng: np.random.Generator) -> bytes:
    """Return a file whose metadata are damaged, and little else."""
    out, entries = bytearray(data), directory_entries(data)
    marks = (b"<x:xmp", b"hdrgm", b"acsp", b"Exif", b"iCCP", b"eXIf", b"iTXt", b"tRNS")
    marks += (b"cHRM", b"pHYs", b"cICP", b"zTXt", b"JFIF", b"iloc", b"infe", b"colr")
    for _ in range(rng.integers(1, 5)):
        if entries and rng.random() < 0.7:
            place, order, step = entries[rng.integers(len(entries))]
            offset = int(rng.choice([0, 2, 2, 4, 4, step - 4, step - 4, step - 4]))
            code = order + ("H" if offset < 4 else "I")
            value = int(
                rng.choice([*EXTREME, *range(20), len(data), 274, 34665, 40965])
            )
            if rng.random() < 0.2:  # an entry that is another one
                other, *_ = entries[rng.integers(len(entries))]
                out[place : place + step] = data[other : other + step]
            else:
                value %= 2 ** (8 * struct.calcsize(code))
                struct.pack_into(code, out, place + offset, value)
        else:
            found = [at for mark in marks if (at := data.find(mark)) >= 0]
            if found:
                at = found[rng.integers(len(found))] + rng.integers(-8, 60)
                out[at % len(out)] = rng.integers(256)
    is_png = out[:4] == b"\x89PNG" and rng.random() < 0.8  # else the checksum is wrong
    return repaired(bytes(out)) if is_png else bytes(out)


EXTREME = (0, 1, 2, 255, 4096, 12_000, 13_377, 32_767, 65_535, 2**31 - 1, 2**32 - 1)


def size_fields(name: str, data: bytes) -> list[tuple[int, str]]:
    """Where a header says how large things are, as (offset, struct code)."""
    kind = name.split()[0]
    if kind in ("png", "apng"):
        return [(16, ">I"), (20, ">I"), (24, ">B"), (25, ">B"), (33, ">I")]
    if kind in ("jpeg", "mpo"):
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        return [(at + 5, ">H"), (at + 7, ">H"), (at + 2, ">H"), (at + 9, ">B")]
    if kind == "webp":
        at = max(data.find(m) for m in (b"VP8X", b"VP8L", b"VP8 "))
        return [(at + k, "<H") for k in (4, 9, 11, 12, 14, 15, 18)] + [(4, "<I")]
    if kind == "bmp":
        return [(2, "<I"), (10, "<I"), (14, "<I"), (18, "<I"), (22, "<I"), (28, "<H")]
    if kind == "gif":
        return [(6, "<H"), (8, "<H"), (10, "<B")]
    if kind == "avif":
        at = data.find(b"ispe")
        return [(at + 8, ">I"), (at + 12, ">I"), (at - 4, ">I")]
    order = "<" if data[:2] == b"II" else ">"
    big = data[2] == 43 or data[3] == 43
    start = struct.unpack_from(order + ("8xQ" if big else "4xI"), data)[0]
    first, entry = start + (8 if big else 2), 20 if big else 12
    fields = [(start, order + "H")]
    for at in range(first, min(first + 18 * entry, len(data) - entry), entry):
        fields += [(at + 4, order + "I"), (at + entry - (8 if big else 4), order + "I")]
        fields += [(at + entry - (8 if big else 4), order + "H"), (at + 2, order + "H")]
    return fields


def repaired(data: bytes) -> bytes:
    """Make the checksums of a PNG right again, so that damage gets past them."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        end = at + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def mutated(name: str, data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        how = rng.choice(["flip", "head", "cut", "lie", "lie", "move"])
        if how in ("flip", "head"):
            reach = len(out) if how == "flip" else min(len(out), 200)
            for at in rng.integers(0, max(reach, 1), rng.integers(1, 12)):
                if at < len(out):
                    out[at] = rng.integers(256)
        elif how == "cut":
            del out[rng.integers(1, len(out) + 1) :]
        elif how == "lie":
            fields = size_fields(name, data)
            at, code = fields[rng.integers(len(fields))]
            value = int(rng.choice(EXTREME)) % 2 ** (8 * struct.calcsize(code))
            if 0 <= at <= len(out) - struct.calcsize(code):
                struct.pack_into(code, out, at, value)
        else:  # a block of bytes, doubled or dropped
            start, length = rng.integers(0, len(out) + 1), int(rng.integers(1, 64))
            block = bytes(out[start : start + length])
            out[start : start + length] = block * int(rng.choice([0, 2]))
        out = out or bytearray(b"\0")
    return repaired(bytes(out)) if out[:4] == b"\x89PNG" else bytes(out)


SEQUENCES = {"files": (seeds, mutated), "metadata": (described, redescribed)}


def case(files: dict[str, bytes], change: Callable, index: int) -> tuple[str, bytes]:
    """Return the name and the bytes of one mutated file of a sequence."""
    name = list(files)[index % len(files)]
    return name, change(name, files[name], np.random.default_rng([SEED, index]))


def check(photo: images.Photo) -> None:
    height, width, channels = photo.rgb.shape
    assert channels == 3
    assert photo.rgb.dtype == np.float32
    assert photo.bits in (8, 16)
    assert photo.rgb.min() >= 0
    assert photo.rgb.max() <= 1
    assert photo.stored_size in ((width, height), (height, width))
    assert photo.alpha is None or photo.alpha.shape == (height, width)
    if height * width <= 10**6:  # what was read can be written, and read again
        kinds = ("PNG", "TIFF", "WEBP", "JPEG") if height * width < 10**4 else ("PNG",)
        for kind in kinds[: 3 if photo.alpha is not None else 4]:
            again = images.read(images.encode(photo.rgb, photo, kind))
            assert again.rgb.shape == photo.rgb.shape
            assert all(isinstance(said, str) for said in images.unkept(photo, kind))


def peak_memory() -> int:
    """Return the largest resident size of this program, in bytes.

    Not `ru_maxrss` where it can be helped: Linux hands that on through fork and exec,
    so a child of a large test process would start with its parent's peak.
    """
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(sequence: str, start: int, count: int) -> None:
    make, change = SEQUENCES[sequence]
    files = make()
    for good in files.values():
        check(images.read(good))
    read = 0
    for index in range(start, start + count):
        name, data = case(files, change, index)
        sys.stdout.write(f"{index} {name}\n")
        sys.stdout.flush()
        signal.alarm(SECONDS)  # the default action of SIGALRM ends the process
        photo = None
        with contextlib.suppress(images.ImageError):
            photo = images.read(data)
        signal.alarm(0)
        if photo is not None:
            check(photo)
            read += 1
        peak = peak_memory()
        assert peak < MEMORY, f"file {index} ({name}) took {peak / 2**30:.2f} GiB"
    sys.stdout.write(f"done {read}\n")


def run_child(sequence: str, start: int, count: int) -> int:
    """Read a batch in a process of its own; return how many gave a picture."""
    here = Path(__file__).resolve()
    done = subprocess.run(
        [sys.executable, "-W", "error", str(here), sequence, str(start), str(count)],
        capture_output=True,
        text=True,
        cwd=here.parents[2],
        env={
            "PYTHONPATH": f"{here.parents[2]}:{here.parents[1]}",
            "OMP_NUM_THREADS": "1",
        },
        check=False,
    )
    last = done.stdout.splitlines()[-1:] or ["nothing"]
    assert done.returncode == 0, f"after {last}: {done.returncode}\n{done.stderr}"
    assert "Warning" not in done.stderr, done.stderr
    return int(last[0].removeprefix("done "))


def fuzz(sequence: str, start: int, count: int, most: float) -> None:
    pytest.importorskip("imagecodecs")
    pytest.importorskip("tifffile")
    read = run_child(sequence, start, count)
    # Both outcomes must occur, or the mutations test nothing.
    assert 0.05 * count < read < most * count


def test_a_few_damaged_files():
    fuzz("files", 100_000, 144, 0.9)


def test_a_few_files_with_damaged_metadata():
    fuzz("metadata", 100_000, 60, 1)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(8))
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_2400_damaged_files(sequence, batch):
    fuzz(sequence, batch * BATCH, BATCH, 0.9 if sequence == "files" else 1)


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
