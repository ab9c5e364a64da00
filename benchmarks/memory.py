"""Memory that restorations take, as the compiler plans it: no weights, no run.

    python benchmarks/memory.py [--rows REGEX] [--list] [--json FILE]
    python benchmarks/memory.py --tpu v5e:2x2 --rows adm256     # needs libtpu, no TPU

Compiles the engine's program (a chunk of iterations over all lanes) for abstract
shapes and reads its memory analysis. Columns, in MB of 1e6 bytes: the weights, the
temporaries, their sum, what the lanes keep between iterations, and the float32 copies
of whole weights that the program makes of narrower ones, found in its text. The sum
is held against the bounds of the project where a row has one.

What a program needs depends on the backend that compiles it. XLA:CPU computes bfloat16
convolutions in float32, on float32 copies of their kernels and features, all kernels
at once; a TPU's compiler, which runs without a TPU, does not.
"""

import argparse
import dataclasses
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import jax
import jax.numpy as jnp

from diip_jax import engine
from diip_jax.config import DIIPConfig
from diip_jax.prior import Card


@dataclasses.dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
        name: what rows are selected by.
        card: the prior.
        side: of the square image, in pixels.
        config: the settings.
        weights: dtype in which the weights are stored.
        num_lanes: images at the same time.
        bound: on weights and temporaries, in bytes; None for none.
    """

    name: str
    card: Card
    side: int
    config: DIIPConfig
    weights: str = "float32"
    num_lanes: int = 1
    bound: float | None = None


def all_cases() -> Iterator[Case]:
    """Yield every row of the table."""
    yield from adm_256()
    yield from sides()
    yield from lanes()
    yield from tiles()


def adm_256() -> Iterator[Case]:
    """Yield the paper's network at its size."""
    card = cases.adm_256_card()
    kinds = [("frozen", "none"), ("full", "step"), ("full", "block"), ("full", "none")]
    for dtype in ("bfloat16", "float32"):
        for gradient, remat in kinds:
            for steps in (3, 10):
                config = card.preset.replace(
                    num_steps=steps, gradient=gradient, remat=remat, dtype=dtype
                )
                what = gradient if gradient == "frozen" else f"{gradient}-{remat}"
                bounds = {"frozen": 1.6e9, "full-step": 6.1e9}
                bound = bounds.get(what) if dtype == "bfloat16" else None
                name = f"adm256/256/{what}/{steps}-steps/{dtype}"
                yield Case(name, card, 256, config, dtype, bound=bound)


def sides() -> Iterator[Case]:
    """Yield the bundled prior on growing squares."""
    card = cases.bundled_card("natural64")
    for side in (64, 128, 256, 512, 1024):
        for gradient, remat in [
            ("frozen", "none"),
            ("full", "none"),
            ("full", "step"),
            ("full", "block"),
        ]:
            config = card.preset.replace(gradient=gradient, remat=remat)
            what = gradient if gradient == "frozen" else f"{gradient}-{remat}"
            yield Case(f"natural64/{side}/{what}", card, side, config)


def lanes() -> Iterator[Case]:
    """Yield the bundled prior with its preset, many images at once."""
    card = cases.bundled_card("natural64")
    for count in (1, 2, 4, 8, 16):
        name = f"natural64/64/preset/{count}-lanes"
        yield Case(name, card, 64, card.preset, num_lanes=count)


def tiles() -> Iterator[Case]:
    """Yield two canvases in windows of the same size, and whole."""
    card = cases.bundled_card("natural64")
    for side in (512, 2048):
        for tile in (256, 0):
            config = card.preset.replace(tile=tile, tile_overlap=tile // 4)
            what = f"tile-{tile}" if tile else "native"
            yield Case(f"natural64/{side}/{what}", card, side, config)


def measure(case: Case, device: Any = None) -> dict[str, Any]:
    """Compile a program and return what its memory analysis says, in bytes.

    Args:
        case: the program.
        device: compile for it, present or not; None for JAX's own.
    """
    prior = cases.abstract_prior(case.card, case.weights)
    size = (case.side, case.side)
    shapes = cases.abstract_lanes(prior, size, case.config, case.num_lanes)
    arguments = (prior, shapes, case.config, 0, 0)
    start = time.perf_counter()
    if device is None:
        advance = engine.jitted_advance()
    else:  # whose compiler need not know this backend's options
        advance = jax.jit(engine.advance, donate_argnames="lanes")
    compiled = advance.lower(*_placed(arguments, device)).compile()
    seconds = time.perf_counter() - start
    plan = compiled.memory_analysis()
    if plan is None:
        raise SystemExit(f"error: {jax.default_backend()} has no memory analysis")
    weights = cases.weight_bytes(prior)
    kept = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(shapes) if a.size)
    return {
        "name": case.name,
        "weights": weights,
        "temporaries": plan.temp_size_in_bytes,
        "sum": weights + plan.temp_size_in_bytes,
        "lanes": kept,
        "widened": widened_bytes(compiled.as_text()),
        "bound": case.bound,
        "compile_seconds": seconds,
    }


def _placed(tree: Any, device: Any) -> Any:
    """Return abstract arguments that live on a device."""
    sharding = None if device is None else jax.sharding.SingleDeviceSharding(device)

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        shape, dtype = jnp.shape(leaf), jax.dtypes.result_type(leaf)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return jax.tree.map(place, tree)


def absent_tpu(topology: str) -> Any:
    """Return a TPU to compile for that is not there; needs libtpu alone.

    Args:
        topology: such as "v5e:2x2".
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # ask no cloud which machine it is
    from jax.experimental import topologies

    return topologies.get_topology_desc(topology, platform="tpu").devices[0]


def widened_bytes(text: str) -> int:
    """Return the bytes of the kernels that a program widens to float32, whole.

    Args:
        text: the optimised program. A widened kernel is a conversion of a bfloat16
            array (S, S, C_in, C_out) that is an instruction of its own or all that a
            fusion does; what is converted on the fly takes no memory.
    """
    pattern = re.compile(r"ROOT \S+ = f32\[(\d,\d,\d+,\d+)\]\S* convert\(")
    kernels = [map(int, shape.split(",")) for shape in pattern.findall(text)]
    return sum(4 * math.prod(shape) for shape in kernels)


def main() -> None:
    """Print the table as its rows come."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", help="regular expression on the names")
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument("--tpu", help="compile for a TPU such as v5e:2x2; needs libtpu")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()

    chosen = [case for case in all_cases() if re.search(flags.rows, case.name)]
    if flags.list:
        print("\n".join(case.name for case in chosen))
        return
    device = absent_tpu(flags.tpu) if flags.tpu else None
    print(f"{'MB':44s} weights    temp     sum   lanes widened  bound")
    rows = []
    for case in chosen:
        rows.append(measure(case, device))
        print(_line(rows[-1]), flush=True)
        cases.write(flags.json, rows, compiled_for=flags.tpu or "the device")
        jax.clear_caches()


def _line(row: dict[str, Any]) -> str:
    names = ("weights", "temporaries", "sum", "lanes", "widened")
    numbers = " ".join(f"{row[name] / 1e6:7.0f}" for name in names)
    verdict = ""
    if row["bound"] is not None:
        held = "held" if row["sum"] <= row["bound"] else "MISSED"
        verdict = f"{row['bound'] / 1e6:6.0f} {held}"
    return f"{row['name']:44s} {numbers} {verdict}"


if __name__ == "__main__":
    main()
