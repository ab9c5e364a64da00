"""The command: what it writes, how it goes on, its exit codes and one-line errors."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from diip_jax import images
from diip_jax import prior as priors
from diip_jax.bench import __main__ as program
from diip_jax.bench import command, methods
from diip_jax.bench.cells import Store
from helpers import bench_cells as fake
from helpers import seeded

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of three pictures."""
    made = tmp_path_factory.mktemp("pictures")
    for name, x in fake.pictures(3):
        Image.fromarray(images.to_uint(x, 8)).save(made / name)
    return made


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """Return the folder of a prior with random weights."""
    path = tmp_path_factory.mktemp("prior") / "tiny"
    priors.save(path, seeded.prior())
    return path


@pytest.fixture
def fakes(monkeypatch):
    """Put methods and tasks in place that cost nothing."""
    given = {
        "input": fake.method(lambda problem, key: problem.y, "input"),
        "diip": fake.method(lambda problem, key: 0.9 * problem.y, "diip"),
        "dip": fake.method(lambda problem, key: 0.8 * problem.y, "dip"),
        "diip-paper": fake.method(lambda problem, key: problem.y**2, "paper"),
    }
    for name, method in methods.METHODS.items():
        nowhere = method._replace(make=lambda setting: None)
        monkeypatch.setitem(methods.METHODS, name, given.get(name, nowhere))
    monkeypatch.setattr(methods, "pose", lambda task: fake.noisy)


def bench(*arguments):
    try:
        return program.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse ends like this
        return error.code


def test_tables_are_made_and_made_again_from_the_same_cells(
    folder, prior, fakes, tmp_path, capsys
):
    given = ["--images", folder, "--prior", prior, "--output", tmp_path, "--quick"]
    assert bench("table4", "table6", *given, "--count", 2) == command.EXIT_OK
    told = capsys.readouterr().err
    # input, dip, diip and diip-paper on two tasks, without sr8; two of them for times
    assert "table4: 2 pictures, 4 methods, 2 tasks, 1 seeds: 16 cells" in told
    assert "table6: 2 pictures, 2 methods, 2 tasks, 1 seeds: 8 cells" in told
    for name in ("table4.md", "table4.csv", "table6.md", "table6.csv"):
        assert (tmp_path / name).stat().st_size > 0
    text = (tmp_path / "table4.md").read_text()
    assert f"table4 table6 --images {folder}" in text
    assert "**quick**" in text
    # DIP and DIIP in PSNR and SSIM of two tasks; LPIPS needs larger pictures
    assert "Ordering: of 4 comparisons" in text
    assert len(list(Store(tmp_path))) == 24

    assert bench("table4", *given, "--count", 3) == command.EXIT_OK
    assert "8 cells to compute, 16 there" in capsys.readouterr().err


def test_rows_and_columns_can_be_chosen(folder, prior, fakes, tmp_path):
    given = ["--images", folder, "--prior", prior, "--output", tmp_path, "--quick"]
    chosen = ["--methods", "diip", "--tasks", "sr8", "--seeds", 2, "--first", 1]
    assert bench("table4", *given, *chosen) == command.EXIT_OK
    names = [cell.name for cell in Store(tmp_path)]
    assert {(n.method, n.task) for n in names} == {("input", "sr8"), ("diip", "sr8")}
    assert {(n.image, n.seed) for n in names} == {("1.png", 0), ("1.png", 1)}


def test_damage_that_no_table_of_the_paper_has_is_a_column_where_it_is_named(
    folder, prior, fakes, tmp_path
):
    given = ["--images", folder, "--prior", prior, "--output", tmp_path, "--count", 1]
    tasks = ["--tasks", "motion_blur,drops,jpeg"]
    assert bench("table4", "table5", *given, *tasks) == command.EXIT_OK
    heads = [
        next(x for x in (tmp_path / file).read_text().splitlines() if "Method |" in x)
        for file in ("table4.md", "table5.md")
    ]
    assert "Motion blur" in heads[0]
    assert "JPEG" in heads[1]
    assert "Drops on the lens" in heads[1]
    assert "Denoising" not in "".join(heads)


def test_a_cell_of_the_grids_that_fails_is_counted(
    folder, prior, fakes, tmp_path, capsys, monkeypatch
):
    def broken(problem, key):
        raise ValueError("no such picture")

    monkeypatch.setitem(methods.METHODS, "diip", fake.method(broken, "broken"))
    adapted = fake.method(lambda problem, key: problem.y, "adapted")
    monkeypatch.setitem(methods.METHODS, "diip-adapted", adapted)
    given = ["--images", folder, "--prior", prior, "--output", tmp_path, "--count", 1]
    assert bench("grids", *given) == command.EXIT_SOME_FAILED
    told = capsys.readouterr().err
    assert "failed: diip on jpeg: ValueError: no such picture" in told
    assert "grids: 1 pictures, 2 methods, 6 tasks" in told
    assert (tmp_path / "fig7.png").is_file()


def test_cells_that_fail_are_counted(folder, prior, fakes, tmp_path, capsys):
    def broken(problem, key):
        raise RuntimeError("no luck")

    methods.METHODS["diip"] = fake.method(broken)
    given = ["--images", folder, "--prior", prior, "--output", tmp_path, "--quick"]
    assert bench("table5", *given) == command.EXIT_SOME_FAILED
    told = capsys.readouterr().err
    assert "failed: diip on jpeg: RuntimeError: no luck" in told
    assert "error: 3 cells failed; run it again to retry" in told
    assert "no luck" in (tmp_path / "table5.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["table9", "--images", "."], command.EXIT_USAGE, "invalid choice: 'table9'"),
        (["table4"], command.EXIT_USAGE, "required: --images"),
        (["table4", "--images", ".", "--seeds", "0"], command.EXIT_USAGE, "positive"),
        (
            ["table4", "--images", ".", "--methods", "magic"],
            command.EXIT_USAGE,
            "--methods: 'magic' is not one of input,",
        ),
        (
            ["table4", "--images", ".", "--prior", "nowhere/to/be"],
            command.EXIT_WEIGHTS,
            "unknown prior 'nowhere/to/be'",
        ),
    ],
)
def test_bad_flags_get_one_line(arguments, code, told, tmp_path, capsys):
    assert bench(*arguments, "--output", tmp_path) == code
    assert told in capsys.readouterr().err


def test_an_empty_folder_or_none_is_one_line(prior, tmp_path, capsys):
    for images_folder in (tmp_path, tmp_path / "nowhere"):
        given = ["--images", images_folder, "--prior", prior, "--output", tmp_path]
        assert bench("table4", *given, "--quick") == command.EXIT_FILE
        last = capsys.readouterr().err.strip().splitlines()
        assert len(last) == 1
        assert str(images_folder) in last[0]


def test_unusable_pictures_are_named_and_not_fatal(
    folder, prior, fakes, tmp_path, capsys
):
    Image.open(folder / "0.png").save(tmp_path / "good.png")
    (tmp_path / "a.png").write_bytes(b"no picture")
    given = ["--prior", prior, "--output", tmp_path / "out", "--quick"]
    assert bench("table5", "--images", tmp_path, *given) == command.EXIT_OK
    assert "left out a.png: " in capsys.readouterr().err
    (tmp_path / "good.png").unlink()
    assert bench("table5", "--images", tmp_path, *given) == command.EXIT_FILE
    assert "no picture of" in capsys.readouterr().err


def test_a_damaged_file_of_cells_is_one_line(folder, prior, fakes, tmp_path, capsys):
    (tmp_path / "cells.jsonl").write_text("{}\n")
    given = ["--images", folder, "--prior", prior, "--output", tmp_path, "--quick"]
    assert bench("table4", *given) == command.EXIT_FILE
    assert "line 1, is no cell" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_and_130(tmp_path):
    """While a compiled program runs that never ends; JAX alone would wait for it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.bench_endless", str(tmp_path)],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "tracing\n"
    time.sleep(1)  # it most likely runs by then; either way the outcome is the same
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == command.EXIT_INTERRUPTED
    assert told == "error: stopped; run it again to go on with the next cell\n"


@pytest.mark.slow
def test_a_whole_quick_table_of_a_tiny_prior(folder, prior, tmp_path, capsys):
    for room in ("tasks", "rivals", "operators", "baselines.gdp", "baselines.ddrm"):
        pytest.importorskip(f"diip_jax.bench.{room}")
    given = ["--images", folder, "--prior", prior, "--output", tmp_path]
    given += ["--tasks", "denoise"]
    assert bench("table4", *given, "--quick") == command.EXIT_OK
    cells = list(Store(tmp_path))
    assert {"diip-paper", "diip", "diip-oracle", "dip", "gdp", "ddrm"} <= {
        cell.name.method for cell in cells
    }
    assert all(cell.error is None for cell in cells)
    scores = {cell.name.method: cell.psnr for cell in cells}
    assert scores["diip-oracle"] >= scores["diip-adapted"]

    capsys.readouterr()
    chosen = ["--methods", "diip", "--count", 2]
    assert bench("table4", *given, *chosen) == command.EXIT_OK
    told = capsys.readouterr().err
    assert "one evaluation of the network takes" in told
    # What has no other settings for minutes is there from above, for one picture.
    assert "2 cells to compute, 2 there; about 1 min" in told
