"""The JSON record: a schema that is written down here, and numbers that JSON can hold.

The expected values are set by hand on made-up restorations; digests come from hashlib.
"""

import dataclasses
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from diip_jax.config import DEFAULT, PAPER
from diip_jax.diip import Restoration, StopReason
from diip_jax.images import ImageError
from diip_jax.photos import record
from helpers import seeded

BUDGET = 12
CONFIG = seeded.PRESET.replace(max_iterations=BUDGET)


def restoration(**changes):
    trace = np.full(12, np.nan, np.float32)
    trace[:4] = 1.0, 0.5, 0.25, 0.25
    fields = {
        "image": np.full((8, 8, 3), 0.5, np.float32),
        "iteration": np.int32(2),
        "num_iterations": np.int32(4),
        "reason": np.int32(StopReason.HIGH_FREQUENCY),
        "no_peak": np.bool_(False),
        "last_peak": np.int32(0),
        "losses": trace,
        "decreases": np.where(np.arange(12) == 0, np.nan, trace),
        "sharpnesses": trace,
        "z": np.zeros((8, 8, 3), np.float32),
        "uncertainty": np.zeros((8, 8, 3), np.float32),
    }
    return Restoration(**(fields | changes))


def test_stop():
    assert record.stop(restoration(), BUDGET) == {
        "reason": "high_frequency",
        "criterion": "H",
        "at": 3,
        "returned": 2,
        "last_lv_peak": None,
        "no_peak": False,
        "decrease": 0.25,
    }


@pytest.mark.parametrize(
    ("reason", "done", "expected", "letter", "warning"),
    [
        (StopReason.HIGH_FREQUENCY, 4, "high_frequency", "H", None),
        (StopReason.LOW_FREQUENCY, 4, "low_frequency", "L", None),
        (StopReason.DIVERGED, 4, "diverged", None, "diverged"),
        (StopReason.MAX_ITERATIONS, 12, "max_iterations", None, "no_stop"),
        (StopReason.MAX_ITERATIONS, 4, "interrupted", None, "interrupted"),
    ],
)
def test_every_way_to_end(reason, done, expected, letter, warning):
    answer = restoration(reason=np.int32(reason), num_iterations=np.int32(done))
    stop = record.stop(answer, BUDGET)
    assert (stop["reason"], stop["criterion"]) == (expected, letter)
    calm = {"mean_rgb": [0.0, 0.0, 0.0]}
    complete = record.is_complete(answer, BUDGET)
    assert complete is (expected != "interrupted")
    codes = record.warnings([answer], complete, calm, "native", None)
    assert codes == ([] if warning is None else [warning])


@pytest.mark.parametrize(
    ("changes", "mean_rgb", "mode", "damage", "expected"),
    [
        ({"no_peak": np.bool_(True)}, [0.0, 0.0, 0.0], "native", None, ["no_peak"]),
        ({}, [0.0, -0.021, 0.0], "tile", None, ["colour_shift"]),
        ({}, [0.019, 0.0, None], "tile", None, []),
        ({}, [0.0, 0.0, 0.0], "fit", None, ["scaled_down"]),
        ({}, [0.0, 0.0, 0.0], "tile", 0.009**2, ["nothing_found"]),
        ({}, [0.0, 0.0, 0.0], "tile", 0.011**2, []),
        # A matched start may end at its budget: it is settled all the same.
        ({"reason": np.int32(0)}, [0.0, 0.0, 0.0], "tile", 0.1, []),
    ],
)
def test_warnings(changes, mean_rgb, mode, damage, expected):
    change, starts = {"mean_rgb": mean_rgb}, [restoration(), restoration(**changes)]
    assert record.warnings(starts, True, change, mode, damage) == expected


def test_the_work_of_starts_is_counted():
    """A look at the photo, one at each start, and the iterations with a gradient."""
    starts = [restoration(num_iterations=np.int32(n)) for n in (0, 2, 3)]
    config = DEFAULT.replace(num_steps=2, num_starts=3)
    assert record.restored_by(starts, config) == {
        "num_starts": 3,
        "iterations": [0, 2, 3],
        "evaluations": 7,
        "evaluations_with_gradient": 10,
    }
    assert record.restored_by(starts[1:2], PAPER)["evaluations"] == 0


def test_what_was_found_is_in_the_range_of_the_photo():
    found = record.found(0.04, np.full((2, 2, 3), 0.3))
    assert found == {"damage": 0.1, "uncertainty": 0.3}
    assert record.found(None, np.zeros((2, 2, 3)))["damage"] is None


def test_a_first_look_alone_leaves_its_loss():
    looked = np.full(12, np.nan, np.float32)
    looked[0] = 0.5
    answer = restoration(num_iterations=np.int32(0), losses=looked)
    assert record.curves(answer)["loss"] == [0.5]
    assert record.stop(answer, BUDGET)["at"] == 0


def test_change():
    degraded = np.zeros((2, 2, 3), np.float32)
    restored = np.zeros((2, 2, 3), np.float32)
    restored[0, 0, 1] = 1.0
    change = record.change(degraded, restored)
    assert change["mean_rgb"] == [0.0, 0.25, 0.0]
    assert change["rmse_to_input"] == pytest.approx(np.sqrt(1 / 12), rel=1e-5)


def test_curves_end_with_the_iterations_and_hold_no_nan():
    curves = record.curves(restoration())
    assert curves["loss"] == [1.0, 0.5, 0.25, 0.25]
    assert curves["decrease"][0] is None
    assert set(curves) == {"loss", "decrease", "lap_var"}


def test_rounded():
    values = {"a": np.inf, "b": None, "c": 1 / 3, "d": float("nan")}
    expected = {"a": None, "b": None, "c": 0.333333, "d": None}
    assert record.rounded(values) == expected


def test_the_hash_of_settings_changes_with_everything_that_decides_pixels():
    card = seeded.card(seeded.TINY)
    hashes = [
        record.config_hash(card, CONFIG),
        record.config_hash(card, CONFIG.replace(epsilon=2e-3)),
        record.config_hash(card, CONFIG.replace(max_iterations=13)),
        record.config_hash(card, CONFIG.replace(tile=16)),
        record.config_hash(dataclasses.replace(card, sha256="1" * 64), CONFIG),
        record.config_hash(card, CONFIG, seed=1),
        record.config_hash(card, CONFIG, seed=2),
    ]
    assert len(set(hashes)) == len(hashes)
    assert hashes[0] == record.config_hash(card, CONFIG.replace())


def test_sha256(tmp_path):
    data = os.urandom(100_000)
    (tmp_path / "x").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert record.sha256(tmp_path / "x") == expected
    assert record.sha256(io.BytesIO(data)) == expected
    with pytest.raises(ImageError, match="cannot read"):
        record.sha256(tmp_path / "y")


# On disk.


def test_write_and_read(tmp_path):
    path = tmp_path / "x.json"
    odd = os.fsdecode(b"\xff.png")  # a name that is not UTF-8
    content = {"schema": record.SCHEMA, "a": "čeština", "b": [None, 1.5], "odd": odd}
    record.write_beside(path.with_suffix(".png"), b"picture", content)
    assert record.read(path) == content
    assert "čeština" in path.read_text("utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.png"]


def test_nan_never_reaches_a_file(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write_beside(tmp_path / "x.png", b"", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"schema": "other/1"}', "1"])
def test_what_is_not_a_record_is_none(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    assert record.read(tmp_path / "x.json") is None
    assert record.read(tmp_path / "nowhere.json") is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"status": "interrupted"}, False),
        ({"status": "failed"}, False),
        ({"config_hash": "other"}, False),
        ({"input": {"sha256": "other"}}, False),
        ({"input": None}, False),
    ],
)
def test_is_finished(changes, expected):
    content = {"status": "ok", "config_hash": "c", "input": {"sha256": "s"}} | changes
    assert record.is_finished(content, "c", "s") is expected
    assert not record.is_finished(None, "c", "s")


def test_failure_is_a_record_of_its_own_kind():
    content = record.failure(Path("in/x.png"), "cannot read in/x.png: why", 4)
    assert json.loads(json.dumps(content)) == {
        "schema": "diip.result/1",
        "status": "failed",
        "input": {"path": "in/x.png"},
        "error": {"message": "cannot read in/x.png: why", "exit_code": 4},
    }
