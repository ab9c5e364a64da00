"""Compiler options: known to the XLA in use, harmless where it does not know them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import compilation
from diip_jax.unets import layers


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


@pytest.mark.parametrize("convolve", [layers.convolve, layers.convolve_upsampled])
def test_cpus_turn_kernels_outside_of_loops(convolve):
    if jax.default_backend() != "cpu":
        pytest.skip("accelerators turn kernels as they read them")

    def descend(kernel, x):
        def loss(x):
            return jnp.sum(jnp.square(convolve(x, kernel)))

        return jax.lax.fori_loop(0, 10, lambda _, x: x - jax.grad(loss)(x), x)

    lowered = jax.jit(descend).lower(jnp.ones((3, 3, 8, 16)), jnp.ones((1, 8, 8, 8)))
    text = lowered.compile(compilation.compiler_options()).as_text()
    (body,) = re.findall(r" while\(.*body=%?([\w.-]+)", text)
    loop = re.search(rf"^%?{re.escape(body)} \(.*?^}}", text, re.DOTALL | re.MULTILINE)
    entry = text.split("ENTRY")[1]
    # Transposed kernels have 16 inputs and 8 outputs.
    made = re.compile(r"= f32\[\d,\d,16,8\]\S* (?:fusion|transpose|copy|call)\(")
    assert loop is not None
    assert "convolution(" in loop.group()
    assert made.search(entry)
    assert not made.search(loop.group())
