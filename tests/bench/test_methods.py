"""The registry: what methods may see, the package's own rows, what is left out."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from diip_jax import canvas, diip, metrics
from diip_jax.bench import methods
from diip_jax.bench.baselines import gdp
from diip_jax.bench.methods import METHODS, Problem, Setting
from diip_jax.config import PAPER
from helpers import bench_cells as fake
from helpers import gaussian, seeded

SETTING = Setting("denoise", 16, quick=False)
WHOLE = Problem("clean", "y", "measurement", "operator", 0.1)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("diip", Problem(None, "y", None, None, None)),
        ("diip-oracle", Problem("clean", "y", None, None, None)),
        ("gdp", Problem(None, "y", "measurement", None, 0.1)),
        ("ddrm", Problem(None, "y", "measurement", "operator", 0.1)),
    ],
)
def test_a_method_sees_no_more_than_its_title_says(name, seen):
    assert methods.seen(METHODS[name], WHOLE) == seen


def test_titles_say_what_a_method_knows():
    assert METHODS["ddrm"].full_title == "DDRM (non-blind)"
    assert METHODS["gdp"].full_title == "GDP (partially blind)"
    assert METHODS["diip"].full_title == "DIIP, default"
    titles = [method.full_title for method in METHODS.values()]
    assert len(set(titles)) == len(titles)


@pytest.fixture(scope="module")
def problem():
    clean = seeded.image(16, 16)
    return fake.noisy(clean, jax.random.key(3))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (20, 20)),  # 4 iterations of 5 steps
        ({"gradient": "frozen"}, (20, 0)),
        ({"criterion": "discrepancy", "num_starts": 2}, (2 * 5 + 1 + 20, 20)),
        ({"start": "matched", "noise_level": 0.1}, (20, 20)),  # nothing is asked
    ],
)
def test_evaluations_are_counted(changes, expected):
    config = seeded.PRESET.replace(**({"gradient": "full"} | changes))
    counted = methods.work(config, jnp.array([1, 3]))
    assert tuple(int(n) for n in counted) == expected


@pytest.fixture
def toy(monkeypatch):
    """Put a formula in place of the network."""
    predictor = gaussian.bound(gaussian.wavy)
    monkeypatch.setattr(canvas, "noise_predictor", predictor)


# Few enough for a test; a rate at which the best one is in between.
TOY = PAPER.replace(num_steps=5, max_iterations=8, k_min=3, learning_rate=0.8)


def test_the_rows_of_the_package_are_restorations(toy, problem):
    key = jax.random.key(0)
    restored = methods.diip_with(TOY)(SETTING).restore(fake.PRIOR, problem, key)
    expected = diip.restore(fake.PRIOR, jnp.asarray(problem.y), key, TOY)
    np.testing.assert_array_equal(restored.image, expected.image)
    assert int(restored.evaluations) == 5 * int(expected.num_iterations)


def test_quick_settings_are_other_settings():
    ready = METHODS["diip-paper"].make
    quick, whole = ready(SETTING._replace(quick=True)), ready(SETTING)
    assert quick.settings.max_iterations < whole.settings.max_iterations
    assert quick.settings.num_steps < whole.settings.num_steps


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        pytest.param(256, {}, id="the paper's size"),
        pytest.param(128, {"learning_rate": 0.003}, id="twice the rate"),
        pytest.param(64, methods.SMALL, id="tuned"),
    ],
)
def test_a_size_has_settings_of_its_own(side, expected):
    assert methods.for_side(PAPER, side) == PAPER.replace(**expected)


def test_what_is_tuned_is_of_the_grid_that_it_is_tuned_with():
    make = METHODS["diip-adapted"].make
    for name, value in methods.SMALL.items():
        assert value in make.grid[name]
    changed = make._replace(changes={"num_steps": 10})
    quick = changed(Setting("jpeg", 64, quick=True)).settings
    expected = methods.for_side(methods.QUICK, 64)
    assert quick == expected.replace(num_steps=10, criterion="robust")


def test_the_oracle_takes_the_best_iterate_of_the_same_run(toy, problem):
    """Against a plain loop over the steps of `diip.build`."""
    key, config = jax.random.key(0), TOY.replace(k_min=1)
    algorithm, state = diip.prepare(fake.PRIOR, jnp.asarray(problem.y), key, config)
    psnrs = []
    for _ in range(config.max_iterations):
        state = algorithm.step(state)
        x = np.clip((np.asarray(state.x) + 1) / 2, 0, 1)
        psnrs.append(metrics.psnr(problem.clean, x))
    assert 0 < np.argmax(psnrs) < len(psnrs) - 1  # neither the first nor the last

    best = methods.best_iterate(fake.PRIOR, problem, key, config)
    found = metrics.psnr(problem.clean, np.clip(best.image, 0, 1))
    # A loop is compiled otherwise than its steps: float32 rounding.
    assert found == pytest.approx(max(psnrs), abs=1e-3)
    assert int(best.evaluations) == config.max_iterations * config.num_steps
    stopped = diip.restore(fake.PRIOR, jnp.asarray(problem.y), key, config)
    assert found >= metrics.psnr(problem.clean, np.clip(stopped.image, 0, 1)) - 1e-3


def test_the_oracle_ends_after_the_stop_when_nothing_better_comes(
    toy, problem, monkeypatch
):
    monkeypatch.setattr(methods, "PATIENCE", 2)
    # An epsilon that no decrease reaches stops the run in iteration 1; hardly a step,
    # so that the first iterate is the best or as good as any.
    config = TOY.replace(epsilon=10.0, learning_rate=1e-9, max_iterations=50)
    best = methods.best_iterate(fake.PRIOR, problem, jax.random.key(0), config)
    assert int(best.evaluations) < 50 * config.num_steps


def test_what_is_not_installed_costs_its_row_alone(monkeypatch):
    def absent(setting):
        raise ModuleNotFoundError("No module named 'bm4d'", name="bm4d")

    def needy(setting):
        raise methods.MissingError("pip install scikit-image")

    given = {
        "a": METHODS["diip"],
        "b": METHODS["dip"]._replace(make=absent),
        "c": METHODS["tv"]._replace(make=needy),
        "d": METHODS["gdp"]._replace(make=lambda setting: None),
    }
    monkeypatch.setattr(methods, "METHODS", given)
    found, left_out = methods.available("abcd", [SETTING])
    assert list(found) == ["a"]
    assert left_out == [
        "row DIP is left out: pip install bm4d",
        "row Total variation, best weight is left out: pip install scikit-image",
    ]


def test_a_module_of_ours_that_is_missing_is_no_row_to_leave_out(monkeypatch):
    def broken(setting):
        raise ModuleNotFoundError("No module named 'x'", name="diip_jax.bench.x")

    monkeypatch.setitem(METHODS, "dip", METHODS["dip"]._replace(make=broken))
    with pytest.raises(ModuleNotFoundError):
        methods.available(["dip"], [SETTING])


def test_a_baseline_gets_what_its_kind_is_told(monkeypatch):
    """The measurement with its operator, or y; its settings with the sigma of both."""
    module = types.ModuleType("diip_jax.bench.baselines.fake")

    @struct.dataclass
    class Config:
        sigma: float = 0.02
        num_steps: int = struct.field(pytree_node=False, default=100)

    def config_for(task, side):
        return Config() if (task, side) == (SETTING.task, SETTING.side) else None

    def restore(prior, y, key, config, operator):
        return y, config, operator

    module.__dict__.update(Config=Config, config_for=config_for, restore=restore)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    make = methods.Baseline("fake", quick={"num_steps": 7})
    ready = make(SETTING._replace(quick=True))
    y, config, operator = ready.restore(None, WHOLE, None)
    assert (y, operator) == ("measurement", "operator")
    assert (config.sigma, config.num_steps) == (0.1, 7)
    changed = make._replace(changes={"num_steps": 3})  # goes before what is quick
    assert changed(SETTING._replace(quick=True)).settings.num_steps == 3
    blind = WHOLE._replace(operator=None, sigma=None)
    y, config, operator = make(SETTING).restore(None, blind, None)
    assert (y, operator) == ("y", None)
    assert (config.sigma, config.num_steps) == (0.02, 100)
    assert make(SETTING._replace(task="jpeg")) is None  # not for it


@pytest.mark.parametrize(
    ("task", "expected"), [("sr4", "measurement"), ("denoise", "y")]
)
def test_a_form_of_super_resolution_is_of_the_small_picture(
    task, expected, monkeypatch
):
    seen = []
    monkeypatch.setattr(gdp, "restore", lambda prior, y, *others: seen.append(y))
    ready = METHODS["gdp"].make(SETTING._replace(task=task))
    ready.restore(None, WHOLE._replace(operator=None), None)
    assert seen == [expected]


@pytest.mark.parametrize("task", ["denoise", "sr4", "jpeg", "motion_blur"])
def test_a_problem_is_what_the_task_observes(task):
    tasks = pytest.importorskip("diip_jax.bench.tasks")
    pytest.importorskip("diip_jax.bench.operators")
    clean, key = seeded.image(32, 32), jax.random.key(1)
    problem = methods.pose(task)(clean, key)
    observation = tasks.TASKS[task].observe(clean, key)
    np.testing.assert_array_equal(problem.clean, clean)
    np.testing.assert_array_equal(problem.y, observation.y)
    np.testing.assert_array_equal(problem.measurement, observation.measurement)
    assert problem.sigma == observation.sigma
    assert (problem.operator is None) == (task == "jpeg")
    if task != "jpeg":
        # Noise is clipped to [0, 1] and, of the mixture, speckle: a sanity bound of
        # five deviations on its mean over some hundred pixels at least.
        noise = problem.measurement - np.asarray(problem.operator.apply(clean))
        assert abs(noise.mean()) < 5 * problem.sigma / np.sqrt(noise.size) + 0.01
        assert noise.std() == pytest.approx(problem.sigma, rel=0.2)
