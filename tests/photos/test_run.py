"""Photos through `plan`, `sizing` and `run`, from file to file.

The partner is `engine.restore_many` on arrays: what a file holds must be what it gives,
rounded. Orders of events are set up by hand, kills by leaving a run half-way.
"""

import dataclasses
import errno
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diip_jax import engine, images, metrics, restore, storage
from diip_jax.config import DEFAULT
from diip_jax.photos import find, plan, record, run, sizing
from diip_jax.photos.plan import Options
from diip_jax.photos.run import Outcome, Progress
from helpers import seeded
from helpers.photos import CONFIG, LONG, ONE, SIZE, planned, save


def restored(prior, tasks, config=CONFIG, options=ONE, **keywords):
    """Return the outcomes and the progress of a run."""
    events = list(run.restore_photos(prior, tasks, config, options, **keywords))
    outcomes = [event for event in events if isinstance(event, Outcome)]
    return outcomes, [event for event in events if isinstance(event, Progress)]


def test_a_file_holds_what_the_engine_gives(tiny_prior, tmp_path):
    save(tmp_path / "x.png")
    decided = planned(tiny_prior, [tmp_path / "x.png"])
    (outcome,), _ = restored(tiny_prior, decided.tasks)
    y = images.read(tmp_path / "x.png").rgb
    key = jax.random.fold_in(jax.random.key(0), find.name_hash(Path("x.png")))
    job = engine.Job(SIZE, lambda: y, key)
    *_, last = engine.run(tiny_prior, [job], CONFIG)
    answer = last.finished[0].restoration()
    written = np.asarray(Image.open(tmp_path / "x_diip.png"))
    np.testing.assert_array_equal(written, np.rint(255 * np.clip(answer.image, 0, 1)))

    content = json.loads((tmp_path / "x_diip.json").read_text())
    assert content == outcome.record
    assert content["schema"] == "diip.result/1"
    assert content["status"] == "ok"
    assert content["input"]["sha256"] == record.sha256(tmp_path / "x.png")
    assert content["stop"] == record.stop(answer, CONFIG.max_iterations)
    assert content["curves"] == record.curves(answer)
    assert content["model"]["licence"] == "Apache-2.0"
    assert content["config"]["size_mode"] == "native"
    assert content["config"]["num_tiles"] == 1
    assert content["output"] == {
        "path": str(tmp_path / "x_diip.png"),
        "size": [16, 16],
    }
    assert content["metrics"]["psnr"] is None
    assert content["timing"]["s_per_iter"] > 0
    assert content["timing"]["total_s"] >= content["timing"]["compile_s"]
    names = ["x.png", "x_diip.json", "x_diip.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_seconds_per_iteration_are_those_of_the_iterations_alone(
    tiny_prior, tmp_path, monkeypatch
):
    # A chunk ends early where its image stops; and compiling is no iteration.
    ticks = iter(range(0, 10_000))
    monkeypatch.setattr(engine.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(run, "SECONDS_PER_CHUNK", 1e6)
    decided = planned(tiny_prior, [save(tmp_path / "x.png")])
    (outcome,), _ = restored(tiny_prior, decided.tasks)
    # The engine looks at the clock before and after each call: one tick apart. The
    # first call compiles, the second does one iteration, the third all the others.
    iterations, timing = outcome.record["stop"]["at"] + 1, outcome.record["timing"]
    assert iterations < CONFIG.max_iterations
    assert timing["compile_s"] == 1.0
    assert timing["s_per_iter"] == pytest.approx(2 / iterations, rel=1e-5)


def test_fit_restores_a_smaller_picture_and_gives_back_the_size(tiny_prior, tmp_path):
    source = save(tmp_path / "x.png", seeded.image(32, 30))
    config = sizing.settings(tiny_prior, CONFIG, "fit", 16, None)
    options = dataclasses.replace(ONE, size_mode="fit")
    decided = planned(tiny_prior, [source], config, options)
    (outcome,), _ = restored(tiny_prior, decided.tasks, config, options)
    y = sizing.resize(images.read(source).rgb, (16, 15))
    key = plan.key(0, Path("x.png"))
    *_, last = engine.run(tiny_prior, [engine.Job((16, 15), lambda: y, key)], config)
    expected = sizing.resize(last.finished[0].restoration().image, (32, 30))
    written = images.read(tmp_path / "x_diip.png").rgb
    assert np.abs(written - expected).max() <= 0.51 / 255  # rounding
    assert outcome.record["config"]["size_mode"] == "fit"
    assert outcome.record["output"]["size"] == [30, 32]
    assert "scaled_down" in outcome.record["warnings"]


def test_the_same_photo_has_the_same_start_in_any_company(tiny_prior, tmp_path):
    for n in range(4):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    keys = []

    def started(patterns, **options):
        seen = {}
        original = engine.run

        def spy(prior, jobs, *args, **kwargs):
            plan_names = [task.source.relative.name for task in decided.tasks]
            seen.update(zip(plan_names, (j.key for j in jobs), strict=True))
            return original(prior, jobs, *args, **kwargs)

        chosen = dataclasses.replace(ONE, output=str(tmp_path / "out"), **options)
        decided = planned(tiny_prior, patterns, options=chosen)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "run", spy)
            outcomes, _ = restored(tiny_prior, decided.tasks, options=chosen)
        keys.append(jax.random.key_data(seen["2.png"]))
        (mine,) = [o for o in outcomes if o.task.source.relative.name == "2.png"]
        return mine.record["stop"], images.read(mine.task.output).rgb

    alone = started([tmp_path / "in" / "2.png"])
    in_four = started([tmp_path / "in"], num_lanes=4, overwrite=True)
    np.testing.assert_array_equal(keys[0], keys[1])
    assert in_four[0]["at"] == alone[0]["at"]
    # Lanes may be added up in another order: one grey level where a value is halfway.
    assert np.abs(in_four[1] - alone[1]).max() <= 1.01 / 255


def test_a_file_that_goes_away_during_the_run_does_not_stop_the_others(
    tiny_prior, tmp_path
):
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / "in" / name)
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"))
    decided = planned(tiny_prior, [tmp_path / "in"], options=options)
    (tmp_path / "in" / "a.png").unlink()
    save(tmp_path / "in" / "b.png", seed=7)  # other pixels than were planned
    outcomes, progress = restored(tiny_prior, decided.tasks, options=options)
    errors = {o.task.source.path.name: o.error for o in outcomes}
    assert "No such file" in errors["a.png"]
    assert "changed during the run" in errors["b.png"]
    assert errors["c.png"] is None
    assert progress[-1].num_done == 3
    out = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert out == ["c_diip.json", "c_diip.png"]


def test_an_output_that_cannot_be_written_in_the_end_is_a_failure(tiny_prior, tmp_path):
    decided = planned(tiny_prior, [save(tmp_path / "x.png")])
    (tmp_path / "x_diip.png").mkdir()  # after it was tried
    (outcome,), _ = restored(tiny_prior, decided.tasks)
    assert "cannot write" in outcome.error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.png", "x_diip.png"]


def test_a_result_that_cannot_be_written_leaves_the_earlier_one(
    tiny_prior, tmp_path, monkeypatch
):
    """A full disk, at the picture: the earlier result is still known to be one."""
    source = save(tmp_path / "x.png")
    restored(tiny_prior, planned(tiny_prior, [source]).tasks)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    num_written = []

    def full(_):
        num_written.append(1)
        if len(num_written) == 2:  # after a record, and before another
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    options = dataclasses.replace(ONE, seed=1)
    decided = planned(tiny_prior, [source], options=options)
    (outcome,), _ = restored(tiny_prior, decided.tasks, options=options)
    assert "x_diip.png: No space left on device" in outcome.error
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert find.is_result(tmp_path / "x_diip.png")


# Runs that are cut short.


def test_the_record_says_what_the_format_cannot_hold(tiny_prior, tmp_path):
    told = PngInfo()
    told.add_text("Title", "a title")
    path = save(tmp_path / "x.png", pnginfo=told)
    (into_png,), _ = restored(tiny_prior, planned(tiny_prior, [path]).tasks)
    assert not [w for w in into_png.record["warnings"] if "kept" in w]
    options = dataclasses.replace(ONE, ext="jpg")
    decided = planned(tiny_prior, [path], options=options)
    (into_jpeg,), _ = restored(tiny_prior, decided.tasks, options=options)
    (warning,) = [w for w in into_jpeg.record["warnings"] if "kept" in w]
    assert warning == "the text of the PNG is not kept: JPEG cannot hold it"


def test_finished_photos_are_passed_over(tiny_prior, tmp_path):
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"))
    for name in ("a.png", "b.png"):
        save(tmp_path / "in" / name)
    restored(
        tiny_prior,
        planned(tiny_prior, [tmp_path / "in"], options=options).tasks,
        options=options,
    )

    def left(config=CONFIG, **changes):
        changed = dataclasses.replace(options, **changes)
        decided = planned(tiny_prior, [tmp_path / "in"], config, changed)
        return [task.source.path.name for task in decided.tasks]

    assert left() == []
    assert left(num_lanes=2, save_every=3) == []  # these decide no pixel
    assert left(overwrite=True) == ["a.png", "b.png"]
    assert left(seed=1) == ["a.png", "b.png"]
    assert left(ext="webp") == ["a.png", "b.png"]
    assert left(CONFIG.replace(k_min=5)) == ["a.png", "b.png"]
    save(tmp_path / "in" / "a.png", seed=5)
    assert left() == ["a.png"]
    (tmp_path / "out" / "b_diip.png").unlink()
    assert left() == ["a.png", "b.png"]


def test_an_interrupted_run_saves_what_it_has_and_is_not_finished(tiny_prior, tmp_path):
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"), num_lanes=2)
    for n in range(3):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    decided = planned(tiny_prior, [tmp_path / "in"], LONG, options)
    outcomes, _ = restored(
        tiny_prior, decided.tasks, LONG, options, should_stop=lambda: True
    )
    assert [o.task.source.path.name for o in outcomes] == ["0.png", "1.png"]
    for outcome in outcomes:
        assert outcome.record["status"] == "interrupted"
        assert outcome.record["stop"]["reason"] == "interrupted"
        assert images.read(outcome.task.output).rgb.shape == (*SIZE, 3)
    decided = planned(tiny_prior, [tmp_path / "in"], LONG, options)
    assert len(decided.tasks) == 3
    assert not decided.finished


def test_a_photo_that_ends_in_the_last_chunk_is_not_called_interrupted(
    tiny_prior, tmp_path, monkeypatch
):
    monkeypatch.setattr(run._Run, "_chunk", lambda *_: 100)
    decided = planned(tiny_prior, [save(tmp_path / "x.png")])
    (outcome,), _ = restored(tiny_prior, decided.tasks, should_stop=lambda: True)
    assert outcome.record["status"] == "ok"


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_going_on_from_a_saved_state_is_bit_identical(tiny_prior, tmp_path, num_lanes):
    """The first run is left half-way, as a kill would; the second is never told."""
    names = ["a.png", "b.png", "c.png"]
    for n, name in enumerate(names):
        save(tmp_path / "in" / name, seed=n)
    whole = dataclasses.replace(
        ONE, output=str(tmp_path / "whole"), num_lanes=num_lanes
    )
    decided = planned(tiny_prior, [tmp_path / "in"], LONG, whole)
    restored(tiny_prior, decided.tasks, LONG, whole)

    half = dataclasses.replace(whole, output=str(tmp_path / "half"), save_every=3)
    decided = planned(tiny_prior, [tmp_path / "in"], LONG, half)
    events = run.restore_photos(tiny_prior, decided.tasks, LONG, half)
    progress = (e for e in events if isinstance(e, Progress) and e.lanes)
    # One lane: the first photo is done and the second begun. Two lanes: both begun.
    next(p for p in progress if p.lanes[-1].job == 1 and p.lanes[-1].iteration > 6)
    events.close()
    states = list((tmp_path / "half").glob(".*.state"))
    assert len(states) == num_lanes
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "half").glob("[!.]*")}
    assert len(finished) == (2 if num_lanes == 1 else 0)  # a picture and its record

    again = dataclasses.replace(half, save_every=0)  # what is there is gone on from
    decided = planned(tiny_prior, [tmp_path / "in"], LONG, again)
    assert len(decided.finished) == len(finished) // 2
    outcomes, _ = restored(tiny_prior, decided.tasks, LONG, again)
    resumed = [o for o in outcomes if o.record["resumed_from"]]
    assert len(resumed) == len(states)
    assert all(o.record["resumed_from"] >= 3 for o in resumed)
    for name in names:
        stem = name.replace(".png", "_diip")
        one, other = tmp_path / "whole" / stem, tmp_path / "half" / stem
        pair = [p.with_suffix(".png").read_bytes() for p in (one, other)]
        assert pair[0] == pair[1]
        records = [json.loads(p.with_suffix(".json").read_text()) for p in (one, other)]
        assert records[0]["curves"] == records[1]["curves"]
        assert len(records[0]["curves"]["loss"]) == LONG.max_iterations
    assert all(p.stat().st_mtime_ns == time for p, time in finished.items())
    assert not list((tmp_path / "half").glob(".*"))


def test_a_state_of_another_photo_or_other_settings_is_not_gone_on_from(
    tiny_prior, tmp_path
):
    source = save(tmp_path / "x.png")
    options = dataclasses.replace(ONE, save_every=1)
    decided = planned(tiny_prior, [source], LONG, options)
    restored(tiny_prior, decided.tasks, LONG, options, should_stop=lambda: True)
    assert (tmp_path / ".x_diip.png.state").is_dir()  # kept: it was interrupted

    def resumed(config=LONG, **changes):
        changed = dataclasses.replace(options, save_every=0, **changes)
        decided = planned(tiny_prior, [source], config, changed)
        stop = {"should_stop": lambda: True}
        (outcome,), _ = restored(tiny_prior, decided.tasks, config, changed, **stop)
        return outcome.record["resumed_from"]

    assert resumed() == 1
    assert resumed(seed=1) is None
    assert resumed(overwrite=True) is None
    assert resumed(LONG.replace(learning_rate=0.01)) is None
    save(source, seed=3)
    assert resumed() is None


def test_a_damaged_state_fails_its_photo_and_no_other(tiny_prior, tmp_path):
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"), save_every=1)
    for name in ("a.png", "b.png"):
        save(tmp_path / "in" / name)
    decided = planned(tiny_prior, [tmp_path / "in"], options=options)
    digest = f"{plan.digest(tiny_prior, CONFIG, options)}-{decided.tasks[0].sha256}"
    (tmp_path / "out" / ".a_diip.png.state").mkdir(parents=True)
    content = json.dumps(digest)
    (tmp_path / "out" / ".a_diip.png.state" / "digest.json").write_text(content)
    outcomes, _ = restored(tiny_prior, decided.tasks, options=options)
    errors = {o.task.source.path.name: o.error for o in outcomes}
    assert "is damaged" in errors["a.png"]
    assert "delete it" in errors["a.png"]
    assert errors["b.png"] is None


# Against a reference.


def test_scores_are_those_of_the_written_file(tiny_prior, tmp_path):
    clean, noisy = seeded.image(*SIZE, seed=3), seeded.image(*SIZE, seed=0)
    source = save(tmp_path / "x.png", noisy)
    reference = save(tmp_path / "clean.png", clean)
    options = dataclasses.replace(ONE, reference=reference)
    decided = planned(tiny_prior, [source], options=options)
    (outcome,), progress = restored(tiny_prior, decided.tasks, options=options)
    scores = outcome.record["metrics"]
    true = images.read(reference).rgb
    written = images.read(tmp_path / "x_diip.png").rgb
    before = images.read(source).rgb
    # The record keeps six digits.
    assert scores["psnr"] == pytest.approx(metrics.psnr(true, written), rel=1e-5)
    assert scores["ssim"] == pytest.approx(metrics.ssim(true, written), rel=1e-5)
    assert scores["psnr_before"] == pytest.approx(metrics.psnr(true, before), rel=1e-5)
    assert scores["ssim_before"] == pytest.approx(metrics.ssim(true, before), rel=1e-5)
    assert scores["oracle_psnr"] >= scores["psnr"]
    assert 0 <= scores["oracle_iteration"] < CONFIG.max_iterations
    # The run went on past its stop, but the record is of the stop.
    assert outcome.record["stop"]["at"] < CONFIG.max_iterations - 1
    seen = [lane.iteration for event in progress for lane in event.lanes]
    assert seen == list(range(CONFIG.max_iterations))


def test_an_interrupted_run_has_no_oracle(tiny_prior, tmp_path):
    reference = save(tmp_path / "clean.png")
    options = dataclasses.replace(ONE, reference=reference)
    decided = planned(tiny_prior, [save(tmp_path / "x.png", seed=1)], options=options)
    (outcome,), _ = restored(
        tiny_prior, decided.tasks, options=options, should_stop=lambda: True
    )
    assert outcome.record["metrics"]["psnr"] is not None
    assert outcome.record["metrics"]["oracle_psnr"] is None


def test_each_photo_of_a_folder_has_its_own_reference(tiny_prior, tmp_path):
    clean = {"a": seeded.image(*SIZE, seed=3), "sub/b": seeded.image(*SIZE, seed=4)}
    for seed, (name, picture) in enumerate(clean.items()):
        save(tmp_path / "in" / f"{name}.png", seed=seed)
        save(tmp_path / "clean" / f"{name}.bmp", picture)
    save(tmp_path / "in" / "c.png", seed=2)
    save(tmp_path / "in" / "d.png", seed=2)
    for suffix in ("png", "bmp"):
        save(tmp_path / "clean" / f"d.{suffix}")
    options = Options(
        output=str(tmp_path / "out"), reference=tmp_path / "clean", num_lanes=2
    )
    decided = planned(tiny_prior, [tmp_path / "in"], options=options, recursive=True)
    reasons = {path.name: reason for path, reason in decided.failed}
    assert "has nothing for c.png" in reasons["c.png"]
    assert sorted(task.source.path.stem for task in decided.tasks) == ["a", "b", "d"]
    outcomes, _ = restored(tiny_prior, decided.tasks, options=options)
    scores = {o.task.source.path.stem: o.record["metrics"] for o in outcomes}
    for name, picture in clean.items():
        written = images.read(tmp_path / "out" / f"{name}_diip.png").rgb
        true = np.uint8(255 * picture) / 255
        stem = Path(name).stem
        expected = metrics.psnr(true, written)
        assert scores[stem]["psnr"] == pytest.approx(expected, rel=1e-5)
        assert scores[stem]["oracle_psnr"] >= scores[stem]["psnr"]


def test_finished_photos_without_scores_are_done_again_for_them(tiny_prior, tmp_path):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "clean" / "a.png", seed=1)
    options = Options(output=str(tmp_path / "out"))
    compared = dataclasses.replace(options, reference=tmp_path / "clean")
    for settings, tasks in ((options, 1), (options, 0), (compared, 1), (compared, 0)):
        decided = planned(tiny_prior, [tmp_path / "in"], options=settings)
        assert len(decided.tasks) == tasks
        restored(tiny_prior, decided.tasks, options=settings)


def test_what_is_left_shrinks_to_nothing(tiny_prior, tmp_path, monkeypatch):
    monkeypatch.setattr(run._Run, "_chunk", lambda *_: 3)
    config = LONG
    for n in range(2):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"))
    decided = planned(tiny_prior, [tmp_path / "in"], config, options)
    _, progress = restored(tiny_prior, decided.tasks, config, options)
    left = [p.left / p.seconds_per_iteration for p in progress if p.lanes]
    # Two photos of 12 iterations each, one lane, three at a time.
    assert left == pytest.approx([21, 18, 15, 12, 9, 6, 3, 0])


# Several starts of one photo.

# Told that there is next to no damage, every start iterates to its budget.
STARTS = DEFAULT.replace(
    num_starts=4, max_iterations=3, noise_level=0.001, start_noise=0.2
)


@pytest.mark.slow
def test_a_photo_is_the_mean_of_its_starts(tiny_prior, tmp_path):
    decided = planned(tiny_prior, [save(tmp_path / "x.png")], STARTS)
    (outcome,), progress = restored(tiny_prior, decided.tasks, STARTS)
    y = images.read(tmp_path / "x.png").rgb
    key = plan.key(0, Path("x.png"))
    answer = jax.jit(restore)(tiny_prior, y, key, STARTS)
    written = images.read(tmp_path / "x_diip.png").rgb
    assert np.abs(written - answer.image).max() <= 0.51 / 255  # rounding
    assert outcome.record["work"] == {
        "num_starts": 4,
        "iterations": [3, 3, 3, 3],
        "evaluations": 5,
        "evaluations_with_gradient": 12,
    }
    assert outcome.record["status"] == "ok"
    spread = np.sqrt(np.mean(np.square(answer.uncertainty)))
    assert outcome.record["found"]["uncertainty"] == pytest.approx(spread, rel=1e-3)
    assert outcome.record["found"]["damage"] == pytest.approx(0.001, rel=1e-3)
    assert progress[-2].left >= 0


@pytest.mark.slow
def test_an_interrupted_photo_is_the_mean_of_the_starts_so_far(tiny_prior, tmp_path):
    options = dataclasses.replace(ONE, save_every=100)
    decided = planned(tiny_prior, [save(tmp_path / "x.png")], STARTS, options)
    asked = iter([False, False, True])  # one start, one lane, a chunk each

    def run_once(should_stop):
        (outcome,), _ = restored(
            tiny_prior, decided.tasks, STARTS, options, should_stop=should_stop
        )
        return outcome.record

    first = run_once(lambda: next(asked))
    assert first["status"] == "interrupted"
    assert 1 <= first["work"]["num_starts"] < 4
    states = {p.name for p in tmp_path.glob(".*.state")}
    assert len(states) == first["work"]["num_starts"]

    second = run_once(lambda: False)  # goes on: nothing done is lost
    assert second["status"] == "ok"
    assert second["work"]["num_starts"] == 4
    assert second["resumed_from"] > 0
    assert not list(tmp_path.glob(".*.state"))
    y = images.read(tmp_path / "x.png").rgb
    answer = jax.jit(restore)(tiny_prior, y, plan.key(0, Path("x.png")), STARTS)
    written = images.read(tmp_path / "x_diip.png").rgb
    assert np.abs(written - answer.image).max() <= 1.01 / 255  # a value halfway


@pytest.mark.slow  # four starts to the end of the budget, twice
def test_the_best_stop_of_starts_is_that_of_their_mean(tiny_prior, tmp_path):
    source = save(tmp_path / "x.png")
    clean = save(tmp_path / "clean" / "x.png", seeded.image(*SIZE, 5))
    options = dataclasses.replace(ONE, reference=clean)
    # All of y is damage: the first look is enough, and the best stop is looked for.
    config = STARTS.replace(noise_level=1.0)
    decided = planned(tiny_prior, [source], config, options)
    (outcome,), _ = restored(tiny_prior, decided.tasks, config, options)
    scores, truth = outcome.record["metrics"], images.read(clean).rgb
    y = images.read(source).rgb
    never = config.replace(criterion="never")
    means = np.zeros((3, *y.shape), np.float32)
    job = engine.Job(SIZE, lambda: y, plan.key(0, Path("x.png")))
    for report in engine.run(tiny_prior, [job], never, chunk=1):
        for lane in [*report.running, *report.finished]:
            means[lane.iteration] += lane.restoration().image / 4
    psnrs = [metrics.psnr(truth, np.rint(255 * mean) / 255) for mean in means]
    assert scores["oracle_iteration"] == int(np.argmax(psnrs))
    assert scores["oracle_psnr"] == pytest.approx(max(psnrs), abs=0.01)
    assert outcome.record["work"]["evaluations_with_gradient"] == 0
