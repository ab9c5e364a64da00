"""What many machines cost beside the restoration: overhead, memory, workers, deaths.

    python benchmarks/cluster.py [--parts rows workers deaths paper] [--json FILE]

`rows`: tiny photos through listing, look, read, write and the driver's bar, with a
stand-in that restores nothing; milliseconds of a photo, and the driver's memory at each
tenth of the run. `workers`: a stand-in that sleeps, so that workers do not share cores;
photos per second from the first batch on, by the number of workers. `deaths`: the
sleeping stand-in on three nodes, and again with one of them killed on the way; the
seconds that it cost. `paper`: what a million photos would take on accelerators,
predicted from operations counted on shapes, not measured. Ray is one of this machine;
files are in memory (/dev/shm).
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
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

PARTS = ("rows", "workers", "deaths", "paper")
PRIOR = "natural64"
STORE_BYTES = 200 * 2**20
PEAK_FLOPS = 67e12  # of an H100 SXM in float32, by its data sheet
UTILISATION = 0.3  # of the peak, assumed: no accelerator was measured
MEGAPIXEL = (1024, 1024)
PNG_BYTES = 2.5e6  # of a megapixel with noise, in and out
NODES, NUM_MORTAL = 3, 60  # of `deaths`
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


def measure(
    folder: Path, workers: int, stub: type[Stub], address: str = "local"
) -> dict[str, Any]:
    """Return times and memory of a run over a folder with a stand-in."""
    out, watch = folder.parent / "out", Watch()
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
        cluster.Cluster(address, workers, device="cpu"),
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


def deaths(folder: Path) -> dict[str, Any]:
    """Return the seconds that the death of one of three nodes costs a run."""
    undisturbed = on_nodes(folder, lambda *_: None)
    disturbed = on_nodes(folder, kill_later)
    # From the first batch on: how long Ray takes to start is not the death's.
    before, after = (
        row["photos"] / row["since_the_first_began"] for row in (undisturbed, disturbed)
    )
    return {
        "photos": disturbed["photos"],
        "nodes": NODES,
        "seconds_undisturbed": before,
        "seconds_with_a_death": after,
        "seconds_lost": after - before,
    }


def on_nodes(folder: Path, disturb: Callable[[Any, Path], None]) -> dict[str, Any]:
    """Return `measure` on a Ray of nodes; `disturb` is given one, and the output."""
    from ray.cluster_utils import Cluster as Nodes

    own = {"num_cpus": 2, "object_store_memory": STORE_BYTES}
    head = {**own, "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    try:
        others = [nodes.add_node(**own) for _ in range(NODES - 1)]
        disturb(others[0], folder.parent / "out")
        return measure(folder, NODES, Sleeper, nodes.address)
    finally:
        nodes.shutdown()


def kill_later(node: Any, out: Path) -> None:
    """Kill the raylet of a node once a quarter of its run's photos are written."""
    raylet = node.all_processes["raylet"][0].process.pid

    def wait() -> None:
        while sum(1 for _ in out.rglob("*.png")) < NUM_MORTAL // 4:
            time.sleep(0.05)
        os.kill(raylet, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


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


def local_ray(num_cpus: int) -> None:
    """Start a Ray of this machine; its workers do not give way to all else."""
    import ray

    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )


def workers(folder: Path, naps: int) -> list[dict[str, Any]]:
    """Return a run with one sleeping worker, and one with four."""
    local_ray(num_cpus=8)
    few = photos(folder, naps)
    found = [measure(few, count, Sleeper) for count in (1, 4)]
    one, four = (row["since_the_first_began"] for row in found)
    print(f"{one:.2f} photos/s with 1 worker, {four:.2f} with 4: {four / one:.2f}")
    return found


def many(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return a run over many tiny photos."""
    local_ray(num_cpus=3)
    return [measure(photos(folder, count), 1, Stub)]


def main() -> None:
    """Print the measurements of each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--naps", type=int, default=128)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    measured: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
        "rows": lambda folder: many(folder, flags.rows),
        "workers": lambda folder: workers(folder, flags.naps),
        "deaths": lambda folder: [deaths(photos(folder, NUM_MORTAL))],
        "paper": lambda _: [on_paper()],
    }
    rows: list[dict[str, Any]] = []
    for part in flags.parts:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, alone(part):
            (Path(folder) / "in").mkdir()
            found = measured[part](Path(folder) / "in")
        rows += [{"part": part, **row} for row in found]
        print(json.dumps(found, indent=1))
    if flags.json:
        cases.write(flags.json, rows)


@contextlib.contextmanager
def alone(part: str) -> Iterator[None]:
    """Give a part that needs Ray one of its own."""
    if part == "paper":
        yield
        return
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray
    import ray.data

    # All workers are there before the first batch is given.
    ray.data.DataContext.get_current().wait_for_min_actors_s = 600
    yield
    ray.shutdown()


if __name__ == "__main__":
    main()
