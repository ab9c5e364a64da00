"""What the default was chosen by: quality against level, starts and iterations.

    python benchmarks/tuning.py --photos FOLDER --real FOLDER --count 8

Three tables for each kind of damage of `photos.py`, means over photos and seeds.
`level`: PSNR of the first images of four starts, the noise level of the start being
that which the look chose, times a factor. `starts`: PSNR, SSIM and LPIPS of the mean of
1 to 16 starts, independent and in pairs of opposite noise. `iterations`: the same of
four starts, from the first images on. No number is settled by `diip.settle`. Tune on
the first half of a folder by name; the second half is for reports.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import photos

from diip_jax import canvas, diip, load_prior, matched
from diip_jax.compilation import compiler_options
from diip_jax.config import DEFAULT, DIIPConfig
from diip_jax.photos import reference
from diip_jax.prior import Prior

FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)
NUM_STARTS = (1, 2, 4, 8, 16)
FEW = 4  # starts of the tables of levels and iterations
MOST = max(NUM_STARTS)


@functools.cache
def jitted_looks() -> Any:
    """Return g(z^0) of many starts, (MOST, H, W, 3) in [0, 1], as a jitted function."""

    def looks(
        prior: Prior, y: jax.Array, key: jax.Array, config: DIIPConfig, paired: bool
    ) -> jax.Array:
        place, seen = diip.see(prior, y, config)
        assert seen is not None  # the start is matched
        generate = canvas.generator(prior, config, place.shape[:2], seen.timesteps)

        def one(index: jax.Array) -> jax.Array:
            alone = jax.random.normal(jax.random.fold_in(key, index), place.shape)
            pair = diip.start_noise(key, index, place.shape, config)
            drawn = jnp.where(paired, pair, alone)
            z = matched.diffuse(seen, place, drawn, prior.card.schedule)
            return canvas.cut(generate(z), (y.shape[0], y.shape[1]))

        return jax.lax.map(one, jnp.arange(MOST))

    return jax.jit(looks, compiler_options=compiler_options())


@functools.cache
def jitted_level() -> Any:
    """Return the noise level that a look chooses, as a jitted function."""

    def level(prior: Prior, y: jax.Array) -> jax.Array:
        _, seen = diip.see(prior, y, DEFAULT)
        assert seen is not None  # the start is matched
        return jnp.asarray(prior.card.schedule.noise_levels())[seen.timesteps[0]]

    return jax.jit(level, compiler_options=compiler_options())


@functools.cache
def jitted_iterations(num_iterations: int) -> Any:
    """Return the mean of FEW starts at each iteration, (K, H, W, 3) in [0, 1]."""
    config = DEFAULT.replace(
        num_starts=FEW, criterion="never", max_iterations=num_iterations
    )

    def iterations(prior: Prior, y: jax.Array, key: jax.Array) -> jax.Array:
        place, seen = diip.see(prior, y, config)
        algorithm = diip.bind(prior, place, config, seen)

        def one(index: jax.Array) -> jax.Array:
            state = diip.start(place, key, config, seen, prior.card.schedule, index)

            def body(state: Any, _: None) -> tuple[Any, jax.Array]:
                state = algorithm.step(state)
                return state, canvas.cut(state.x, (y.shape[0], y.shape[1]))

            return jax.lax.scan(body, state, length=num_iterations)[1]

        return jax.lax.map(one, jnp.arange(FEW)).mean(axis=0)

    return jax.jit(iterations, compiler_options=compiler_options())


def scores(
    perceptual: reference.PerceptualMetric, problem: photos.Problem, image: Any
) -> list[float]:
    """Return PSNR, SSIM and LPIPS of an image; NaN for what is not known."""
    image = np.clip(image, 0, 1)
    found = reference.compare(perceptual, problem.clean, problem.degraded, image)
    values = [found[name] for name in ("psnr", "ssim", f"lpips_{photos.LPIPS}")]
    return [np.nan if value is None else float(value) for value in values]


def tables(
    prior: Prior,
    problems: Sequence[photos.Problem],
    perceptual: reference.PerceptualMetric,
    num_iterations: int,
) -> dict[str, Any]:
    """Return the three tables of a task."""
    config = DEFAULT.replace(num_starts=MOST)
    level, starts, iterations = [], [], []
    for i, problem in enumerate(problems):
        y, key = problem.degraded, jax.random.fold_in(jax.random.key(0), i)
        score = functools.partial(scores, perceptual, problem)
        chosen = float(jitted_level()(prior, y))
        row = []
        for factor in FACTORS:
            there = config.replace(start_noise=factor * chosen)
            images = jitted_looks()(prior, y, key, there, True)
            row.append(score(images[:FEW].mean(axis=0))[0])
        level.append([chosen, *row])
        both = [jitted_looks()(prior, y, key, config, pair) for pair in (False, True)]
        starts.append(
            [[score(images[:n].mean(axis=0)) for n in NUM_STARTS] for images in both]
        )
        means = jitted_iterations(num_iterations)(prior, y, key)
        iterations.append([score(image) for image in means])
    names = ("independent", "paired")
    return {
        "level": np.mean(level, axis=0).tolist(),
        "starts": dict(zip(names, np.mean(starts, axis=0).tolist(), strict=True)),
        "iterations": np.mean(iterations, axis=0).tolist(),
    }


def show(task: str, found: dict[str, Any]) -> None:
    """Print the tables of a task."""
    chosen, *row = found["level"]
    levels = zip(FACTORS, row, strict=True)
    print(f"\n{task}: mean level {chosen:.3f}")
    print("  level", *(f"x{factor}: {psnr:.2f}" for factor, psnr in levels), sep="  ")
    for name, values in found["starts"].items():
        cells = (
            f"{n}: {psnr:.2f} {ssim:.3f} {lpips:.3f}"
            for n, (psnr, ssim, lpips) in zip(NUM_STARTS, values, strict=True)
        )
        print(f"  {name}", *cells, sep="  ")
    cells = (
        f"{k}: {psnr:.2f} {lpips:.3f}"
        for k, (psnr, _, lpips) in enumerate(found["iterations"])
    )
    print("  iterations", *cells, sep="  ", flush=True)


def main() -> None:
    """Print the tables and write their record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--prior", default="natural64")
    parser.add_argument("--tasks", default=",".join(photos.TASKS))
    parser.add_argument("--count", type=int, default=12, help="the first of the folder")
    parser.add_argument("--seeds", type=int, default=1, help="of noise, per photo")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()

    prior = load_prior(flags.prior)
    perceptual = reference.perceptual_metric(photos.LPIPS)
    paths = sorted(flags.photos.glob("*.png"))[: flags.count]
    rows = []
    for task in flags.tasks.split(","):
        if task == "real" and flags.real is None:
            continue
        if task == "real":
            problems = photos.photographed(flags.real, 64)
        else:
            problems = photos.damaged(paths, 0, flags.seeds, task)
        found = tables(prior, problems, perceptual, flags.iterations)
        rows.append({"task": task, **found})
        show(task, found)
        cases.write(flags.json, rows, photos=[path.stem for path in paths])


if __name__ == "__main__":
    main()
