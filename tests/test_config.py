"""The settings: allowed values by hand, leaves that never compile again."""

import jax
import pytest

from diip_jax import config, diip, stopping
from diip_jax.config import PAPER, DIIPConfig


def test_allowed_values_by_hand():
    assert config.choices() == {
        "remat": ("auto", "none", "step", "block"),
        "criterion": ("paper", "robust", "never", "discrepancy"),
        "dtype": ("float32", "bfloat16"),
        "start": ("random", "matched"),
        "clip_gradient": ("zero", "straight-through"),
    }
    assert set(config.choices()["criterion"]) == set(stopping.CRITERIA)


def test_every_allowed_value_is_accepted_and_no_other():
    for name, values in config.choices().items():
        for value in values:
            diip.check_config(PAPER.replace(**{name: value}))
        wrong = PAPER.replace(**{name: "else"})
        with pytest.raises(ValueError, match=f"{name} is 'else'; use one of") as caught:
            diip.check_config(wrong)
        assert all(value in str(caught.value) for value in values)


def test_numbers_are_leaves_and_the_rest_is_static():
    leaves, tree = jax.tree.flatten(DIIPConfig(learning_rate=1.0, k_min=2, epsilon=3.0))
    assert leaves == [1.0, 2, 3.0]
    other = jax.tree.structure(DIIPConfig(num_steps=3))
    assert tree == jax.tree.structure(DIIPConfig())
    assert tree != other


def test_the_paper_is_the_paper():
    """Sec. 4 of the paper: k_min, epsilon, learning rate; Sec. 3.3: 1500 iterations."""
    assert (PAPER.k_min, PAPER.epsilon, PAPER.learning_rate) == (100, 1e-3, 1.5e-3)
    assert (PAPER.max_iterations, PAPER.criterion, PAPER.gradient) == (
        1500,
        "paper",
        "full",
    )
