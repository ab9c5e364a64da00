"""How close the chain comes to what this machine's convolutions reach.

    python benchmarks/roofline.py [--sizes 64 128] [--json FILE]

FLOP and bytes are XLA's counts for the compiled program; the peak is the fastest of a
few 3x3 convolutions of the network's shapes, and the bandwidth that of adding two large
arrays, both measured in the same run, alternating. The roof is what the counts would
take at the peak or at the bandwidth, whichever is longer; the fraction is FLOP per
second over the peak. Forward: g(z). Gradient: loss and dE/dz through the whole chain.
Both are timed as they run in a restoration: again and again inside one compiled loop,
where the memory of one iteration is that of the next. (A call of its own spends part of
its time on fresh pages.)
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import jax
import jax.numpy as jnp
from jax import lax

from diip_jax import Prior, canvas, ddim, load_prior
from diip_jax.compilation import compiler_options
from diip_jax.unets.ops import convolve

SHAPES = [(128, 32, 32), (128, 64, 64), (64, 64, 64), (32, 96, 96), (16, 128, 128)]
ITERATIONS = 5  # of a chain, in one timed run
STREAM = 2**25  # float32 values: 128 MiB, beyond every cache


def compiled(function: Callable[..., Any], *args: Any) -> Any:
    """Return a compiled program for these arguments."""
    return jax.jit(function).lower(*args).compile(compiler_options())


def convolutions() -> dict[str, tuple[float, Callable[[], object]]]:
    """Return FLOP and a call of each convolution that the peak is taken from."""
    calls = {}
    for side, c_in, c_out in SHAPES:
        x = jax.random.normal(jax.random.key(0), (1, side, side, c_in))
        kernel = jnp.ones((3, 3, c_in, c_out))
        run = compiled(convolve, x, kernel)

        def call(
            run: Any = run, x: jax.Array = x, kernel: jax.Array = kernel
        ) -> object:
            return [jax.block_until_ready(run(x, kernel)) for _ in range(10)]

        flop = 10 * 2 * 9 * c_in * c_out * side * side
        calls[f"convolution {side}x{side} {c_in} to {c_out}"] = (flop, call)
    return calls


def chains(
    prior: Prior, side: int, steps: int
) -> dict[str, tuple[dict[str, float], Callable[[], object]]]:
    """Return counts of one iteration and a call of `ITERATIONS` of each chain."""
    config = prior.card.preset.replace(num_steps=steps, remat="none")
    y, z = jax.random.normal(jax.random.key(1), (2, side, side, 3))

    def forward(generate: ddim.Generate, z: jax.Array) -> jax.Array:
        return generate(z)

    def descend(generate: ddim.Generate, z: jax.Array) -> jax.Array:
        return z - jax.grad(lambda z: jnp.mean(jnp.square(generate(z) - y)))(z)

    calls = {}
    for name, function in (("forward", forward), ("gradient", descend)):

        def loop(prior: Prior, z: jax.Array, count: int, f: Any = function) -> Any:
            generate = canvas.generator(prior, config, (side, side))
            return lax.fori_loop(0, count, lambda _, z: f(generate, z), z)

        # The number of iterations is not known to XLA, which therefore counts one.
        run = compiled(loop, prior, z, ITERATIONS)
        counts = run.cost_analysis()

        def call(run: Any = run) -> object:
            return jax.block_until_ready(run(prior, z, ITERATIONS))

        calls[name] = (counts, call)
    return calls


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()

    prior, rows = load_prior("natural64"), []
    # In place: the pages of a fresh result would cost more than the addition.
    add, b = jax.jit(jnp.add, donate_argnums=0), jnp.ones(STREAM)
    total = [jnp.ones(STREAM)]

    def stream() -> None:
        total[0] = jax.block_until_ready(add(total[0], b))

    for side in flags.sizes:
        kernels, programs = convolutions(), chains(prior, side, flags.steps)
        calls = {name: call for name, (_, call) in (kernels | programs).items()}
        calls["stream"] = stream
        seconds = cases.median_seconds(calls, flags.repeats)
        rates = {name: flop / seconds[name] for name, (flop, _) in kernels.items()}
        peak, bandwidth = max(rates.values()), 3 * 4 * STREAM / seconds["stream"]
        print(f"{side}x{side}, {flags.steps} steps: peak {peak / 1e9:.0f} GFLOP/s of a")
        print(
            f"convolution (others {min(rates.values()) / 1e9:.0f} and more), ", end=""
        )
        print(f"{bandwidth / 1e9:.0f} GB/s")
        print("             GFLOP      GB   ms    roof, ms   GFLOP/s   of the peak")
        for name, (counts, _) in programs.items():
            flop, size = counts["flops"], counts["bytes accessed"]
            duration = seconds[name] / ITERATIONS
            rate = flop / duration
            roof = max(flop / peak, size / bandwidth)
            row = {"size": side, "steps": flags.steps, "chain": name, "flop": flop}
            row |= {"bytes": size, "seconds": duration, "roof_seconds": roof}
            row |= {"peak": peak, "bandwidth": bandwidth, "fraction": rate / peak}
            rows.append(row | {"convolutions": rates})
            print(
                f"{name:10s} {flop / 1e9:7.1f} {size / 1e9:7.1f} "
                f"{1e3 * duration:6.0f} {1e3 * roof:9.0f} {rate / 1e9:9.0f} "
                f"{rate / peak:10.2f}",
                flush=True,
            )
        cases.write(flags.json, rows)


if __name__ == "__main__":
    main()
