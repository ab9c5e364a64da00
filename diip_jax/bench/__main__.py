"""Make the paper's tables and figures on a prior and a folder of clean pictures.

    python -m diip_jax.bench table4 table5 --prior natural64 --images FOLDER
    python -m diip_jax.bench all --images FOLDER --quick

Results are cells in OUTPUT/cells.jsonl, with their pictures; the same command again
computes what is missing and makes the tables from all. A table is a Markdown and a CSV
file in OUTPUT.
"""

import argparse
import importlib
from collections.abc import Sequence
from typing import NamedTuple

from diip_jax.bench import command, methods, run, stops, tables
from diip_jax.bench.baselines import dip
from diip_jax.bench.baselines.restored import SMALL_SIDE
from diip_jax.bench.command import Setup
from diip_jax.bench.run import Plan, Speed
from diip_jax.bench.tables import TABLES, Table
from diip_jax.bench.tasks import TASKS

PROGRAM = "python -m diip_jax.bench"
ALL = "all"
QUALITY = ("table4", "table5")


class Other(NamedTuple):
    """What another module's function of the same name makes.

    Attributes:
        module: its name.
        count: pictures by default.
        runs: of the prior that are followed, for each picture.
        fits: of DIP, for each picture.
    """

    module: str
    count: int
    runs: int
    fits: int = 0


OTHERS = {
    "table1": Other("stops", 3, 2),
    "table2": Other("stops", 3, 2),
    "table3": Other("stops", 3, 0),  # of the runs of tables 1 and 2
    "fig3": Other("figures", 1, 3, fits=3),
    "fig4": Other("figures", 1, 4),
    "fig6": Other("figures", 1, 3),
}
GRIDS, GRIDS_COUNT = "grids", 4  # figures 2, 5 and 7; pictures by default
NAMES = ("table1", "table2", "table3", *QUALITY, "table6")
NAMES += ("fig3", "fig4", "fig6", GRIDS)


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    result = command.parser(
        PROGRAM,
        __doc__ or "",
        count="a number for each table by default",
        quick="15 minutes for all tables on two cores",
    )
    result.add_argument(
        "what",
        nargs="+",
        choices=(*NAMES, ALL),
        metavar="WHAT",
        help=f"of {', '.join(NAMES)}, or {ALL}",
    )
    result.add_argument(
        "--methods", type=command.names, help="rows, as A,B; all that are installed"
    )
    result.add_argument(
        "--pictures",
        action="store_true",
        help="compute cells again whose restored pictures are not there",
    )
    return result


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parser().parse_args(arguments)
    return command.ended(lambda: _run(given, arguments))


def _run(given: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Make all that is asked for and return how many cells failed."""
    what = NAMES if ALL in given.what else tuple(dict.fromkeys(given.what))
    command.check("methods", given.methods, list(methods.METHODS))
    command.check("tasks", given.tasks, list(TASKS))
    counts = [_count(name) for name in what]
    setup = command.start(PROGRAM, given, arguments, max(counts))
    speed = None if given.quick else run.speed(setup.prior)
    if speed is not None:
        setup.say(
            f"one evaluation of the network takes {speed.forward:.3g} s, with its "
            f"gradient {speed.gradient:.3g} s"
        )
    return sum(_made(name, setup, speed) for name in what)


def _count(name: str) -> int:
    """Return how many pictures a table or figure has by default."""
    if name == GRIDS:
        return GRIDS_COUNT
    return TABLES[name].count if name in TABLES else OTHERS[name].count


def _made(name: str, setup: Setup, speed: Speed | None) -> int:
    """Make a table or figure and return how many of its cells failed."""
    if name == GRIDS:
        return _grids(setup, speed)
    if name in TABLES:
        return _table(name, setup, speed)
    _other(name, setup, speed)
    return 0


def _table(name: str, setup: Setup, speed: Speed | None) -> int:
    """Make table 4, 5 or 6 and return how many of its cells failed."""
    given, say = setup.given, setup.say
    table = tables.chosen(TABLES[name], given.methods, given.tasks, given.quick)
    if not table.tasks:
        say(f"{name} has no column of --tasks {','.join(given.tasks)}; left out")
        return 0
    plan, left_out = _plan(name, table, setup)
    for line in left_out:
        say(line)
    cells = command.compute(name, plan, setup, speed)
    top = tables.head(setup.options, setup.prior, len(plan.images))
    text = tables.markdown(name, table, cells, [*top, *(f"- {x}" for x in left_out)])
    command.tell(tables.write(given.output, name, text, tables.to_csv(cells)), setup)
    return sum(cell.error is not None for cell in cells)


def _plan(name: str, table: Table, setup: Setup) -> tuple[Plan, list[str]]:
    """Return what to compute for a table, and a line for each row that cannot be."""
    quick, side = setup.given.quick, setup.prior.card.architecture.image_size
    settings = [methods.Setting(task, side, quick) for task in table.tasks]
    found, left_out = methods.available(table.methods, settings)
    are_times = name == tables.TIMES
    plan = Plan(
        tasks={task: methods.pose(task) for task in table.tasks},
        methods=found,
        images=setup.taken(table.count),
        seeds=setup.options.seeds,
        quick=quick,
        context=("times", tables.machine()) if are_times else None,
        by_image=are_times,
        needs_pictures=setup.given.pictures,
    )
    return plan, left_out


def _grids(setup: Setup, speed: Speed | None) -> int:
    """Make figures 2, 5 and 7 and return how many of their cells failed."""
    from diip_jax.bench import figures

    images = setup.taken(GRIDS_COUNT)
    plan = figures.grid_plan(images, setup.options)
    cells = command.compute(GRIDS, plan, setup, speed)
    command.tell(
        figures.grids(setup.prior, images, setup.given.output, setup.options), setup
    )
    return sum(cell.error is not None for cell in cells)


def _other(name: str, setup: Setup, speed: Speed | None) -> None:
    """Make a table or figure of runs that are followed."""
    other = OTHERS[name]
    make = getattr(importlib.import_module(f"diip_jax.bench.{other.module}"), name)
    images = setup.taken(other.count)
    if speed is not None and other.runs:
        followed = stops.settings(setup.options, setup.prior)
        gradients = other.runs * followed.max_iterations * followed.num_steps
        pixels = setup.prior.card.architecture.image_size**2
        fit = methods.METHODS["dip"].seconds * pixels / SMALL_SIDE**2
        fit *= dip.DEFAULT.iterations / dip.SMALL.iterations
        seconds = gradients * speed.gradient + other.fits * fit
        total = run.duration(seconds * len(images) * len(setup.options.seeds))
        setup.say(f"{name}: up to about {total}, less what is there")
    files = make(setup.prior, images, setup.given.output, setup.options)
    command.tell(files, setup)


if __name__ == "__main__":
    command.cli(main)
