"""Places of arrays, on a mesh of one device; `test_engine.py` has one of four."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diip_jax import devices

SPEC = PartitionSpec("d")


@pytest.fixture
def explicit():
    """Return a sharding over a mesh with an explicit axis."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Explicit,))
    return NamedSharding(mesh, SPEC)


def test_axes_become_automatic_and_nothing_else_changes(explicit):
    automatic = devices.automatic(explicit)
    assert automatic == NamedSharding(Mesh(np.array(jax.devices()[:1]), ("d",)), SPEC)
    alone = jnp.zeros(2).sharding
    assert devices.automatic(alone) is alone


def test_home_is_where_the_first_array_is(explicit):
    host, here = np.zeros(2), jnp.zeros(2)
    assert devices.home([host]) == here.sharding
    assert devices.home([host, here]) == here.sharding
    placed = devices.home([jax.device_put(here, explicit), here])
    assert placed == devices.whole(devices.automatic(explicit))
    assert placed.is_fully_replicated


def test_put_commits_only_what_it_is_told_to(explicit):
    free, bound = devices.put([np.zeros(2), jax.device_put(np.zeros(2), explicit)])
    assert not free.committed
    assert bound.sharding == devices.automatic(explicit)
    assert devices.put(np.zeros(2), free.sharding).committed


def test_a_carry_varies_as_what_the_loop_adds_to_it():
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))

    def grow(factor, x):
        factor, x, count = devices.vary_together(factor, x, jnp.int32(0))

        def body(carry):
            count, x = carry
            return count + (x.sum() > 0), factor * x

        return lax.while_loop(lambda carry: carry[0] < 3, body, (count, x))[1]

    sharded = jax.shard_map(
        grow, mesh=mesh, in_specs=(PartitionSpec(), SPEC), out_specs=SPEC
    )
    np.testing.assert_array_equal(sharded(jnp.float32(2), jnp.ones(4)), np.full(4, 8.0))


def test_outside_of_shard_map_nothing_changes():
    x = jnp.zeros(2)
    assert devices.vary_together(x, 1.5)[0] is x


def test_a_function_runs_where_its_axes_are_not_explicit(explicit):
    x = jax.device_put(jnp.arange(4.0), explicit)

    def swapped(x):
        return x.reshape(2, 2).T.reshape(4)  # not possible over an explicit axis

    answer = jax.jit(lambda x: devices.in_automatic_axes(swapped, x))(x)
    np.testing.assert_array_equal(answer, [0, 2, 1, 3])


def test_under_vmap_results_may_have_the_mapped_axis_anywhere(explicit):
    """As what `lax.map` stacks has: its own axis is first, the mapped one second."""
    x = jax.device_put(jnp.arange(6.0).reshape(3, 2), explicit)

    def stacked(x):
        return lax.map(lambda factor: factor * x, jnp.arange(4.0)), x.sum()

    def automatic(x):
        return devices.in_automatic_axes(stacked, x)

    products, sums = jax.jit(jax.vmap(automatic))(x)
    expected = np.einsum("f,bi->bfi", np.arange(4), np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(products, expected)
    np.testing.assert_array_equal(sums, [1, 5, 9])
