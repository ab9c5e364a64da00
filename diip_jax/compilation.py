"""How programs are compiled and cached: this changes speed, never results."""

import functools
import hashlib
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax import export

from diip_jax import storage

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


def cache_traces(
    function: Callable[..., Any],
    folder: Path,
    result_like: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a function to give to `jax.jit`, with its traces cached in a folder.

    Tracing a network and its gradient takes Python as long as XLA takes to load what it
    once compiled for them. A trace that is found is not made again. Its name is a
    digest of all that it depends on: this package's source, the versions of what it
    calls, the shapes, the static settings, and those of JAX.

    Args:
        function: what to trace, for one device; from this package's source.
        folder: where traces are, made when needed. A warning says where nothing can be
            written.
        result_like: function of the same arguments that returns something of the
            result's structure, which traces do not hold.
    """

    @functools.wraps(function)
    def program(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        shapes = [_shape(leaf) for leaf in leaves]
        depends_on = [function.__qualname__, tree, *shapes, *_surroundings()]
        path = folder / f"{_digest(repr(depends_on).encode())}.trace"
        trace = _read(path)
        if trace is None:

            def flat(*leaves: Any) -> Any:
                return jax.tree.leaves(function(*jax.tree.unflatten(tree, leaves)))

            trace = export.export(jax.jit(flat))(*shapes)
            _write(path, trace)
        result = jax.tree.structure(result_like(*args))
        return jax.tree.unflatten(result, trace.call(*leaves))

    return program


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)


def _surroundings() -> Sequence[object]:
    """Return what a trace depends on besides a function and its arguments."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    names = ("jax", "jaxlib", "flax", "optax")
    settings = jax.config.values
    return [
        jax.default_backend(),
        [metadata.version(name) for name in names],
        # As attributes they are what a context manager may have set for a while.
        [(name, getattr(jax.config, name, a)) for name, a in settings.items()],
        [(path.name, _digest(path.read_bytes())) for path in sources],
    ]


def _digest(content: bytes | bytearray) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> export.Exported | None:
    """Return a trace; None if none can be read, or it was not written whole."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest.decode("ascii", "replace") != _digest(content):
        return None
    return export.deserialize(bytearray(content))


def _write(path: Path, trace: export.Exported) -> None:
    content = trace.serialize()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.sweep(path.parent)
        storage.write_bytes(path, _digest(content).encode() + b"\n" + content)
    except OSError as error:
        warnings.warn(f"cannot keep a trace for the next start: {error}", stacklevel=2)
