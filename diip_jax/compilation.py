"""Options with which programs are compiled: speed alone, never results."""

import functools

import jax

# In jaxlib 0.10 XLA's CPU backend hands convolutions to YNNPACK, which runs them on one
# thread; without it they run on all cores. No kind of operation is to be handed over.
_CPU_OPTIONS: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """Return what to give to `jax.jit(..., compiler_options=...)` on this backend.

    Empty where nothing is gained and where the installed XLA does not know the option.
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x).lower(0.0).compile(_CPU_OPTIONS)
    except jax.errors.JaxRuntimeError:
        return {}
    return _CPU_OPTIONS
