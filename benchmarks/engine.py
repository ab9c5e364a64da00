"""Lanes that are refilled against plain `vmap`, on the same images in the same run.

    python benchmarks/engine.py [--side 32] [--lanes 4] [--json FILE]

Four times as many images as lanes, damaged in different ways, so that they stop at
different iterations. `vmap` takes them in groups of as many lanes, and each group waits
for its slowest image. Utilisation is the share of lane-iterations that advanced an
unfinished image; UNet evaluations count idle lanes too. Times are without compilation.
"""

import argparse
import time
from pathlib import Path

import cases
import jax
import numpy as np

from diip_jax import DIIPConfig, Prior, Restoration, engine, load_prior, restore
from diip_jax.compilation import compiler_options


def damaged(count: int, side: int) -> np.ndarray:
    """Return pictures with ever more noise, shuffled, (count, side, side, 3)."""
    rng = np.random.default_rng(0)
    clean = cases.pictures(1, side)
    deviations = rng.permutation(np.linspace(0, 0.4, count))[:, None, None, None]
    noisy = clean + deviations * rng.standard_normal((count, side, side, 3))
    return np.clip(noisy, 0, 1).astype(np.float32)


def with_engine(
    prior: Prior, jobs: list[engine.Job], config: DIIPConfig, num_lanes: int
) -> tuple[dict[int, Restoration], engine.Report, float]:
    """Return the restorations, the last report, and the seconds of all chunks."""
    answers, seconds, last = {}, 0.0, None
    for last in engine.run(prior, jobs, config, num_lanes=num_lanes):
        answers |= {lane.job: lane.restoration() for lane in last.finished}
        seconds += last.seconds
    assert last is not None
    return answers, last, seconds


def with_vmap(
    prior: Prior, jobs: list[engine.Job], config: DIIPConfig, num_lanes: int
) -> tuple[list[int], float]:
    """Return the iterations of each image and the seconds of all groups."""
    batched = jax.jit(
        jax.vmap(restore, (None, 0, 0, None)), compiler_options=compiler_options()
    )
    iterations, seconds = [], 0.0
    for first in range(0, len(jobs), num_lanes):
        group = jobs[first : first + num_lanes]
        y = np.stack([job.load() for job in group])
        keys = jax.numpy.stack([job.key for job in group])
        if not first:
            batched = batched.lower(prior, y, keys, config).compile()
        start = time.perf_counter()
        answer = jax.block_until_ready(batched(prior, y, keys, config))
        seconds += time.perf_counter() - start
        iterations += [int(k) for k in answer.num_iterations]
    return iterations, seconds


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--lanes", type=int, default=4)
    # Half the preset's transient, so that the stops lie further apart.
    parser.add_argument("--k_min", type=int, default=50)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()

    prior = load_prior("natural64")
    config = prior.card.preset.replace(k_min=flags.k_min)
    key, size = jax.random.key(0), (flags.side, flags.side)
    jobs = [
        engine.Job(size, lambda y=y: y, jax.random.fold_in(key, i))
        for i, y in enumerate(damaged(4 * flags.lanes, flags.side))
    ]
    answers, last, engine_seconds = with_engine(prior, jobs, config, flags.lanes)
    iterations, vmap_seconds = with_vmap(prior, jobs, config, flags.lanes)
    lengths = [int(answers[i].num_iterations) for i in range(len(jobs))]
    starts = range(0, len(jobs), flags.lanes)
    waited = sum(flags.lanes * max(iterations[i : i + flags.lanes]) for i in starts)
    row = {
        "stops": lengths,
        "same_stops": lengths == iterations,
        "utilisation": last.useful_iterations / last.lane_iterations,
        "vmap_utilisation": sum(iterations) / waited,
        "evaluations": config.num_steps * last.lane_iterations,
        "vmap_evaluations": config.num_steps * waited,
        "seconds": engine_seconds,
        "vmap_seconds": vmap_seconds,
    }
    shortest, longest = min(lengths), max(lengths)
    print(f"{shortest} to {longest} iterations, a factor of {longest / shortest:.1f}")
    print("                     engine      vmap     ratio")
    for name in ("utilisation", "evaluations", "seconds"):
        ours, theirs = row[name], row[f"vmap_{name}"]
        print(f"{name:16s} {ours:10.4g} {theirs:9.4g} {ours / theirs:9.2f}")
    print("same stops" if row["same_stops"] else f"other stops: {iterations}")
    cases.write(flags.json, [row])


if __name__ == "__main__":
    main()
