"""The ADM UNet against azula's, live and as stored outputs.

azula's network gets random weights, none of them zero, so that the convolutions
that training starts at zero count too.
"""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax import prior as priors
from diip_jax.unets.adm import ADMConfig, ADMUNet
from helpers import azula_unet, seeded
from helpers.azula_unet import (
    BUNDLED,
    TIMESTEP,
    UNCONDITIONAL_256,
    UNCONDITIONAL_512,
    inputs,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "adm.npz"
ADM_OTHERS = set(seeded.ADM_CASES) - {"modern"}

# float32 sums of about 1000 terms in another order, through some 20 layers.
FORWARD = 1e-5
# The backward pass sums as often again, and group norms divide twice.
GRADIENT = 2e-5


@functools.cache
def compiled(config, shape, **options):
    """Return the package's forward pass and input gradient as one program."""
    unet = ADMUNet(config, **options)

    def both(params, x, cotangent, t):
        variables = {"params": params}
        conditioning = unet.apply(variables, t, method="condition")
        eps, pull_back = jax.vjp(lambda x: unet.apply(variables, x, conditioning), x)
        return eps, pull_back(cotangent)[0]

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    t = jax.ShapeDtypeStruct((), jnp.float32)
    params = priors.abstract_params(seeded.card(config))
    return seeded.compile_quickly(both, params, x, x, t)


def forward_and_gradient(config, params, x, cotangent, timestep=TIMESTEP, **options):
    """Return eps and the gradient of <eps, cotangent> by the package."""
    both = compiled(config, x.shape, **options)
    return both(params, x, cotangent, jnp.float32(timestep))


def random_params(config):
    return seeded.to_tree(seeded.tensors(seeded.torch_shapes(config)))


# "modern" and "early" set every switch both ways.
@pytest.mark.parametrize(
    "name",
    [
        "modern",
        "early",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("uneven", "mixed")),
    ],
)
def test_matches_the_stored_outputs_of_azula(name):
    config = seeded.ADM_CASES[name]
    eps, gradient = forward_and_gradient(config, random_params(config), *inputs())
    with np.load(GOLDEN) as golden:
        assert seeded.relative_error(eps, golden[f"{name}_eps"]) < FORWARD
        assert seeded.relative_error(gradient, golden[f"{name}_gradient"]) < GRADIENT


def check_parity(config, model, x, cotangent, timestep=TIMESTEP):
    state_dict = {name: t.numpy() for name, t in model.state_dict().items()}
    params = seeded.to_tree(state_dict)
    expected = azula_unet.forward_and_gradient(model, x, cotangent, timestep)
    actual = forward_and_gradient(config, params, x, cotangent, timestep)
    errors = [
        seeded.relative_error(a, b) for a, b in zip(actual, expected, strict=True)
    ]
    assert errors[0] < FORWARD, f"forward and gradient differ by {errors}"
    assert errors[1] < GRADIENT, f"forward and gradient differ by {errors}"


@pytest.mark.parity
@pytest.mark.parametrize("name", ["natural64", "faces64"])
@pytest.mark.parametrize("timestep", [0.0, 666.0])
def test_bundled_priors_match_azula(name, timestep, shared):
    torch = pytest.importorskip("torch")
    path = shared / "priors" / f"{name}.pt"
    model = azula_unet.build(BUNDLED, torch.load(path, weights_only=True))
    check_parity(BUNDLED, model, *inputs(32, 48), timestep)


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "modern",  # azula's stored outputs have the others
        *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(ADM_OTHERS)),
    ],
)
def test_every_switch_matches_azula(name):
    config = seeded.ADM_CASES[name]
    x, cotangent = inputs()
    check_parity(config, azula_unet.build(config), x, cotangent)


def random_config(seed):
    """Return a small configuration with every switch drawn at random."""
    rng = np.random.default_rng(seed)
    levels = int(rng.integers(1, 4))

    def coin():
        return bool(rng.integers(2))

    by_channels = coin()
    return ADMConfig(
        image_size=16,
        num_channels=64,
        channel_mult=tuple(float(m) for m in rng.choice([0.5, 1, 1.5], levels)),
        num_res_blocks=tuple(int(n) for n in rng.integers(1, 3, levels)),
        attention_factors=tuple(2**i for i in range(levels) if coin()),
        num_heads=1 if by_channels else int(rng.choice([1, 2, 4])),
        num_head_channels=int(rng.choice([8, 16, 32])) if by_channels else -1,
        resblock_updown=coin(),
        use_scale_shift_norm=coin(),
        use_new_attention_order=coin(),
        learn_sigma=coin(),
    )


@pytest.mark.parity
@pytest.mark.parametrize(
    "seed",
    [pytest.param(seed, marks=pytest.mark.slow) for seed in range(20)],
)
def test_random_configurations_match_azula(seed):
    config = random_config(seed)
    x, cotangent = inputs()
    check_parity(config, azula_unet.build(config), x, cotangent)


@pytest.mark.slow  # the same for the other family is not
def test_blocks_recomputed_give_the_same_gradient():
    config, params = seeded.SMALL, random_params(seeded.SMALL)
    x, cotangent = inputs()
    plain = forward_and_gradient(config, params, x, cotangent)
    again = forward_and_gradient(config, params, x, cotangent, remat_blocks=True)
    for a, b in zip(plain, again, strict=True):
        # The same sums, though the compiler groups them otherwise.
        assert seeded.relative_error(a, b) < GRADIENT


@pytest.mark.slow
def test_bfloat16_stays_near_float32_and_returns_float32():
    config, params = seeded.SMALL, random_params(seeded.SMALL)
    x, cotangent = inputs()
    exact = forward_and_gradient(config, params, x, cotangent)
    rough = forward_and_gradient(config, params, x, cotangent, dtype=jnp.bfloat16)
    for a, b in zip(rough, exact, strict=True):
        assert a.dtype == jnp.float32
        # Eight bits of mantissa: 2^-9 per rounding, some 20 layers deep.
        assert 1e-4 < seeded.relative_error(a, b) < 0.05


def test_images_of_a_batch_do_not_mix():
    config = seeded.ADM_CASES["modern"]
    params, (x, cotangent) = random_params(config), inputs()
    both = forward_and_gradient(config, params, x, cotangent)
    other = [np.stack([a[0], -0.5 * a[1]]) for a in (x, cotangent)]
    changed = forward_and_gradient(config, params, *other)
    for a, b in zip(both, changed, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert not np.array_equal(a[1], b[1])


def test_one_level_is_a_network_too():
    config = dataclasses.replace(
        seeded.SMALL, channel_mult=(1,), num_res_blocks=(1,), attention_factors=()
    )
    assert config.stride == 1
    x, cotangent = inputs(5, 7)
    eps, _ = forward_and_gradient(config, random_params(config), x, cotangent)
    assert eps.shape == (2, 5, 7, 3)


def test_timesteps_are_conditioned_together_as_alone():
    config = seeded.SMALL
    unet, variables = ADMUNet(config), {"params": random_params(config)}
    t = jnp.array([666.0, 333.0, 0.0])
    together = unet.apply(variables, t, method="condition")
    for i in range(3):
        alone = unet.apply(variables, t[i], method="condition")
        pairs = zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True)
        for a, b in pairs:
            # A product of a matrix with three rows, or with one: float32 sums.
            np.testing.assert_allclose(a[i], b, atol=1e-5)


def test_released_model_has_its_published_size():
    shapes = seeded.torch_shapes(UNCONDITIONAL_256)
    assert sum(math.prod(shape) for shape in shapes.values()) == 552_814_086


@pytest.mark.parity
@pytest.mark.parametrize("config", [UNCONDITIONAL_256, UNCONDITIONAL_512, BUNDLED])
def test_published_shapes_are_those_of_azula(config):
    torch = pytest.importorskip("torch")
    with torch.device("meta"):  # shapes without memory
        state_dict = azula_unet.build(config, {}, strict=False).state_dict()
    expected = {name: tuple(t.shape) for name, t in state_dict.items()}
    assert seeded.torch_shapes(config) == expected


@pytest.mark.parametrize(
    ("config", "stride"), [(UNCONDITIONAL_256, 32), (BUNDLED, 8), (seeded.SMALL, 2)]
)
def test_stride_and_shape_of_the_output(config, stride):
    assert config.stride == stride
    unet = priors.network(seeded.card(config))
    params = priors.abstract_params(seeded.card(config))
    x = jax.ShapeDtypeStruct((2, 3 * stride, 2 * stride, 3), jnp.float32)

    def forward(params, x):
        conditioning = unet.apply({"params": params}, TIMESTEP, method="condition")
        return unet.apply({"params": params}, x, conditioning)

    eps = jax.eval_shape(forward, params, x)
    assert eps.shape == x.shape
    assert eps.dtype == jnp.float32
