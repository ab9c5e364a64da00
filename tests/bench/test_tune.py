"""The sweep over settings, with a method that is a formula."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from PIL import Image

from diip_jax import bench
from diip_jax.bench import tune
from diip_jax.bench.baselines import bird, dip, dreamclean, gdp
from diip_jax.bench.baselines.restored import Restored
from helpers import seeded


@struct.dataclass
class Config:
    """How much of y is taken away, and how often."""

    weight: float = 0.0
    times: int = struct.field(pytree_node=False, default=1)


def restore(prior, y, key, config, operator=None):
    """Darken y, so that a known weight undoes the damage of the task."""
    image = y - config.times * config.weight
    return Restored(image, jnp.int32(0), jnp.int32(0))


def lighter(amount):
    """Return a task that makes pictures lighter."""
    return SimpleNamespace(
        observe=lambda x, key: SimpleNamespace(y=np.float32(x) + amount)
    )


TASKS = {"little": lighter(0.09), "much": lighter(0.18), "odd": lighter(0.5)}
GRID = {"weight": (0.05, 0.1), "times": (1, 2)}


@pytest.fixture
def method(monkeypatch):
    calls = []

    def config_for(task, side):
        return None if task == "odd" else Config()

    def counted(*args):
        calls.append(args[-1])
        return restore(*args)

    fake = SimpleNamespace(GRID=GRID, Config=Config, config_for=config_for)
    fake.restore = counted
    monkeypatch.setitem(tune.METHODS, "bird", fake)
    monkeypatch.setattr(tune, "load", lambda name: seeded.prior())
    fake.calls = calls
    return fake


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        pixels = np.full((8, 8, 3), 100 + 10 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def flags(folder, *more):
    fixed = ["--method", "bird", "--pictures", str(folder), "--count", "2"]
    read = tune.parser().parse_args(
        [*fixed, "--json", str(folder / "record.json"), *more]
    )
    read.set = dict(read.set)
    return read


def test_the_best_mean_over_tasks_wins_and_each_task_has_its_own(method, folder):
    lines = []
    winner = tune.tune(flags(folder), TASKS, lines.append)
    # Twice 0.05 is once 0.1: of equal ones the first in the grid.
    assert winner == {"weight": 0.05, "times": 2}
    record = json.loads((folder / "record.json").read_text())
    assert record["best"] == winner
    assert record["best_of_task"]["little"] == winner
    assert record["best_of_task"]["much"] == {"weight": 0.1, "times": 2}
    assert record["pictures"] == ["0", "1"]
    assert len(record["cells"]) == 4 * 2 * 2
    assert sum("best" in line for line in lines[0].splitlines()) == 1


def test_the_psnr_is_that_of_the_answer(method, folder):
    tune.tune(flags(folder), TASKS, str)
    record = json.loads((folder / "record.json").read_text())
    cell = next(
        c for c in record["cells"] if c["settings"] == {"weight": 0.05, "times": 1}
    )
    # 0.09 lighter, 0.05 darker, in float32
    assert cell["task"] == "little"
    assert cell["psnr"] == pytest.approx(-20 * np.log10(0.04), abs=1e-3)


def test_a_sweep_goes_on_where_it_ended(method, folder):
    tune.tune(flags(folder), TASKS, str)
    path = folder / "record.json"
    whole = path.read_text()
    record = json.loads(whole)
    assert record.pop("best")
    record["cells"] = record["cells"][:10]
    path.write_text(json.dumps(record))
    measured = []

    def measure(settings, case):
        measured.append((settings, case.task, case.picture))
        return 0.0

    cases = tune.cases(TASKS, sorted(folder.glob("*.png"))[:2], ["little", "much"])
    head = {"method": "bird", "tasks": ["little", "much"]}
    known = tune.earlier(path, head)
    *_, cells = tune.sweep(measure, tune.combinations(GRID), cases, known)
    assert len(known) == 10
    assert len(measured) == 6
    assert len(cells) == 16
    tune.tune(flags(folder), TASKS, str)
    assert path.read_text() == whole


def test_a_fixed_setting_leaves_the_grid(method, folder):
    settings = tune.tune(flags(folder, "--set", "weight=0.05"), TASKS, str)
    assert settings == {"times": 2}
    record = json.loads((folder / "record.json").read_text())
    assert record["set"] == {"weight": 0.05}


def test_one_line_says_what_is_wrong(method, folder):
    def refused(*more):
        with pytest.raises(tune.TuneError) as error:
            tune.tune(flags(folder, *more), TASKS, str)
        return str(error.value)

    assert refused("--tasks", "odd") == "task 'odd' is not one of little, much"
    assert refused("--count", "0") == "count is 0; use at least 1 picture"
    assert refused("--set", "size=3") == "'size' is not one of weight, times"
    assert "no *.png in" in refused("--pictures", str(folder / "none"))
    tune.tune(flags(folder), TASKS, str)
    assert "is of tasks ['little', 'much'], not ['much']" in refused("--tasks", "much")
    (folder / "record.json").write_text("[]")
    assert "is no record of a sweep; give another file" in refused()
    method.GRID = {"weight": tuple(range(9))}
    assert refused() == "the grid has 9 combinations; use at most 8"
    with pytest.raises(SystemExit):
        tune.parser().parse_args(["--set", "weight"])


def test_what_is_not_finite_never_wins():
    settings = [{"a": 1}, {"a": 2}, {"a": 3}]
    cells = [
        {"settings": s, "task": "t", "picture": "0", "psnr": psnr}
        for s, psnr in zip(settings, (None, 20.0, 10.0), strict=True)
    ]
    assert tune.best(cells, settings) == {"a": 2}


def test_the_command_ends_in_one_line(folder, monkeypatch, capsys):
    tasks = SimpleNamespace(TASKS=TASKS, TABLE4=("little",), TABLE5=("much",))
    monkeypatch.setattr(bench, "tasks", tasks, raising=False)
    monkeypatch.setitem(sys.modules, "diip_jax.bench.tasks", tasks)
    args = ["tune", "--method", "dip", "--pictures", str(folder), "--prior", "none"]
    monkeypatch.setattr(sys, "argv", [*args, "--json", str(folder / "record.json")])
    assert tune.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("unknown prior 'none'")
    assert err.count("\n") == 1


@pytest.mark.parametrize("module", [dip, dreamclean, bird, gdp])
def test_every_method_has_the_same_budget(module):
    settings = tune.combinations(module.GRID)
    assert len(settings) == tune.MOST == 8
    config = module.config_for("denoise", 64)
    for combination in settings:  # each names fields of the settings
        config.replace(**combination)
    assert Path(module.__file__).stem in tune.METHODS
