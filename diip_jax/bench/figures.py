"""The paper's figures, each with a text that says whether its claim is seen here.

A claim is a pure function of the numbers of a run, with its threshold beside it. Curves
are those of the first picture and seed; the text counts all of them.
"""

import importlib
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diip_jax import degradations, images, metrics, signals, stopping, storage
from diip_jax.bench import cells, methods, run, stops, tables, traces
from diip_jax.bench.baselines import dip
from diip_jax.bench.cells import Cell, Store
from diip_jax.bench.run import Options, Plan
from diip_jax.bench.traces import Fit, Image, Observe, Subject, Trace
from diip_jax.prior import Prior

BLURRED = "gaussian_blur"  # where DIP gives no clean and sharp image (Sec. 3.3)
STRIPS = ("denoise", "jpeg", BLURRED)  # of Fig. 3
LEVELS = (0.05, 0.1, 0.2, 0.3)  # of Fig. 4: deviations of Gaussian noise, in [0, 1]
NOISY = 0.2  # of Fig. 6
GRIDS = {  # figures of pictures before and after
    "fig2": ("denoise", "sr4", "gaussian_blur", "jpeg", "deformation", "water"),
    "fig5": ("denoise", "sr4"),
    "fig7": ("deformation", "jpeg", "water"),
}
SHOWN = {
    "fig2": "restorations of several degradations",
    "fig5": "structured degradations",
    "fig7": "unstructured degradations",
}
COMPARED = ("fig5", "fig7")  # show all methods, the others two
BOTH = ("diip-adapted", "diip")  # methods of all these figures
COLUMNS, LETTERS = 8, 22  # of a comparison; of a line of its titles


# The claims.

MARGIN = 0.5  # dB: PSNR has risen or fallen
NEAR, NEAREST = 0.2, 10  # of the iteration of the PSNR maximum; iterations
WINDOW = 9  # iterations, of the running median that claims look at
SHARP = 0.5  # of the clean image's variance of the Laplacian: an image is sharp
FLAT = 1e-6  # less than any variance of 8 bits, so that a flat image is no error
SHORT = (
    f"- A run cannot tell if its PSNR has not fallen by {MARGIN:g} dB since the "
    "maximum, and did not go on after it for as long again: it may be too short."
)
LEFT_OUT = (
    "- Shown are the first picture and seed; methods are left out whose pictures are "
    "not there (`table4 table5 --pictures` makes them)."
)
ARRIVED = (
    "- But whether there is a clean and sharp iterate it can tell if its last one is "
    "nearer to y than the clean image is."
)


class Regimes(NamedTuple):
    """How the PSNR of a run went (Sec. 3.3, first observation).

    Attributes:
        best: iteration of the highest PSNR.
        rise: from the first iterate to that one, in dB.
        fall: from that one to the last iterate, in dB.
        seen: both are at least `MARGIN`: the run approached the clean image, and then
            went away from it. None where it may have been too short to tell: it has
            not fallen by `MARGIN` since `best`, which is in its second half.
    """

    best: int
    rise: float
    fall: float
    seen: bool | None


def regimes(psnrs: np.ndarray) -> Regimes:
    """Tell whether a run had two regimes.

    Args:
        psnrs: of each iterate against the clean image, in dB, (K,).
    """
    smooth = running_median(psnrs)
    best = int(np.argmax(smooth))
    rise, fall = float(smooth[best] - psnrs[0]), float(smooth[best] - smooth[-1])
    is_short = fall < MARGIN and best > len(psnrs) / 2
    return Regimes(best, rise, fall, None if is_short else min(rise, fall) >= MARGIN)


class Quality(NamedTuple):
    """How clean and sharp the best iterate of a run is (Sec. 3.3).

    Attributes:
        gain: its PSNR minus that of y, in dB.
        sharpness: its variance of the Laplacian, as a fraction of the clean image's.
        seen: they are at least `MARGIN` and `SHARP`; None where they are not, but the
            run may have been too short: it does not tell its regimes, and its last
            iterate is not nearer to y than the clean image is.
    """

    gain: float
    sharpness: float
    seen: bool | None


def quality(run: Trace | Fit) -> Quality:
    """Tell whether a clean and sharp image is among the iterates of a run.

    Args:
        run: of DIP or of the prior.
    """
    image, last = run.best() / 255, run.images[-1] / 255
    clean, y = run.subject.clean, run.subject.degraded
    ours, theirs = (
        float(signals.laplacian_variance(jnp.asarray(2 * x - 1)))
        for x in (image, clean)
    )
    better, sharper = gain(run.subject, image), ours / max(theirs, FLAT)
    if better >= MARGIN and sharper >= SHARP:
        return Quality(better, sharper, True)
    has_arrived = metrics.psnr(y, last) > metrics.psnr(y, clean)
    can_tell = has_arrived or regimes(run.psnrs).seen is not None
    return Quality(better, sharper, False if can_tell else None)


class Slope(NamedTuple):
    """Where the slope was smallest, and where the image was best (Sec. 3.4.2).

    Attributes:
        smallest: iteration of the smallest normalised decrease of the loss.
        best: iteration of the highest PSNR.
        seen: they differ by a fifth of `best`, or by ten iterations, at most; None
            where the run did not have two regimes, and nothing can be told.
    """

    smallest: int
    best: int
    seen: bool | None


def slope(losses: np.ndarray, psnrs: np.ndarray, first: int = 1) -> Slope:
    """Compare the minimum of the slope with the maximum of the PSNR.

    Args:
        losses: E(z^k; y), (K,).
        psnrs: of the iterates, in dB, (K,).
        first: iteration where the minimum may be, at least 1. In those before it the
            loss can rise, whatever the image is like.
    """
    smooth = running_median(signals.decrease(losses[:-1], losses[1:]))
    smallest = first + int(np.nanargmin(smooth[first - 1 :]))
    best, _, _, has_maximum = regimes(psnrs)
    near = abs(smallest - best) <= max(NEAR * best, NEAREST)
    return Slope(smallest, best, near if has_maximum else None)


class Sharpness(NamedTuple):
    """How the sharpness of a run went after the transient (Sec. 3.4.1).

    Attributes:
        change: of the last iterate from the sharpest one since the transient, as a
            fraction.
        falls: it has lost a tenth, as for `criterion="robust"`.
    """

    change: float
    falls: bool


def sharpness(sharpnesses: np.ndarray, k_min: int) -> Sharpness:
    """Tell whether the sharpness falls after the transient.

    Args:
        sharpnesses: sigma^2[k], (K,).
        k_min: iterations of the transient; fewer than K.
    """
    smooth = running_median(sharpnesses[k_min:])
    change = float(smooth[-1] / smooth.max() - 1)
    return Sharpness(change, change <= math.exp(-stopping.DROP) - 1)


def running_median(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Return the median around each value, of fewer values at the ends.

    Args:
        values: (K,).
        window: how many values, odd.
    """
    half = window // 2
    around = (values[max(k - half, 0) : k + half + 1] for k in range(len(values)))
    return np.array([np.median(part) for part in around])


# The runs.


def noisy(sigma: float) -> Observe:
    """Return what makes subjects with Gaussian noise, clipped to [0, 1].

    Args:
        sigma: standard deviation of the noise, in [0, 1].
    """
    task = f"noise{sigma:g}"

    def observe(image: Image, seed: int) -> Subject:
        name, clean = image
        draw, _ = traces.keys(task, clean, seed)
        y = degradations.gaussian_noise(clean, draw, sigma).astype(np.float32)
        return Subject(task, name, seed, clean, y, sigma)

    return observe


def sharp(image: Image, seed: int) -> Subject:
    """Return the subject that nothing happened to."""
    name, clean = image
    return Subject("sharp", name, seed, clean, clean.astype(np.float32), 0.0)


def runs(
    name: str,
    observers: Mapping[str, Observe],
    prior: Prior,
    pictures: Sequence[Image],
    output: Path,
    options: Options,
) -> dict[str, list[Trace]]:
    """Return the runs of a figure by the label of their degradation.

    Args:
        name: of the figure, for the progress.
        observers: what degrades, by label.
        prior: the frozen model.
        pictures: names and clean pictures.
        output: folder of figures; runs are kept below it.
        options: how it is to be made.
    """
    config, folder = stops.settings(options, prior), output / traces.FOLDER
    found = {}
    for label, observe in observers.items():
        shown = options.progress(pictures, f"{name}: {label}")
        found[label] = list(
            traces.followed(prior, observe, shown, options.seeds, folder, config)
        )
    return found


# Figure 3.


def fig3(
    prior: Prior, images: Sequence[Image], output: Path, options: Options
) -> list[Path]:
    """Draw Fig. 3, iterates of DIP and of the prior; return its files.

    Args:
        prior: the frozen model.
        images: names and clean pictures, (H, W, 3) in [0, 1].
        output: folder of figures; the runs are kept in a folder below it.
        options: how it is to be made.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TraceError: the file of a run holds something else.
        OSError: a file cannot be read or written.
    """
    check_installed()
    observers = {task: traces.task(task) for task in STRIPS}
    found = runs("fig3", observers, prior, images, output, options)
    config = dip_settings(options, prior)
    fitted = fits(found, output, options, config)
    picture = strips({label: (fitted[label][0], found[label][0]) for label in found})
    text = []
    for label, own in found.items():
        text.append(regimes_text(f"{label}, DIP", fitted[label]))
        text.append(regimes_text(f"{label}, prior", own))
        text.append(quality_text(label, fitted[label], own))
    claim = "two regimes, a clean image first, whatever the degradation"
    top = stops.head(options, prior, len(images))
    top.append(f"- runs of DIP: {config.iterations} iterations each")
    return written(output, "fig3", claim, top, picture, [*text, SHORT, ARRIVED])


def dip_settings(options: Options, prior: Prior) -> dip.Config:
    """Return the settings of DIP, which here goes on to the source's last iteration."""
    side = prior.card.architecture.image_size
    ready = methods.METHODS["dip"].make(methods.Setting(BLURRED, side, options.quick))
    assert ready is not None  # it is for every task
    if options.quick:
        return ready.settings
    return ready.settings.replace(iterations=dip.DEFAULT.iterations)


def fits(
    found: Mapping[str, Sequence[Trace]],
    output: Path,
    options: Options,
    config: dip.Config,
) -> dict[str, list[Fit]]:
    """Return the runs of DIP on the subjects of other runs, by the same labels.

    Args:
        found: the other runs.
        output: folder of figures; runs are kept below it.
        options: the progress.
        config: the settings of DIP.
    """
    folder, fitted = output / traces.FOLDER, {}
    for label, own in found.items():
        subjects = [trace.subject for trace in own]
        shown = options.progress(subjects, f"fig3: {label}, DIP")
        fitted[label] = [traces.fit(subject, folder, config) for subject in shown]
    return fitted


def strips(found: Mapping[str, tuple[Fit, Trace]]) -> bytes:
    """Return Fig. 3 as PNG: for each degradation a row of DIP and one of the prior."""
    rows = [
        panels(f"{label}, {name}", run)
        for label, both in found.items()
        for name, run in zip(("DIP", "prior"), both, strict=True)
    ]
    return in_rows(rows, max(len(row) for row in rows), height=1.6)


def panels(label: str, run: Trace | Fit) -> list[tuple[str, np.ndarray]]:
    """Return the titled pictures of a strip."""
    highest, subject = int(np.argmax(run.psnrs)), run.subject
    psnr = metrics.psnr(subject.clean, subject.degraded)
    pictures = [(f"{label}\ny, {psnr:.1f} dB", subject.degraded)]
    for k, image in run.strip().items():
        note = f"{'best, ' if k == highest else ''}k = {k}"
        pictures.append((f"{note}\n{run.psnrs[k]:.1f} dB", image))
    return [*pictures, ("clean\n", subject.clean)]


def regimes_text(label: str, found: Sequence[Trace | Fit]) -> str:
    """Return the sentence on the two regimes of a degradation."""
    seen = [regimes(run.psnrs) for run in found]
    return (
        f"- {label}: two regimes {verdict([r.seen for r in seen])}: PSNR rises by "
        f"{span([r.rise for r in seen], 'dB')} up to iteration "
        f"{span([r.best for r in seen])} and then falls by "
        f"{span([r.fall for r in seen], 'dB')} (at least {MARGIN:g} dB each are asked "
        "for)."
    )


def quality_text(label: str, fitted: Sequence[Fit], found: Sequence[Trace]) -> str:
    """Return the sentence on a clean and sharp iterate of DIP and of the prior."""
    of_dip, of_prior = ([quality(run) for run in own] for own in (fitted, found))
    dip_has_one = label != BLURRED
    agree = [
        None if None in (d.seen, p.seen) else d.seen == dip_has_one and p.seen
        for d, p in zip(of_dip, of_prior, strict=True)
    ]
    best = "; ".join(
        f"that of {name} gains {span([q.gain for q in own], 'dB')} over y and has "
        f"{span([100 * q.sharpness for q in own], '%')} of the clean image's sharpness"
        for name, own in (("DIP", of_dip), ("the prior", of_prior))
    )
    return (
        f"- {label}: a clean and sharp iterate of the prior, "
        f"{'and one' if dip_has_one else 'but none'} of DIP {verdict(agree)}. Of the "
        f"best iterates {best} (at least {MARGIN:g} dB and {100 * SHARP:g} % make one "
        "clean and sharp)."
    )


# Figure 4.


def fig4(
    prior: Prior, images: Sequence[Image], output: Path, options: Options
) -> list[Path]:
    """Draw Fig. 4, slope and PSNR of several levels of noise; as `fig3`."""
    check_installed()
    observers = {f"sigma = {level:g}": noisy(level) for level in LEVELS}
    found = runs("fig4", observers, prior, images, output, options)
    k_min = int(stops.settings(options, prior).k_min)
    first = max(round(stopping.WARM_UP * k_min), 1)  # as for `criterion="robust"`
    picture = slopes({label: own[0] for label, own in found.items()}, first)
    text = [slope_text(label, own, first) for label, own in found.items()] + [SHORT]
    claim = "the slope is smallest where the PSNR is highest"
    top = stops.head(options, prior, len(images))
    return written(output, "fig4", claim, top, picture, text)


def slopes(found: Mapping[str, Trace], first: int) -> bytes:
    """Return Fig. 4 as PNG: the normalised decrease, and the PSNR."""
    figure = blank(10, 4)
    left, right = figure.subplots(1, 2)
    for label, trace in found.items():
        smallest, best, _ = slope(trace.losses, trace.psnrs, first)
        decrease = np.full(len(trace.losses), np.nan)
        losses = trace.losses
        decrease[1:] = running_median(signals.decrease(losses[:-1], losses[1:]))
        marked = {"marker": "o", "markersize": 5, "linewidth": 1.2}
        left.plot(decrease, label=label, markevery=[smallest], **marked)
        right.plot(trace.psnrs, label=label, markevery=[best], **marked)
    left.set_yscale("log", nonpositive="mask")
    left.set(xlabel="iteration", ylabel="normalised decrease of the loss", title="(a)")
    right.set(xlabel="iteration", ylabel="PSNR in dB", title="(b)")
    right.legend()
    return png(figure)


def slope_text(label: str, found: Sequence[Trace], first: int = 1) -> str:
    """Return the sentence on slope and PSNR at a level of noise."""
    seen = [slope(trace.losses, trace.psnrs, first) for trace in found]
    distances = [s.smallest - s.best for s in seen]
    return (
        f"- {label}: the minimum of the slope at the maximum of the PSNR "
        f"{verdict([s.seen for s in seen])}: PSNR is highest at iteration "
        f"{span([s.best for s in seen])}, the slope from iteration {first} on is "
        f"smallest {span(distances)} iterations after it ({NEAR:.0%} of the former, or "
        f"{NEAREST}, are allowed)."
    )


# Figure 6.


def fig6(
    prior: Prior, images: Sequence[Image], output: Path, options: Options
) -> list[Path]:
    """Draw Fig. 6, the sharpness of sharp, noisy and blurred inputs; as `fig3`."""
    check_installed()
    observers = {
        "sharp": sharp,
        "noisy": noisy(NOISY),
        "blurred": traces.task(BLURRED),
    }
    found = runs("fig6", observers, prior, images, output, options)
    k_min = int(stops.settings(options, prior).k_min)
    picture = sharpness_curves({label: own[0] for label, own in found.items()}, k_min)
    text = sharpness_text(found, k_min)
    claim = "the sharpness falls for blurred inputs alone"
    top = stops.head(options, prior, len(images))
    return written(output, "fig6", claim, top, picture, text)


def sharpness_curves(found: Mapping[str, Trace], k_min: int) -> bytes:
    """Return Fig. 6 as PNG: the variance of the Laplacian against the iteration."""
    figure = blank(6, 4)
    axes = figure.subplots()
    for label, trace in found.items():
        axes.plot(trace.sharpnesses, label=label, linewidth=1.2)
    axes.axvline(k_min, color="grey", linewidth=0.8, linestyle=":", label="k_min")
    axes.set(xlabel="iteration", ylabel="variance of the Laplacian", yscale="log")
    axes.legend()
    return png(figure)


def sharpness_text(found: Mapping[str, Sequence[Trace]], k_min: int) -> list[str]:
    """Return the sentences on the sharpness of each kind of input."""
    lines, as_claimed = [], []
    for label, own in found.items():
        seen = [sharpness(trace.sharpnesses, k_min) for trace in own]
        changes = span([100 * s.change for s in seen], "%")
        count = sum(s.falls for s in seen)
        lines.append(
            f"- {label}: the sharpness falls in {count} of {len(seen)} runs; at the "
            f"end it is {changes} from its maximum since iteration {k_min} (a fall is "
            "a tenth)."
        )
        as_claimed += [s.falls == (label == "blurred") for s in seen]
    return [*lines, f"- As the paper says {verdict(as_claimed)}."]


# Figures 2, 5 and 7.


class Pair(NamedTuple):
    """A subject restored in both ways, each (H, W, 3) in [0, 1]."""

    subject: Subject
    adapted: np.ndarray
    default: np.ndarray


def grid_plan(pictures: Sequence[Image], options: Options) -> Plan:
    """Return the cells that `grids` needs: both restorations of every task.

    Args:
        pictures: names and clean pictures.
        options: how the figures are to be made.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_installed()
    chosen = dict.fromkeys(task for own in GRIDS.values() for task in own)
    return Plan(
        tasks={task: methods.pose(task) for task in chosen},
        methods={method: methods.METHODS[method] for method in BOTH},
        images=pictures,
        seeds=options.seeds,
        quick=options.quick,
        needs_pictures=True,
    )


def grids(
    prior: Prior, images: Sequence[Image], output: Path, options: Options
) -> list[Path]:
    """Draw Figs. 2, 5 and 7, pictures before and after; as `fig3`.

    The restored pictures are those of the cells that are there: of `grid_plan`, and in
    comparisons of all methods.

    Raises:
        CellsError: the file of cells holds something else.
        ImageError: a restored picture cannot be read.
    """
    plan = grid_plan(images, options)
    files, top, store = [], tables.head(options, prior, len(images)), Store(output)
    both = store.chosen([work.name for work in run.works(prior, plan)])
    for name, chosen in GRIDS.items():
        found = [cell for cell in both if cell.name.task in chosen]
        pairs, failed = restored(found, images, output)
        text = [gains_text(task, own) for task, own in pairs.items()]
        if name in COMPARED:
            text.append(LEFT_OUT)
            picture = comparison(
                [compared(t, prior, images[0], store, options) for t in chosen]
            )
        else:
            picture = before_and_after({task: own[0] for task, own in pairs.items()})
        files += written(output, name, SHOWN[name], top, picture, text + failed)
    return files


def restored(
    found: Sequence[Cell], pictures: Sequence[Image], output: Path
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Return pairs by task, and a line for each kind of failure.

    Args:
        found: cells of both restorations.
        pictures: names and clean pictures.
        output: folder of the cells.
    """
    clean = {cells.digest(picture): (name, picture) for name, picture in pictures}
    restorations: dict[tuple[str, str, int], dict[str, np.ndarray]] = {}
    failed = []
    for cell in found:
        name = cell.name
        if cell.picture is None:
            failed.append(f"- failed: {name.method} on {name.task}: {cell.error}")
            continue
        own = restorations.setdefault((name.task, name.digest, name.seed), {})
        own[name.method] = images.read(output / cell.picture).rgb
    pairs: dict[str, list[Pair]] = {}
    for (task, digest, seed), own in restorations.items():
        if len(own) == len(BOTH):
            subject = traces.task(task)(clean[digest], seed)
            pair = Pair(subject, *(own[method] for method in BOTH))
            pairs.setdefault(task, []).append(pair)
    return pairs, list(dict.fromkeys(failed))


def before_and_after(found: Mapping[str, Pair]) -> bytes:
    """Return a row for each task as PNG: degraded, restored twice, clean."""
    figure = blank(6.4, 0.2 + 1.8 * len(found))
    grid = figure.subplots(max(len(found), 1), 4, squeeze=False)
    for axes in grid[len(found) :]:
        show(axes, [])
    for axes, (task, pair) in zip(grid, found.items(), strict=False):
        clean = pair.subject.clean
        named = {task: pair.subject.degraded, "DIIP, adapted": pair.adapted}
        named |= {"DIIP, default": pair.default}
        panels = [
            (f"{name}\n{metrics.psnr(clean, image):.1f} dB", image)
            for name, image in named.items()
        ]
        show(axes, [*panels, ("clean\n", clean)])
    return png(figure)


def compared(
    task: str, prior: Prior, picture: Image, store: Store, options: Options
) -> list[tuple[str, np.ndarray]]:
    """Return titled pictures: y, what each method made of it, and the clean one.

    A method whose cell or picture is not there is left out.

    Args:
        task: its name.
        prior: the frozen model.
        picture: name and clean picture.
        store: the cells.
        options: how the figure is to be made; the first seed is shown.
    """
    setting = methods.Setting(task, len(picture[1]), options.quick)
    present, _ = methods.available(methods.METHODS, [setting])
    plan = Plan(
        tasks={task: methods.pose(task)},
        methods={n: m for n, m in present.items() if n not in tables.TRIVIAL},
        images=[picture],
        seeds=options.seeds[:1],
        quick=options.quick,
        needs_pictures=True,
    )
    subject = traces.task(task)(picture, options.seeds[0])
    psnr = metrics.psnr(subject.clean, subject.degraded)
    panels = [(f"{task}\n{psnr:.1f} dB", subject.degraded)]
    for cell in store.chosen([work.name for work in run.works(prior, plan)]):
        if cell.picture is not None and run.is_there(plan, store, cell.name):
            title = methods.METHODS[cell.name.method].full_title
            title = textwrap.fill(title, LETTERS)
            image = images.read(store.folder / cell.picture).rgb
            panels.append((f"{title}\n{cell.psnr:.1f} dB", image))
    return [*panels, ("clean\n", subject.clean)]


def comparison(found: Sequence[Sequence[tuple[str, np.ndarray]]]) -> bytes:
    """Return titled pictures as PNG; each task begins a row."""
    rows = [
        panels[first : first + COLUMNS]
        for panels in found
        for first in range(0, len(panels), COLUMNS)
    ]
    return in_rows(rows, COLUMNS, height=1.75)


def gains_text(task: str, found: Sequence[Pair]) -> str:
    """Return the sentence on what both restorations gain on a task."""
    parts = []
    for title in ("adapted", "default"):
        gains = [gain(pair.subject, getattr(pair, title)) for pair in found]
        better = sum(g > 0 for g in gains)
        parts.append(
            f"DIIP, {title}, is better than y in {better} of {len(gains)} pictures, "
            f"by {span(gains, 'dB')}"
        )
    return f"- {task}: {'; '.join(parts)}."


def gain(subject: Subject, image: np.ndarray) -> float:
    """Return by how many dB an image is better than y."""
    before = metrics.psnr(subject.clean, subject.degraded)
    return metrics.psnr(subject.clean, image) - before


# Words and files.


def verdict(seen: Sequence[bool | None]) -> str:
    """Return in words in how many runs a claim is seen.

    Args:
        seen: of each run; None where it cannot tell.
    """
    told = [one for one in seen if one is not None]
    count, untold = sum(told), len(seen) - len(told)
    if not told:
        return f"**cannot be judged** ({untold} runs cannot tell)"
    word = "seen" if count == len(told) else "partly seen" if count else "not seen"
    apart = f", {untold} more cannot tell" if untold else ""
    return f"**{word}** ({count} of {len(told)} runs{apart})"


def span(numbers: Sequence[float], unit: str = "") -> str:
    """Return numbers as their median, with their range where there are several.

    Args:
        numbers: at least one.
        unit: "dB", "%" or nothing for whole numbers.
    """
    form = "{:.1f}" if unit == "dB" else "{:.0f}"
    text = form.format(np.median(numbers))
    if len(numbers) > 1:
        low, high = (form.format(bound(numbers)) for bound in (min, max))
        text = f"{text} ({low} to {high})"
    return f"{text} {unit}".rstrip()


def check_installed() -> None:
    """Find out before any run whether figures can be drawn.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    importlib.import_module("matplotlib.figure")


def blank(width: float, height: float) -> Any:
    """Return a figure of this size in inches; no window is ever opened."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def in_rows(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]], columns: int, height: float
) -> bytes:
    """Return rows of titled pictures as PNG.

    Args:
        rows: of at most so many columns.
        columns: how many there are.
        height: of a row in inches.
    """
    figure = blank(1.25 * columns, height * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        show(axes, row)
    return png(figure)


def show(axes: Sequence[Any], panels: Sequence[tuple[str, np.ndarray]]) -> None:
    """Show titled pictures in a row of axes; the rest stay empty."""
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, image) in zip(axes, panels, strict=False):
        pixels = image if image.dtype == np.uint8 else images.to_uint(image, 8)
        axis.imshow(pixels, interpolation="nearest")
        axis.set_title(title, fontsize=6)


def png(figure: Any) -> bytes:
    """Return a figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def written(
    output: Path,
    name: str,
    claim: str,
    top: Sequence[str],
    picture: bytes,
    text: Sequence[str],
) -> list[Path]:
    """Write a figure and the text under it; return both files.

    Args:
        output: folder, made where there is none.
        name: of the files.
        claim: what the paper says.
        top: of `tables.head`.
        picture: PNG file.
        text: what is seen.
    """
    title = f"# Figure {name.removeprefix('fig')}: {claim}"
    parts = [title, f"![{name}]({name}.png)", "\n".join(text), "\n".join(top)]
    output.mkdir(parents=True, exist_ok=True)
    files = [
        (output / f"{name}.png", picture),
        (output / f"{name}.md", ("\n\n".join(parts) + "\n").encode()),
    ]
    storage.write_together(files)
    return [path for path, _ in files]
