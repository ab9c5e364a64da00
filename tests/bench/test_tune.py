"""Settings that win, with a method that is a formula; what a command line may say."""

import csv
import re
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from PIL import Image

from diip_jax import prior as priors
from diip_jax.bench import command, methods, tables, tune
from diip_jax.bench.baselines.restored import Restored
from diip_jax.bench.methods import METHODS, Baseline, Method, Problem, Setting
from helpers import bench_cells as fake
from helpers import seeded

# Lighter by these; the other tasks are not for the method.
ADDED = {"denoise": 0.09, "jpeg": 0.18}


@struct.dataclass
class Config:
    """How much of y is taken away, and how often."""

    sigma: float = 0.02
    weight: float = 0.0
    times: int = struct.field(pytree_node=False, default=1)
    way: methods.Knowledge = struct.field(pytree_node=False, default="all")


def darker(prior, y, key, config, operator=None):
    """Take light away, so that a known weight undoes a task."""
    image = y - config.times * config.weight
    return Restored(jnp.asarray(image), jnp.int32(0), jnp.int32(0))


@pytest.fixture
def module(monkeypatch):
    """Put a method in place that is a formula, and tasks without noise."""

    def config_for(task, side):
        return Config() if task in ADDED else None

    def pose(task):
        return lambda clean, key: Problem(clean, np.float32(clean + ADDED[task]))

    made = types.ModuleType("diip_jax.bench.baselines.fake")
    made.__dict__.update(Config=Config, config_for=config_for, restore=darker)
    made.GRID = {"weight": (0.05, 0.1), "times": (1, 2)}
    monkeypatch.setitem(sys.modules, made.__name__, made)
    method = Method("Fake", Baseline("fake", quick={"times": 3}))
    monkeypatch.setitem(METHODS, "gdp", method)
    monkeypatch.setattr(methods, "pose", pose)
    return made


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Return flags that name a tiny prior and a flat picture."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(np.full((16, 16, 3), 100, np.uint8)).save(folder / "grey.png")
    prior = tmp_path_factory.mktemp("prior") / "tiny"
    priors.save(prior, seeded.prior())
    return ["--images", folder, "--prior", prior]


def run(*arguments):
    try:
        return tune.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse ends like this
        return error.code


def rows(folder):
    """Return the rows of the Markdown table by their first cell."""
    lines = (folder / "tune-gdp.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {first: rest for first, *rest in cells}


def test_the_best_of_all_tasks_wins_and_the_best_of_each_is_named(
    module, given, tmp_path, capsys
):
    given = [*given, "--output", tmp_path]
    assert run("gdp", *given) == command.EXIT_OK
    # The second and the third are equal; the first of them wins.
    found = rows(tmp_path)
    assert found["PSNR ↑"] == ["All tasks", "Denoising", "JPEG de-artifacting"]
    names = [
        "gdp[weight=0.05,times=1]",
        "**gdp[weight=0.05,times=2]**",
        "gdp[weight=0.1,times=1]",
        "gdp[weight=0.1,times=2]",
    ]
    assert list(found)[1:] == names
    # All pixels are wrong by the same, so that PSNR is -20 log10 of it.
    wrong = [(0.04, 0.13), (0.01, 0.08), (0.01, 0.08), (0.11, 0.02)]
    for name, both in zip(names, wrong, strict=True):
        told = [float(re.findall(r"[\d.]+", text)[0]) for text in found[name]]
        psnrs = -20 * np.log10(both)
        # To two digits; float32 makes 1e-5 of 0.01, which are 0.01 dB.
        np.testing.assert_allclose(told, [np.mean(psnrs), *psnrs], atol=0.02)
    text = (tmp_path / "tune-gdp.md").read_text()
    assert "- best for Denoising alone: gdp[weight=0.05,times=2]" in text
    assert "- best for JPEG de-artifacting alone: gdp[weight=0.1,times=2]" in text
    assert "pictures: 1; seeds: 0" in text
    with (tmp_path / "tune-gdp.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * 3
    assert {line["task"] for line in lines} == {"denoise", "jpeg", tune.JOINTLY}
    assert lines[0]["title"] == "Fake[weight=0.05,times=1]"

    assert "8 cells to compute, 0 there" in capsys.readouterr().err
    assert run("gdp", *given) == command.EXIT_OK
    assert "0 cells to compute, 8 there" in capsys.readouterr().err


def test_tasks_of_one_picture_are_one_sample():
    cells = [
        tune.jointly(fake.cell(psnr, task=task, digest=picture))
        for picture, psnrs in {"a": (20, 30), "b": (26, 36), "c": (29, 33)}.items()
        for task, psnr in zip(("denoise", "jpeg"), psnrs, strict=True)
    ]
    (found,) = tables.entries(cells).values()
    mean = found.means["psnr"]
    assert mean.value == pytest.approx(29)
    # Of 25, 31 and 31, not of six numbers: sqrt(12 / 3).
    assert mean.error == pytest.approx(2)


def test_what_failed_never_wins(module, given, tmp_path, capsys):
    def breaks(prior, y, key, config, operator=None):
        if config.times == 2:
            raise RuntimeError("no luck")
        return darker(prior, y, key, config)

    module.restore = breaks
    flags = [*given, "--output", tmp_path]
    assert run("gdp", *flags) == command.EXIT_SOME_FAILED
    assert "error: 4 cells failed; run it again to retry" in capsys.readouterr().err
    found = rows(tmp_path)
    assert "**gdp[weight=0.1,times=1]**" in found
    assert found["gdp[weight=0.05,times=2]"] == ["failed"] * 3
    text = (tmp_path / "tune-gdp.md").read_text()
    assert "failed: Fake[weight=0.05,times=2] on jpeg, 1 times: Runtime" in text
    assert " on all" not in text


def test_what_is_fixed_leaves_the_grid(module):
    fixed = tune.fixed("gdp", {"weight": "1", "way": "nothing"})
    assert fixed == {"weight": 1.0, "way": "nothing"}
    found = tune.variants("gdp", fixed)
    assert list(found) == [
        f"gdp[weight=1,way=nothing,times={times}]" for times in (1, 2)
    ]
    second = found["gdp[weight=1,way=nothing,times=2]"]
    ready = second.make(Setting("denoise", 16, quick=True))
    assert ready.settings == Config(weight=1.0, way="nothing", times=2)
    quick = tune.variants("gdp", {}, quick=True)
    assert list(quick) == ["gdp[weight=0.05]", "gdp[weight=0.1]"]
    ready = quick["gdp[weight=0.1]"].make(Setting("denoise", 16, quick=True))
    assert ready.settings == Config(weight=0.1, times=3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["diip"], "invalid choice: 'diip'"),
        (["gdp", "--tasks", "odd"], "--tasks: 'odd' is not one of denoise, sr4,"),
        (["gdp", "--set", "size"], "--set: 'size' is not as iterations=500"),
        (
            ["gdp", "--set", "sigma=1"],
            "--set of gdp: 'sigma' is not one of weight, times, way",
        ),
        (["gdp", "--set", "times=1.5"], "--set times: '1.5' is no int such as 1"),
        (
            ["gdp", "--set", "way=long"],
            "--set way: 'long' is not one of nothing, its form, all",
        ),
    ],
)
def test_bad_flags_get_one_line(arguments, told, module, given, tmp_path, capsys):
    assert run(*arguments, *given, "--output", tmp_path) == command.EXIT_USAGE
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_method_without_a_task_is_left_out(module, given, tmp_path, capsys):
    flags = [*given, "--output", tmp_path, "--tasks", "sr4,water"]
    assert run("gdp", *flags) == command.EXIT_OK
    assert "gdp is for none of sr4, water; left out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


BASELINES = ("gdp", "gibbs-ddrm", "bird", "blind-dps", "dip", "dreamclean")
BASELINES += ("ddrm", "ddnm", "dps")


@pytest.mark.parametrize("name", sorted({*BASELINES, *tune.NAMES}))
def test_every_method_has_the_same_budget(name):
    assert name in tune.NAMES
    found = tune.variants(name, {})
    assert 1 < len(found) <= tune.MOST == 8
    settings = {
        str(method.make(Setting("denoise", 64, quick=False)).settings)
        for method in found.values()
    }
    assert len(settings) == len(found)  # each is another one
