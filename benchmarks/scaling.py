"""Time and memory against pixels, lanes, DDIM steps and forced host devices.

    python benchmarks/scaling.py [--axes pixels lanes steps devices] [--json FILE]

The bundled prior with its preset, one thing varied at a time. Milliseconds are medians
of one iteration of all lanes; MB are temporaries and lanes as the compiler plans them,
without the weights. The ratio is time per unit of what is varied, over the first row's:
1 is proportional, less is better. Host devices share the same cores: those rows say
what sharding costs, not what more devices would gain.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cases
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diip_jax import DIIPConfig, engine, load_prior

AXES = {
    "pixels": (32**2, 64**2, 128**2, 256**2),
    "lanes": (1, 2, 4),
    "steps": (1, 3, 10),
    "devices": (1, 2),
}
CHUNK = 3
DEVICE_LANES = 2  # lanes of the rows about devices


def measure(side: int, num_lanes: int, config: DIIPConfig, repeats: int) -> dict:
    """Return seconds of one iteration of all lanes and planned bytes."""
    prior = load_prior("natural64")
    iterate = cases.iterations(prior, cases.pictures(num_lanes, side), config, CHUNK)
    seconds = cases.median_seconds({"run": iterate}, repeats)["run"] / CHUNK
    planned = engine.memory(prior, (side, side), config, num_lanes)
    used = None if planned is None else planned - cases.weight_bytes(prior)
    return {"seconds": seconds, "bytes": used}


def measure_sharded(config: DIIPConfig, repeats: int) -> float:
    """Return seconds of one iteration of lanes sharded over all devices."""
    mesh = Mesh(np.asarray(jax.devices()), ("lanes",))
    replicated = NamedSharding(mesh, PartitionSpec())
    prior = jax.device_put(load_prior("natural64"), replicated)
    sharding = NamedSharding(mesh, PartitionSpec("lanes"))
    y = cases.pictures(DEVICE_LANES, 64)
    iterate = cases.iterations(prior, y, config, CHUNK, sharding)
    return cases.median_seconds({"run": iterate}, repeats)["run"] / CHUNK


def in_child(devices: int, repeats: int) -> dict[str, Any]:
    """Return the row of some forced host devices, from a process of its own."""
    force = f"--xla_force_host_platform_device_count={devices}"
    env = dict(os.environ, XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {force}")
    command = [sys.executable, __file__, "--child", "--repeats", str(repeats)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return {"seconds": json.loads(done.stdout.splitlines()[-1]), "bytes": None}


def main() -> None:
    """Print one table per axis."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()

    preset = cases.bundled_card("natural64").preset
    if flags.child:
        print(json.dumps(measure_sharded(preset, flags.repeats)))
        return
    rows: list[dict[str, Any]] = []
    for axis in flags.axes:
        print(f"{axis:>8s}       ms       MB   ratio")
        first = None
        for value in AXES[axis]:
            if axis == "pixels":
                row = measure(round(value**0.5), 1, preset, flags.repeats)
            elif axis == "lanes":
                row = measure(64, value, preset, flags.repeats)
            elif axis == "steps":
                config = preset.replace(num_steps=value)
                row = measure(64, 1, config, flags.repeats)
            else:
                row = in_child(value, flags.repeats)
            # More devices do the same work: there the time itself is compared.
            unit = row["seconds"] / (1 if axis == "devices" else value)
            first = first or unit
            rows.append({"axis": axis, "value": value, **row, "ratio": unit / first})
            size = "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:.0f}"
            milliseconds = 1e3 * row["seconds"]
            print(f"{value:8d} {milliseconds:8.0f} {size:>8s} {unit / first:7.2f}")
            cases.write(flags.json, rows)


if __name__ == "__main__":
    main()
