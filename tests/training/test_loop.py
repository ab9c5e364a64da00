"""A whole training: what it leaves, how it goes on, and how it fails."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from diip_jax import load_prior
from diip_jax import prior as priors
from diip_jax.training import __main__ as command
from diip_jax.training import checkpoint, loop, sheets, start, step, validation
from helpers import train_steps
from helpers.disks import small_disk

ROOT = Path(__file__).parents[2]
# Without attention after the blocks: the bottom has some.
SHAPE = ["--image_size=8", "--channel_mult=1", "--attention_factors=2"]
LENGTH = ["--log_steps=1", "--save_steps=4", "--num_validation=4", "--batch_size=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of twelve pictures."""
    made = tmp_path_factory.mktemp("pictures")
    for n in range(12):
        pixels = train_steps.pictures(n, count=1, side=20)[0]
        Image.fromarray(pixels).save(made / f"{n}.png")
    return made


def train(folder, output, *flags):
    arguments = [f"--images={folder}", f"--output={output}", *SHAPE, *LENGTH, *flags]
    return command.main([*arguments, "--quiet"])


def log(output):
    text = (output.with_name(f"{output.name}.training") / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(output):
    return {n["step"]: n["loss"] for n in log(output) if "loss" in n}


def weights(output):
    return jax.tree.leaves(load_prior(str(output)).params)


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    """Return the output of a training of seven steps."""
    output = tmp_path_factory.mktemp("straight") / "mine"
    facts = ["--licence=CC0", "--training_data=noise"]
    assert train(folder, output, "--steps=7", "--nearest", *facts) == 0
    return output


def test_it_leaves_a_prior_with_its_card(uninterrupted):
    prior = load_prior(str(uninterrupted))
    card = prior.card
    assert (card.name, card.licence) == ("mine", "CC0")
    assert card.training_data == "noise"
    assert card.source == "python -m diip_jax.training, from random weights"
    assert card.parameters == sum(leaf.size for leaf in weights(uninterrupted))
    assert len(card.sha256) == 64
    assert card.any_size


def test_it_leaves_a_log_and_pictures_to_look_at(uninterrupted):
    lines = log(uninterrupted)
    assert [n["step"] for n in lines if "loss" in n] == [1, 2, 3, 4, 5, 6, 7]
    validated = [n for n in lines if "validation_loss" in n]
    assert [n["step"] for n in validated] == [4, 7]
    assert list(validated[0]["psnrs"]) == [str(t) for t in validation.TIMESTEPS]
    left = uninterrupted.with_name("mine.training")
    with Image.open(left / "samples.png") as samples:
        assert samples.size == (8 * sheets.NUM_SAMPLES, 3 * 8)  # one row is --nearest
    with Image.open(left / "loss.png") as curve:
        assert curve.format == "PNG"


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(folder, uninterrupted, tmp_path):
    output = tmp_path / "mine"
    arguments = [f"--images={folder}", f"--output={output}", *SHAPE, *LENGTH]
    process = subprocess.Popen(
        [sys.executable, "-m", "diip_jax.training", *arguments, "--steps=7"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    # The state is there before the samples are drawn, whose program takes a while.
    saved = output.with_name("mine.training") / "checkpoints" / "4"
    while process.poll() is None and not saved.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert max(losses(output)) == 4
    assert train(folder, output, "--steps=7") == 0
    check_equal(output, uninterrupted)


def check_equal(output, uninterrupted):
    assert losses(output) == losses(uninterrupted)
    for ours, theirs in zip(weights(output), weights(uninterrupted), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_an_interrupted_training_saves_and_goes_on(
    folder, uninterrupted, tmp_path, monkeypatch
):
    output, asked = tmp_path / "mine", iter([False] * 4 + [True])
    monkeypatch.setattr(command, "_Interruption", _interrupting(asked))
    assert train(folder, output, "--steps=7") == command.EXIT_INTERRUPTED
    assert max(losses(output)) == 5  # it heard after the fifth step, and saved
    monkeypatch.undo()
    with (output.with_name("mine.training") / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1e9}\n{"step": 7, "lo')  # a kill cut it
    assert train(folder, output, "--steps=7") == 0
    check_equal(output, uninterrupted)


def _interrupting(asked):
    class Interruption:
        heard = False

        def __call__(self):
            self.heard = self.heard or next(asked, False)
            return self.heard

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    return Interruption


def test_a_finished_training_is_not_done_again(folder, uninterrupted, capsys):
    before = log(uninterrupted)
    assert train(folder, uninterrupted, "--steps=7") == 0
    assert log(uninterrupted) == before


def test_other_settings_do_not_go_on_unasked(folder, uninterrupted, capsys):
    code = train(folder, uninterrupted, "--steps=9", "--learning_rate=1e-3")
    assert code == command.EXIT_FILE
    assert (
        "other settings; give another --output, or --restart" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_prior_is_trained_further(folder, uninterrupted, tmp_path):
    arguments = [f"--images={folder}", f"--output={tmp_path / 'more'}", *LENGTH]
    more = [f"--init={uninterrupted}", "--steps=1", "--learning_rate=1e-9", "--quiet"]
    assert command.main([*arguments, *more]) == 0
    for ours, theirs in zip(
        weights(tmp_path / "more"), weights(uninterrupted), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-8)  # a step of 1e-9
    assert load_prior(str(tmp_path / "more")).card.source.endswith(str(uninterrupted))


def test_a_loss_that_is_not_finite_ends_it_and_keeps_the_last_save(
    folder, uninterrupted, tmp_path, capsys, monkeypatch
):
    real = step.jitted_train_step()

    def failing(state, *rest):
        broken = jax.tree.map(lambda a: a.at[(0,) * a.ndim].set(np.nan), state.params)
        bad = state._replace(params=broken) if int(state.step) == 5 else state
        return real(bad, *rest)

    monkeypatch.setattr(step, "jitted_train_step", lambda: failing)
    output = tmp_path / "mine"
    assert train(folder, output, "--steps=7") == command.EXIT_DIVERGED
    message = capsys.readouterr().err
    assert (
        "not finite at step 5; step 4 is saved; try a smaller --learning_rate"
        in message
    )
    assert message.count("\n") == 1
    assert max(n["step"] for n in log(output) if "validation_loss" in n) == 4
    assert all(np.isfinite(leaf).all() for leaf in weights(output))


@pytest.mark.parametrize(
    ("flags", "code", "reason"),
    [
        (["--init=nowhere"], command.EXIT_WEIGHTS, "unknown prior 'nowhere'"),
        (["--band=20"], command.EXIT_USAGE, "--band is 20; give two timesteps"),
        (["--band=20,1000"], command.EXIT_USAGE, "of 0 to 999"),
        (["--num_channels=40"], command.EXIT_USAGE, "num_channels is 40"),
        (
            ["--image_size=9", "--channel_mult=1,2"],
            2,
            "image_size is 9; use a multiple",
        ),
        (["--ema_decay=1"], command.EXIT_USAGE, "--ema_decay is 1.0; give one of"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    folder, tmp_path, capsys, flags, code, reason
):
    given = [f"--images={folder}", f"--output={tmp_path / 'x'}", "--steps=1", *flags]
    assert command.main(given) == code
    message = capsys.readouterr().err
    assert reason in message
    assert message.count("\n") == 1
    assert not list(tmp_path.glob("x/card.json"))


def test_init_and_a_shape_exclude_each_other(folder, tmp_path, capsys):
    flags = ["--init=natural64", "--num_channels=64", "--steps=1"]
    given = [f"--images={folder}", f"--output={tmp_path / 'x'}", *flags]
    assert command.main(given) == command.EXIT_USAGE
    assert (
        "--num_channels is 64, but --init natural64 brings" in capsys.readouterr().err
    )


def test_a_prior_is_not_trained_into_itself(folder, uninterrupted, capsys):
    flags = [f"--init={uninterrupted}", f"--output={uninterrupted}", "--steps=1"]
    assert command.main([f"--images={folder}", *flags]) == command.EXIT_USAGE
    assert "give a new folder" in capsys.readouterr().err


def test_a_missing_package_is_said(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert train(folder, tmp_path / "x", "--steps=1") == command.EXIT_USAGE
    assert (
        'training needs grain: pip install "diip-jax[train]"' in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_restart_forgets_what_was_begun(folder, uninterrupted, tmp_path):
    output = tmp_path / "mine"
    assert train(folder, output, "--steps=1") == 0
    assert train(folder, output, "--steps=2", "--learning_rate=1e-3", "--restart") == 0
    assert set(losses(output)) == {1, 2}


def test_an_empty_folder_is_said(tmp_path, capsys):
    given = [f"--images={tmp_path}", f"--output={tmp_path / 'x'}", "--steps=1"]
    assert command.main([*given, *SHAPE]) == command.EXIT_FILE
    assert "0 of 0 files are pictures" in capsys.readouterr().err


def test_an_output_that_is_no_prior_is_a_wrong_flag(folder, tmp_path, capsys):
    (tmp_path / "holiday.jpg").touch()
    assert train(folder, tmp_path, "--steps=1") == command.EXIT_USAGE
    message = capsys.readouterr().err
    assert "--output" in message
    assert "exists and is no prior; give a new folder" in message


@pytest.mark.parametrize(
    ("place", "name"),
    [(checkpoint.ocp.CheckpointManager, "save"), (priors, "save_arrays")],
)
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Error writing [os_error_code='28']"),
    ],
)
def test_a_full_disk_is_said(folder, tmp_path, capsys, monkeypatch, place, name, error):
    """As the system and as TensorStore say it, of a checkpoint and of the prior."""

    def full(*_, **__):
        raise error

    monkeypatch.setattr(place, name, full)
    # Of the name of the others: the card is part of the program.
    assert train(folder, tmp_path / "mine", "--steps=1") == command.EXIT_FILE
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert "mine" in message
    assert message.count("\n") == 1


def test_the_last_and_the_best_state_are_kept(tmp_path):
    state = step.init({"w": np.zeros(3, np.float32)}, step.TrainConfig())
    kept = checkpoint.Checkpoints(tmp_path / "checkpoints")
    for number, loss in enumerate([3.0, 1.0, 2.0, 2.5]):
        about = checkpoint.Saved("digest", float(number), loss)
        kept.save(state._replace(step=jax.numpy.int32(number)), about)
    left = {p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal()}
    assert left == {"1", "3"}
    found, about = kept.latest(state, "digest")
    assert (int(found.step), about.seconds, about.loss) == (3, 3.0, 2.5)
    with pytest.raises(checkpoint.CheckpointError, match="other settings"):
        kept.latest(state, "another")
    kept.close()


def test_a_disk_too_small_for_a_state_is_one_line(tmp_path, capfd):
    state = step.init({"w": np.zeros(50_000, np.float32)}, step.TrainConfig())
    with small_disk(tmp_path / "disk", 300) as disk:  # the state takes 800
        kept = checkpoint.Checkpoints(disk / "checkpoints")
        with pytest.raises(checkpoint.CheckpointError, match="No space left") as caught:
            kept.save(state, checkpoint.Saved("digest", 1.0, 1.0))
        kept.close()
        assert not list((disk / "checkpoints").iterdir())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # no traceback of Orbax


def test_psnrs_follow_from_the_errors_of_eps():
    prior = train_steps.prior()  # its output is zero: the error of eps is its variance
    crops = train_steps.pictures(0)
    found = np.asarray(validation.errors(prior.params, crops, prior.card))
    # The mean of 8x8x8x3 squares of normal numbers: five deviations.
    np.testing.assert_allclose(found, 1, atol=5 * np.sqrt(2 / crops.size))
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for t, psnr in validation.psnrs(np.ones(9), prior.card.schedule).items():
        of_x_0 = (1 - alphas[t]) / alphas[
            t
        ]  # x_0 = (x_t - sqrt(1 - ab) eps) / sqrt(ab)
        assert psnr == pytest.approx(10 * np.log10(2**2 / of_x_0))


def test_the_nearest_crop_is_found_though_it_is_mirrored():
    crops = train_steps.pictures(0, count=20, side=32)
    crops = crops.repeat(2, axis=1).repeat(2, axis=2)  # what 16 pixels a side can show
    near = np.clip(crops[[7, 3]].astype(int) + 2, 0, 255).astype(np.uint8)
    near[1] = near[1, :, ::-1]
    found = sheets.nearest(near, crops)
    np.testing.assert_array_equal(found[0], crops[7])
    np.testing.assert_array_equal(found[1], crops[3, :, ::-1])


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [9, 10, 11, 12])
def test_nothing_is_unsaved_whenever_the_clock_ends(
    folder, tmp_path, monkeypatch, seconds
):
    now = iter(range(10**6))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(now)))
    config = step.TrainConfig(batch_size=8)
    plan = loop.Plan(minutes=seconds / 60, log_steps=1, save_minutes=100)
    pictures = loop.data.find([folder], 8)
    events = list(loop.run(train_steps.prior(), pictures, tmp_path / "x", config, plan))
    assert isinstance(events[-1], loop.Save)
    assert events[-1].step == events[-2].step > 1


@pytest.mark.slow
def test_the_clock_ends_a_training(folder, tmp_path):
    prior = train_steps.prior()
    pictures = loop.data.find([folder], 8)
    config, plan = step.TrainConfig(batch_size=8), loop.Plan(minutes=1e-9)
    events = list(loop.run(prior, pictures, tmp_path / "x", config, plan))
    assert [type(event) for event in events] == [loop.Interval, loop.Save]
    assert events[0].step == 1
    assert load_prior("natural64").card.architecture == start.BUNDLED_SHAPE
