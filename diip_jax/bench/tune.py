"""Settings of a compared method, chosen on development pictures.

    python -m diip_jax.bench.tune --method gdp --pictures FOLDER --json gdp.json

Every combination of the method's `GRID` restores the first pictures of the folder on
all tasks of the paper's tables that the method applies to. The combination of the best
mean PSNR wins. All methods have the same budget: no grid has more than 8 combinations.
The pictures must not be those of a table.

The record is written after every restoration. The same command goes on with it.
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diip_jax import canvas, images, metrics, storage
from diip_jax.bench.baselines import bird, dip, dreamclean, gdp
from diip_jax.compilation import compiler_options
from diip_jax.config import PAPER
from diip_jax.prior import Prior, PriorError, load

SCHEMA = "diip.tune/1"
MOST = 8  # combinations of a method
METHODS: dict[str, ModuleType] = {
    "dip": dip,
    "dreamclean": dreamclean,
    "bird": bird,
    "gdp": gdp,
}


class TuneError(ValueError):
    """A sweep cannot be made or gone on with; the message says the remedy."""


class Case(NamedTuple):
    """A picture to restore, and the truth.

    Attributes:
        task: name of the damage.
        picture: name of the picture.
        x: as it was, (H, W, 3) in [0, 1].
        y: damaged, on the grid of x.
    """

    task: str
    picture: str
    x: np.ndarray
    y: np.ndarray


Settings = dict[str, Any]
Measure = Callable[[Settings, Case], float]  # PSNR in dB


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Return all combinations of a grid's values.

    Raises:
        TuneError: there are more than every method may have.
    """
    found = [
        dict(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]
    if len(found) > MOST:
        raise TuneError(f"the grid has {len(found)} combinations; use at most {MOST}")
    return found


def sweep(
    measure: Measure,
    settings: Sequence[Settings],
    cases: Sequence[Case],
    cells: Sequence[Mapping[str, Any]] = (),
) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the cells so far, once at first and after every restoration.

    Args:
        measure: restores a case with settings.
        settings: the combinations.
        cases: the pictures, damaged.
        cells: of an earlier run, not measured again.
    """
    done = list(cells)
    yield done
    known = {_place(c["settings"], c["task"], c["picture"]) for c in done}
    for combination in settings:
        for case in cases:
            if _place(combination, case.task, case.picture) in known:
                continue
            psnr = measure(combination, case)
            done.append(
                {
                    "settings": combination,
                    "task": case.task,
                    "picture": case.picture,
                    "psnr": psnr if math.isfinite(psnr) else None,
                }
            )
            yield done


def _place(settings: Mapping[str, Any], task: str, picture: str) -> str:
    return json.dumps([settings, task, picture], sort_keys=True)


def mean_psnr(
    cells: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    task: str | None = None,
) -> float:
    """Return the mean PSNR of a combination, NaN where there is none.

    Args:
        cells: of `sweep`.
        settings: the combination.
        task: the only one that counts; all if None.
    """
    psnrs = [
        cell["psnr"]
        for cell in cells
        if cell["settings"] == settings and task in (None, cell["task"])
    ]
    return float(np.mean(psnrs)) if psnrs and None not in psnrs else math.nan


def best(
    cells: Sequence[Mapping[str, Any]],
    settings: Sequence[Settings],
    task: str | None = None,
) -> Settings:
    """Return the combination of the highest mean PSNR, the first of equal ones.

    One whose restorations are not finite never wins.
    """

    def score(combination: Settings) -> float:
        mean = mean_psnr(cells, combination, task)
        return mean if math.isfinite(mean) else -math.inf

    return max(settings, key=score)


def table(cells: Sequence[Mapping[str, Any]], settings: Sequence[Settings]) -> str:
    """Return the mean PSNR of every combination, a row each, as text."""
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    names = [
        ", ".join(
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in combination.items()
        )
        for combination in settings
    ]
    width = max(map(len, names))
    lines = [
        f"{'PSNR in dB':{width}s}  {'all':>7s}" + "".join(f"  {t:>7s}" for t in tasks)
    ]
    winner = best(cells, settings)
    for name, combination in zip(names, settings, strict=True):
        means = [mean_psnr(cells, combination, task) for task in (None, *tasks)]
        mark = "  best" if combination == winner else ""
        lines.append(f"{name:{width}s}" + "".join(f"  {m:7.2f}" for m in means) + mark)
    return "\n".join(lines)


def cases(
    tasks: Mapping[str, Any], paths: Sequence[Path], names: Sequence[str]
) -> list[Case]:
    """Return the damaged pictures of these tasks, each damaged with a key of its own.

    Args:
        tasks: by name, as `bench.tasks.TASKS`.
        paths: of the pictures.
        names: of the tasks wanted.
    """
    found = []
    for i, path in enumerate(paths):
        x = images.read(path).rgb
        for name in names:
            observation = tasks[name].observe(x, jax.random.key(i))
            found.append(Case(name, path.stem, x, np.asarray(observation.y)))
    return found


def measurer(method: ModuleType, prior: Prior, changes: Settings) -> Measure:
    """Return what restores a case and gives its PSNR.

    Args:
        method: a module of `bench.baselines`.
        prior: the frozen model.
        changes: settings that are the same for all combinations.
    """
    run = jax.jit(method.restore, compiler_options=compiler_options())

    def measure(settings: Settings, case: Case) -> float:
        config = method.config_for(case.task, min(case.x.shape[:2]))
        config = config.replace(**(changes | settings))
        y = jnp.asarray(case.y, jnp.float32)
        restored = run(prior, y, jax.random.key(0), config)
        return float(metrics.psnr(case.x, np.clip(restored.image, 0, 1)))

    return measure


def earlier(path: Path, head: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the cells of an earlier run of the same sweep, none where there is none.

    Raises:
        TuneError: the file is of another sweep or no record.
    """
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        cells = record.pop("cells")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TuneError(f"{path} is no record of a sweep; give another file") from error
    for name, value in head.items():
        if record.get(name) != value:
            raise TuneError(
                f"{path} is of {name} {record.get(name)!r}, not {value!r}; give "
                "another file"
            )
    return cells


def applicable(method: ModuleType, tasks: Mapping[str, Any]) -> list[str]:
    """Return the names of the tasks that a method has settings for."""
    return [name for name in tasks if method.config_for(name, 64) is not None]


def chosen_tasks(
    method: ModuleType, flags: argparse.Namespace, tasks: Mapping[str, Any]
) -> list[str]:
    """Return the names of the tasks of a sweep.

    Raises:
        TuneError: one has no settings, or a fixed setting has no such name.
    """
    usable = applicable(method, tasks)
    names = flags.tasks.split(",") if flags.tasks else usable
    for name in names:
        if name not in usable:
            raise TuneError(f"task {name!r} is not one of {', '.join(usable)}")
    fields = [field.name for field in dataclasses.fields(method.Config)]
    for name in flags.set:
        if name not in fields:
            raise TuneError(f"{name!r} is not one of {', '.join(fields)}")
    return names


def chosen_pictures(flags: argparse.Namespace) -> list[Path]:
    """Return the pictures of a sweep, the first by name.

    Raises:
        TuneError: there are none.
    """
    if flags.count < 1:
        raise TuneError(f"count is {flags.count}; use at least 1 picture")
    paths = sorted(flags.pictures.glob("*.png"))[: flags.count]
    if not paths:
        raise TuneError(f"no *.png in {flags.pictures}; give a folder of pictures")
    return paths


def damaged(
    prior: Prior, tasks: Mapping[str, Any], paths: Sequence[Path], names: Sequence[str]
) -> list[Case]:
    """Return the cases of a sweep, all of sizes that the prior takes.

    Raises:
        TuneError: a picture does not fit the prior.
    """
    found = cases(tasks, paths, names)
    for case in found:
        try:
            canvas.check_size(prior, PAPER, *case.x.shape[:2])
        except ValueError as error:
            raise TuneError(f"{case.picture}: {error}") from error
    return found


def tune(
    flags: argparse.Namespace, tasks: Mapping[str, Any], say: Callable[[str], Any]
) -> Settings:
    """Make a sweep, and return the winner.

    Args:
        flags: of `parser`.
        tasks: by name, as `bench.tasks.TASKS`.
        say: is given each line.

    Raises:
        TuneError: a flag does not fit.
        PriorError: there is no such prior.
    """
    method = METHODS[flags.method]
    names = chosen_tasks(method, flags, tasks)
    paths = chosen_pictures(flags)
    grid = {k: v for k, v in method.GRID.items() if k not in flags.set}
    settings = combinations(grid)
    head = {
        "schema": SCHEMA,
        "method": flags.method,
        "prior": flags.prior,
        "pictures": [path.stem for path in paths],
        "tasks": names,
        "set": flags.set,
    }
    cells, known = [], earlier(flags.json, head)
    prior = load(flags.prior)
    measure = measurer(method, prior, flags.set)
    for cells in sweep(measure, settings, damaged(prior, tasks, paths, names), known):
        winner = {}
        if len(cells) == len(settings) * len(paths) * len(names):  # fair only then
            winner["best"] = best(cells, settings)
            winner["best_of_task"] = {n: best(cells, settings, n) for n in names}
        text = json.dumps(head | winner | {"cells": cells}, indent=1)
        storage.write_bytes(flags.json, f"{text}\n".encode())
    say(table(cells, settings))
    return best(cells, settings)


def assignment(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE, the value as JSON.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    name, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return name, json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no setting such as iterations=500"
        ) from error


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--method", required=True, choices=METHODS)
    flags.add_argument("--prior", default="faces64")
    flags.add_argument("--pictures", required=True, type=Path)
    flags.add_argument("--count", type=int, default=5, help="so many, first by name")
    flags.add_argument("--tasks", help="a comma list; all that apply by default")
    flags.add_argument(
        "--set",
        type=assignment,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting for all combinations; it leaves the grid",
    )
    flags.add_argument("--json", required=True, type=Path, help="the record")
    return flags


def main() -> int:
    """Print the table and write its record; return the exit code."""
    from diip_jax.bench import tasks

    flags = parser().parse_args()
    flags.set = dict(flags.set)
    try:
        usual = {name: tasks.TASKS[name] for name in (*tasks.TABLE4, *tasks.TABLE5)}
        tune(flags, usual, lambda text: sys.stdout.write(f"{text}\n"))
    except (TuneError, PriorError, images.ImageError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
