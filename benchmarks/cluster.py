"""What many machines cost beside the restoration: overhead, memory, workers.

    python benchmarks/cluster.py [--parts rows workers paper] [--json FILE]

`rows`: tiny photos through listing, look, read, write and the driver's bar, with a
stand-in that restores nothing; milliseconds of a photo, and the driver's memory at each
tenth of the run. `workers`: a stand-in that sleeps, so that workers do not share cores;
photos per second from the first batch on, by the number of workers. `paper`:
what a million photos would take on accelerators, predicted from operations counted on
shapes, not measured. Ray is one of this machine; files are in memory (/dev/shm).
"""

import argparse
import json
import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import cases
import jax
import numpy as np
from PIL import Image

from diip_jax import canvas, matched, tiling
from diip_jax import prior as priors
from diip_jax.photos import cluster, command
from diip_jax.photos.plan import Options
from diip_jax.photos.terminal import Terminal

PARTS = ("rows", "workers", "paper")
PRIOR = "natural64"
STORE_BYTES = 200 * 2**20
PEAK_FLOPS = 67e12  # of an H100 SXM in float32, by its data sheet
UTILISATION = 0.3  # of the peak, assumed: no accelerator was measured
MEGAPIXEL = (1024, 1024)
PNG_BYTES = 2.5e6  # of a megapixel with noise, in and out
ENCODE_SECONDS = 0.35  # to write and to read such a PNG twice, on one core, assumed


class Stub(cluster.Restorer):
    """Gives each photo back as it came, after a sleep."""

    seconds = 0.0

    def __init__(self, work: cluster.Work):
        """Load nothing."""
        self.work = work

    def __call__(self, table: Any) -> Any:
        """Sleep as long as the restoration of these photos is to take."""
        rows, began = table.to_pylist(), time.time()
        time.sleep(self.seconds * len(rows))
        content = {"schema": "diip.result/1", "status": "stub", "warnings": []}
        content["began"] = began
        results = {row["output"]: cluster.Result(row["data"], content) for row in rows}
        return cluster.as_table([self.row(row, results) for row in rows])


class Sleeper(Stub):
    """Takes a second for a photo, on no core."""

    seconds = 1.0


class Watch(Terminal):
    """Notes when rows came, and the memory of this process then."""

    def __init__(self) -> None:
        """Say nothing, and see every record."""
        super().__init__(quiet=True, json=True)
        self.began = math.inf  # the first batch, in its actor
        self.times: list[float] = []
        self.megabytes: list[float] = []

    def emit(self, content: Any) -> None:
        """Note a row instead of printing it."""
        self.began = min(self.began, content["began"])
        self.times.append(time.time())
        self.megabytes.append(resident_megabytes())
        if len(self.times) % 10_000 == 0:
            seconds, megabytes = self.times[-1] - self.began, self.megabytes[-1]
            print(f"{len(self.times)} rows, {seconds:.0f} s, {megabytes:.0f} MB")


def resident_megabytes() -> float:
    """Return the memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def photos(folder: Path, count: int) -> Path:
    """Write tiny photos; a thousand to a folder."""
    rng = np.random.default_rng(0)
    first = folder / "first.png"
    Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(first)
    data = first.read_bytes()
    first.unlink()
    for n in range(count):
        path = folder / f"{n // 1000:03}" / f"{n:06}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return folder


def measure(folder: Path, workers: int, stub: type[Stub]) -> dict[str, Any]:
    """Return times and memory of a run over a folder with a stand-in."""
    out, watch = folder.parent / f"out{workers}", Watch()
    card = priors.read_card(PRIOR)
    config = command.settings(priors.Prior(None, card), "default", {})
    began = time.perf_counter()
    summary = cluster.run(
        PRIOR,
        card,
        [str(folder)],
        config,
        Options(output=str(out)),
        watch,
        cluster.Cluster("local", workers, device="cpu"),
        recursive=True,
        restorer=stub,
    )
    seconds = time.perf_counter() - began
    written = sum(1 for _ in out.rglob("*.png"))
    shutil.rmtree(out)
    assert summary.num_failed == 0
    assert summary.num_done == written == len(watch.times)
    spent = watch.times[-1] - watch.began
    tenths = [watch.megabytes[len(watch.megabytes) * n // 10] for n in range(10)]
    return {
        "photos": written,
        "workers": workers,
        "seconds": seconds,
        "photos_per_second": written / seconds,
        "since_the_first_began": written / spent,
        "driver_megabytes": [*tenths, watch.megabytes[-1]],
        "driver_peak_megabytes": max(watch.megabytes),
    }


def photo_flops() -> float:
    """Return operations of one megapixel by default, without iterations, by shapes.

    A window is counted by itself: what a loop repeats is counted once.
    """
    card = cases.bundled_card(PRIOR)
    config = command.settings(priors.Prior(None, card), "default", {})
    prior = priors.Prior(priors.abstract_params(card), card)
    window = (config.tile, config.tile)
    z = jax.ShapeDtypeStruct((*window, 3), np.float32)

    def look(prior: priors.Prior, z: jax.Array) -> jax.Array:
        return canvas.generator(prior, config, window)(z)

    flops = jax.jit(look).lower(prior, z).cost_analysis()["flops"]
    corners = tiling.window_corners(MEGAPIXEL, config.tile, config.tile_overlap)
    looks = config.num_starts + matched.is_needed(config)
    return flops * len(corners) * looks


def on_paper() -> dict[str, Any]:
    """Return what a million megapixels would take; nothing of it is measured."""
    flops = photo_flops()
    seconds = flops / (PEAK_FLOPS * UTILISATION)
    rows = {
        str(devices): {
            "hours": 1e6 * seconds / devices / 3600,
            "store_gigabits_per_second": 8e-9 * 2 * PNG_BYTES * devices / seconds,
            "cores_that_code_png": ENCODE_SECONDS * devices / seconds,
            "requests_per_second": 5 * devices / seconds,
        }
        for devices in (1, 8, 64)
    }
    return {
        "predicted": True,
        "flops_of_a_photo": flops,
        "seconds_of_a_photo": seconds,
        "device_hours": 1e6 * seconds / 3600,
        "devices": rows,
    }


def main() -> None:
    """Print one table per part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--naps", type=int, default=128)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if "paper" in flags.parts:
        rows.append({"part": "paper", **on_paper()})
        print(json.dumps(rows[-1], indent=1))
    if set(flags.parts) & {"rows", "workers"}:
        # Workers are otherwise given way to all else on the machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        import ray
        import ray.data

        ray.init(
            address="local",
            num_cpus=8 if "workers" in flags.parts else 3,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        # All workers are there before the first batch is given.
        ray.data.DataContext.get_current().wait_for_min_actors_s = 600
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if "workers" in flags.parts:
            (Path(folder) / "few").mkdir()
            few = photos(Path(folder) / "few", flags.naps)
            naps = [measure(few, n, Sleeper) for n in (1, 4)]
            rows += [{"part": "workers", **row} for row in naps]
            one, four = (row["since_the_first_began"] for row in naps)
            print(
                f"{one:.2f} photos/s with 1 worker, {four:.2f} with 4: {four / one:.2f}"
            )
        if "rows" in flags.parts:
            (Path(folder) / "many").mkdir()
            many = photos(Path(folder) / "many", flags.rows)
            rows.append({"part": "rows", **measure(many, 1, Stub)})
            print(json.dumps(rows[-1], indent=1))
    if flags.json:
        cases.write(flags.json, rows)


if __name__ == "__main__":
    main()
