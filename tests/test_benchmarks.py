"""The benchmarks' arithmetic and records; what they measure is not asserted here."""

import importlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from checkpoints_convert import registry
from diip_jax import canvas, engine, images, metrics
from diip_jax.config import DEFAULT, PAPER
from helpers import seeded

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "cases")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let the scripts import each other by name, as when they are run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield
    # Such names as "engine" are the scripts' only as long as their folder is searched.
    for name in {*SCRIPTS, "cases"} - before:
        sys.modules.pop(name, None)


def load(name):
    if name in ("vs_torch", "train_step"):
        pytest.importorskip("torch")
        pytest.importorskip("azula")
    return importlib.import_module(name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        load(script).main()
    assert end.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_the_readme_lists_every_script():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{script}.py`" in text for script in SCRIPTS)


def test_runs_alternate_and_medians_ignore_an_outlier(monkeypatch):
    cases = load("cases")
    now, order = 0.0, []
    durations = {"a": iter([9, 9, 1, 100, 2]), "b": iter([9, 9, 5, 4, 6])}

    def side(name):
        def call():
            nonlocal now
            now += next(durations[name])
            order.append(name)

        return call

    monkeypatch.setattr(cases.time, "perf_counter", lambda: now)
    medians = cases.median_seconds({"a": side("a"), "b": side("b")}, repeats=3)
    assert medians == {"a": 2, "b": 5}
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 3


def test_a_record_names_command_machine_and_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/lanes.py", "--repeats", "3"])
    path = tmp_path / "new" / "lanes.json"
    load("cases").write(path, [{"seconds": 1.5}], torch="2.13.0")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["command"] == "python benchmarks/lanes.py --repeats 3"
    assert content["rows"] == [{"seconds": 1.5}]
    assert content["torch"] == "2.13.0"
    assert content["env"]["jax"] == jax.__version__


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.json")))
def test_stored_records_are_readable(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["rows"]
    assert content["env"]["jax"]


def test_a_run_is_as_many_iterations_as_asked(tiny_prior, monkeypatch):
    cases = load("cases")
    counts = []
    jitted = engine.jitted_advance()

    def counting(*args):
        lanes, done = jitted(*args)
        counts.append((int(done), np.asarray(lanes.state.k).tolist()))
        return lanes, done

    monkeypatch.setattr(cases.engine, "jitted_advance", lambda: counting)
    run = cases.iterations(tiny_prior, cases.pictures(2, 16), seeded.PRESET, 3)
    run()
    run()
    assert counts == [(3, [3, 3]), (3, [6, 6])]


def test_compare_pairs_each_side_with_its_counterpart():
    seconds = {"jax": 1.0, "eager": 2.0, "jax-step": 3.0, "eager-step": 4.0}
    ratios = load("vs_torch").compare({**seconds, "compile": 0.5})["ratios"]
    assert ratios == {"eager": 0.5, "eager-step": 0.75, "compile": 2.0}


def test_widened_bytes_counts_whole_kernels_alone():
    text = """
      ROOT %a = f32[3,3,64,128]{3,2,1,0} convert(%p)
      %b = f32[3,3,64,128]{3,2,1,0} convert(%p)
      ROOT %c = f32[1,64,64,128]{3,2,1,0} convert(%q)
      ROOT %d = bf16[3,3,64,128]{3,2,1,0} convert(%r)
    """
    memory = load("memory")
    assert memory.widened_bytes(text) == 4 * 3 * 3 * 64 * 128


def test_the_memory_table_adds_up(tiny_prior):
    memory = load("memory")
    case = memory.Case("tiny", tiny_prior.card, 16, seeded.PRESET, num_lanes=2)
    row = memory.measure(case)
    expected = sum(np.asarray(a).nbytes for a in jax.tree.leaves(tiny_prior.params))
    assert row["weights"] == expected
    assert row["sum"] == row["weights"] + row["temporaries"]
    assert row["temporaries"] > 0
    assert row["widened"] == 0


@pytest.mark.slow
def test_every_architecture_of_the_registry_has_a_row():
    module = load("priors")
    counts = {checkpoint.parameters for checkpoint in registry.public().values()}
    assert counts == set(module.ARCHITECTURES)
    for parameters in counts:
        assert module.card(parameters).parameters == parameters  # else it exits


def test_an_architecture_that_does_not_fit_its_count_is_refused(monkeypatch):
    module = load("priors")
    monkeypatch.setitem(module.ARCHITECTURES, 123, seeded.TINY)
    with pytest.raises(SystemExit, match="not 123"):
        module.card(123)


def write(path, image):
    Image.fromarray(np.uint8(np.rint(255 * image))).save(path)


def test_every_task_damages_a_photo_by_its_own_seed(tmp_path):
    photos = load("photos")
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        write(path, seeded.image(64, 64, seed=i))
    for task in photos.TASKS.keys() - {"real"}:
        problems = photos.damaged(paths, 5, 2, task)
        assert [problem.photo for problem in problems] == ["0", "0", "1", "1"]
        (alone,) = photos.damaged(paths[1:], 6, 1, task)
        np.testing.assert_array_equal(alone.degraded, problems[2].degraded)
        assert all(0 <= p.degraded.min() <= p.degraded.max() <= 1 for p in problems)
        same = np.array_equal(problems[0].degraded, problems[1].degraded)
        assert same == (task == "clean")


def test_photos_are_halved_twice_unless_they_are_small(tmp_path):
    photos = load("photos")
    steps = np.indices((280, 320)).sum(axis=0)[..., None] // 4 % 200 / 255
    write(tmp_path / "large.png", np.repeat(steps, 3, axis=-1))
    large = photos.crop(tmp_path / "large.png")
    assert large.shape == (64, 64, 3)
    small = np.float64(seeded.image(64, 64).round(1))
    write(tmp_path / "small.png", small)
    np.testing.assert_allclose(photos.crop(tmp_path / "small.png"), small, atol=1 / 510)


def test_real_photos_come_in_pairs(tmp_path):
    photos = load("photos")
    for name, level in (("a_real", 0.2), ("a_mean", 0.4), ("b_mean", 0.6)):
        write(tmp_path / f"{name}.png", np.full((40, 50, 3), level))
    (problem,) = photos.photographed(tmp_path, 32)
    assert problem.photo == "a"
    np.testing.assert_allclose(problem.clean, np.full((32, 32, 3), 0.4))
    np.testing.assert_allclose(problem.degraded, np.full((32, 32, 3), 0.2), atol=1e-7)


def test_the_standard_error_is_that_of_photos_and_not_of_seeds():
    photos = load("photos")
    # Means of the photos are 1, 2 and 3; their deviation is 1.
    error = photos.standard_error([0, 2, 1, 3, 2, 4], seeds=2)
    assert error == pytest.approx(1 / np.sqrt(3))
    assert photos.standard_error([1, 2], seeds=2) is None
    assert photos.standard_error([np.inf, 2], seeds=1) is None


def test_evaluations_of_looks_and_of_iterations_are_told_apart():
    photos = load("photos")
    three = DEFAULT.replace(num_starts=3)
    assert photos.evaluations(three, np.array([1, 0, 2])) == (1 + 3, 3)
    assert photos.evaluations(PAPER, 50) == (0, 10 * 50)


@pytest.mark.slow
def test_the_best_iteration_is_that_of_the_mean_over_starts(tiny_prior, monkeypatch):
    photos = load("photos")
    config = DEFAULT.replace(num_starts=2, max_iterations=3, gradient="frozen")
    monkeypatch.setattr(photos, "DEFAULT", config)
    monkeypatch.setattr(photos, "NUM_LANES", 1)  # as `iterate` has: compiled once
    y, clean = seeded.image(16, 16), np.float64(seeded.image(16, 16, seed=1))
    problem = photos.Problem("a", clean, y)
    (best,) = photos.best_psnrs(photos.Setup(tiny_prior, 1), [problem])

    ((_, key),) = photos.groups([problem])
    key, unstopped = jax.random.fold_in(key, 0), config.replace(criterion="never")
    moments = list(engine.iterate(tiny_prior, y, key, unstopped, every=1))
    first, both = [m.image for m in moments[:3]], [m.image for m in moments[3:]]
    # The second start is shown averaged with the end of the first.
    means = [a / 2 + b - first[-1] / 2 for a, b in zip(first, both, strict=True)]
    assert best == pytest.approx(max(metrics.psnr(clean, m) for m in means), abs=1e-4)


@pytest.mark.slow
def test_the_table_of_photos_and_its_record(tiny_prior, tmp_path, monkeypatch, capsys):
    photos = load("photos")
    folder, record = tmp_path / "photos", tmp_path / "photos.json"
    folder.mkdir()
    for i in range(2):
        write(folder / f"{i}.png", seeded.image(64, 64, seed=i))
    monkeypatch.setattr(photos, "load_prior", lambda name: tiny_prior)
    config = DEFAULT.replace(num_starts=1, gradient="frozen", max_iterations=1)
    monkeypatch.setitem(photos.METHODS, "quick", photos.restorer(config))
    flags = ["--tasks", "gaussian,clean", "--methods", "input,one-shot,quick"]
    flags += ["--photos", str(folder), "--first", "1", "--json", str(record)]
    monkeypatch.setattr(sys, "argv", ["photos.py", *flags])
    photos.main()
    cells = json.loads(record.read_text(encoding="utf-8"))["rows"]
    assert [(cell["task"], cell["method"]) for cell in cells] == [
        (task, method)
        for task in ("gaussian", "clean")
        for method in ("input", "one-shot", "quick")
    ]
    clean = images.read(folder / "1.png").rgb
    noise = np.random.default_rng(1).standard_normal(clean.shape)
    expected = metrics.psnr(clean, np.clip(clean + 0.12 * noise, 0, 1))
    assert cells[0]["psnr"] == pytest.approx(expected, abs=1e-4)
    assert cells[3]["psnr"] is None  # infinite
    assert cells[1]["forward"] == 1
    assert cells[2]["forward"] == 2
    assert all(cell["seconds"] >= 0 for cell in cells)
    assert f"{expected:.2f}" in capsys.readouterr().out


def test_unknown_tasks_and_methods_are_refused(monkeypatch, capsys):
    photos = load("photos")
    argv = ["photos.py", "--photos", ".", "--methods", "magic"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        photos.main()
    assert "'magic' is not one of input, one-shot" in capsys.readouterr().err


@pytest.mark.slow
def test_random_weights_keep_the_network_finite():
    cases = load("cases")
    prior = cases.random_prior(seeded.prior().card, "bfloat16")
    assert {str(a.dtype) for a in jax.tree.leaves(prior.params)} == {"bfloat16"}
    config = prior.card.preset.replace(num_steps=1)
    generate = canvas.generator(prior, config, (16, 16))
    z = jax.random.normal(jax.random.key(0), (16, 16, 3))
    image = seeded.compile_quickly(generate, z)(z)
    assert bool(np.isfinite(np.asarray(image)).all())


def test_kernels_that_overlap_share_the_time():
    op_times = load("op_times")
    kernels = [
        op_times.Kernel("a", 0, 4e9),
        op_times.Kernel("b", 2e9, 4e9),
        op_times.Kernel("a", 7e9, 8e9),
    ]
    seconds = op_times.shared_time(kernels)
    assert seconds == pytest.approx({"a": 4, "b": 1, op_times.BETWEEN: 3})


def test_a_kernel_lasts_until_its_end_on_another_thread():
    op_times = load("op_times")

    class Event(NamedTuple):
        name: str
        start_ns: float
        duration_ns: float
        stats: dict

    events = [
        Event("end: dot.1", 9, 0, {}),
        Event("dot.1", 11, 3, {"hlo_op": "dot.1"}),  # the profiler missed its end
        Event("dot.1", 2, 3, {"hlo_op": "dot.1"}),
        Event("while.1", 0, 20, {"hlo_op": "while.1"}),
        Event("ThunkExecutor::Execute", 0, 20, {}),
    ]
    kernels = list(op_times._kernels(events))
    assert kernels == [("dot.1", 2, 9), ("dot.1", 11, 14)]


@pytest.mark.slow
def test_profiled_time_is_shared_out_among_the_classes(tiny_prior, monkeypatch):
    """All of it, to classes that the network has; no kernel is without a name."""
    if jax.default_backend() != "cpu":
        pytest.skip("kernels are told apart by the names that the CPU backend gives")
    cases, op_times = load("cases"), load("op_times")
    y, config = cases.pictures(1, 16), tiny_prior.card.preset
    config = config.replace(gradient="full")
    seen = []
    profile = op_times.profile

    def keep(run):
        seen.extend(profile(run))
        return seen

    monkeypatch.setattr(op_times, "profile", keep)
    classes = op_times.measure(tiny_prior, y, config, 2)
    duration = 1e-9 * (max(k.end for k in seen) - seen[0].start)
    assert sum(map(sum, classes.values())) == pytest.approx(duration)
    for kind in ("convolution", "normalisation, activation"):
        assert min(classes[kind]) > 0, kind  # forward and backward
