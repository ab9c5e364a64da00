"""Where stopping rules end one and the same run, and what that costs (Tables 1-3).

A rule reads a stored run and says where it would have stopped. The package's own
criteria are driven over the stored scalars as they are in a restoration; the compared
rules are written here.
"""

import csv
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diip_jax import metrics, stopping
from diip_jax.bench import methods, tables, traces
from diip_jax.bench.run import Options
from diip_jax.bench.tables import Mean
from diip_jax.bench.traces import Image, Trace
from diip_jax.config import PAPER, DIIPConfig
from diip_jax.photos import reference
from diip_jax.prior import Prior
from diip_jax.signals import decrease


class Stop(NamedTuple):
    """Where a rule ends a run.

    Attributes:
        iteration: that the answer is taken from, counted from 0.
        num_iterations: done until the rule knew.
        fired: False where the end of the run came first.
    """

    iteration: int
    num_iterations: int
    fired: bool


Rule = Callable[[Trace], Stop]


# The package's own criteria.


@jax.jit
def verdicts(
    losses: jax.Array,
    sharpnesses: jax.Array,
    config: DIIPConfig,
    damage: jax.Array | float = 0.0,
) -> stopping.Verdict:
    """Drive the criterion that the settings name over the scalars of a run.

    Args:
        losses: E(z^k; y), (K,).
        sharpnesses: sigma^2[k], (K,).
        config: the settings.
        damage: mean square of the damage, for `criterion="discrepancy"`.

    Returns:
        The verdict after each iteration: every field has a leading axis of K.
    """
    criterion = stopping.criterion(config, damage)

    def update(state: Any, seen: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        state = criterion.update(state, *seen)
        return state, state.verdict

    ks = jnp.arange(len(losses), dtype=jnp.int32)
    return lax.scan(update, criterion.init(), (ks, losses, sharpnesses))[1]


def by_criterion(trace: Trace, config: DIIPConfig) -> Stop:
    """Return where `diip.restore` with these settings stops.

    Args:
        trace: the run.
        config: criterion, k_min and epsilon.
    """
    scalars = jnp.asarray(trace.losses), jnp.asarray(trace.sharpnesses)
    verdict = jax.device_get(verdicts(*scalars, config))
    diverged = ~np.isfinite(trace.losses)
    k = first(verdict.detected_low | verdict.detected_high | diverged)
    if k is None:
        return at_the_end(trace)
    if diverged[k]:
        return Stop(max(k - 1, 0), k + 1, True)
    use_peak = verdict.detected_low[k] and not verdict.detected_high[k]
    return Stop(int(verdict.last_peak[k]) if use_peak else k, k + 1, True)


def paper(config: DIIPConfig = PAPER) -> Rule:
    """Return the paper's criterion as it is meant: the decrease is below epsilon.

    Args:
        config: k_min and epsilon.
    """
    raw = config.replace(criterion="paper")
    return functools.partial(by_criterion, config=raw)


def robust(config: DIIPConfig = PAPER) -> Rule:
    """Return the paper's two signals on running averages.

    Args:
        config: k_min and epsilon.
    """
    averaged = config.replace(criterion="robust")
    return functools.partial(by_criterion, config=averaged)


def literal(trace: Trace, config: DIIPConfig = PAPER) -> Stop:
    """Return where the listing stops if its line 15 is read as it is printed.

    Delta_k of Eq. (4) is negative while the loss falls, and so below epsilon at once.

    Args:
        trace: the run.
        config: k_min and epsilon.
    """
    never_high = by_criterion(trace, config.replace(epsilon=-np.inf))
    losses = jnp.asarray(trace.losses)
    slopes = -decrease(losses[:-1], losses[1:])
    k = first(np.asarray(slopes < config.epsilon))
    if k is None or k + 2 > never_high.num_iterations:
        return never_high
    return Stop(k + 1, k + 2, True)  # of k + 1; line 17 overwrites line 12


# Rules of others.

# The window of DMPlug's super-resolution (Wang et al., NeurIPS 2024, reported), where
# noise is fitted as here. The patience is ours: half of DMPlug's, as runs are shorter.
WINDOW, PATIENCE = 10, 50
FORGETTING = 0.1  # alpha of ES-EMV (Wang et al., TMLR 2023, certain)
TRANSIENT = 20  # iterations that ES-EMV ignores; ours: 100 of 5000 in the source
TAU = 1.0  # of the discrepancy principle: the noise is known, not estimated


def windowed_variance(images: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Return VAR of ES-WMV: the mean square deviation of the last W iterates.

    Wang et al., *Early Stopping for Deep Image Prior*, TMLR 2023, Alg. 1.

    Args:
        images: g(z^k), (K, H, W, 3) uint8.
        window: W, how many iterates.

    Returns:
        (K,) float64 for images in [0, 1]; infinite before W iterates.
    """
    variances = np.full(len(images), np.inf)
    for end in range(window, len(images) + 1):
        last = images[end - window : end] / 255
        variances[end - 1] = np.var(last, axis=0).mean()
    return variances


def moving_variance(
    images: np.ndarray, forgetting: float = FORGETTING, transient: int = TRANSIENT
) -> np.ndarray:
    """Return EMV of ES-EMV: the exponentially weighted variance of the iterates.

    Wang et al., TMLR 2023: mu <- mu + a (x - mu) and
    v <- (1 - a) (v + a |x - mu_old|^2), with a the forgetting.

    Args:
        images: g(z^k), (K, H, W, 3) uint8.
        forgetting: weight of the latest iterate.
        transient: iterations at first that may not be the minimum.

    Returns:
        (K,) float64 for images in [0, 1], a mean over pixels; infinite in the
        transient.
    """
    variances = np.full(len(images), np.inf)
    mean, variance = images[0] / 255, 0.0
    for k, image in enumerate(images):
        deviation = image / 255 - mean
        square = float(np.mean(np.square(deviation)))
        variance = (1 - forgetting) * (variance + forgetting * square)
        mean = mean + forgetting * deviation
        if k >= transient:
            variances[k] = variance
    return variances


def stagnation(values: np.ndarray, patience: int) -> Stop:
    """Return the minimum once nothing smaller came for so many iterations.

    Args:
        values: of each iteration, (K,); infinite where there is none yet.
        patience: P, in iterations.
    """
    smallest, best = np.inf, 0
    for k, value in enumerate(values):
        if value < smallest:
            smallest, best = value, k
        elif np.isfinite(smallest) and k - best >= patience:
            return Stop(best, k + 1, True)
    return Stop(best if np.isfinite(smallest) else len(values) - 1, len(values), False)


def es_wmv(trace: Trace, window: int = WINDOW, patience: int = PATIENCE) -> Stop:
    """Stop where the windowed variance has stagnated; return its minimum's image.

    Args:
        trace: the run.
        window: W, how many iterates.
        patience: P, iterations without a new minimum.
    """
    return stagnation(windowed_variance(trace.images, window), patience)


def es_emv(trace: Trace, patience: int = PATIENCE) -> Stop:
    """Stop where the moving variance has stagnated; return its minimum's image.

    Args:
        trace: the run.
        patience: P, iterations without a new minimum.
    """
    return stagnation(moving_variance(trace.images), patience)


def discrepancy(trace: Trace, energy: float, tau: float = TAU) -> Stop:
    """Stop once g(z) is as near to y as the clean image is (Morozov, 1966).

    Args:
        trace: the run.
        energy: mean square of what is wrong with y, in [0, 1].
        tau: factor on it.
    """
    k = first(trace.losses <= 4 * tau * energy)  # the loss is in [-1, 1]
    return at_the_end(trace) if k is None else Stop(k, k + 1, True)


def known_noise(trace: Trace) -> Stop:
    """Apply the discrepancy principle with the true noise level."""
    return discrepancy(trace, trace.subject.sigma**2)


def known_damage(trace: Trace) -> Stop:
    """Apply the discrepancy principle with the true mean square of y - x."""
    subject = trace.subject
    return discrepancy(trace, float(np.mean((subject.degraded - subject.clean) ** 2)))


def fixed(count: int) -> Rule:
    """Return the rule that stops after so many iterations.

    Args:
        count: N, at least 1.
    """

    def stop(trace: Trace) -> Stop:
        done = min(count, len(trace.losses))
        return Stop(done - 1, done, done == count)

    return stop


def oracle(trace: Trace) -> Stop:
    """Return the best PSNR of the whole run, which only hindsight knows."""
    best = reference.best_stop(dict(enumerate(trace.psnrs.tolist())))
    return Stop(best.iteration, len(trace.losses), True)


def first(fired: np.ndarray) -> int | None:
    """Return the first index that is true, None if none is."""
    return int(np.argmax(fired)) if np.any(fired) else None


def at_the_end(trace: Trace) -> Stop:
    """Return the last iteration that is finite: no rule fired."""
    finite = np.flatnonzero(np.isfinite(trace.losses))
    count = len(trace.losses)
    return Stop(int(finite[-1]) if len(finite) else 0, count, False)


# The tables.


class Row(NamedTuple):
    """A line of a table: one setting on one task.

    Attributes:
        setting: what varies.
        task: name of the task.
        psnr: of the answers, in dB.
        iteration: mean iteration of the answer.
        num_iterations: mean iterations done until the stop.
        gap: PSNR of the best iterates minus that of the answers, in dB.
        unfired: how many runs ended before the rule fired.
        degraded: PSNR of y, in dB.
        published: the paper's PSNR at its size on its pictures; None for none.
    """

    setting: str
    task: str
    psnr: Mean
    iteration: float
    num_iterations: float
    gap: Mean
    unfired: int
    degraded: Mean
    published: float | None


class Found(NamedTuple):
    """What a rule comes to on a run.

    Attributes:
        stop: where.
        psnr: of the answer, in dB.
        best: PSNR of the best iterate.
        degraded: PSNR of y.
    """

    stop: Stop
    psnr: float
    best: float
    degraded: float


def found(trace: Trace, rule: Rule) -> Found:
    """Return what a rule comes to on a run."""
    stop, subject = rule(trace), trace.subject
    degraded = metrics.psnr(subject.clean, subject.degraded)
    best = float(trace.psnrs[oracle(trace).iteration])
    return Found(stop, float(trace.psnrs[stop.iteration]), best, degraded)


def row(
    setting: str,
    task: str,
    results: Sequence[Found],
    seeds: int,
    published: float | None = None,
) -> Row:
    """Average the results of a setting on a task.

    Args:
        setting: what varies.
        task: name of the task.
        results: all seeds of an image one after another.
        seeds: how many these are.
        published: the paper's number.
    """
    return Row(
        setting=setting,
        task=task,
        psnr=over_images([r.psnr for r in results], seeds),
        iteration=float(np.mean([r.stop.iteration for r in results])),
        num_iterations=float(np.mean([r.stop.num_iterations for r in results])),
        gap=over_images([r.best - r.psnr for r in results], seeds),
        unfired=sum(not r.stop.fired for r in results),
        degraded=over_images([r.degraded for r in results], seeds),
        published=published,
    )


def over_images(numbers: Sequence[float], seeds: int) -> Mean:
    """Return the mean over images of their means over seeds.

    Args:
        numbers: all seeds of an image one after another.
        seeds: how many these are.
    """
    return tables.mean(np.reshape(numbers, (-1, seeds)).mean(axis=1).tolist())


class Table(NamedTuple):
    """A table to make.

    Attributes:
        name: of its files.
        title: what it shows.
        rules: what varies, by the name that the table gives it.
        tasks: their names.
        published: PSNRs of the paper by rule and task.
    """

    name: str
    title: str
    rules: Mapping[str, Rule]
    tasks: Sequence[str]
    published: Mapping[tuple[str, str], float]


AVERAGED = "running averages"


def both_ways(settings: Mapping[str, DIIPConfig]) -> dict[str, Rule]:
    """Return the paper's criterion with each of the settings, then the averaged one.

    Args:
        settings: by the name that the table gives them.
    """
    raw = {name: paper(config) for name, config in settings.items()}
    averaged = {f"{name}, {AVERAGED}": robust(c) for name, c in settings.items()}
    return raw | averaged


def ablation_k_min(config: DIIPConfig) -> Table:
    """Return Table 1 for runs with these settings.

    Where their k_min is not the paper's, all values are scaled alike, and are not
    those that the paper has numbers for.
    """
    scale = float(config.k_min) / float(PAPER.k_min)
    values = {
        50: {"deformation": 22.18, "water": 22.48},
        100: {"deformation": 23.45, "water": 23.78},
        150: {"deformation": 23.52, "water": 23.82},
    }
    used = {f"k_min = {round(k * scale)}": k for k in values}
    settings = {name: PAPER.replace(k_min=round(k * scale)) for name, k in used.items()}
    return Table(
        name="table1",
        title="Table 1: effect of k_min",
        rules=both_ways(settings),
        tasks=("deformation", "water"),
        published={
            (name, task): psnr
            for name, k in used.items()
            for task, psnr in values[k].items()
            if scale == 1
        },
    )


def ablation_epsilon(config: DIIPConfig) -> Table:
    """Return Table 2 for runs with these settings."""
    values = {
        0.005: {"denoise": 27.25, "jpeg": 22.38},
        0.001: {"denoise": 28.37, "jpeg": 25.29},
        0.0005: {"denoise": 28.14, "jpeg": 25.02},
    }
    k_min = int(config.k_min)
    settings = {
        f"epsilon = {e:g}": PAPER.replace(k_min=k_min, epsilon=e) for e in values
    }
    return Table(
        name="table2",
        title="Table 2: effect of epsilon",
        rules=both_ways(settings),
        tasks=("denoise", "jpeg"),
        published={
            (f"epsilon = {epsilon:g}", task): psnr
            for epsilon, psnrs in values.items()
            for task, psnr in psnrs.items()
        },
    )


OURS, OPTIMAL = "ours: the paper's criterion", "optimal stop (best PSNR)"


def optimal_gap(config: DIIPConfig) -> Table:
    """Return Table 3 for runs with these settings, with more rules than the paper."""
    k_min = int(config.k_min)
    ours = PAPER.replace(k_min=k_min)
    return Table(
        name="table3",
        title="Table 3: gap to the optimal stop",
        rules={
            OPTIMAL: oracle,
            OURS: paper(ours),
            "ours, Eq. (4) as printed": functools.partial(literal, config=ours),
            f"ours, {AVERAGED}": robust(ours),
            f"ES-WMV, W = {WINDOW}, P = {PATIENCE}": es_wmv,
            f"ES-EMV, P = {PATIENCE}": es_emv,
            "discrepancy, true noise level": known_noise,
            "discrepancy, true energy of y - x": known_damage,
            f"fixed, N = {k_min}": fixed(k_min),
            f"fixed, N = {2 * k_min}": fixed(2 * k_min),
        },
        tasks=("denoise", "water"),
        published={
            (OPTIMAL, "denoise"): 28.63,
            (OPTIMAL, "water"): 23.73,
            (OURS, "denoise"): 28.37,
            (OURS, "water"): 23.45,
        },
    )


def table1(
    prior: Prior, images: Sequence[Image], output: Path, options: Options
) -> list[Path]:
    """Write Table 1, the effect of k_min; return its files.

    Args:
        prior: the frozen model.
        images: names and clean pictures, (H, W, 3) in [0, 1].
        output: folder of tables; the runs are kept in a folder below it.
        options: how it is to be made.

    Raises:
        TraceError: the file of a run holds something else.
        OSError: a file cannot be read or written.
    """
    return write(
        ablation_k_min(settings(options, prior)), prior, images, output, options
    )


def table2(
    prior: Prior, images: Sequence[Image], output: Path, options: Options
) -> list[Path]:
    """Write Table 2, the effect of epsilon; as `table1`."""
    return write(
        ablation_epsilon(settings(options, prior)), prior, images, output, options
    )


def table3(
    prior: Prior, images: Sequence[Image], output: Path, options: Options
) -> list[Path]:
    """Write Table 3, the gap to the optimal stop; as `table1`."""
    return write(optimal_gap(settings(options, prior)), prior, images, output, options)


def settings(options: Options, prior: Prior) -> DIIPConfig:
    """Return the settings of the runs that tables and figures read.

    The paper's but for the length, adapted to the prior's size.
    """
    config = traces.QUICK if options.quick else traces.FULL
    return methods.for_side(config, prior.card.architecture.image_size)


def head(options: Options, prior: Prior, num_images: int) -> list[str]:
    """Return the lines that say how a table or figure of runs was made.

    Args:
        options: how it is to be made.
        prior: the frozen model.
        num_images: how many pictures it is of.
    """
    config = settings(options, prior)
    runs = num_images * len(options.seeds)
    line = (
        f"- runs: {runs} of each degradation, {config.max_iterations} iterations each; "
        f"{config.num_steps} DDIM steps, gradient {config.gradient}, learning rate "
        f"{config.learning_rate:g}, k_min {config.k_min}"
    )
    return [*tables.head(options, prior, num_images), line]


def write(
    table: Table,
    prior: Prior,
    images: Sequence[Image],
    output: Path,
    options: Options,
) -> list[Path]:
    """Make a table and write it; as `table1`."""
    lines = rows(table, prior, images, output, options)
    top = head(options, prior, len(images))
    text = "\n\n".join(
        [
            f"# {table.title}",
            "\n".join(top),
            tables.grid(markdown_rows(lines)),
            NOTES,
        ]
    )
    output.mkdir(parents=True, exist_ok=True)
    return tables.write(output, table.name, text + "\n", to_csv(lines, top))


NOTES = (
    "PSNR in dB, mean ± its standard error over pictures. Every rule reads the same "
    "runs. The gap is to the best iterate of the whole run, its optimal stop; where "
    "that is the last one, a longer run may have had a better one. *Not fired* counts "
    "runs that ended before the rule stopped them; their last iterate is taken. The "
    "paper's numbers are of other pictures, at 256x256; its Table 3 calls `water` what "
    "Tables 1 and 5 give for `deformation` (23.45)."
)


def rows(
    table: Table,
    prior: Prior,
    images: Sequence[Image],
    output: Path,
    options: Options,
) -> list[Row]:
    """Make the runs that a table needs and return its lines."""
    lines, seeds = [], options.seeds
    config, folder = settings(options, prior), output / traces.FOLDER
    for task in table.tasks:
        results: dict[str, list[Found]] = {name: [] for name in table.rules}
        seen = options.progress(images, f"{table.name}: {task}")
        observe = traces.task(task)
        for trace in traces.followed(prior, observe, seen, seeds, folder, config):
            for name, rule in table.rules.items():
                results[name].append(found(trace, rule))
        lines += [
            row(name, task, own, len(seeds), table.published.get((name, task)))
            for name, own in results.items()
        ]
    return lines


def markdown_rows(lines: Sequence[Row]) -> list[list[str]]:
    """Return the texts of a table, its head first."""
    heads = ["", "task", "PSNR", "gap", "answer", "iterations", "not fired"]
    texts = [[*heads, "input PSNR", "pictures", "paper's PSNR"]]
    for line in lines:
        texts.append(
            [
                line.setting,
                line.task,
                tables.number(line.psnr, 2),
                tables.number(line.gap, 2),
                f"{line.iteration:.1f}",
                f"{line.num_iterations:.1f}",
                str(line.unfired),
                tables.number(Mean(line.degraded.value, None, 0), 2),
                str(line.psnr.pictures),
                "-" if line.published is None else f"{line.published:.2f}",
            ]
        )
    return texts


def to_csv(lines: Sequence[Row], top: Sequence[str]) -> str:
    """Return a table as CSV, its head as comments.

    Args:
        lines: of the table.
        top: the lines of its head.
    """
    file = io.StringIO()
    file.writelines(f"# {line.removeprefix('- ')}\n" for line in top)
    writer = csv.writer(file, lineterminator="\n")
    means = ("psnr", "gap", "degraded")
    names = [name for mean in means for name in (mean, f"{mean}_error")]
    counts = ("iteration", "num_iterations", "unfired", "published")
    writer.writerow(["setting", "task", "pictures", *names, *counts])
    for line in lines:
        numbers = [x for name in means for x in getattr(line, name)[:2]]
        numbers += [getattr(line, name) for name in counts]
        texts = ["" if x is None else f"{x:.6g}" for x in numbers]
        writer.writerow([line.setting, line.task, line.psnr.pictures, *texts])
    return file.getvalue()
