"""PSNR and SSIM against scikit-image and closed forms."""

import numpy as np
import pytest

from diip_jax.metrics import psnr, ssim
from helpers import seeded


def pair(height=24, width=31, seed=0):
    reference = seeded.image(height, width, seed)
    rng = np.random.default_rng(seed + 100)
    noisy = reference + 0.1 * rng.standard_normal(reference.shape)
    return reference, np.clip(noisy, 0, 1).astype(np.float32)


@pytest.mark.parametrize("offset", [0.1, 0.01, 1.0])
def test_psnr_of_a_constant_offset_by_hand(offset):
    reference = np.zeros((4, 5, 3))
    assert psnr(reference, reference + offset) == pytest.approx(-20 * np.log10(offset))


def test_equal_images():
    reference, _ = pair()
    assert psnr(reference, reference) == float("inf")
    assert ssim(reference, reference) == pytest.approx(1, abs=1e-12)


def test_both_are_symmetric():
    reference, noisy = pair()
    assert psnr(reference, noisy) == psnr(noisy, reference)
    assert ssim(reference, noisy) == pytest.approx(ssim(noisy, reference), rel=1e-12)


@pytest.mark.parametrize("size", [(24, 31), (11, 11), (64, 40)])
@pytest.mark.parametrize("seed", [0, 1])
def test_match_scikit_image(size, seed):
    metrics = pytest.importorskip("skimage.metrics")
    reference, noisy = (np.float64(a) for a in pair(*size, seed))
    expected = metrics.structural_similarity(
        reference,
        noisy,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=-1,
    )
    # scikit-image too averages where the window fits; float64 on both sides.
    assert ssim(reference, noisy) == pytest.approx(expected, abs=1e-9)
    expected = metrics.peak_signal_noise_ratio(reference, noisy, data_range=1)
    assert psnr(reference, noisy) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_two_constants_by_hand():
    a, b, c1 = 0.25, 0.75, 0.01**2
    x, y = np.full((12, 12, 3), a), np.full((12, 12, 3), b)
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ssim(x, y) == pytest.approx(expected, rel=1e-6)


def test_float32_images_are_measured_in_float64():
    reference, noisy = pair()
    assert psnr(reference, noisy) == psnr(np.float64(reference), np.float64(noisy))
    assert ssim(reference, noisy) == ssim(np.float64(reference), np.float64(noisy))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_different_sizes_are_refused(metric):
    with pytest.raises(ValueError, match=r"\(12, 12, 3\).*\(12, 13, 3\)"):
        metric(np.zeros((12, 12, 3)), np.zeros((12, 13, 3)))


def test_images_below_the_window_are_refused():
    with pytest.raises(ValueError, match="image is 30x10; SSIM needs at least 11x11"):
        ssim(np.zeros((10, 30, 3)), np.zeros((10, 30, 3)))
