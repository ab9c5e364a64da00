"""Stored runs against `restore`, scikit-image's scores, and a second look at them."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diip_jax import metrics
from diip_jax.bench import cells, run, tasks, traces
from diip_jax.bench.baselines import dip
from diip_jax.bench.traces import TraceError
from helpers import runs, seeded
from helpers.photos import CONFIG, LONG

# Two programs of one computation: a few roundings, spread by twelve steps of Adam.
TWO_PROGRAMS = 5e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder for runs that is not there yet."""
    return tmp_path_factory.mktemp("output") / "traces"


@pytest.fixture(scope="module")
def trace(tiny_prior, folder):
    """Return a run of the small random prior, newly made."""
    return traces.trace(tiny_prior, runs.subject(), folder, LONG)


def start(subject):
    return traces.keys(subject.task, subject.clean, subject.seed)[1]


def test_a_run_goes_where_restore_goes(tiny_prior, trace, restore_jit):
    subject = trace.subject
    answer = restore_jit(tiny_prior, subject.degraded, start(subject), CONFIG)
    done, n = int(answer.num_iterations), int(answer.iteration)
    assert 0 < n < done < len(trace.losses)  # a peak before the stop, and a way on
    for name in ("losses", "sharpnesses"):
        ours, theirs = getattr(trace, name)[:done], getattr(answer, name)[:done]
        np.testing.assert_allclose(ours, theirs, rtol=TWO_PROGRAMS)
    assert np.isfinite(trace.losses).all()
    # Half a level of rounding, and what two programs differ by.
    distance = np.abs(trace.images[n] / 255 - np.clip(answer.image, 0, 1))
    assert distance.max() <= 0.5 / 255 + TWO_PROGRAMS


def test_scores_are_those_of_the_stored_images(trace):
    assert trace.images.dtype == np.uint8
    clean = np.float64(trace.subject.clean)
    for k in (0, 5, 11):
        image = trace.images[k] / 255
        psnr = peak_signal_noise_ratio(clean, image, data_range=1)
        ssim = structural_similarity(
            *(clean, image),
            data_range=1,
            channel_axis=-1,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        assert trace.psnrs[k] == pytest.approx(psnr, abs=1e-9)  # float64 roundings
        assert trace.ssims[k] == pytest.approx(ssim, abs=1e-9)


def test_a_picture_too_small_for_ssim_has_none():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    found = traces._scored(np.ones((8, 8, 3)), np.ones(2), np.ones(2), images)
    assert np.isnan(found["ssims"]).all()
    np.testing.assert_allclose(found["psnrs"], 0)  # everywhere wrong by 1


def nothing_to_compute():
    raise AssertionError("a run is computed again")


def test_a_second_run_computes_nothing(tiny_prior, trace, folder, monkeypatch):
    monkeypatch.setattr(traces, "jitted_follow", nothing_to_compute)
    again = traces.trace(tiny_prior, runs.subject(), folder, LONG)
    jax.tree.map(np.testing.assert_array_equal, again[1:], trace[1:])
    assert [path.name for path in folder.iterdir()] == [
        path.name for path in folder.glob("made-up-x.png-0-*.npz")
    ]


@pytest.mark.parametrize("change", ["seed", "settings", "y", "clean", "prior"])
@pytest.mark.usefixtures("trace")
def test_what_differs_is_computed(tiny_prior, folder, monkeypatch, change):
    subject, config, prior = runs.subject(), LONG, tiny_prior
    if change == "seed":
        subject = subject._replace(seed=1)
    elif change == "settings":
        config = config.replace(learning_rate=0.04)
    elif change == "prior":
        prior = seeded.prior(sha256="1" * 64)
    elif change == "clean":
        subject = subject._replace(clean=1 - subject.clean)
    else:
        subject = subject._replace(degraded=1 - subject.degraded)
    monkeypatch.setattr(traces, "jitted_follow", nothing_to_compute)
    with pytest.raises(AssertionError, match="computed again"):
        traces.trace(prior, subject, folder, config)


DIP = dip.Config(channels=(8,), skips=(0,), input_channels=4, iterations=12)


def test_a_run_of_dip_keeps_some_outputs_and_all_scores(tmp_path, monkeypatch):
    subject = runs.subject()
    found = traces.fit(subject, tmp_path, DIP)
    assert found.psnrs.shape == (12,)
    assert {0, 11, np.argmax(found.psnrs)} <= set(found.shown)
    for k, image in found.strip().items():
        psnr = peak_signal_noise_ratio(
            np.float64(subject.clean), image / 255, data_range=1
        )
        assert found.psnrs[k] == pytest.approx(psnr, abs=1e-9)  # float64 roundings
    assert metrics.psnr(subject.clean, found.best() / 255) == max(found.psnrs)
    monkeypatch.setattr(traces, "jitted_outputs", nothing_to_compute)
    again = traces.fit(subject, tmp_path, DIP)
    jax.tree.map(np.testing.assert_array_equal, again[1:], found[1:])
    with pytest.raises(AssertionError, match="computed again"):
        traces.fit(subject, tmp_path, DIP.replace(iterations=11))


def test_strips_show_the_first_the_last_and_the_best():
    psnrs = -np.abs(np.arange(300) - 101.0)
    shown = traces.shown(psnrs)
    assert (shown[0], shown[-1]) == (0, 299)
    assert 101 in shown
    assert len(shown) == traces.SHOWN + 1
    ratios = np.diff(np.log(shown[shown != 101] + 1))
    # Even but for the rounding of the second one: by a half at about 2.6.
    np.testing.assert_allclose(ratios, np.log(300) / 6, atol=0.2)
    np.testing.assert_array_equal(traces.shown(np.zeros(3)), [0, 1, 2])


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\3\4 torn"])
def test_a_file_that_is_no_run_is_named(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(TraceError, match=r"x\.npz holds no run .*; delete it"):
        traces._read(tmp_path / "x.npz", "settings")


def test_a_run_of_other_settings_is_named(tmp_path):
    traces._write(tmp_path / "x.npz", "these", {"losses": np.ones(3)})
    assert traces._read(tmp_path / "x.npz", "these").keys() == {"losses"}
    with pytest.raises(TraceError, match="other settings; delete it"):
        traces._read(tmp_path / "x.npz", "those")


def test_damage_and_start_are_those_of_the_cells():
    clean = seeded.image(16, 16)
    name = cells.Name("p", "denoise", "m", "x.png", cells.digest(clean), 3, "s")
    for ours, theirs in zip(
        traces.keys("denoise", clean, 3), run.keys(name), strict=True
    ):
        assert (jax.random.key_data(ours) == jax.random.key_data(theirs)).all()


def test_runs_come_image_by_image_and_seed_by_seed(monkeypatch, tmp_path):
    drawn = []

    def observe(clean, key):
        drawn.append(jax.random.key_data(key).tolist())
        return SimpleNamespace(y=1 - np.float64(clean), sigma=0.25)

    made_up = {"inverted": SimpleNamespace(observe=observe)}
    monkeypatch.setattr(tasks, "TASKS", made_up)
    monkeypatch.setattr(traces, "trace", lambda prior, subject, *_: subject)
    images = [(name, seeded.image(16, 16, seed=ord(name))) for name in "ab"]
    seen = list(
        traces.followed(None, traces.task("inverted"), images, (0, 5), tmp_path)
    )
    assert [(s.image, s.seed) for s in seen] == [("a", 0), ("a", 5), ("b", 0), ("b", 5)]
    assert len({tuple(key) for key in drawn}) == 4  # damage of its own for each
    for subject in seen:
        assert subject.task == "inverted"
        assert subject.sigma == 0.25
        assert subject.degraded.dtype == np.float32
        np.testing.assert_allclose(subject.degraded, 1 - subject.clean, atol=1e-7)
