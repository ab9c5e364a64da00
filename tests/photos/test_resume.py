"""Saved states: bit for bit; what is compared with is the state, kept in memory.

That a kill leaves a whole one is shown in test_storage.
"""

import errno
import json
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from diip_jax import engine
from diip_jax.photos import resume
from diip_jax.photos.resume import StateError
from helpers import seeded
from helpers.disks import small_disk
from helpers.photos import LONG as CONFIG
from helpers.photos import SIZE


@pytest.fixture(scope="module")
def snapshots(tiny_prior):
    """Return the states after 3 and after 6 of 12 iterations."""
    job = engine.Job(SIZE, lambda: seeded.image(*SIZE), jax.random.key(0))
    reports = engine.run(tiny_prior, [job], CONFIG, chunk=3)
    kept = [next(reports).running[0].snapshot() for _ in range(2)]
    reports.close()
    return kept


@pytest.fixture(scope="module")
def template(tiny_prior):
    return engine.abstract_state(tiny_prior, SIZE, CONFIG)


def check_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)  # NaN equals NaN here


def test_the_two_states_differ(snapshots):
    first, second = snapshots
    assert (int(first.k), int(second.k)) == (3, 6)
    assert not np.array_equal(first.z, second.z)


def test_round_trip_is_bit_exact_and_leaves_one_folder(tmp_path, snapshots, template):
    path = tmp_path / "sub" / ".x.png.state"
    for snapshot in snapshots:
        resume.save(path, snapshot, "digest")
        check_equal(resume.load(path, template, "digest"), snapshot)
        assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_state_of_other_settings_is_not_taken(tmp_path, snapshots, template):
    resume.save(tmp_path / "s", snapshots[0], "digest")
    assert resume.load(tmp_path / "s", template, "other") is None
    assert not resume.is_saved(tmp_path / "s", "other")
    assert resume.is_saved(tmp_path / "s", "digest")
    assert resume.load(tmp_path / "t", template, "digest") is None


def test_half_a_state_is_no_state(tmp_path, snapshots, template):
    resume.save(tmp_path / "s", snapshots[0], "digest")
    (tmp_path / "s" / "digest.json").unlink()
    assert resume.load(tmp_path / "s", template, "digest") is None


def test_a_damaged_state_is_an_error_with_its_remedy(tmp_path, snapshots, template):
    resume.save(tmp_path / "s", snapshots[0], "digest")
    shutil.rmtree(tmp_path / "s" / "state")
    with pytest.raises(StateError, match="delete it") as caught:
        resume.load(tmp_path / "s", template, "digest")
    assert str(tmp_path / "s") in str(caught.value)


def test_a_state_that_cannot_be_written_is_an_error(tmp_path, snapshots):
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot save"):
        resume.save(tmp_path / "file" / "s", snapshots[0], "digest")


def test_a_state_of_the_version_before_is_gone_on_from(tmp_path, snapshots, template):
    """That version saved the same leaves, asynchronously."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "s" / "state", jax.tree.leaves(snapshots[0]))
    (tmp_path / "s" / "digest.json").write_text(json.dumps("digest"))
    check_equal(resume.load(tmp_path / "s", template, "digest"), snapshots[0])


NO_SPACE = r"cannot save the state: No space left on device \("


def test_a_full_disk_is_an_error_of_one_line(tmp_path, snapshots, capfd):
    with small_disk(tmp_path / "disk", 24) as disk:
        with pytest.raises(StateError, match=NO_SPACE) as caught:
            resume.save(disk / "s", snapshots[0], "digest")
        assert not list(disk.iterdir())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"),
        ValueError(
            "RESOURCE_EXHAUSTED: Failed to write [os_error_code='28']\nand so on"
        ),
        RuntimeError("Failed to write [os_error_code='28']"),
    ],
)
def test_a_disk_that_is_played_to_be_full(tmp_path, snapshots, monkeypatch, error):
    resume.save(tmp_path / "s", snapshots[0], "digest")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(StateError, match=NO_SPACE):
        resume.save(tmp_path / "s", snapshots[1], "digest")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert resume.is_saved(tmp_path / "s", "digest")
