"""`python -m checkpoints_convert`, as a user types it."""

import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_convert import __main__, registry
from diip_jax import prior as priors
from diip_jax.schedule import Schedule
from helpers import seeded
from helpers.checkpoints import (
    ADM_FLAGS,
    SMALL_ADM,
    adm_weights,
    assert_trees_equal,
    run,
    save,
    unet2d_weights,
)
from helpers.pickles import create_by_open

ROOT = Path(__file__).parents[2]


def test_the_command_writes_a_prior_that_loads(adm_file, tmp_path, capsys):
    out = tmp_path / "deep" / "prior"
    assert run(adm_file, out, *ADM_FLAGS) == 0
    assert "prior" in capsys.readouterr().err
    loaded = priors.load(out)
    assert_trees_equal(loaded.params, seeded.to_tree(adm_weights()))
    card = loaded.card
    assert card.architecture == SMALL_ADM
    assert (card.name, card.licence, card.any_size) == ("prior", "CC0", True)
    assert card.parameters == sum(a.size for a in adm_weights().values())
    assert card.sha256 == registry.digest(adm_file)
    assert os.listdir(out.parent) == ["prior"]  # nothing else is left behind
    assert run(adm_file, out, *ADM_FLAGS, "--name", "again") == 0  # in its place
    assert priors.load(out).card.name == "again"


def test_a_diffusers_folder_needs_no_flags(unet2d_folder, tmp_path):
    out = tmp_path / "prior"
    assert run(unet2d_folder, out) == 0
    loaded = priors.load(out)
    assert loaded.card.family == "ddpm"
    assert loaded.card.schedule == Schedule()
    assert not loaded.card.any_size
    assert_trees_equal(loaded.params, seeded.to_tree(unet2d_weights()))


def test_config_files_may_lie_elsewhere(unet2d_folder, tmp_path, capsys):
    alone = tmp_path / "alone"
    alone.mkdir()
    path = save(alone / "w.safetensors", unet2d_weights())
    assert run(path, tmp_path / "a") == 2
    assert "does not reveal config" in capsys.readouterr().err
    files = ["--config", unet2d_folder / "unet" / "config.json"]
    files += ["--scheduler-config", unet2d_folder / "scheduler/scheduler_config.json"]
    assert run(path, tmp_path / "a", *files) == 0
    assert run(path, tmp_path / "b", "--config", tmp_path / "no.json") == 4
    assert "cannot read" in capsys.readouterr().err


def test_exit_codes_and_one_line_messages(adm_file, tmp_path, capsys):
    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps(create_by_open(tmp_path / "victim")))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "holiday.jpg").write_bytes(b"")
    out = tmp_path / "out"
    for arguments, code, message in (
        ([tmp_path / "no.pt", out], 4, "does not exist"),
        ([evil, out], 4, "would run"),
        ([adm_file, out], 2, "does not reveal"),
        ([adm_file, taken, *ADM_FLAGS], 2, "exists and is no prior"),
        ([adm_file, out, "--like", "nobody"], 5, "no checkpoint is called"),
        (["--download", "nobody"], 5, "no checkpoint is called"),
        ([adm_file, out, *ADM_FLAGS, "--image_size=15"], 2, "multiple of 2"),
    ):
        assert run(*arguments) == code
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        assert output.err.count("\n") == 1
        assert message in output.err
    assert not out.exists()
    assert not (tmp_path / "victim").exists()
    zero = [adm_file, out, "--num_train_timesteps=0"]
    for arguments in ([], [adm_file], ["--list", adm_file, out], ["--no"], zero):
        assert run(*arguments) == 2
    capsys.readouterr()


NASTY = "\x1b[2J\n\u202eevil"


@pytest.mark.parametrize(
    "flag", ["--like={}", "--as={}", "--no-such-{}", "--offline={}"]
)
def test_flags_reach_the_terminal_escaped(adm_file, tmp_path, capsys, flag):
    assert run(adm_file, tmp_path / "out", *ADM_FLAGS, flag.format(NASTY)) in (2, 5)
    said = capsys.readouterr().err
    assert r"\x1b[2J\n\u202eevil" in said.replace(r"\\", "\\")
    assert all(line.isprintable() for line in said.splitlines())


def test_names_in_files_reach_the_terminal_escaped(tmp_path, capsys):
    path = save(
        tmp_path / f"{NASTY}.safetensors", {f"fc{NASTY}": adm_weights()["out.2.bias"]}
    )
    assert run(path, tmp_path / "out") == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.strip().isprintable()
    assert r"such as fc\x1b[2J\n" in said


def test_endless_names_are_cut(adm_file, tmp_path, capsys):
    assert run(adm_file, tmp_path / "out", *ADM_FLAGS, f"--like={'x' * 100_000}") == 5
    said = capsys.readouterr().err
    assert len(said) < 2500
    assert "`python -m checkpoints_convert --list` shows all" in said
    assert run("--download", "natural64", f"--num_heads={'1' * 100_000}") == 2
    assert len(capsys.readouterr().err) < 5000


def test_a_place_where_nothing_can_be_written_is_a_wrong_flag(adm_file, capsys):
    """Known before the file is read."""
    below_a_file = adm_file / "deep" / "out"
    too_long = adm_file.parent / ("x" * 300)
    places = [below_a_file, too_long, "/proc/out", "/proc/deep/out"]
    for place in places if Path("/proc/self").exists() else places[:2]:
        assert run(adm_file, place) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: cannot write ")
        assert said.count("\n") == 1


def test_exit_codes_are_documented():
    text = " ".join(__main__.parser().format_help().split())
    table = (ROOT / "docs" / "checkpoints.md").read_text()
    for name, code in vars(__main__).items():
        if name.startswith("EXIT_") and isinstance(code, int):
            assert f"| {code} |" in table
            assert f" {code} " in text.partition("exit codes:")[2]


def test_list_shows_the_registry(capsys):
    assert run("--list") == 0
    shown = capsys.readouterr().out
    for name in registry.public():
        assert name in shown


def test_the_program_runs_without_pytorch(tmp_path, shared):
    """As a user without torch would: another process, from the bundled prior's file."""
    file = shared / "priors" / "natural64.pt"
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['safetensors'] = None\n"
        "from checkpoints_convert.__main__ import cli\n"
        f"sys.argv = ['x', {str(file)!r}, 'out']\n"
        "cli()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bundled, made = priors.load("natural64"), priors.load(tmp_path / "out")
    # The bundled one was made by this command, perhaps from an earlier file.
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert made.card == dataclasses.replace(bundled.card, sha256=digest)
    if made.card.sha256 == bundled.card.sha256:
        assert_trees_equal(made.params, bundled.params)
    torch = pytest.importorskip("torch")
    tensors = torch.load(file, weights_only=True)
    expected = seeded.to_tree({name: t.numpy() for name, t in tensors.items()})
    assert_trees_equal(made.params, expected)
