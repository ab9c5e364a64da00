"""Claims on runs whose answer is known; figures that a reader of PNG can open."""

import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from diip_jax.bench import figures, methods, run, tasks, traces
from diip_jax.bench.baselines.restored import Restored
from diip_jax.bench.cells import Cell, Name, Store, digest
from diip_jax.bench.methods import Method, Problem, Ready
from diip_jax.bench.run import Options
from diip_jax.photos import reference
from helpers import runs, seeded

K = np.arange(300)


def hill(peak, rise, fall):
    """Return PSNRs that rise up to an iteration and then fall, straight."""
    return 25 - np.where(peak > K, rise * (peak - K) / peak, fall * (K - peak) / 200)


def test_two_regimes_are_a_rise_and_a_fall():
    found = figures.regimes(hill(100, rise=8, fall=4))
    assert found.seen
    assert abs(found.best - 100) <= 4  # half a window of the median
    assert found.rise == pytest.approx(8, abs=0.3)  # the median cuts the tip
    assert found.fall == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize(
    ("best", "fall", "seen"),
    [
        pytest.param(299, 0, None, id="still rising"),
        pytest.param(280, 4, None, id="has begun to fall"),
        pytest.param(280, 14, True, id="has fallen"),
        pytest.param(170, 0.4, None, id="hardly falls for less than as long again"),
        pytest.param(130, 0.4, False, id="hardly falls for as long again"),
    ],
)
def test_a_run_that_was_too_short_cannot_tell(best, fall, seen):
    assert figures.regimes(hill(best, rise=8, fall=fall)).seen is seen


@pytest.mark.parametrize(
    "psnrs",
    [
        pytest.param(hill(100, rise=8, fall=0.4), id="hardly falls"),
        pytest.param(25 - K / 100, id="falls from the start"),
        pytest.param(np.full(300, 25.0), id="flat"),
        # One lucky iterate is no regime.
        pytest.param(20 + 10.0 * (K == 100), id="one outlier"),
    ],
)
def test_one_regime_is_not_two(psnrs):
    assert figures.regimes(psnrs).seen is False


def falling(smallest):
    """Return losses whose normalised decrease is smallest at an iteration."""
    slopes = 1e-4 + 1e-7 * (K - smallest) ** 2
    return np.concatenate([[1.0], np.cumprod(1 - slopes[1:])])


@pytest.mark.parametrize(
    ("smallest", "best", "seen"),
    [
        (100, 100, True),
        (112, 100, True),  # a fifth of 100 is allowed
        (85, 100, True),
        (130, 100, False),
        (70, 100, False),
        (28, 20, True),  # ten iterations are, where a fifth is fewer
        (40, 20, False),
    ],
)
def test_the_slope_is_smallest_at_the_best_image(smallest, best, seen):
    found = figures.slope(falling(smallest), hill(best, 8, 4))
    assert abs(found.smallest - smallest) <= 4
    assert abs(found.best - best) <= 4
    assert found.seen is seen


def test_the_slope_of_the_transient_is_not_asked():
    losses = falling(100)
    losses[:6] = losses[6] * 0.9  # rises once
    assert figures.slope(losses, hill(100, 8, 4)).smallest < 12
    found = figures.slope(losses, hill(100, 8, 4), first=50)
    assert abs(found.smallest - 100) <= 4  # half a window of the median


def test_without_a_maximum_inside_the_slope_tells_nothing():
    assert figures.slope(falling(299), hill(299, 8, 0)).seen is None


@pytest.mark.parametrize(
    ("rate", "falls"), [(0.0, False), (1e-3, False), (-2e-4, False), (-1e-3, True)]
)
def test_sharpness_falls_if_it_loses_a_tenth_after_the_transient(rate, falls):
    """exp(-2e-4 * 200) has lost 4 %, exp(-1e-3 * 200) has lost 18 %."""
    values = 500 * np.exp(rate * K)
    values[:100] *= 3  # of no interest
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(len(K))
    found = figures.sharpness(values * noise, k_min=100)
    assert found.falls == falls
    expected = np.exp(min(rate, 0) * 200) - 1
    assert found.change == pytest.approx(expected, abs=0.04)  # the noise of 2 %


def test_the_median():
    median = figures.running_median(np.array([1, 9, 2, 3, 8.0]), 3)
    np.testing.assert_array_equal(median, [5, 2, 3, 3, 5.5])


def run_of(image, about, psnrs=K):
    """Return a run whose iterates are all this image, in [0, 1]."""
    images = np.stack([np.rint(255 * image).astype(np.uint8)] * len(K))
    return runs.run(np.ones(len(K)), psnrs=psnrs, images=images, about=about)


def test_half_the_contrast_is_a_quarter_of_the_sharpness():
    about = runs.subject(sigma=0.3)
    pale = 0.5 + (about.clean - 0.5) / 2
    found = figures.quality(run_of(pale, about, hill(100, 8, 4)))
    assert found.sharpness == pytest.approx(0.25, rel=0.05)  # 8 bits round it
    assert found.gain == pytest.approx(figures.gain(about, pale), abs=0.05)
    assert found.gain >= figures.MARGIN
    assert found.seen is False
    assert figures.quality(run_of(about.clean, about)).seen is True


def test_what_is_sharp_is_not_clean_before_it_gains():
    about = runs.subject()
    found = figures.quality(run_of(about.degraded, about, hill(100, 8, 4)))
    assert found.gain == pytest.approx(0, abs=0.01)  # 8 bits
    assert found.sharpness > 1
    assert found.seen is False


def test_a_run_that_still_rises_can_tell_only_near_y():
    about, rising = runs.subject(), hill(299, 8, 0)
    grey = np.full(about.clean.shape, 0.5)
    assert figures.quality(run_of(grey, about, rising)).seen is None
    assert figures.quality(run_of(grey, about, hill(100, 8, 4))).seen is False
    assert figures.quality(run_of(about.degraded, about, rising)).seen is False


def test_the_sharpness_of_a_flat_picture_is_no_error():
    flat = np.full((runs.SIDE, runs.SIDE, 3), 0.5)
    about = runs.subject()._replace(clean=flat)
    assert figures.quality(run_of(flat, about)).sharpness == 0


@pytest.mark.parametrize(
    ("label", "of_dip", "seen"),
    [
        ("denoise", "clean", "and one of DIP **seen** (1 of 1"),
        ("denoise", "degraded", "and one of DIP **not seen** (0 of 1"),
        (figures.BLURRED, "degraded", "but none of DIP **seen** (1 of 1"),
        (figures.BLURRED, "clean", "but none of DIP **not seen** (0 of 1"),
    ],
)
def test_dip_has_a_clean_and_sharp_iterate_but_of_blur(label, of_dip, seen):
    about, psnrs = runs.subject(label), hill(100, 8, 4)
    ours = run_of(getattr(about, of_dip), about, psnrs)
    clean, noisy = (run_of(x, about, psnrs) for x in (about.clean, about.degraded))
    text = figures.quality_text(label, [ours], [clean])
    assert f"- {label}: a clean and sharp iterate of the prior, {seen}" in text
    assert "**not seen**" in figures.quality_text(label, [ours], [noisy])


def test_words():
    nothing = "**cannot be judged** (2 runs cannot tell)"
    assert figures.verdict([None, None]) == nothing
    some = "**seen** (1 of 1 runs, 1 more cannot tell)"
    assert figures.verdict([True, None]) == some
    assert figures.verdict([True, True]) == "**seen** (2 of 2 runs)"
    assert figures.verdict([True, False]) == "**partly seen** (1 of 2 runs)"
    assert figures.verdict([False]) == "**not seen** (0 of 1 runs)"
    assert figures.span([1.25, 2.0, 9.0], "dB") == "2.0 (1.2 to 9.0) dB"
    assert figures.span([7]) == "7"


def test_noise_has_its_deviation_and_a_seed_of_its_own():
    image = ("x", np.full((64, 64, 3), 0.5, np.float32))
    first, second = (figures.noisy(0.1)(image, seed) for seed in (0, 1))
    assert first.sigma == 0.1
    # Nothing is clipped at five deviations; 12,288 values know it to 0.6 %.
    assert np.std(first.degraded) == pytest.approx(0.1, rel=0.03)
    correlation = np.corrcoef(first.degraded.ravel(), second.degraded.ravel())[0, 1]
    assert abs(correlation) < 0.05


IMAGES = [(f"{i}.png", seeded.image(runs.SIDE, runs.SIDE, seed=i)) for i in range(2)]


@pytest.fixture
def known_runs(monkeypatch):
    """Make runs as the paper says that they are; tasks are all the same damage."""

    def trace(prior, subject, folder, config):
        blurred = subject.task == "gaussian_blur"
        images = np.stack([np.rint(255 * subject.clean).astype(np.uint8)] * len(K))
        sharpnesses = 500 * np.exp((-2e-3 if blurred else 1e-3) * K)
        return runs.run(falling(105), sharpnesses, hill(100, 8, 4), images, subject)

    def fit(subject, folder, config):
        psnrs = 25 - K / 100  # from the start on
        shown = traces.shown(psnrs)
        grey = np.full((len(shown), runs.SIDE, runs.SIDE, 3), 128, np.uint8)
        return traces.Fit(subject, psnrs, shown, grey)

    def task(name):
        return lambda image, seed: runs.subject(name, image[0], seed)

    monkeypatch.setattr(traces, "trace", trace)
    monkeypatch.setattr(traces, "fit", fit)
    monkeypatch.setattr(traces, "task", task)


def written(files, name):
    """Check the files of a figure; return its text and the size of its picture."""
    picture, text = files
    assert (picture.name, text.name) == (f"{name}.png", f"{name}.md")
    with Image.open(picture) as image:
        image.load()
        assert image.format == "PNG"
        # Something is drawn: the pixels are not all white.
        assert np.asarray(image.convert("L")).std() > 1
        size = image.size
    content = text.read_text(encoding="utf-8")
    assert f"![{name}]({name}.png)" in content
    assert "- command: `bench x`" in content
    assert "pictures: 2; seeds: 0" in content
    return content, size


@pytest.mark.parametrize(
    ("name", "count"), [("fig4", len(figures.LEVELS)), ("fig6", 1)]
)
def test_figures_of_runs_that_are_as_the_paper_says(
    tiny_prior, tmp_path, known_runs, name, count
):
    options = Options("bench x")
    files = getattr(figures, name)(tiny_prior, IMAGES, tmp_path / "new", options)
    content, size = written(files, name)
    assert len(re.findall(r"\*\*seen\*\*", content)) == count
    assert not re.findall(r"not seen|partly|judged", content)
    assert 500 < size[0] < 2500
    assert 200 < size[1] < 2500


def test_fig3_has_a_row_of_dip_above_that_of_the_prior(
    tiny_prior, tmp_path, known_runs, monkeypatch
):
    monkeypatch.setattr(figures, "STRIPS", ("denoise",))  # axes take their time
    files = figures.fig3(tiny_prior, IMAGES, tmp_path, Options("bench x"))
    content, size = written(files, "fig3")
    assert "- denoise, DIP: two regimes **not seen** (0 of 2 runs)" in content
    assert "- denoise, prior: two regimes **seen** (2 of 2 runs)" in content
    assert "prior, and one of DIP **not seen** (0 of 2 runs). Of the best" in content
    assert "- runs of DIP: 3000 iterations each" in content
    # y, seven iterates and the best one, the clean picture; of 1.25 by 1.6 inches
    assert size == (10 * 1.25 * 150, 2 * 1.6 * 150)


def test_a_claim_that_does_not_hold_is_said_not_to():
    about = runs.subject("sharp")
    down, worse = 500 * np.exp(-2e-3 * K), 25 - K / 100
    falls = runs.run(falling(105), down, worse, about=about)
    text = figures.sharpness_text({"sharp": [falls], "blurred": [falls]}, 100)
    assert "**partly seen** (1 of 2 runs)" in text[-1]
    assert "**not seen** (0 of 1 runs)" in figures.regimes_text("sharp", [falls])
    assert "**cannot be judged** (1 runs" in figures.slope_text("sharp", [falls])


def pose(task):
    """Return what poses the problem of a task to a blind method."""
    observe = tasks.TASKS[task].observe
    return lambda clean, key: Problem(clean, observe(clean, key).y)


def method(title, seen):
    """Return a method that gives y back, the adapted one half as far from grey."""

    def restore(prior, problem, key):
        seen.append(title)
        image = np.asarray(problem.y)
        image = (image + 0.5) / 2 if title == "adapted" else image
        return Restored(image, np.int32(0), np.int32(0))

    return Method(title, lambda _: Ready(restore, title, is_compiled=False))


def test_grids_show_what_the_cells_hold(tiny_prior, tmp_path, monkeypatch):
    seen = []
    both = {"diip-adapted": method("adapted", seen), "diip": method("default", seen)}
    nothing = reference.PerceptualMetric("alex", None, "not asked for")
    monkeypatch.setattr(methods, "METHODS", both)
    monkeypatch.setattr(methods, "pose", pose)
    monkeypatch.setattr(figures, "GRIDS", {"fig5": ("denoise", "jpeg")})
    monkeypatch.setattr(reference, "perceptual_metric", lambda _: nothing)
    options = Options("bench x")

    def compute():
        plan = figures.grid_plan(IMAGES, options)
        store = Store(tmp_path)
        tally = run.run(tiny_prior, plan, store, nothing, options, "grids")
        return store.chosen(tally.names)

    cells = compute()
    files = figures.grids(tiny_prior, IMAGES, tmp_path, options)
    content, _ = written(files, "fig5")
    denoise = re.search("- denoise: (.*)", content)[1]
    # To the rounding of the stored picture, nothing is gained by giving y back.
    assert re.search(r"default, .*, by -?0.0 \(-?0.0 to -?0.0\) dB", denoise)
    assert "DIIP, adapted, is better than y in " in denoise

    seen.clear()
    assert compute() == cells
    assert not seen  # they are there
    pairs, failed = figures.restored(cells, IMAGES, tmp_path)
    assert not failed
    assert {task: len(own) for task, own in pairs.items()} == {"denoise": 2, "jpeg": 2}
    for pair in pairs["jpeg"]:
        y = pair.subject.degraded
        np.testing.assert_allclose(pair.default, y, atol=0.51 / 255)  # 8 bits
        np.testing.assert_allclose(pair.adapted, (y + 0.5) / 2, atol=0.51 / 255)


def test_a_comparison_shows_the_methods_that_have_cells(
    tiny_prior, tmp_path, monkeypatch
):
    names = ["input", "adapted", "a method of a long name", "other"]
    found = {name: method(name, []) for name in names}
    nothing = reference.PerceptualMetric("alex", None, "not asked for")
    monkeypatch.setattr(methods, "METHODS", found)
    monkeypatch.setattr(methods, "pose", pose)
    monkeypatch.setattr(reference, "perceptual_metric", lambda _: nothing)
    options, task, store = Options("bench x", seeds=(0, 1)), "denoise", Store(tmp_path)
    plan = run.Plan({task: pose(task)}, {n: found[n] for n in names[:3]}, IMAGES, (0,))
    run.run(tiny_prior, plan, store, nothing, options, "some")
    panels = figures.compared(task, tiny_prior, IMAGES[1], store, options)
    titles = [title.rsplit("\n", 1)[0] for title, _ in panels]
    # y is the row "input"; nothing was computed of the last method.
    assert titles == [task, "adapted", "a method of a long\nname", "clean"]
    y, adapted, other, clean = (
        image if image.dtype != np.uint8 else image / 255 for _, image in panels
    )
    np.testing.assert_array_equal(clean, IMAGES[1][1])
    np.testing.assert_array_equal(y, traces.task(task)(IMAGES[1], 0).degraded)
    np.testing.assert_allclose(other, y, atol=0.51 / 255)  # 8 bits
    np.testing.assert_allclose(adapted, (y + 0.5) / 2, atol=0.51 / 255)


def test_a_task_of_a_comparison_begins_a_row():
    panels = [("x", np.full((8, 8, 3), 0.2))] * (figures.COLUMNS + 1)
    content = figures.comparison([panels, panels[:2]])
    with Image.open(io.BytesIO(content)) as image:
        # Three rows of 1.75 inches by eight columns of 1.25
        assert image.size == (8 * 1.25 * 150, int(3 * 1.75 * 150))


def test_a_cell_that_failed_is_told_and_not_shown():
    names = [
        Name("p", "denoise", method, "0.png", digest(IMAGES[0][1]), 0, "s")
        for method in figures.BOTH
    ]
    cells = [Cell(names[0], error="ValueError: no"), Cell(names[1], error="no again")]
    pairs, failed = figures.restored(cells, IMAGES, None)
    assert not pairs
    assert failed[0] == "- failed: diip-adapted on denoise: ValueError: no"
    figures.before_and_after(pairs)  # nothing to show is no error


def test_without_matplotlib_nothing_is_computed(tiny_prior, monkeypatch):
    """The command tells what to install; see `bench.__main__`."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for make in (figures.fig3, figures.fig4, figures.fig6, figures.grids):
        with pytest.raises(ModuleNotFoundError, match="matplotlib"):
            make(tiny_prior, IMAGES, None, Options())
