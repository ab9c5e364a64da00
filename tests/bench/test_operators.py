"""The operators against matrices written out, and against the damage they stand for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import degradations
from diip_jax.bench import operators
from helpers import gaussian

SIZE = (6, 5)
RNG = np.random.default_rng(0)
KERNEL = RNG.random((3, 3))  # neither symmetric nor of sum 1
# float32 keeps seven digits, and these matrices have conditions below a hundred.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def circular(kernel, size):
    """Return the matrix of a circular convolution, pixel by pixel."""
    matrix = np.zeros((*size, *size))
    reach = kernel.shape[0] // 2, kernel.shape[1] // 2
    for i, j in np.ndindex(*size):
        for a, b in np.ndindex(*kernel.shape):
            row, column = (i - a + reach[0]) % size[0], (j - b + reach[1]) % size[1]
            matrix[i, j, row, column] += kernel[a, b]
    return matrix.reshape(size[0] * size[1], -1)


def fewer():
    """Return an operator that measures less than an image has, and its matrix."""
    rows, columns = RNG.standard_normal((4, 6)), RNG.standard_normal((2, 5))
    return operators.separable(rows, columns), np.kron(rows, columns)


def more():
    """Return an operator that measures more than an image has, and its matrix."""
    rows, columns = RNG.standard_normal((7, 6)), RNG.standard_normal((8, 5))
    return operators.separable(rows, columns), np.kron(rows, columns)


CASES = {
    "fewer": fewer(),
    "more": more(),
    "identity": (operators.identity(SIZE), np.eye(30)),
    "convolution": (
        operators.convolution(jnp.asarray(KERNEL), SIZE),
        circular(KERNEL, SIZE),
    ),
}


@pytest.fixture(params=CASES, name="case")
def _case(request):
    operator, matrix = CASES[request.param]
    x = np.float32(RNG.standard_normal((*SIZE, 3)))
    y = np.float32(RNG.standard_normal(operator.apply(x).shape))
    return operator, matrix, x, y


def columns(x):
    return np.reshape(x, (-1, 3))


def test_apply_is_the_matrix(case):
    operator, matrix, x, _ = case
    expected = matrix @ columns(x)
    np.testing.assert_allclose(columns(operator.apply(x)), expected, **CLOSE)


def test_adjoint_is_the_transpose(case):
    operator, matrix, x, y = case
    expected = matrix.T @ columns(y)
    np.testing.assert_allclose(columns(operator.adjoint(y)), expected, **CLOSE)
    inner = np.vdot(operator.apply(x), y), np.vdot(x, operator.adjoint(y))
    np.testing.assert_allclose(*inner, **CLOSE)


def test_pseudo_inverse_is_numpys(case):
    operator, matrix, _, y = case
    expected = np.linalg.pinv(matrix) @ columns(y)
    np.testing.assert_allclose(columns(operator.pseudo_inverse(y)), expected, **CLOSE)


def test_the_decomposition_is_one(case):
    operator, matrix, x, y = case
    spectrum = operator.to_spectrum(x)
    np.testing.assert_allclose(operator.from_spectrum(spectrum), x, **CLOSE)
    norm = np.linalg.norm(np.abs(spectrum))
    np.testing.assert_allclose(norm, np.linalg.norm(x), **CLOSE)
    seen = operator.measured(operator.apply(x))
    np.testing.assert_allclose(seen, operator.singulars * spectrum, **CLOSE)
    inside = operator.from_measured(operator.measured(y))  # U U^T, a projection
    again = operator.from_measured(operator.measured(inside))
    np.testing.assert_allclose(again, inside, **CLOSE)
    values = np.sort(np.ravel(operator.singulars))[::-1]
    expected = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(values[: len(expected)], expected, **CLOSE)
    assert not values[len(expected) :].any()


@pytest.mark.parametrize("sigma", [0.8, 1.6])
def test_blur_is_the_degradation(sigma):
    x = RNG.random((9, 7, 3))
    y = operators.gaussian_blur((9, 7), sigma).apply(np.float32(x))
    # Singular values below RANK are left out: at most that part of an image.
    expected = degradations.gaussian_blur(x, sigma=sigma)
    np.testing.assert_allclose(y, expected, atol=operators.RANK * np.linalg.norm(x))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_super_resolution_is_the_small_picture_of_the_degradation(factor):
    size = (4 * factor, 3 * factor)
    x = RNG.random((*size, 3))
    y = operators.super_resolution(size, factor).apply(np.float32(x))
    # float32 in sums of some twenty terms below 1
    np.testing.assert_allclose(y, degradations.downsample(x, factor), atol=1e-5)
    assert y.shape == (4, 3, 3)


def test_a_measurement_in_the_prior_range_is_that_of_the_image_there():
    x = np.float32(RNG.random((*SIZE, 3)))
    for operator, _ in CASES.values():
        y = operators.to_prior_range(operator, operator.apply(x))
        np.testing.assert_allclose(y, operator.apply(2 * x - 1), **CLOSE)


def test_truncation_drops_small_singular_values():
    operator, matrix = CASES["fewer"]
    middle = float(np.median(np.linalg.svd(matrix, compute_uv=False)))
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    expected = (u * np.where(s < middle * 1.01, 0, s)) @ v
    truncated = operators.truncated(operator, middle * 1.01)
    np.testing.assert_allclose(gaussian.dense(truncated), expected, **CLOSE)


def test_kernels_may_be_traced_and_batched():
    kernels = np.float32(RNG.random((2, 3, 3)))
    x = np.float32(RNG.random((*SIZE, 3)))

    def blur(kernel):
        return operators.convolution(kernel, SIZE).apply(x)

    both = jax.jit(jax.vmap(blur))(kernels)
    for kernel, y in zip(kernels, both, strict=True):
        expected = circular(kernel, SIZE) @ columns(x)
        np.testing.assert_allclose(columns(y), expected, **CLOSE)


def test_a_photo_of_a_kernel_without_frequencies_keeps_its_phases():
    """K is zero at some frequencies: the spectrum must stay invertible there."""
    kernel = np.outer([0.5, 0, 0.5], [0, 1, 0])
    operator = operators.convolution(jnp.asarray(kernel), (8, 8))
    assert np.count_nonzero(np.asarray(operator.singulars) == 0) == 16
    x = np.float32(RNG.random((8, 8, 3)))
    back = operator.from_spectrum(operator.to_spectrum(x))
    np.testing.assert_allclose(back, x, atol=1e-6)


def test_a_non_blind_method_without_operator_is_told_in_one_line():
    with pytest.raises(ValueError, match="DDRM needs the degradation") as caught:
        operators.known(None, "DDRM")
    assert len(str(caught.value).splitlines()) == 1


def test_matrices_agree_with_each_other():
    """The helper that other tests read operators with gives the Kronecker product."""
    for operator, matrix in itertools.islice(CASES.values(), 2):
        np.testing.assert_allclose(gaussian.dense(operator), matrix, **CLOSE)
