"""The forms of degradation against loops over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.bench.baselines import forms


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (8, 12, 3)).astype(np.float32)


def test_convolution_is_the_sum_over_the_window(x):
    kernel = np.random.default_rng(1).uniform(size=(3, 3)).astype(np.float32)
    padded = np.pad(x, [(1, 1), (1, 1), (0, 0)])
    expected = np.zeros_like(x)
    for i in range(3):
        for j in range(3):
            expected += kernel[i, j] * padded[i : i + 8, j : j + 12]
    np.testing.assert_allclose(forms.convolve(x, kernel), expected, atol=1e-6)


def test_pooling_is_the_mean_of_blocks(x):
    expected = [
        [x[i : i + 4, j : j + 4].mean(axis=(0, 1)) for j in range(0, 12, 4)]
        for i in range(0, 8, 4)
    ]
    form = forms.downsample(4)
    np.testing.assert_allclose(form.apply((), x), expected, atol=1e-6)  # float32


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("identity", (3, 5)),
        ("kernel", (3, 5)),
        *((n, (12, 20)) for n in forms.SHRINKING),
    ],
)
def test_a_measurement_and_its_prediction_are_of_one_size(name, size, key):
    y = np.random.default_rng(2).uniform(size=(3, 5, 3)).astype(np.float32)
    assert forms.size_of(None, y, name, 4) == size
    canvas = (16, 32)  # a reflection fills what y has not of it
    form, measured = forms.bind(None, y, canvas, name, 3, 4)
    np.testing.assert_allclose(measured[:3, :5], 2 * y - 1, atol=1e-6)
    predicted = form.apply(form.init(key), np.zeros((*canvas, 3), np.float32))
    assert predicted.shape == measured.shape


def test_an_unknown_kernel_is_a_blur_and_keeps_every_factor_th_pixel(x, key):
    whole, kept = forms.kernel(5), forms.kernel(5, factor=4)
    phi = whole.init(key)
    grey = np.full_like(x, 0.5)
    seen = whole.apply(phi, grey)
    np.testing.assert_allclose(seen[2:-2, 2:-2], 0.5, atol=1e-6)  # a sum of 1
    assert np.all(seen < 0.5 + 1e-6)  # less at the edges: nothing is negative
    np.testing.assert_array_equal(kept.apply(phi, x), whole.apply(phi, x)[1::4, 1::4])
    gradient = jax.grad(lambda phi: jnp.sum(whole.apply(phi, x) ** 2))(phi)
    assert not np.any(gradient["code"])
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["weights"]))


def test_changed_light_is_a_line_in_the_range_of_photos(x, key):
    form = forms.affine(x.shape)
    phi = {"f": 0.5, "M": np.full(x.shape, 0.25, np.float32)}
    expected = 2 * (0.5 * (x + 1) / 2 + 0.25) - 1
    np.testing.assert_allclose(form.apply(phi, x), expected, atol=1e-6)
    first = form.init(key)
    assert abs(first["f"]) < 0.05  # five deviations
    assert np.min(first["M"]) >= 0
    assert np.max(first["M"]) <= 1e-4
