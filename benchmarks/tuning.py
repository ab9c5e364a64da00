"""What the default was chosen by: quality against level, starts and iterations.

    python benchmarks/tuning.py --photos FOLDER --real FOLDER --count 6 --seeds 3

Tables for each kind of damage of `photos.py`, means over photos and seeds of noise:

- `level`: four starts, the noise level of the start being that which the look chose,
  times a factor.
- `two steps`: the same with a g of two DDIM steps, the second at half the timestep.
- `channels`: four starts, with a noise map for each channel.
- `starts`: the mean of 1 to 16 starts, independent and in pairs of opposite noise.
- descents: the mean of a pair of starts at each iteration, for several learning rates,
  a cosine to 0, and the average of the iterates so far at the default's rate.

All but the descents are first looks. A cell is PSNR in dB, SSIM and LPIPS (alex); no
image is settled by `diip.settle`. A look is an evaluation of the network without a
gradient, an iteration one with; the look at y is one more. Tune on the first half of a
folder by name; the second half is for reports.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import photos

from diip_jax import canvas, diip, load_prior, matched, noise
from diip_jax.compilation import compiler_options
from diip_jax.config import DEFAULT, DIIPConfig
from diip_jax.photos import reference
from diip_jax.prior import Prior

FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)
TWO_STEPS = (1.0, 1.4, 2.0)  # factors likewise
NUM_STARTS = (1, 2, 4, 8, 16)
FEW = 4  # starts of all tables but `starts` and descents
MOST = max(NUM_STARTS)
PAIR = 2  # starts of a descent
RATES = (0.003, 0.01, 0.03)
COSINE = 0.03  # learning rate that a cosine takes to 0


@functools.cache
def jitted_looks(count: int) -> Any:
    """Return g(z^0) of so many starts, (count, H, W, 3), as a jitted function."""

    def looks(
        prior: Prior,
        y: jax.Array,
        key: jax.Array,
        config: DIIPConfig,
        paired: bool = True,
        channels: bool = False,
    ) -> jax.Array:
        place, seen = diip.see(prior, y, config)
        assert seen is not None  # the start is matched
        parts = [noise.noise_map(place[..., i : i + 1]) for i in range(3)]
        apart = jnp.concatenate(parts, axis=-1)
        seen = seen._replace(noise=jnp.where(channels, apart, seen.noise))
        generate = canvas.generator(prior, config, place.shape[:2], seen.timesteps)

        def one(index: jax.Array) -> jax.Array:
            alone = jax.random.normal(jax.random.fold_in(key, index), place.shape)
            pair = diip.start_noise(key, index, place.shape, config)
            drawn = jnp.where(paired, pair, alone)
            z = matched.diffuse(seen, place, drawn, prior.card.schedule)
            return canvas.cut(generate(z), (y.shape[0], y.shape[1]))

        return jax.lax.map(one, jnp.arange(count))

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
def jitted_descent(num_iterations: int) -> Any:
    """Return the mean of a pair at each iteration, (K, H, W, 3), as a jitted function.

    The learning rates are an argument, (K,), one for each iteration.
    """

    def descent(
        prior: Prior, y: jax.Array, key: jax.Array, rates: jax.Array
    ) -> jax.Array:
        place, seen = diip.see(prior, y, DEFAULT)
        assert seen is not None  # the start is matched
        generate = canvas.generator(prior, DEFAULT, place.shape[:2], seen.timesteps)
        adam = optax.scale_by_adam()

        def energy(z: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = generate(z)
            return jnp.mean(jnp.square(x - place)), x

        def one(index: jax.Array) -> jax.Array:
            drawn = diip.start_noise(key, index, place.shape, DEFAULT)
            z = matched.diffuse(seen, place, drawn, prior.card.schedule)

            def body(carry: Any, rate: jax.Array) -> tuple[Any, jax.Array]:
                z, moments = carry
                gradient, x = jax.grad(energy, has_aux=True)(z)
                direction, moments = adam.update(gradient, moments)
                x = canvas.cut(x, (y.shape[0], y.shape[1]))
                return (z - rate * direction, moments), x

            return jax.lax.scan(body, (z, adam.init(z)), rates)[1]

        return jax.lax.map(one, jnp.arange(PAIR)).mean(axis=0)

    return jax.jit(descent, compiler_options=compiler_options())


def scores(
    perceptual: reference.PerceptualMetric, problem: photos.Problem, image: Any
) -> list[float]:
    """Return PSNR, SSIM and LPIPS of an image; NaN for what is not known."""
    image = np.clip(image, 0, 1)
    found = reference.compare(perceptual, problem.clean, problem.degraded, image)
    values = [found[name] for name in ("psnr", "ssim", f"lpips_{photos.LPIPS}")]
    return [np.nan if value is None else float(value) for value in values]


Score = Callable[[Any], list[float]]
Table = dict[str, list[float]]  # scores by what varies


def level_table(
    prior: Prior, y: np.ndarray, key: jax.Array, score: Score, num_steps: int
) -> Table:
    """Return the scores at levels around the chosen one, by factor."""
    chosen = float(jitted_level()(prior, y))
    config, looks = DEFAULT.replace(num_steps=num_steps), jitted_looks(FEW)
    factors = FACTORS if num_steps == 1 else TWO_STEPS
    return {
        str(factor): score(
            looks(prior, y, key, config.replace(start_noise=factor * chosen)).mean(0)
        )
        for factor in factors
    }


def start_tables(
    prior: Prior, y: np.ndarray, key: jax.Array, score: Score
) -> dict[str, Table]:
    """Return the scores by number of starts, and those of a map for each channel."""

    def mean_of(images: jax.Array) -> Table:
        return {str(n): score(images[:n].mean(axis=0)) for n in NUM_STARTS}

    apart = jitted_looks(FEW)(prior, y, key, DEFAULT, channels=True)
    return {
        "channels": {str(FEW): score(apart.mean(axis=0))},
        "independent": mean_of(jitted_looks(MOST)(prior, y, key, DEFAULT, False)),
        "paired": mean_of(jitted_looks(MOST)(prior, y, key, DEFAULT)),
    }


def descent_tables(
    prior: Prior, y: np.ndarray, key: jax.Array, score: Score, num_iterations: int
) -> dict[str, Table]:
    """Return the scores by iteration, for each way of descending."""
    steps = np.arange(num_iterations)
    ways = {f"rate {rate}": np.full(num_iterations, rate) for rate in RATES}
    ways[f"cosine {COSINE}"] = COSINE * (1 + np.cos(np.pi * steps / len(steps))) / 2
    found = {
        name: np.asarray(
            jitted_descent(num_iterations)(prior, y, key, jnp.float32(rates))
        )
        for name, rates in ways.items()
    }
    of_default = found[f"rate {DEFAULT.learning_rate}"]
    averages = np.cumsum(of_default, axis=0) / (steps[:, None, None, None] + 1)
    found["average of iterates"] = averages
    return {
        name: {str(k): score(image) for k, image in enumerate(images)}
        for name, images in found.items()
    }


def tables(
    prior: Prior,
    problem: photos.Problem,
    key: jax.Array,
    perceptual: reference.PerceptualMetric,
    num_iterations: int,
) -> dict[str, Table]:
    """Return all tables of one problem."""
    y, score = problem.degraded, functools.partial(scores, perceptual, problem)
    return {
        "level": level_table(prior, y, key, score, 1),
        "two steps": level_table(prior, y, key, score, 2),
        **start_tables(prior, y, key, score),
        **descent_tables(prior, y, key, score, num_iterations),
    }


def mean_tables(each: Sequence[dict[str, Table]]) -> dict[str, Table]:
    """Return the means over problems."""
    return {
        name: {
            at: np.mean([found[name][at] for found in each], axis=0).tolist()
            for at in row
        }
        for name, row in each[0].items()
    }


def show(task: str, found: dict[str, Table]) -> None:
    """Print the tables of a task."""
    print(f"\n{task}")
    for name, row in found.items():
        cells = (f"{at}: {p:.2f} {s:.3f} {d:.3f}" for at, (p, s, d) in row.items())
        print(f"  {name}", *cells, sep="  ", flush=True)


def main() -> None:
    """Print the tables and write their record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--prior", default="natural64")
    parser.add_argument("--tasks", default=",".join(photos.TASKS))
    parser.add_argument("--count", type=int, default=6, help="the first of the folder")
    parser.add_argument("--seeds", type=int, default=3, help="of noise, per photo")
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
        each = [
            tables(prior, problem, key, perceptual, flags.iterations)
            for problem, key in zip(
                problems,
                jax.random.split(jax.random.key(0), len(problems)),
                strict=True,
            )
        ]
        found = mean_tables(each)
        rows.append({"task": task, "prior": flags.prior, **found})
        show(task, found)
        cases.write(
            flags.json, rows, photos=[path.stem for path in paths], seeds=flags.seeds
        )


if __name__ == "__main__":
    main()
