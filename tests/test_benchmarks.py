"""The benchmarks' arithmetic and records; what they measure is not asserted here."""

import importlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from checkpoints_convert import registry
from diip_jax import canvas, diip, engine
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
    if name == "vs_torch":
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


def test_replay_stops_where_the_restoration_does(tiny_prior, key, restore_jit):
    pytest.importorskip("skimage")
    photos = load("photos")
    config = tiny_prior.card.preset.replace(criterion="paper", epsilon=5e-3)
    y = np.random.default_rng(0).uniform(0, 1, (16, 16, 3)).astype(np.float32)
    restoration = restore_jit(tiny_prior, y, key, config)
    jobs = [engine.Job((16, 16), lambda: y, key)]
    losses, sharpnesses, _ = photos.record(tiny_prior, jobs, config, [y], 1)
    stopped, reason = photos.replay(config, losses[0], sharpnesses[0])
    assert stopped == int(restoration.iteration)
    assert reason == diip.StopReason(int(restoration.reason)).name.lower()
    assert len(losses[0]) == config.max_iterations


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
