"""Compiler options: known to the XLA in use, harmless where it does not know them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import compilation


@pytest.fixture
def fresh():
    compilation.compiler_options.cache_clear()
    yield
    compilation.compiler_options.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_options_compile_and_change_no_result():
    def convolve(x, kernel):
        return jax.lax.conv(x, kernel, (1, 1), "SAME")

    x, kernel = jnp.ones((1, 32, 8, 8)), jnp.full((32, 32, 3, 3), 0.5)
    options = compilation.compiler_options()
    tuned = jax.jit(convolve, compiler_options=options)(x, kernel)
    # Sums of halves are exact in any order.
    np.testing.assert_array_equal(tuned, jax.jit(convolve)(x, kernel))


@pytest.mark.usefixtures("fresh")
def test_unknown_options_are_left_out(monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("options are for the CPU")
    monkeypatch.setattr(compilation, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    assert compilation.compiler_options() == {}


@pytest.mark.usefixtures("fresh")
def test_other_backends_get_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.compiler_options() == {}
