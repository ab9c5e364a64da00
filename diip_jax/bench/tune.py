"""Settings of the methods, chosen on development pictures.

    python -m diip_jax.bench.tune gdp dps --prior faces64 --images FOLDER --output DIR

Every combination of the values in a method's `GRID` restores each picture of each task
that is for the method, of tables 4 and 5 or of `--tasks`. The best mean PSNR over all
tasks wins. All methods have the same budget: no grid has more than 8 combinations. The
pictures must not be those of a table.

A combination is a method with settings of its own, and its results are cells, as those
of `python -m diip_jax.bench`: the same command again computes what is missing. The
table of a method is a Markdown and a CSV file in OUTPUT.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from diip_jax.bench import command, methods, tables
from diip_jax.bench.cells import Cell
from diip_jax.bench.command import Setup, UsageError
from diip_jax.bench.methods import Adapted, Baseline, Method, Setting
from diip_jax.bench.run import Plan
from diip_jax.bench.tables import Entry, Table
from diip_jax.bench.tasks import TABLE4, TABLE5, TASKS

PROGRAM = "python -m diip_jax.bench.tune"
MOST = 8  # combinations of a method
COUNT = 5  # pictures by default
JOINTLY = "all"  # all tasks of a method, in the place of one
Make = Baseline | Adapted
NAMES = [name for name, m in methods.METHODS.items() if isinstance(m.make, Make)]

Settings = Mapping[str, Any]
Entries = Mapping[tuple[str, str], Entry]


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    result = command.parser(
        PROGRAM, __doc__ or "", count=f"{COUNT} by default", quick="does it work"
    )
    result.add_argument(
        "methods",
        nargs="+",
        choices=NAMES,
        metavar="METHOD",
        help=f"of {', '.join(NAMES)}",
    )
    result.add_argument(
        "--set",
        type=assignment,
        action="append",
        metavar="NAME=VALUE",
        help="a setting of all combinations, which leaves the grids",
    )
    return result


def assignment(text: str) -> tuple[str, str]:
    """Read NAME=VALUE.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not as iterations=500")
    return name, value


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parser().parse_args(arguments)
    return command.ended(lambda: _run(given, arguments))


def _run(given: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Make the tables of all methods and return how many cells failed."""
    command.check("tasks", given.tasks, list(TASKS))
    found = {
        name: variants(name, fixed(name, dict(given.set or ())), given.quick)
        for name in given.methods
    }
    setup = command.start(PROGRAM, given, arguments, COUNT)
    return sum(tune(name, own, setup) for name, own in found.items())


def maker(name: str) -> Make:
    """Return what makes a method, whose settings can be changed.

    Args:
        name: one of `NAMES`.
    """
    make = methods.METHODS[name].make
    assert isinstance(make, Make)
    return make


def fixed(name: str, texts: Mapping[str, str]) -> Settings:
    """Return the settings of `--set` for a method.

    Args:
        name: of the method.
        texts: values by name, as they were typed.

    Raises:
        UsageError: the method has no such setting, or it takes no such value.
    """
    config = maker(name).settings
    # The noise is that of each picture, and shapes of networks are no single value.
    usual = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.name != "sigma" and isinstance(field.default, int | float | str)
    }
    command.check(f"set of {name}", texts, list(usual))
    found = {}
    for setting, text in texts.items():
        try:
            found[setting] = type(usual[setting])(text)
        except ValueError as error:
            kind = f"{type(usual[setting]).__name__} such as {usual[setting]}"
            raise UsageError(f"--set {setting}: {text!r} is no {kind}") from error
        hint = get_type_hints(config)[setting]
        if get_origin(hint) is Literal:
            command.check(f"set {setting}", [text], get_args(hint))
    return found


def variants(name: str, common: Settings, quick: bool = False) -> dict[str, Method]:
    """Return a method with each combination of the values of its grid, by name.

    Args:
        name: of the method.
        common: settings of all combinations; they leave the grid.
        quick: those that the method changes where minutes must do leave it, too.
    """
    make, method = maker(name), methods.METHODS[name]
    left = {*common, *(make.quick if quick else ())}
    grid = {k: values for k, values in make.grid.items() if k not in left}
    found = {}
    for values in itertools.product(*grid.values()):
        changes = {**common, **dict(zip(grid, values, strict=True))}
        words = ",".join(
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in changes.items()
        )
        found[f"{name}[{words}]"] = method._replace(
            title=f"{method.title}[{words}]", make=make._replace(changes=changes)
        )
    return found


def tune(name: str, found: Mapping[str, Method], setup: Setup) -> int:
    """Make the table of a method and return how many of its cells failed.

    Args:
        name: of the method.
        found: its `variants`.
        setup: what the command was given.
    """
    method, given = methods.METHODS[name], setup.given
    side = setup.prior.card.architecture.image_size
    columns = tables.titles((*TABLE4, *TABLE5))
    more = tables.titles(TASKS)
    whole = Table(method.full_title, columns, list(found), COUNT, more)
    asked = tables.chosen(whole, None, given.tasks, given.quick).tasks
    ours = [t for t in asked if method.make(Setting(t, side, given.quick))]
    if not ours:
        setup.say(f"{name} is for none of {', '.join(asked)}; left out")
        return 0
    plan = Plan(
        tasks={task: methods.pose(task) for task in ours},
        methods=found,
        images=setup.taken(COUNT),
        seeds=setup.options.seeds,
        quick=given.quick,
    )
    cells = command.compute(name, plan, setup)
    both = [*cells, *(jointly(cell) for cell in cells)]
    top = tables.head(setup.options, setup.prior, len(plan.images))
    text = markdown(tables.chosen(whole, None, ours), found, tables.entries(both), top)
    files = (f"tune-{name}", text, tables.to_csv(both, found))
    command.tell(tables.write(given.output, *files), setup)
    return sum(cell.error is not None for cell in cells)


def jointly(cell: Cell) -> Cell:
    """Return a cell as one of all tasks; their mean in a picture is one sample."""
    return cell._replace(name=cell.name._replace(task=JOINTLY))


def best(found: Entries, task: str) -> str | None:
    """Return the combination of the highest mean PSNR, the first of equal ones.

    One with a cell that failed never wins; None where all have one.

    Args:
        found: by task and combination.
        task: its name, or `JOINTLY`.
    """
    means = {
        name: value
        for (of, name), entry in found.items()
        if of == task and not entry.errors
        if (value := entry.means["psnr"].value) is not None
    }
    return max(means, key=lambda name: means[name], default=None)


def _text(entry: Entry) -> str:
    # What is left of a mean where a cell failed is not to be compared.
    return "failed" if entry.errors else tables.number(entry.means["psnr"], 2)


def markdown(
    table: Table, variants: Mapping[str, Method], found: Entries, top: Sequence[str]
) -> str:
    """Return the table of a method as Markdown.

    Args:
        table: title of the method, its tasks and combinations.
        variants: the combinations by name.
        found: by task and combination, `JOINTLY` among the tasks.
        top: the lines of its head.
    """
    titles = {JOINTLY: "All tasks", **table.tasks}
    winner = best(found, JOINTLY)
    rows = [["PSNR ↑", *titles.values()]]
    for name in table.methods:
        row = [name, *(_text(found[task, name]) for task in titles)]
        rows.append([f"**{text}**" for text in row] if name == winner else row)
    of_tasks = [entry for (task, _), entry in found.items() if task != JOINTLY]
    parts = [
        f"# Settings of {table.title}",
        "\n".join(top),
        tables.grid(rows),
        "Mean ± its standard error over pictures; the mean over all tasks of a picture "
        "is one sample. In bold the best of all tasks jointly.",
        "\n".join(
            f"- best for {titles[t]} alone: {best(found, t)}" for t in table.tasks
        ),
        f"No method has more than {MOST} combinations. None of these pictures may be "
        "in a table.",
        "\n".join(tables.failures(of_tasks, variants)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    command.cli(main)
