"""Cells on disk: whole lines, torn lines, kills, and what is found again."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diip_jax import metrics
from diip_jax.bench import cells
from diip_jax.bench.cells import CellsError, Store
from helpers import bench_cells as fake
from helpers import seeded

ROOT = Path(__file__).parents[2]


def test_cells_come_back_as_they_were(tmp_path):
    store = Store(tmp_path / "new" / "folder")
    written = [fake.cell(20.5), fake.cell(math.inf, seed=1), fake.cell(0, "no", seed=2)]
    for cell in written:
        store.add(cell)
    assert list(Store(tmp_path / "new" / "folder")) == written
    lines = (tmp_path / "new" / "folder" / cells.FILE).read_text().splitlines()
    assert [json.loads(line)["name"]["seed"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_torn_last_line_is_cut_off_and_written_again(tmp_path, left):
    store = Store(tmp_path)
    store.add(fake.cell(20.0))
    whole = (tmp_path / cells.FILE).read_bytes()
    store.add(fake.cell(21.0, seed=1))
    both = (tmp_path / cells.FILE).read_bytes()
    end = len(whole) + left if left > 0 else len(both) + left
    (tmp_path / cells.FILE).write_bytes(both[:end])

    store = Store(tmp_path)
    assert list(store) == [fake.cell(20.0)]
    store.add(fake.cell(21.0, seed=1))
    assert (tmp_path / cells.FILE).read_bytes() == both


def test_what_is_no_cell_is_named_with_its_line(tmp_path):
    Store(tmp_path).add(fake.cell(20.0))
    with (tmp_path / cells.FILE).open("a") as file:
        file.write('{"psnr": 3}\n')
    with pytest.raises(CellsError, match=r"cells.jsonl, line 2, is no cell"):
        Store(tmp_path)


def test_a_write_that_fails_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add(fake.cell(20.0))

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.add(fake.cell(21.0, seed=1))
    assert list(Store(tmp_path)) == [fake.cell(20.0)]


def test_an_error_is_not_a_result_and_a_later_cell_counts(tmp_path):
    store = Store(tmp_path)
    store.add(fake.cell(0, "out of memory"))
    assert store.find(fake.name()) is None
    assert store.chosen([fake.name(), fake.name(seed=5)]) == [
        fake.cell(0, "out of memory")
    ]
    store.add(fake.cell(22.0))
    assert Store(tmp_path).find(fake.name()) == fake.cell(22.0)


def test_a_digest_tells_arrays_and_settings_apart():
    x = seeded.image(16, 16)
    assert cells.digest(x) == cells.digest(x.copy())
    changed = x.copy()
    changed[3, 4, 1] = np.nextafter(changed[3, 4, 1], 1)
    assert cells.digest(x) != cells.digest(changed)
    assert cells.digest("ab", "c") != cells.digest("a", "bc")


def test_scores_are_of_the_clipped_picture():
    clean = seeded.image(16, 16)
    restored = clean + np.float32(0.6)
    found = cells.scores(fake.NO_LPIPS, clean, restored)
    clipped = np.minimum(restored, 1)
    assert found["psnr"] == metrics.psnr(clean, clipped)
    assert found["ssim"] == metrics.ssim(clean, clipped)
    assert found["lpips"] is None
    restored[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        cells.scores(fake.NO_LPIPS, clean, restored)


def test_a_kill_costs_the_cell_in_flight_at_most(tmp_path):
    """Killed in the second cell: the first is there, and nothing is torn."""
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.bench_cells", str(tmp_path)],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process:
        for _ in range(3):  # a plain method is warmed up before it is timed
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    found = list(Store(tmp_path))
    assert len(found) in (1, 2)  # the kill may come late
    for cell in found:
        assert cell.error is None
        assert cell.picture is not None
        assert (tmp_path / cell.picture).is_file()

    methods = {"slow": fake.method(lambda problem, key: problem.y, is_compiled=False)}
    _, tally = fake.compute(tmp_path, fake.plan(methods, 3))
    assert tally.num_computed == 3 - len(found)
