"""On which devices arrays live, and over which axes of a mesh they vary."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding


def automatic(sharding: Sharding) -> Sharding:
    """Return the same sharding with axes that the compiler propagates.

    `jax.make_mesh` makes explicit axes, over which a network's reshapes would each have
    to say how their result is sharded.
    """
    mesh = getattr(sharding, "mesh", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(mesh, Mesh):
        return sharding
    return NamedSharding(Mesh(mesh.devices, mesh.axis_names), sharding.spec)


def whole(sharding: Sharding) -> Sharding:
    """Return the sharding that has the whole array on each of the same devices."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding


def home(tree: Any) -> Sharding:
    """Return where to put what is used together with these arrays.

    The first array that is on a device tells; without one, JAX's default device.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            return whole(automatic(leaf.sharding))
    return jax.device_put(np.zeros(())).sharding


def put(tree: Any, sharding: Sharding | None = None) -> Any:
    """Put arrays on devices, and leave them where they already are.

    Args:
        tree: arrays of NumPy or JAX; mere shapes stay what they are.
        sharding: where to; None leaves JAX's arrays on their devices, with automatic
            axes, and puts the others on the default device.
    """

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if sharding is None and isinstance(leaf, jax.Array) and leaf.committed:
            return jax.device_put(leaf, automatic(leaf.sharding))
        return jax.device_put(leaf, sharding)

    return jax.tree.map(one, tree)


def in_automatic_axes(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; where axes of a mesh are explicit, the compiler shards it.

    Its results are whole on every device, but for the axes of a `vmap` outside.
    """
    for leaf in jax.tree.leaves(arguments):
        mesh = jax.typeof(leaf).sharding.mesh
        if mesh.explicit_axes:
            automatic_axes = jax.sharding.auto_axes(
                function,
                axes=mesh.explicit_axes,
                out_sharding=_whole_results(function, arguments, mesh),
            )
            return automatic_axes(*arguments)
    return function(*arguments)


def _whole_results(
    function: Callable[..., Any], arguments: tuple[Any, ...], mesh: Any
) -> Any:
    """Return shardings by which a function's results are whole on every device.

    Each names all axes of its result: before JAX 0.8, `vmap` cannot insert its own
    axis otherwise, where that is not the first one.
    """
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jax.typeof(leaf).dtype),
        arguments,
    )

    def at(result: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*[None] * len(result.shape)))

    return jax.tree.map(at, jax.eval_shape(function, *shapes))


def vary_together(*trees: Any) -> tuple[Any, ...]:
    """Return trees whose arrays vary over the same axes of a mesh.

    Inside `jax.shard_map` loops and gradients written by hand want that of what they
    are given. Elsewhere nothing varies, and the trees are returned as they are.
    """
    axes = frozenset[str]().union(*map(_axes, jax.tree.leaves(trees)))
    if not axes:
        return trees

    def vary(leaf: Any) -> Any:
        missing = tuple(sorted(axes - _axes(leaf)))
        return _pvary(leaf, missing) if missing else leaf

    return jax.tree.map(vary, trees)


def _axes(leaf: Any) -> frozenset[str]:
    """Return the axes of a mesh over which an array varies inside `jax.shard_map`."""
    kind = jax.typeof(leaf)
    if hasattr(kind, "vma"):  # before JAX 0.10
        return kind.vma
    return kind.manual_axis_type.varying


def _pvary(leaf: Any, axes: tuple[str, ...]) -> jax.Array:
    if hasattr(lax, "pcast"):
        return lax.pcast(leaf, axes, to="varying")
    return getattr(lax, "pvary")(leaf, axes)  # noqa: B009, of JAX before 0.8
