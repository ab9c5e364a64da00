"""Compiler options: known to the XLA in use, harmless where it does not know them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import compilation, storage
from diip_jax.unets import ops


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


@pytest.mark.parametrize("convolve", [ops.convolve, ops.convolve_upsampled])
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


# Traces


@pytest.fixture
def scaled(tmp_path):
    """Return a function that makes a jitted one anew, and what its tracings saw."""
    seen = []

    def scale(x, factors):
        seen.append(x.shape)
        return {"product": x * factors["a"] + factors["b"]}, x.sum()

    def make(folder=tmp_path / "traces"):
        def like(x, factors):
            return {"product": 0}, 0

        return jax.jit(compilation.cache_traces(scale, folder, like))

    return make, seen


FACTORS = {"a": np.float32(3), "b": 2.0}


def test_a_trace_serves_functions_jitted_anew(scaled):
    make, seen = scaled
    x = np.arange(4, dtype=np.float32)
    for _ in range(2):
        result, total = make()(x, FACTORS)
        np.testing.assert_array_equal(result["product"], 3 * x + 2)
        assert total == 6
    assert seen == [(4,)]


def test_other_shapes_and_structures_are_other_traces(scaled):
    make, seen = scaled
    make()(np.ones(4, np.float32), FACTORS)
    make()(np.ones(5, np.float32), FACTORS)
    make()(np.ones(4, np.int32), FACTORS)
    make()(np.ones(4, np.float32), {**FACTORS, "c": 1})
    assert len(seen) == 4


@pytest.mark.parametrize("change", ["source", "version", "setting"])
def test_what_a_trace_depends_on_makes_another(scaled, monkeypatch, change, tmp_path):
    make, seen = scaled
    make()(np.ones(4, np.float32), FACTORS)
    if change == "source":
        (tmp_path / "compilation.py").write_text("# another version of the package\n")
        monkeypatch.setattr(compilation, "__file__", str(tmp_path / "compilation.py"))
    if change == "version":
        monkeypatch.setattr(compilation.metadata, "version", lambda name: f"{name} 9")
    precision = "highest" if change == "setting" else None
    with jax.default_matmul_precision(precision):
        make()(np.ones(4, np.float32), FACTORS)
    assert len(seen) == 2


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_trace_cut_short_is_made_again(scaled, tmp_path, keep):
    make, seen = scaled
    make()(np.ones(4, np.float32), FACTORS)
    (trace,) = (tmp_path / "traces").iterdir()
    whole = trace.read_bytes()
    trace.write_bytes(whole[:keep])
    make()(np.ones(4, np.float32), FACTORS)
    assert len(seen) == 2
    assert trace.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_a_warning_only(scaled, tmp_path):
    make, _ = scaled
    (tmp_path / "file").write_text("")
    program = make(tmp_path / "file" / "traces")
    with pytest.warns(UserWarning, match="cannot keep a trace"):
        result, _ = program(np.ones(4, np.float32), FACTORS)
    np.testing.assert_array_equal(result["product"], np.full(4, 5))


def test_a_trace_that_cannot_be_written_leaves_nothing(scaled, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        scaled[0]()(np.ones(4, np.float32), FACTORS)
    assert list((tmp_path / "traces").iterdir()) == []
