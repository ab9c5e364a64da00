"""The paper's tables 4, 5 and 6, from cells: Markdown to read, CSV to go on with.

A number is a mean over pictures with its standard error; seeds of one picture are no
independent samples of pictures, and their mean is one.
"""

import csv
import io
import itertools
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from diip_jax import storage
from diip_jax.bench.cells import SCORES, Cell
from diip_jax.bench.methods import METHODS, Method
from diip_jax.bench.run import Options
from diip_jax.bench.tasks import STRUCTURED, TABLE4, TABLE5, TASKS, UNSTRUCTURED
from diip_jax.prior import Prior

HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False}
HEADS = {"psnr": "PSNR ↑", "ssim": "SSIM ↑", "lpips": "LPIPS ↓"}
DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3}
TRIVIAL = ("input",)
PACKAGES = ("diip-jax", "jax", "jaxlib", "flax", "numpy")
LONG = ("sr8",)  # left out where minutes must do: programs of its own, as sr4 has
TIMES = "table6"  # the table of time and memory
REFERENCE = "diip-paper"  # whose time and memory are 1 there


class Table(NamedTuple):
    """What a table shows.

    Attributes:
        title: for its head.
        tasks: its columns, by name, with the title that each gets.
        methods: its rows, by name.
        count: pictures by default, so that all tables take a night on two cores.
        more: columns that it has where they are named, with their titles.
    """

    title: str
    tasks: Mapping[str, str]
    methods: Sequence[str]
    count: int
    more: Mapping[str, str] = MappingProxyType({})


def titles(tasks: Iterable[str]) -> Mapping[str, str]:
    """Return tasks by name, with their titles."""
    return {name: TASKS[name].title for name in tasks}


TABLES: Mapping[str, Table] = {
    "table4": Table(
        "Table 4: structured damage",
        titles(TABLE4),
        tuple(METHODS),
        4,
        titles(STRUCTURED),
    ),
    "table5": Table(
        "Table 5: unstructured damage",
        titles(TABLE5),
        tuple(METHODS),
        4,
        titles(UNSTRUCTURED),
    ),
    "table6": Table(
        "Table 6: runtime and memory",
        titles(("denoise", "jpeg")),
        ("gdp", "bird", "blind-dps", "dreamclean", "diip-paper", "diip"),
        2,
        titles(TASKS),
    ),
}

# The published PSNR, SSIM and LPIPS of tables 4 (CelebA) and 5, by our names.
PUBLISHED: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "denoise": {
        "gdp": (27.73, 0.817, 0.232),
        "gibbs-ddrm": (27.38, 0.809, 0.255),
        "bird": (27.92, 0.821, 0.238),
        "blind-dps": (27.56, 0.813, 0.246),
        "dip": (25.81, 0.606, 0.345),
        "dreamclean": (27.05, 0.771, 0.236),
        "diip-paper": (28.37, 0.842, 0.224),
    },
    "sr4": {
        "gdp": (24.21, 0.708, 0.337),
        "gibbs-ddrm": (24.38, 0.689, 0.330),
        "bird": (25.26, 0.751, 0.294),
        "blind-dps": (24.51, 0.722, 0.324),
        "dip": (21.33, 0.566, 0.426),
        "dreamclean": (23.44, 0.663, 0.322),
        "diip-paper": (25.14, 0.764, 0.301),
    },
    "sr8": {
        "gdp": (21.66, 0.618, 0.374),
        "gibbs-ddrm": (21.45, 0.605, 0.364),
        "bird": (22.63, 0.626, 0.352),
        "blind-dps": (21.73, 0.620, 0.360),
        "dip": (20.34, 0.488, 0.471),
        "dreamclean": (21.33, 0.586, 0.344),
        "diip-paper": (22.86, 0.651, 0.336),
    },
    "jpeg": {
        "dip": (20.43, 0.593, 0.622),
        "dreamclean": (23.92, 0.691, 0.342),
        "diip-paper": (25.29, 0.783, 0.325),
    },
    "deformation": {
        "dip": (18.83, 0.437, 0.643),
        "dreamclean": (22.16, 0.612, 0.398),
        "diip-paper": (23.45, 0.689, 0.392),
    },
    "water": {
        "dip": (20.37, 0.517, 0.642),
        "dreamclean": (22.94, 0.643, 0.361),
        "diip-paper": (23.78, 0.702, 0.377),
    },
}
# Table 6: seconds and GB at 256x256.
PUBLISHED_COST: Mapping[str, tuple[float, float]] = {
    "gdp": (168, 1.1),
    "bird": (234, 1.2),
    "blind-dps": (270, 6.1),
    "dreamclean": (125, 1.3),
    "diip-paper": (138, 1.2),
}


def chosen(
    table: Table,
    methods: Sequence[str] | None,
    tasks: Sequence[str] | None,
    quick: bool = False,
) -> Table:
    """Return a table with some of its rows and columns; trivial rows always stay.

    Args:
        table: the whole table.
        methods: names; all if None.
        tasks: names; if None those that it has without being asked.
        quick: without the tasks that minutes do not allow, unless they are named.
    """
    if tasks is None and quick:
        tasks = [task for task in table.tasks if task not in LONG]
    if methods is not None:
        rows = [m for m in table.methods if m in methods or m in TRIVIAL]
        table = table._replace(methods=rows)
    if tasks is not None:
        known = {**table.tasks, **table.more}
        table = table._replace(tasks={t: known[t] for t in known if t in tasks})
    return table


class Mean(NamedTuple):
    """A mean over pictures.

    Attributes:
        value: the mean; None where nothing is known.
        error: its standard error; None for fewer than two pictures.
        pictures: their number.
    """

    value: float | None
    error: float | None
    pictures: int


def by_picture(cells: Iterable[Cell], field: str) -> dict[str, float]:
    """Return the mean over seeds of each picture that has the number, by its digest."""
    numbers: dict[str, list[float]] = {}
    for cell in cells:
        if (value := getattr(cell, field)) is not None:
            numbers.setdefault(cell.name.digest, []).append(value)
    return {digest: float(np.mean(values)) for digest, values in numbers.items()}


def mean(numbers: Sequence[float]) -> Mean:
    """Return the mean of pictures, with the standard error where there are several."""
    if not numbers:
        return Mean(None, None, 0)
    error = None
    if len(numbers) > 1:
        error = float(np.std(numbers, ddof=1) / np.sqrt(len(numbers)))
    return Mean(float(np.mean(numbers)), error, len(numbers))


class Entry(NamedTuple):
    """A method on a task.

    Attributes:
        task: its name.
        method: its name.
        means: of PSNR, SSIM, LPIPS, evaluations, gradients, seconds, memory.
        seeds: how many there are.
        errors: what failed, one reason each.
        memory_of: what the memory is the peak of.
    """

    task: str
    method: str
    means: Mapping[str, Mean]
    seeds: int
    errors: Sequence[str]
    memory_of: str


COSTS = ("evaluations", "gradients", "seconds", "memory")


def entries(cells: Sequence[Cell]) -> dict[tuple[str, str], Entry]:
    """Return the means of all cells, by task and method."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.name.task, cell.name.method), []).append(cell)
    return {pair: _entry(*pair, group) for pair, group in groups.items()}


def _entry(task: str, method: str, group: Sequence[Cell]) -> Entry:
    fields = (*SCORES, *COSTS)
    return Entry(
        task=task,
        method=method,
        means={f: mean(list(by_picture(group, f).values())) for f in fields},
        seeds=len({cell.name.seed for cell in group}),
        errors=[cell.error for cell in group if cell.error is not None],
        memory_of=next((c.memory_of for c in group if c.memory_of), ""),
    )


# The head of every table and figure.


def head(options: Options, prior: Prior, num_images: int) -> list[str]:
    """Return the lines that say how a table was made.

    Args:
        options: the command, the seeds.
        prior: the frozen model.
        num_images: how many pictures it is of.
    """
    card = prior.card
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    seeds = ", ".join(map(str, options.seeds))
    lines = [
        f"- command: `{options.command}`",
        f"- machine: {machine()}",
        f"- versions: {versions}, Python {platform.python_version()}",
        f"- prior: {card.name} ({card.sha256[:12]}), "
        f"{card.architecture.image_size}x{card.architecture.image_size}",
        f"- pictures: {num_images}; seeds: {seeds}",
        f"- date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
    ]
    if options.quick:
        lines.append(
            "- **quick**: fewer iterations and steps than the methods' own, and fewer "
            "tasks; these numbers say that the program works, not how good a method is"
        )
    return lines


def machine() -> str:
    """Return what this runs on, as one line."""
    found = jax.devices()
    kind = f"{found[0].platform}:{found[0].device_kind}"
    return f"{os.cpu_count()} cores, {platform.machine()}, {len(found)} x {kind}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def markdown(name: str, table: Table, cells: Sequence[Cell], top: Sequence[str]) -> str:
    """Return a table as Markdown.

    Args:
        name: a name of `TABLES`.
        table: what it shows.
        cells: of its tasks and methods.
        top: the lines of its head.
    """
    if name == TIMES:
        return costs(table, cells, top, on_gpu=jax.default_backend() == "gpu")
    return quality(table, cells, top)


# Tables 4 and 5.


def quality(table: Table, cells: Sequence[Cell], top: Sequence[str]) -> str:
    """Return a table of quality with its costs, as Markdown.

    Args:
        table: what it shows.
        cells: of its tasks and methods.
        top: the lines of its head.
    """
    found = entries(cells)
    parts = [
        f"# {table.title}",
        "\n".join(top),
        grid(_quality_rows(table, found)),
        "Mean ± its standard error over pictures. Best of the blind methods in bold, "
        "but for those that look at the clean picture, or failed on one.",
        "\n".join(orderings(cells)),
        grid(_cost_rows(table, found)),
        "Evaluations of the prior's network, in brackets how many were differentiated; "
        "seconds of a picture without compilation; peak memory of the program with its "
        "weights, of the whole process where it is marked *.",
        "\n".join(failures(found.values())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _quality_rows(
    table: Table, found: Mapping[tuple[str, str], Entry]
) -> list[list[str]]:
    heads = [f"{t}: {HEADS[s]}" for t in table.tasks.values() for s in SCORES]
    columns = [(task, score) for task in table.tasks for score in SCORES]
    best = {column: _best(found, *column) for column in columns}
    rows = [["Method", *heads]]
    for method in _methods(table, found):
        texts = []
        for task, score in columns:
            entry = found.get((task, method))
            text = "-" if entry is None else number(entry.means[score], DIGITS[score])
            is_best = method in best[task, score]
            texts.append(f"**{text}**" if is_best else text)
        rows.append([METHODS[method].full_title, *texts])
    return rows


def _methods(table: Table, found: Mapping[tuple[str, str], Entry]) -> list[str]:
    present = {method for _, method in found}
    return [method for method in table.methods if method in present]


def _best(
    found: Mapping[tuple[str, str], Entry], task: str, score: str
) -> Sequence[str]:
    """Return the best blind methods of a column: all that are so in print.

    One that failed on a picture is none: its mean is over other pictures.
    """
    sign = 1 if HIGHER_IS_BETTER[score] else -1
    values = {
        method: sign * round(value, DIGITS[score])
        for (of, method), entry in found.items()
        if of == task and competes(method) and not entry.errors
        if (value := entry.means[score].value) is not None
    }
    best = max(values.values(), default=None)
    return [method for method, value in values.items() if value == best]


def competes(method: str) -> bool:
    """Tell whether a method is blind: it knows nothing of damage or clean picture."""
    return METHODS[method].knows == "nothing" and not METHODS[method].is_oracle


def _cost_rows(table: Table, found: Mapping[tuple[str, str], Entry]) -> list[list[str]]:
    rows = [["Method", "evaluations", "seconds", "memory", "pictures", "seeds"]]
    for method in _methods(table, found):
        own = [found[t, method] for t in table.tasks if (t, method) in found]
        pictures = [entry.means["psnr"].pictures for entry in own]
        rows.append(
            [
                METHODS[method].full_title,
                _evaluations(own),
                _figure(_average(own, "seconds"), "{:.3g}"),
                _bytes(own),
                _range(pictures),
                _range([entry.seeds for entry in own]),
            ]
        )
    return rows


def failures(
    found: Iterable[Entry], methods: Mapping[str, Method] = METHODS
) -> list[str]:
    """Return a line for each method that failed on a task.

    Args:
        found: the entries.
        methods: theirs, by name.
    """
    return [
        f"- failed: {methods[entry.method].full_title} on {entry.task}, "
        f"{len(entry.errors)} times: {entry.errors[0]}"
        for entry in found
        if entry.errors
    ]


# Where our ordering is not the paper's.


class Reversal(NamedTuple):
    """Two methods that the paper orders the other way round.

    Attributes:
        task: its name.
        score: "psnr", "ssim" or "lpips".
        better: the better method of the paper.
        other: the better one here.
        difference: by how much it is better here, a mean over pictures of pairs.
    """

    task: str
    score: str
    better: str
    other: str
    difference: Mean


def reversals(cells: Sequence[Cell]) -> tuple[list[Reversal], int]:
    """Return where our ordering is not the paper's, and how many pairs there are."""
    found, compared = [], 0
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.name.task, cell.name.method), []).append(cell)
    for task, rows in PUBLISHED.items():
        present = [method for method in rows if (task, method) in groups]
        for (i, score), (a, b) in itertools.product(
            enumerate(SCORES), itertools.combinations(present, 2)
        ):
            sign = 1 if HIGHER_IS_BETTER[score] else -1
            lead = sign * (rows[a][i] - rows[b][i])
            better, other = (a, b) if lead > 0 else (b, a)
            difference = _lead(groups[task, other], groups[task, better], score)
            if lead == 0 or difference.value is None:
                continue
            compared += 1
            if difference.value > 0:
                found.append(Reversal(task, score, better, other, difference))
    return found, compared


def _lead(ours: Sequence[Cell], theirs: Sequence[Cell], score: str) -> Mean:
    """Return by how much the first are better, on the pictures that both have."""
    sign = 1 if HIGHER_IS_BETTER[score] else -1
    a, b = by_picture(ours, score), by_picture(theirs, score)
    return mean([sign * (a[picture] - b[picture]) for picture in a if picture in b])


def orderings(cells: Sequence[Cell]) -> list[str]:
    """Return the lines on where our ordering of methods is not the paper's."""
    found, compared = reversals(cells)
    if not compared:
        return ["Ordering: no two methods here are in the paper's table."]
    clear = sum(_is_clear(r.difference) for r in found)
    lines = [
        f"Ordering: of {compared} comparisons of methods that the paper has too, "
        f"{len(found)} are the other way round here, {clear} of them by more than two "
        "standard errors of their difference (in bold). A comparison is of two methods "
        "in one column."
    ]
    columns: dict[tuple[str, str], list[str]] = {}
    for r in found:
        better, other = METHODS[r.other].title, METHODS[r.better].title
        text = f"{better} over {other} by {number(r.difference, DIGITS[r.score])}"
        text = f"**{text}**" if _is_clear(r.difference) else text
        columns.setdefault((r.task, r.score), []).append(text)
    for (task, score), texts in columns.items():
        lines.append(f"- {TASKS[task].title}, {score.upper()}: {'; '.join(texts)}")
    return lines


def _is_clear(difference: Mean) -> bool:
    error, value = difference.error, difference.value
    return error is not None and value is not None and value > 2 * error


# Table 6.


def costs(table: Table, cells: Sequence[Cell], top: Sequence[str], on_gpu: bool) -> str:
    """Return the table of runtime and memory, as Markdown.

    Args:
        table: what it shows.
        cells: of its tasks and methods, computed one method after the other on each
            picture.
        top: the lines of its head.
        on_gpu: whether the paper's seconds stand beside ours.
    """
    found = entries(cells)
    note = (
        f"Ratios are to {METHODS[REFERENCE].title}, medians over pictures and tasks; "
        "the paper's are of its published seconds and GB at 256x256. Seconds are "
        "without compilation, memory is the program's peak with its weights."
    )
    if len({cell.device for cell in cells}) > 1:
        note += " **Not all cells were computed on the same device.**"
    parts = [
        f"# {table.title}",
        "\n".join(top),
        grid(_ratio_rows(table, cells, found, on_gpu)),
        note,
        "\n".join(failures(found.values())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _ratio_rows(
    table: Table,
    cells: Sequence[Cell],
    found: Mapping[tuple[str, str], Entry],
    on_gpu: bool,
) -> list[list[str]]:
    rows = [["Method", "seconds", "ratio", "paper's ratio", "memory", "ratio"]]
    rows[0] += ["paper's ratio", "evaluations", "pictures"]
    if on_gpu:
        rows[0] += ["paper's seconds", "paper's GB"]
    for method in _methods(table, found):
        own = [found[t, method] for t in table.tasks if (t, method) in found]
        published = PUBLISHED_COST.get(method)
        seconds, memory = (
            (None, None)
            if published is None
            else (
                p / q for p, q in zip(published, PUBLISHED_COST[REFERENCE], strict=True)
            )
        )
        rows.append(
            [
                METHODS[method].full_title,
                _figure(_average(own, "seconds"), "{:.3g}"),
                _figure(ratio(cells, method, "seconds"), "{:.2f}"),
                _figure(seconds, "{:.2f}"),
                _bytes(own),
                _figure(ratio(cells, method, "memory"), "{:.2f}"),
                _figure(memory, "{:.2f}"),
                _evaluations(own),
                _range([entry.means["psnr"].pictures for entry in own]),
            ]
        )
        if on_gpu:
            rows[-1] += (
                ["-", "-"] if published is None else map("{:g}".format, published)
            )
    return rows


def ratio(cells: Sequence[Cell], method: str, field: str) -> float | None:
    """Return the median ratio of a cost to that of the paper's method.

    Args:
        cells: of both.
        method: its name.
        field: "seconds" or "memory".
    """

    def costs_of(method: str) -> dict[tuple[str, str, int], float]:
        return {
            (cell.name.task, cell.name.digest, cell.name.seed): value
            for cell in cells
            if cell.name.method == method
            if (value := getattr(cell, field)) is not None
        }

    ours, reference = costs_of(method), costs_of(REFERENCE)
    ratios = [ours[k] / reference[k] for k in ours if reference.get(k)]
    return float(np.median(ratios)) if ratios else None


# Files and texts.


def to_csv(cells: Sequence[Cell], methods: Mapping[str, Method] = METHODS) -> str:
    """Return a line for each task and method: means, their errors and counts.

    Args:
        cells: the results.
        methods: theirs, by name.
    """
    fields = (*SCORES, *COSTS)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [head for f in fields for head in (f, f"{f}_error")]
    writer.writerow(["task", "method", "title", *heads, "pictures", "seeds", "failed"])
    for entry in entries(cells).values():
        numbers = [x for f in fields for x in entry.means[f][:2]]
        texts = ["" if x is None else f"{x:.6g}" for x in numbers]
        title = methods[entry.method].full_title
        counts = [entry.means["psnr"].pictures, entry.seeds, len(entry.errors)]
        writer.writerow([entry.task, entry.method, title, *texts, *counts])
    return file.getvalue()


def write(folder: Path, name: str, markdown: str, comma_separated: str) -> list[Path]:
    """Write a table; return its files.

    Args:
        folder: where to; it exists.
        name: of the table.
        markdown: to read.
        comma_separated: to go on with.
    """
    files = [
        (folder / f"{name}.md", markdown.encode()),
        (folder / f"{name}.csv", comma_separated.encode()),
    ]
    storage.write_together(files)
    return [path for path, _ in files]


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the head first, as a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" + "|---:" * (len(rows[0]) - 1) + "|")
    return "\n".join(lines)


def number(found: Mean, digits: int) -> str:
    """Return a mean with its standard error, "-" where there is none."""
    if found.value is None:
        return "-"
    error = "" if found.error is None else f" ± {found.error:.{digits}f}"
    return f"{found.value:.{digits}f}{error}"


def _average(own: Sequence[Entry], field: str) -> float | None:
    values = [entry.means[field].value for entry in own]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _evaluations(own: Sequence[Entry]) -> str:
    evaluations, gradients = (_average(own, f) for f in ("evaluations", "gradients"))
    if evaluations is None:
        return "-"
    return f"{evaluations:.0f}" + (f" ({gradients:.0f})" if gradients else "")


def _bytes(own: Sequence[Entry]) -> str:
    value = _average(own, "memory")
    mark = "*" if any(entry.memory_of == "process" for entry in own) else ""
    return "-" if value is None else f"{value / 1e6:.0f} MB{mark}"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low} to {high}"
