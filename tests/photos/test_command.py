"""The command without its flags: settings, what is counted, what is said where.

Photos are real files; the restoration itself is played by a list of events.
"""

import dataclasses
import json

import pytest

from diip_jax.config import PAPER
from diip_jax.photos import command, plan
from diip_jax.photos.run import Outcome
from diip_jax.photos.terminal import Terminal
from helpers import seeded
from helpers.photos import CONFIG, ONE, SIZE, save


@pytest.fixture
def outcomes(monkeypatch):
    """Let restorations be what a function of the task says, made up at once."""

    def play(make):
        def restore_photos(prior, tasks, config, options, *, should_stop):
            return iter([make(task) for task in tasks])

        monkeypatch.setattr(command, "restore_photos", restore_photos)

    return play


def done(task, status="ok"):
    return Outcome(
        task,
        record={
            "status": status,
            "output": {"path": str(task.output)},
            "stop": {"reason": "high_frequency", "at": 8, "returned": 8},
            "timing": {"total_s": 1.5},
            "warnings": [],
            "metrics": {},
            "found": {"damage": None},
            "work": {"num_starts": 1, "iterations": [8]},
        },
    )


def run(prior, *patterns, terminal=None, options=ONE, **keywords):
    patterns = [str(pattern) for pattern in patterns]
    terminal = Terminal() if terminal is None else terminal
    return command.run(prior, patterns, CONFIG, options, terminal, **keywords)


def test_settings_are_the_preset_with_changes(tiny_prior):
    config = command.settings(tiny_prior, "prior", {"num_steps": 7, "k_min": 9})
    expected = seeded.PRESET.replace(num_steps=7, k_min=9, tile=512, tile_overlap=128)
    assert config == expected
    for name, starts in (("quick", 1), ("default", 1), ("best", 4)):  # the prior has 1
        config = command.settings(tiny_prior, name, {}, size_mode="native")
        assert config == seeded.PRESET.replace(num_starts=starts)
    config = command.settings(tiny_prior, "paper", {}, size_mode="native")
    assert config == PAPER
    with pytest.raises(ValueError, match="tile is 15"):
        command.settings(tiny_prior, "prior", {}, tile=15)
    with pytest.raises(ValueError, match="size_mode is 'half'; use one of auto, nat"):
        command.settings(tiny_prior, "prior", {}, size_mode="half")
    with pytest.raises(ValueError, match="remat is 'all'"):
        command.settings(tiny_prior, "prior", {"remat": "all"})


def test_photos_are_counted(tiny_prior, tmp_path, outcomes, capsys):
    for name in ("a", "b", "c"):
        save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "bad.png").write_text("no picture")
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"))
    outcomes(
        lambda task: (
            Outcome(task, error="cannot write it")
            if task.source.path.stem == "b"
            else done(task)
        )
    )
    summary = run(tiny_prior, tmp_path / "in", options=options)
    assert summary == command.Summary(num_done=2, num_failed=2, interrupted=False)
    said = capsys.readouterr().err
    assert "error: cannot write it" in said
    assert "bad.png" in said
    assert "2 restored, 1 failed, 0 left" in said


def test_an_interrupted_photo_interrupts_the_command(tiny_prior, tmp_path, outcomes):
    outcomes(lambda task: done(task, status="interrupted"))
    summary = run(tiny_prior, save(tmp_path / "x.png"))
    assert summary == command.Summary(num_done=1, num_failed=0, interrupted=True)


def test_a_dry_run_gives_results_on_standard_output(tiny_prior, tmp_path, capsys):
    source = save(tmp_path / "x.png")
    summary = run(tiny_prior, source, dry_run=True)
    assert summary == command.Summary(num_done=1, num_failed=0, interrupted=False)
    assert "x_diip.png" in capsys.readouterr().out
    run(tiny_prior, source, dry_run=True, terminal=Terminal(json=True))
    content = json.loads(capsys.readouterr().out)
    assert content["status"] == "planned"
    assert content["plan"]["size"] == list(SIZE)


def test_many_photos_take_a_folder_of_clean_ones(tiny_prior, tmp_path):
    source = save(tmp_path / "in" / "a.png")
    options = dataclasses.replace(ONE, reference=source)
    with pytest.raises(plan.UsageError, match="a.png is no folder"):
        run(tiny_prior, tmp_path / "in", options=options)


def test_a_deadline_gives_what_is_there_and_is_no_interruption(
    tiny_prior, tmp_path, monkeypatch
):
    told = []

    def restore_photos(prior, tasks, config, options, *, should_stop):
        told.append(should_stop())
        return iter([done(task, status="interrupted") for task in tasks])

    monkeypatch.setattr(command, "restore_photos", restore_photos)
    source = save(tmp_path / "x.png")
    summary = run(tiny_prior, source, max_minutes=0.0)
    assert told == [True]
    assert summary == command.Summary(num_done=1, num_failed=0, interrupted=False)
    summary = run(tiny_prior, source, max_minutes=60.0)
    assert told == [True, False]
    assert summary.interrupted  # somebody else stopped it
