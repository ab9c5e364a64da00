"""Tables from cells: means and errors, what is bold, where the ordering differs."""

import csv
import io

import numpy as np
import pytest

from diip_jax.bench import run, tables
from diip_jax.bench.methods import METHODS
from diip_jax.bench.tables import Mean
from helpers import bench_cells as fake

TABLE = tables.Table("Tiny", {"jpeg": "JPEG"}, ("input", "dip", "diip-paper"), 2)


def cells(numbers, method, task="jpeg", **fields):
    """Return a cell for each number, of pictures a, b, ... ."""
    digests = zip("abcdef", numbers, strict=False)
    return [
        fake.cell(n, digest=d, method=method, task=task, **fields) for d, n in digests
    ]


def test_means_and_standard_errors_are_over_pictures_not_seeds():
    numbers = np.array([[20.0, 22.0], [25.0, 26.0], [30.0, 27.0]])  # pictures x seeds
    group = [
        cell for seed in (0, 1) for cell in cells(numbers[:, seed], "diip", seed=seed)
    ]
    found = tables.entries(group)["jpeg", "diip"]
    of_pictures = numbers.mean(axis=1)
    value, error, pictures = found.means["psnr"]
    assert value == pytest.approx(np.mean(of_pictures))
    assert error == pytest.approx(np.std(of_pictures, ddof=1) / np.sqrt(3))
    assert (pictures, found.seeds) == (3, 2)


def test_one_picture_has_no_standard_error_and_none_has_no_mean():
    assert tables.mean([3.0]) == Mean(3.0, None, 1)
    assert tables.mean([]) == Mean(None, None, 0)
    found = tables.entries([fake.cell(0, "broken")])["denoise", "diip"]
    assert found.means["psnr"] == Mean(None, None, 0)
    assert found.errors == ["broken"]


def test_a_table_of_quality_reads_so():
    given = [
        *cells([20.0, 24.0], "input"),
        *cells([21.0, 23.0], "dip"),
        *cells([26.0, 25.0], "diip-paper"),
        fake.cell(0, "out of luck", digest="c", method="dip", task="jpeg"),
    ]
    text = tables.quality(TABLE, given, ["- command: `x`"])
    assert text.startswith(
        """# Tiny

- command: `x`

| Method | JPEG: PSNR ↑ | JPEG: SSIM ↑ | JPEG: LPIPS ↓ |
|---|---:|---:|---:|
| Input (super-resolution: bicubic) | 22.00 ± 2.00 | 0.220 ± 0.020 | 0.780 ± 0.020 |
| DIP | 22.00 ± 1.00 | 0.220 ± 0.010 | 0.780 ± 0.010 |
| DIIP, paper | **25.50 ± 0.50** | **0.255 ± 0.005** | **0.745 ± 0.005** |

"""
    )
    assert "| DIP | 10 (5) | 2 | 1 MB | 2 | 1 |" in text
    assert "- failed: DIP on jpeg, 1 times: out of luck" in text


def test_a_table_as_csv_has_a_line_for_each_task_and_method():
    given = [*cells([20.0, 24.0], "input"), *cells([21.0], "dip", task="water")]
    first, second = csv.DictReader(io.StringIO(tables.to_csv(given)))
    assert (first["task"], first["method"]) == ("jpeg", "input")
    assert (first["psnr"], first["psnr_error"], first["pictures"]) == ("22", "2", "2")
    assert (second["task"], second["psnr"], second["psnr_error"]) == ("water", "21", "")
    assert first["evaluations"] == "10"


def test_bold_are_all_that_print_as_the_best_and_have_all_pictures():
    wide = TABLE._replace(methods=("dip", "dreamclean", "diip-paper"))
    about = {"digest": "b", "method": "dip", "task": "jpeg"}
    given = [
        *cells([40.0], "dip"),
        fake.cell(0.0, error="ValueError: no", **about),
        *cells([20.001, 22.0], "dreamclean"),
        *cells([20.0, 22.0], "diip-paper"),
    ]
    text = tables.quality(wide, given, [])
    assert text.count("**21.00 ± 1.00**") == 2
    assert "| DIP | 40.00 |" in text


def test_bold_is_for_blind_methods_alone():
    blind = [m for m in METHODS if tables.competes(m)]
    assert {"input", "dip", "dreamclean", "diip-paper", "diip"} <= set(blind)
    assert not {"gdp", "bird", "ddrm", "diip-oracle", "tv", "bm3d"} & set(blind)
    wide = TABLE._replace(methods=("diip-paper", "ddrm", "diip-oracle"))
    given = [
        *cells([30.0], "ddrm"),
        *cells([31.0], "diip-oracle"),
        *cells([20.0], "diip-paper"),
    ]
    text = tables.quality(wide, given, [])
    assert "| DIIP, paper | **20.00** | **0.200** | **0.800** |" in text
    assert text.count("**") == 6
    assert "DDRM (non-blind)" in text


def test_orderings_that_are_not_the_papers_are_said():
    """The paper: DIIP above DreamClean above DIP on JPEG, in all three scores."""
    given = [
        *cells([20.0, 22.0, 24.0], "dip"),
        *cells([25.1, 27.0, 29.2], "dreamclean"),
        *cells([25.0, 28.0, 26.0], "diip-paper"),
    ]
    found, compared = tables.reversals(given)
    assert compared == 9  # three pairs in three scores
    assert {r.score for r in found} == {"psnr", "ssim", "lpips"}
    assert all((r.other, r.better) == ("dreamclean", "diip-paper") for r in found)
    differences = np.array([0.1, -1.0, 3.2])  # picture by picture
    assert found[0].difference.value == pytest.approx(differences.mean())
    error = np.std(differences, ddof=1) / np.sqrt(3)
    assert found[0].difference.error == pytest.approx(error)
    first, second, *_ = tables.orderings(given)
    assert "of 9 comparisons" in first
    assert "3 are the other way round here, 0 of them by more than two" in first
    assert second == (
        "- JPEG de-artifacting, PSNR: DreamClean over DIIP, paper by 0.77 ± 1.26"
    )
    given[3:6] = cells([27.0, 30.1, 28.0], "dreamclean")
    assert (
        "**DreamClean over DIIP, paper by 2.03 ± 0.03**" in (tables.orderings(given)[1])
    )


def test_orderings_like_the_papers_are_said_too():
    given = [*cells([20.0, 21.0], "dip"), *cells([26.0, 28.0], "diip-paper")]
    (line,) = tables.orderings(given)
    assert "of 3 comparisons of methods that the paper has too, 0 are the other" in line
    assert "no two methods" in tables.orderings(cells([20.0], "input"))[0]


def test_ratios_are_to_the_papers_method_on_the_same_picture():
    def costing(seconds, method, digest):
        cell = fake.cell(20.0, method=method, task="jpeg", digest=digest)
        return cell._replace(seconds=seconds, memory=int(1e6 * seconds))

    table = TABLE._replace(methods=("gdp", "diip-paper"))
    given = [costing(s, "diip-paper", d) for s, d in ((2, "a"), (4, "b"), (10, "c"))]
    given += [costing(s, "gdp", d) for s, d in ((3, "a"), (12, "b"), (20, "c"))]
    given.append(costing(99, "gdp", "d"))  # no counterpart
    assert tables.ratio(given, "gdp", "seconds") == np.median([1.5, 3, 2])
    text = tables.costs(table, given, [], on_gpu=False)
    assert "paper's seconds" not in text
    row = next(line for line in text.splitlines() if line.startswith("| GDP"))
    assert row.split("|")[3].strip() == "2.00"
    assert row.split("|")[4].strip() == f"{168 / 138:.2f}"
    on_gpu = tables.costs(table, given, [], on_gpu=True)
    assert "| 168 | 1.1 |" in on_gpu


def test_published_numbers_are_of_methods_and_tasks_that_there_are():
    columns = {**tables.TABLES["table4"].tasks, **tables.TABLES["table5"].tasks}
    assert set(tables.PUBLISHED) == set(columns)
    for rows in tables.PUBLISHED.values():
        assert set(rows) <= set(METHODS)
    assert set(tables.PUBLISHED_COST) <= set(METHODS)
    # Rounded to two digits, the paper's leads of DIIP over DreamClean in dB.
    leads = {
        task: round(rows["diip-paper"][0] - rows["dreamclean"][0], 2)
        for task, rows in tables.PUBLISHED.items()
    }
    assert leads == {
        "denoise": 1.32,
        "sr4": 1.70,
        "sr8": 1.53,
        "jpeg": 1.37,
        "deformation": 1.29,
        "water": 0.84,
    }


def test_a_selection_keeps_the_trivial_rows():
    table = tables.TABLES["table4"]
    chosen = tables.chosen(table, ("diip",), ("sr8",))
    assert tuple(chosen.methods) == (*tables.TRIVIAL, "diip")
    assert list(chosen.tasks) == ["sr8"]
    assert tables.chosen(table, None, None) == table
    assert list(tables.chosen(table, None, None, quick=True).tasks) == [
        "denoise",
        "sr4",
    ]
    assert list(tables.chosen(table, None, ("sr8",), quick=True).tasks) == ["sr8"]


def test_the_head_says_how_a_table_was_made(tmp_path):
    options = run.Options("python -m x --y", (0, 1), quick=True)
    text = "\n".join(tables.head(options, fake.PRIOR, 7))
    for part in ("`python -m x --y`", "jax ", "cores", "seeds: 0, 1", "pictures: 7"):
        assert part in text
    assert "seeded (000000000000), 16x16" in text
    assert "**quick**" in text
    assert "**quick**" not in "\n".join(tables.head(run.Options(), fake.PRIOR, 1))
    files = tables.write(tmp_path, "t", text, "a,b\n")
    assert [file.name for file in files] == ["t.md", "t.csv"]
    assert files[1].read_text() == "a,b\n"
