"""Stopping rules against runs that do stop, and against their sources written out."""

import csv
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diip_jax import diip, metrics
from diip_jax.bench import methods, stops, tables, traces
from diip_jax.bench.run import Options
from diip_jax.bench.stops import Found, Stop
from diip_jax.config import PAPER, DIIPConfig
from helpers import bench_cells, runs, seeded
from helpers.algorithm import algorithm_1
from helpers.photos import CONFIG, LONG

BUDGET = 60
SEEDS = range(24)


# The package's own criteria.


def toy(z):
    """Map noise to an image; the waves make Adam overshoot now and then."""
    return jnp.sin(1.5 * (z + jnp.roll(z, 1, 0) + jnp.roll(z, 1, 1)) / 3 + 0.3 * z)


@jax.jit
def run_to_the_stop(y, z, config):
    algorithm = diip.build(toy, y, config)
    state = lax.while_loop(algorithm.should_continue, algorithm.step, algorithm.init(z))
    return diip.result(state, y.shape[:2])


@jax.jit
def run_to_the_end(y, z, config):
    algorithm = diip.build(toy, y, config)
    state = lax.fori_loop(
        0, config.max_iterations, lambda _, s: algorithm.step(s), algorithm.init(z)
    )
    return state.losses, state.sharpnesses


@pytest.mark.parametrize("criterion", ["paper", "robust"])
def test_a_criterion_stops_a_stored_run_where_it_stops_a_restoration(criterion):
    seen, rng = set(), np.random.default_rng(0)
    for seed in SEEDS:
        config = DIIPConfig(
            learning_rate=float(rng.choice([0.01, 0.05, 0.2])),
            k_min=int(rng.integers(5, 45)),
            epsilon=float(rng.choice([1e-4, 1e-3, 0.03])),
            criterion=criterion,
            max_iterations=BUDGET,
        )
        if seed % 5 == 0:  # so that the budget is met as well
            config = config.replace(k_min=BUDGET, epsilon=0.0, learning_rate=0.01)
        y = jnp.asarray(2 * seeded.image(12, 12, seed) - 1)
        z = jax.random.normal(jax.random.key(seed), y.shape)
        answer = run_to_the_stop(y, z, config)
        never = config.replace(criterion="never")
        stop = stops.by_criterion(runs.run(*run_to_the_end(y, z, never)), config)
        assert stop.iteration == int(answer.iteration)
        assert stop.num_iterations == int(answer.num_iterations)
        reason = diip.StopReason(int(answer.reason))
        assert stop.fired == (reason is not diip.StopReason.MAX_ITERATIONS)
        seen.add(reason)
    assert seen == {
        diip.StopReason.MAX_ITERATIONS,
        diip.StopReason.LOW_FREQUENCY,
        diip.StopReason.HIGH_FREQUENCY,
    }


@pytest.mark.slow
def test_and_so_it_does_with_a_network(tiny_prior, restore_jit, tmp_path):
    subject, seen = runs.subject(), set()
    key = traces.keys(subject.task, subject.clean, subject.seed)[1]
    trace = traces.trace(tiny_prior, subject, tmp_path, LONG)
    for k_min, epsilon in [(4, 1e-3), (8, 1e-3), (11, 0.0), (11, 0.5)]:
        config = CONFIG.replace(k_min=k_min, epsilon=epsilon)
        answer = restore_jit(tiny_prior, subject.degraded, key, config)
        stop = stops.paper(config)(trace)
        assert stop[:2] == (int(answer.iteration), int(answer.num_iterations))
        seen.add(stop)
    assert len(seen) > 2  # they do not all stop at the same place


def test_a_run_that_diverges_ends_with_its_last_finite_image():
    for k, last in ((7, 6), (0, 0)):
        losses = np.linspace(1, 0.1, BUDGET)
        losses[k:] = np.nan
        assert stops.paper()(runs.run(losses)) == Stop(last, k + 1, True)
        assert stops.fixed(99)(runs.run(losses)).num_iterations == BUDGET
        assert stops.discrepancy(runs.run(losses), 0.0) == Stop(last, BUDGET, False)


def as_printed(losses, sharpnesses, k_min, epsilon):
    """Follow the listing with line 15 as it is printed: Delta_k < epsilon."""
    low = algorithm_1(losses, sharpnesses, k_min, -np.inf)
    for k in range(1, len(losses)):
        if low.k is not None and k > low.k:
            break
        if (losses[k] - losses[k - 1]) / losses[k - 1] < np.float32(epsilon):
            return Stop(k, k + 1, True)
    if low.k is None:
        return Stop(len(losses) - 1, len(losses), False)
    return Stop(low.last_peak, low.k + 1, True)


def test_the_printed_slope_stops_at_once_while_the_loss_falls():
    falling = runs.run(np.linspace(1, 0.1, BUDGET))
    assert stops.literal(falling) == Stop(1, 2, True)
    seen = set()
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        # A loss that always rises, at first by more than epsilon each time.
        losses = np.float32(np.exp(np.linspace(0, 0.5 + rng.random(), BUDGET)))
        if seed % 2:
            losses[rng.integers(5, BUDGET) :] *= 0.5
        sharpnesses = np.exp(rng.standard_normal(BUDGET)).astype(np.float32)
        k_min = int(rng.integers(0, 2 * BUDGET))
        config = PAPER.replace(k_min=k_min)
        stop = stops.literal(runs.run(losses, sharpnesses), config)
        assert stop == as_printed(losses, sharpnesses, k_min, config.epsilon)
        seen.add((stop.fired, stop.iteration == stop.num_iterations - 1))
    assert seen == {(True, True), (True, False), (False, True)}


# Rules of others.


def wmv_written_out(images, W, P):
    """Algorithm 1 of Wang et al., TMLR 2023, line by line, on a queue."""
    queue, var_min, best, stagnant = deque(), np.inf, None, 0
    for k, image in enumerate(images):
        queue.append(np.float64(image) / 255)
        if len(queue) > W:
            queue.popleft()
        if len(queue) < W:
            continue
        mean = sum(queue) / W
        var = sum(np.sum((x - mean) ** 2) for x in queue) / W
        if var < var_min:
            var_min, best, stagnant = var, k, 0
        else:
            stagnant += 1
        if stagnant == P:
            return Stop(best, k + 1, True)
    return Stop(best, len(images), False)


def drifting(seed, count=BUDGET):
    """Return images that settle and then wander off, so that a variance has a dip."""
    rng = np.random.default_rng(seed)
    quiet = rng.integers(15, 40)
    spread = 4 + 40 * np.abs(np.arange(count) - quiet) / count
    noise = rng.standard_normal((count, runs.SIDE, runs.SIDE, 3))
    images = 128 + spread[:, None, None, None] * noise
    return np.rint(np.clip(images, 0, 255)).astype(np.uint8)


@pytest.mark.parametrize(("window", "patience"), [(10, 15), (3, 5), (8, 50)])
def test_es_wmv_against_its_listing(window, patience):
    fired = set()
    for seed in range(8):
        trace = runs.run(np.ones(BUDGET), images=drifting(seed))
        stop = stops.es_wmv(trace, window, patience)
        assert stop == wmv_written_out(trace.images, window, patience)
        fired.add(stop.fired)
    assert fired == ({False} if patience == 50 else {True})


def test_the_windowed_variance_is_the_mean_squared_deviation():
    images = drifting(0)
    variances = stops.windowed_variance(images, 5)
    assert np.isinf(variances[:4]).all()
    last = [image / 255 for image in images[16:21]]
    expected = np.mean([(x - sum(last) / 5) ** 2 for x in last])
    assert variances[20] == pytest.approx(expected, rel=1e-12)  # float64 roundings


def test_the_moving_variance_against_its_two_lines():
    images, a = drifting(1), 0.1
    mu, v, expected = np.float64(images[0]) / 255, 0.0, []
    for image in images:
        x = image / 255
        v = (1 - a) * (v + a * np.sum((x - mu) ** 2) / x.size)
        mu = (1 - a) * mu + a * x
        expected.append(v)
    variances = stops.moving_variance(images, a, transient=20)
    assert np.isinf(variances[:20]).all()
    np.testing.assert_allclose(variances[20:], expected[20:], rtol=1e-9)
    stop = stops.es_emv(runs.run(np.ones(BUDGET), images=images), patience=5)
    assert stop == stops.stagnation(variances, 5)


def test_stagnation():
    assert stops.stagnation(np.array([3, 2, 1, 2, 2, 2.0]), 3) == Stop(2, 6, True)
    assert stops.stagnation(np.array([3, 2, 1, 2, 2, 2.0]), 4) == Stop(2, 6, False)
    waiting = np.array([np.inf, np.inf, np.inf, 5, 4])
    assert stops.stagnation(waiting, 1) == Stop(4, 5, False)
    assert stops.stagnation(waiting[:3], 1) == Stop(2, 3, False)  # never judged


def test_discrepancy_with_the_true_levels():
    """A loss in [-1, 1] that falls by 0.01 each time passes 4 times the energy."""
    subject = runs.subject(sigma=0.25)
    trace = runs.run(1 - 0.01 * np.arange(99), about=subject)
    assert stops.known_noise(trace) == Stop(75, 76, True)  # 1 - 0.75 = 4 / 16
    energy = np.mean((subject.degraded.astype(np.float64) - subject.clean) ** 2)
    assert energy < 0.25**2  # y is clipped
    k = int(np.ceil((1 - 4 * energy) / 0.01))
    assert stops.known_damage(trace) == Stop(k, k + 1, True)
    assert stops.discrepancy(trace, 0.0) == Stop(98, 99, False)


def test_fixed_and_oracle():
    trace = runs.run(np.ones(5), psnrs=[1, 7, 3, 7, 2])
    assert stops.fixed(2)(trace) == Stop(1, 2, True)
    assert stops.fixed(5)(trace) == Stop(4, 5, True)
    assert stops.fixed(6)(trace) == Stop(4, 5, False)
    assert stops.oracle(trace) == Stop(1, 5, True)  # the earliest of the best


# The tables.


def test_a_row_averages_over_images_not_over_seeds():
    psnrs = [20.0, 22.0, 25.0, 27.0, 30.0, 31.0]  # three images, two seeds
    results = [
        Found(Stop(i, i + 1, i != 2), psnr, psnr + 1, 18.0)
        for i, psnr in enumerate(psnrs)
    ]
    row = stops.row("x", "denoise", results, seeds=2, published=28.37)
    images = [21.0, 26.0, 30.5]
    assert row.psnr.value == pytest.approx(np.mean(images))
    assert row.psnr.error == pytest.approx(np.std(images, ddof=1) / np.sqrt(3))
    assert row.psnr.pictures == 3
    assert row.gap == tables.Mean(1.0, 0.0, 3)
    assert (row.iteration, row.num_iterations) == (2.5, 3.5)
    assert row.unfired == 1
    assert stops.row("x", "denoise", results[:2], seeds=2).psnr.error is None


@pytest.fixture
def made_up_runs(monkeypatch):
    """Make every run a wandering one; return them as they were read."""
    read = []

    def trace(prior, subject, folder, config):
        seed = len(read)
        read.append(runs.random_run(seed, config.max_iterations, subject))
        return read[-1]

    def task(name):
        return lambda image, seed: runs.subject(name, image[0], seed)

    monkeypatch.setattr(traces, "trace", trace)
    monkeypatch.setattr(traces, "task", task)
    return read


IMAGES = [(f"{i}.png", seeded.image(16, 16, seed=i)) for i in range(3)]


@pytest.mark.parametrize("name", ["table1", "table2", "table3"])
def test_tables(tiny_prior, tmp_path, made_up_runs, name):
    options = Options("bench x", seeds=(0, 4))
    output = tmp_path / "new"
    files = getattr(stops, name)(tiny_prior, IMAGES, output, options)
    assert files == [output / f"{name}.md", output / f"{name}.csv"]
    text = files[0].read_text(encoding="utf-8")
    assert "- command: `bench x`" in text
    assert "pictures: 3; seeds: 0, 4" in text
    assert "runs: 6 of each degradation, 300 iterations each" in text
    lines = files[1].read_text(encoding="utf-8").splitlines()
    assert "# command: `bench x`" in lines
    found = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    first, second = stops.ablation_k_min(traces.FULL).tasks, ("denoise", "jpeg")
    expected = {"table1": first, "table2": second, "table3": ("denoise", "water")}
    assert {row["task"] for row in found} == set(expected[name])
    for i, task in enumerate(expected[name]):
        best = np.array([t.psnrs.max() for t in made_up_runs[6 * i : 6 * i + 6]])
        before = [
            metrics.psnr(t.subject.clean, t.subject.degraded)
            for t in made_up_runs[6 * i : 6 * i + 6]
        ]
        for row in (row for row in found if row["task"] == task):
            # Six significant digits are written.
            psnr, gap = float(row["psnr"]), float(row["gap"])
            assert psnr + gap == pytest.approx(best.mean(), abs=2e-4)
            assert float(row["degraded"]) == pytest.approx(np.mean(before), abs=2e-4)
            assert row["pictures"] == "3"
            if row["setting"] == stops.OPTIMAL:
                by_image = best.reshape(3, 2).mean(axis=1)
                error = np.std(by_image, ddof=1) / np.sqrt(3)
                assert float(row["psnr_error"]) == pytest.approx(error, rel=1e-4)
                assert gap == 0


def test_tables_hold_the_papers_numbers():
    """Read once more from the paper's Tables 1 to 3."""
    k_min = stops.ablation_k_min(traces.FULL)
    names = ["k_min = 50", "k_min = 100", "k_min = 150"]
    assert [*k_min.rules] == [*names, *(f"{n}, {stops.AVERAGED}" for n in names)]
    assert k_min.published["k_min = 150", "water"] == 23.82
    epsilon = stops.ablation_epsilon(traces.FULL)
    names = ["epsilon = 0.005", "epsilon = 0.001", "epsilon = 0.0005"]
    assert [*epsilon.rules] == [*names, *(f"{n}, {stops.AVERAGED}" for n in names)]
    assert epsilon.published["epsilon = 0.0005", "jpeg"] == 25.02
    gap = stops.optimal_gap(traces.FULL)
    assert gap.published[stops.OPTIMAL, "denoise"] == 28.63
    for table in (k_min, epsilon, gap):
        assert {name for name, _ in table.published} <= set(table.rules)
        assert {task for _, task in table.published} == set(table.tasks)


@pytest.mark.parametrize(
    ("words", "criterion"), [("", "paper"), (f", {stops.AVERAGED}", "robust")]
)
def test_the_rules_of_a_table_are_what_their_names_say(words, criterion):
    trace = runs.random_run(3, 300)
    config = PAPER.replace(criterion=criterion)
    for k_min in (50, 100, 150):
        rule = stops.ablation_k_min(traces.FULL).rules[f"k_min = {k_min}{words}"]
        assert rule(trace) == stops.by_criterion(trace, config.replace(k_min=k_min))
    for epsilon in (0.005, 0.001, 0.0005):
        name = f"epsilon = {epsilon:g}{words}"
        rule = stops.ablation_epsilon(traces.FULL).rules[name]
        assert rule(trace) == stops.by_criterion(trace, config.replace(epsilon=epsilon))


def test_quick_tables_shrink_k_min_with_the_budget():
    config = stops.settings(Options(quick=True), bench_cells.PRIOR)
    table = stops.ablation_k_min(config)
    names = [name for name in table.rules if stops.AVERAGED not in name]
    values = [int(name.removeprefix("k_min = ")) for name in names]
    assert values == sorted(set(values))
    assert max(values) < config.max_iterations <= 60
    assert not table.published  # the paper has no numbers for these
    whole = stops.settings(Options(), bench_cells.PRIOR)
    assert whole.k_min == PAPER.k_min
    # The prior has 16 pixels.
    assert (whole.num_steps, whole.learning_rate) == tuple(methods.SMALL.values())
