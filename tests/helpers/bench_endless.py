"""The command of the benchmark with a method whose program never ends.

`python -m helpers.bench_endless FOLDER`.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
from jax import lax

from diip_jax.bench import command
from helpers import bench_cells


def endless(problem, key):
    """Compute for ever."""
    sys.stdout.write("tracing\n")
    sys.stdout.flush()
    return lax.while_loop(lambda x: jnp.all(x < 2), jnp.sin, jnp.asarray(problem.y))


def main(arguments):
    """Stand for the command's `main`."""
    plan = bench_cells.plan({"endless": bench_cells.method(endless)})
    bench_cells.compute(Path(arguments[0]), plan)
    return 0


if __name__ == "__main__":
    command.cli(main)
