"""Schedules against products taken factor by factor, and timesteps by hand."""

import math

import numpy as np
import pytest

from diip_jax.schedule import (
    Schedule,
    cosine_alphas_cumprod,
    ddim_timesteps,
    linear_alphas_cumprod,
)

# float64 products of up to 1000 factors, taken in another order: 1000 rounding errors.
FLOAT64 = 1e-12


@pytest.mark.parametrize("count", [1000, 4000, 10])
def test_linear_schedule_is_the_product_of_one_minus_beta(count):
    expected, product = [], 1.0
    for t in range(count):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / (count - 1))
        expected.append(product)
    np.testing.assert_allclose(linear_alphas_cumprod(count), expected, rtol=FLOAT64)


def test_linear_schedule_has_the_published_ends():
    alpha_bar = linear_alphas_cumprod()
    assert alpha_bar.shape == (1000,)
    assert alpha_bar.dtype == np.float64
    assert alpha_bar[0] == 1 - 1e-4
    # "D_KL ~ 1e-5 bits" of Ho et al. (2020): almost nothing of x_0 is left.
    assert alpha_bar[-1] == pytest.approx(4.0358e-5, rel=1e-4)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedules_fall_from_below_one_to_above_zero(kind):
    alpha_bar = Schedule(kind=kind).alphas_cumprod()
    assert alpha_bar[0] < 1
    assert (np.diff(alpha_bar) < 0).all()
    assert alpha_bar[-1] > 0


def test_cosine_schedule_is_its_closed_form_until_the_clip():
    count, alpha_bar = 1000, cosine_alphas_cumprod(1000)

    def f(t: float) -> float:
        return math.cos((t / count + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f(t + 1) / f(0) for t in range(count)]
    # Only the last beta is above 0.999; the product telescopes before it.
    np.testing.assert_allclose(alpha_bar[:-1], expected[:-1], rtol=1e-9)
    assert alpha_bar[-1] == pytest.approx(alpha_bar[-2] * 0.001, rel=1e-9)


def test_beta_range_is_used():
    alpha_bar = Schedule(beta_start=1e-3, beta_end=1e-3).alphas_cumprod()
    np.testing.assert_allclose(alpha_bar, 0.999 ** np.arange(1, 1001), rtol=FLOAT64)


def test_unknown_schedule_is_refused_by_name():
    with pytest.raises(ValueError, match="'sigmoid'.*'linear' or 'cosine'"):
        Schedule(kind="sigmoid").alphas_cumprod()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta_start", float("nan")),
        ("beta_start", -1.0),
        ("beta_start", 0),
        ("beta_end", 2.0),
        ("beta_end", float("inf")),
        ("beta_end", None),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", 10**12),
        ("num_train_timesteps", 1000.0),
        ("num_train_timesteps", True),
    ],
)
def test_impossible_schedules_are_refused_by_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} is {value!r}; use "):
        Schedule(**{field: value})


def test_betas_that_leave_nothing_of_an_image_are_refused():
    with pytest.raises(ValueError, match="use smaller betas"):
        Schedule(beta_end=0.9)


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (10, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        (3, [666, 333, 0]),  # does not divide 1000
        (1, [0]),
        (2, [500, 0]),
    ],
)
def test_timesteps_are_leading(num_steps, expected):
    assert ddim_timesteps(num_steps).tolist() == expected


@pytest.mark.parametrize("num_steps", [7, 600, 1000])
def test_timesteps_are_equally_spaced_and_end_at_zero(num_steps):
    timesteps = ddim_timesteps(num_steps)
    assert timesteps.shape == (num_steps,)
    assert timesteps[-1] == 0
    assert timesteps[0] < 1000
    assert set(np.diff(timesteps)) == {-(1000 // num_steps)}


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(num_steps):
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}; use 1 to 1000"):
        ddim_timesteps(num_steps)


def test_networks_see_rescaled_timesteps_only_where_trained_so():
    timesteps = np.array([3996, 0])
    plain = Schedule(num_train_timesteps=4000)
    rescaled = Schedule(num_train_timesteps=4000, rescale_timesteps=True)
    assert plain.network_timesteps(timesteps).tolist() == [3996, 0]
    assert rescaled.network_timesteps(timesteps).tolist() == [999, 0]
    assert rescaled.network_timesteps(timesteps).dtype == np.float32
