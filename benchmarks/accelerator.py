"""The paper's network at its size on the first of `jax.devices()`, beside Table 6.

    python benchmarks/accelerator.py [--json FILE]          # ADM-256, 552.8 M weights
    python benchmarks/accelerator.py --small                # natural64: a trial run

Weights are random: they change the picture, not the speed. Each row is one setting:
seconds of one iteration (median, one chunk of the engine's loop) with its compilation
apart; the peak of memory as the device reports it, which includes the rows above, or as
the compiler planned it where the device does not say; and the time of a restoration of
`--iterations` iterations, which is a product, not a measurement. Table 6 does not name
its device. Nothing here was measured on an accelerator by the authors of this file.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import cases
import jax

from diip_jax import DIIPConfig, Prior, engine
from diip_jax.config import PAPER

# Chihaoui & Favaro, Table 6: seconds and GB for an image of 256x256, CelebA.
TABLE_6 = {
    "GDP": (168, 1.1),
    "BIRD": (234, 1.2),
    "BlindDPS": (270, 6.1),
    "DreamClean": (125, 1.3),
    "DIIP": (138, 1.2),
}
SETTINGS = [("frozen", "none"), ("full", "step"), ("full", "block")]
CHUNK = 3


def measure(prior: Prior, side: int, config: DIIPConfig, repeats: int) -> dict:
    """Return what one setting takes on the default device."""
    size = (side, side)
    start = time.perf_counter()
    iterate = cases.iterations(prior, cases.pictures(1, side), config, CHUNK)
    iterate()
    first = time.perf_counter() - start
    seconds = cases.median_seconds({"run": iterate}, repeats)["run"] / CHUNK
    stats = jax.devices()[0].memory_stats() or {}
    measured = stats.get("peak_bytes_in_use")
    planned = engine.memory(prior, size, config) if measured is None else None
    return {
        "seconds": seconds,
        "compile_seconds": first - CHUNK * seconds,
        "peak_bytes": measured,
        "planned_bytes": planned,
    }


def main() -> None:
    """Print Table 6 and this device's rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--small", action="store_true", help="the bundled prior's shapes"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--iterations", type=int, default=300, help="of a restoration")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()

    card = cases.bundled_card("natural64") if flags.small else cases.adm_256_card()
    side = card.architecture.image_size
    device = jax.devices()[0]
    print(f"Table 6 of the paper, 256x256: {_paper()}")
    print(f"{card.name} at {side}x{side} on {device.device_kind} ({device.platform})")
    print(
        "setting                        s/iteration   s/restoration   GB   compile, s"
    )
    rows: list[dict[str, Any]] = []
    for dtype in flags.dtypes:
        prior = cases.random_prior(card, dtype)
        for gradient, remat in SETTINGS:
            for steps in flags.steps:
                config = PAPER.replace(
                    gradient=gradient, remat=remat, num_steps=steps, dtype=dtype
                )
                row: dict[str, Any] = {"gradient": gradient, "remat": remat}
                row |= {"steps": steps, "dtype": dtype}
                rows.append(row | measure(prior, side, config, flags.repeats))
                print(_line(rows[-1], flags.iterations), flush=True)
                cases.write(flags.json, rows, device=device.device_kind, card=card.name)
                jax.clear_caches()


def _paper() -> str:
    rows = (f"{name} {s} s {gb} GB" for name, (s, gb) in TABLE_6.items())
    return ", ".join(rows)


def _line(row: dict[str, Any], iterations: int) -> str:
    what = f"{row['gradient']}-{row['remat']} {row['steps']} steps {row['dtype']}"
    used, label = row["peak_bytes"], "so far"
    if used is None:
        used, label = row["planned_bytes"] or float("nan"), "planned"
    return (
        f"{what:30s} {row['seconds']:11.3f} {iterations * row['seconds']:15.0f} "
        f"{used / 1e9:6.2f} {label} {row['compile_seconds']:6.0f}"
    )


if __name__ == "__main__":
    main()
