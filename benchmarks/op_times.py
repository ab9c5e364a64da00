"""Where the time of an iteration goes, by class of operation, forward and backward.

    python benchmarks/op_times.py [--side 64] [--steps 3] [--json FILE]

Runs the engine's program on a CPU under JAX's profiler and adds up the time of its
kernels. A kernel belongs to the layer of its last operation, so what the compiler fused
counts where the fusion ends: a normalisation that reads a sum does the sum, too. Where
kernels overlap they share the time; "between kernels" is the time at which none ran.
The profiler costs some microseconds for each of some thousand kernels: this tells
shares, and `vs_torch.py` tells times. Products without a path count as forward.
"""

import argparse
import collections
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cases
import jax
import numpy as np

from diip_jax import DIIPConfig, Prior, engine, load_prior

# Classes by the path of an operation in the program: the first that is found counts.
CLASSES = {
    "attention": r"/(qkv|proj_out)\b|BTNH|BNTS|BSNH|ADMUNet/.*vmap\(",
    "normalisation, activation": r"/(in_layers_0|out_layers_0|norm|out_0)\b",
    "turned kernels": r"/(in_layers_2|out_layers_3|conv|out_2|input_blocks_0_0)/"
    r"(rev|transpose|\w+,\w+,\w+->\w+)",
    "convolution": r"/(in_layers_2|out_layers_3|skip_connection|op|conv|out_2"
    r"|input_blocks_0_0)\b",
    "skip connections": r"ADMUNet/(concatenate|slice|split|pad)\b",
    "sums of features": r"ADMUNet/\w+/add\b|add_any",
    "resampling": r"ADMUNet/\w+",
    "DDIM, Adam, criteria": "",
}
NAMELESS = "products of norms, attention"  # the compiler rewrote them, and forgot whose
STACKS = "what a loop keeps for its gradient"
STACKED = re.compile(r"dynamic-(update-)?slice|wrapped_broadcast")
LAYOUT = "layout"
BETWEEN = "between kernels"
CONTAINERS = re.compile(r"(while|conditional|call)\b")


class Kernel(NamedTuple):
    """One run of a kernel: its name in the program, and nanoseconds from some start."""

    name: str
    start: float
    end: float


def profile(run: Any) -> list[Kernel]:
    """Return the kernels that ran during a call, in the order of their starts."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        (host,) = (plane for plane in planes if plane.name == "/host:CPU")
        events = (event for line in host.lines for event in line.events)
        return sorted(_kernels(events), key=lambda kernel: kernel.start)


def _kernels(events: Iterable[Any]) -> Iterator[Kernel]:
    """Pair the events of launches and of ends: a kernel may end on another thread."""
    launches = collections.defaultdict(list)
    ends = collections.defaultdict(list)
    for event in events:
        if event.name.startswith("end: "):
            ends[event.name.removeprefix("end: ")].append(event.start_ns)
        elif "hlo_op" in dict(event.stats):
            finished = event.start_ns + event.duration_ns
            launches[event.name].append((event.start_ns, finished))
    for name, runs in launches.items():
        if CONTAINERS.match(name):  # holds others, that are counted themselves
            continue
        # The last end may come after the profiler stopped.
        known = [*sorted(ends[name]), *[0.0] * len(runs)]
        for (start, finished), end in zip(sorted(runs), known, strict=False):
            yield Kernel(name, start, max(finished, end))


def shared_time(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Return seconds per kernel name, and those between kernels.

    The seconds add up to the time from the first start to the last end.
    """
    changes = [(k.start, 1, k.name) for k in kernels]
    changes += [(k.end, -1, k.name) for k in kernels]
    changes.sort()
    seconds: dict[str, float] = collections.defaultdict(float)
    running: collections.Counter[str] = collections.Counter()
    before = changes[0][0]
    for now, change, name in changes:
        active = +running
        for other, count in active.items():
            share = count / active.total()
            seconds[other] += 1e-9 * share * (now - before)
        if not active:
            seconds[BETWEEN] += 1e-9 * (now - before)
        running[name] += change
        before = now
    return dict(seconds)


def paths(text: str) -> dict[str, str]:
    """Return the path in the traced function that each instruction comes from.

    Args:
        text: the compiled program.
    """
    pattern = re.compile(r'^ *(?:ROOT )?%?([\w.-]+) = .*?op_name="([^"]*)"', re.M)
    return dict(pattern.findall(text))


def classify(name: str, path: str) -> tuple[str, bool]:
    """Return the class of a kernel and whether it belongs to the backward pass.

    Args:
        name: of the instruction, which lists the operations of a fusion.
        path: in the traced function; empty if the compiler made it.
    """
    backward = "transpose(" in path
    if STACKED.search(name):
        return STACKS, backward
    if re.match(r"copy(\.|$)", name):
        return LAYOUT, backward
    if not path and re.match(r"(dot|wrapped_reduce-window)(\.|$)", name):
        return NAMELESS, backward
    kind = next(kind for kind, found in CLASSES.items() if re.search(found, path))
    return kind, backward


def by_class(
    seconds: Mapping[str, float], paths: Mapping[str, str]
) -> dict[str, tuple[float, float]]:
    """Return seconds forward and backward of each class, the longest first."""
    sums: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for name, value in seconds.items():
        if name == BETWEEN:
            sums[BETWEEN][0] += value
            continue
        kind, backward = classify(name, paths.get(name, ""))
        sums[kind][backward] += value
    ordered = sorted(sums.items(), key=lambda item: -sum(item[1]))
    return {kind: (forward, backward) for kind, (forward, backward) in ordered}


def measure(
    prior: Prior, y: np.ndarray, config: DIIPConfig, iterations: int
) -> dict[str, tuple[float, float]]:
    """Return seconds forward and backward of each class, in some iterations.

    Args:
        prior: the frozen model.
        y: degraded images, (L, H, W, 3) in [0, 1].
        config: the settings.
        iterations: profiled, once the program is compiled and has settled.
    """
    run = cases.iterations(prior, y, config, iterations)
    run()
    run()
    kernels = profile(run)
    config = cases.endless(config)
    lanes = cases.start_lanes(y, config)
    program = engine.jitted_advance().lower(prior, lanes, config, iterations, 1)
    return by_class(shared_time(kernels), paths(program.compile().as_text()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--gradient", default="full")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--iterations", type=int, default=3, help="profiled")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if jax.default_backend() != "cpu":
        parser.error("kernels are told apart by the names that the CPU backend gives")

    prior = load_prior("natural64")
    config = prior.card.preset.replace(
        num_steps=flags.steps, gradient=flags.gradient, remat=flags.remat
    )
    y = cases.pictures(1, flags.side)
    classes = measure(prior, y, config, flags.iterations)
    total = sum(map(sum, classes.values()))
    print(
        f"{flags.side}x{flags.side}, {flags.gradient}, {flags.steps} steps: "
        f"{1e3 * total / flags.iterations:.0f} ms per iteration under the profiler"
    )
    print(f"{'percent':36s} forward  backward  both")
    rows = []
    for kind, pair in classes.items():
        forward, backward = (100 * value / total for value in pair)
        rows.append({"class": kind, "forward": forward, "backward": backward})
        print(f"{kind:36s} {forward:7.1f} {backward:9.1f} {forward + backward:5.1f}")
    cases.write(flags.json, rows, seconds=total / flags.iterations)


if __name__ == "__main__":
    main()
