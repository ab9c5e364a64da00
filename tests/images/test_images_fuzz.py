"""Damaged image files through `images.read`: a picture or one ImageError, nothing else.

Run as a script, this file is the child: `python test_images_fuzz.py START COUNT`
mutates and reads files START to START + COUNT - 1 of one fixed sequence, so every
finding can be repeated by its number. The parent watches from outside: a crash, an
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
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diip_jax import images

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


def case(files: dict[str, bytes], index: int) -> tuple[str, bytes]:
    """Return the name and the bytes of one mutated file of the sequence."""
    name = list(files)[index % len(files)]
    return name, mutated(name, files[name], np.random.default_rng([SEED, index]))


def check(photo: images.Photo) -> None:
    height, width, channels = photo.rgb.shape
    assert channels == 3
    assert photo.rgb.dtype == np.float32
    assert photo.bits in (8, 16)
    assert photo.rgb.min() >= 0
    assert photo.rgb.max() <= 1
    assert photo.stored_size in ((width, height), (height, width))
    assert photo.alpha is None or photo.alpha.shape == (height, width)
    if height * width <= 10**6:  # what was read can be written
        for kind in ("PNG", "TIFF"):
            assert images.encode(photo.rgb, photo, kind)


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


def child(start: int, count: int) -> None:
    files = seeds()
    for good in files.values():
        check(images.read(good))
    read = 0
    for index in range(start, start + count):
        name, data = case(files, index)
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


def run_child(start: int, count: int) -> int:
    """Read a batch in a process of its own; return how many gave a picture."""
    here = Path(__file__).resolve()
    done = subprocess.run(
        [sys.executable, "-W", "error", str(here), str(start), str(count)],
        capture_output=True,
        text=True,
        cwd=here.parents[2],
        env={"PYTHONPATH": str(here.parents[2]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    last = done.stdout.splitlines()[-1:] or ["nothing"]
    assert done.returncode == 0, f"after {last}: {done.returncode}\n{done.stderr}"
    assert "Warning" not in done.stderr, done.stderr
    return int(last[0].removeprefix("done "))


def fuzz(start: int, count: int) -> None:
    pytest.importorskip("imagecodecs")
    pytest.importorskip("tifffile")
    read = run_child(start, count)
    # Both outcomes must occur, or the mutations test nothing.
    assert 0.05 * count < read < 0.9 * count


def test_a_few_damaged_files():
    fuzz(100_000, 144)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(8))
def test_2400_damaged_files(batch):
    fuzz(batch * BATCH, BATCH)


if __name__ == "__main__":
    child(int(sys.argv[1]), int(sys.argv[2]))
