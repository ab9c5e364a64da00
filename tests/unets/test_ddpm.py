"""The DDPM UNet against diffusers' UNet2DModel and a transcription of the DDIM code.

diffusers is met live where PyTorch is installed, and as stored outputs everywhere. The
transcription is NumPy in float64 and knows nothing of this package. Each switch that
leaves all shapes as they are is then set wrongly once, to see that the comparison
notices: these are the mistakes that would otherwise pass in silence.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert import ddim, diffusers
from diip_jax.unets import layers
from diip_jax.unets.ddpm import DDPMConfig, DDPMUNet
from helpers import diffusers_unet, seeded, transcription

GOLDEN = Path(__file__).parents[1] / "golden" / "ddpm.npz"

# float32 sums of about 1000 terms in another order, through some 30 layers.
FORWARD = 1e-5
SAME = 1e-5  # one network compiled in two ways: the same sums, grouped otherwise
GRADIENT = 2e-5  # the backward pass sums as often again
NOTICED = 1e-3  # a trap must show a hundred times above what rounding does


def config_of(name):
    """Return the package's reading of a config.json."""
    return diffusers.described({"config": diffusers_unet.CONFIGS[name]})


def forward(config, params, x, t=diffusers_unet.TIMESTEP, **options):
    """Return eps, one operation at a time.

    A program would be compiled anew for every configuration; single operations, once
    compiled, serve all of them.
    """
    unet, variables = DDPMUNet(config, **options), {"params": params}
    conditioning = unet.apply(variables, jnp.float32(t), method="condition")
    return unet.apply(variables, x, conditioning)


def compiled_forward(config, params, x, t=diffusers_unet.TIMESTEP, **options):
    """Return eps by one program, for networks that are run but once."""

    def run(params, x):
        return forward(config, params, x, t, **options)

    return jax.jit(run).lower(params, x).compile(seeded.RUN_ONCE)(params, x)


def forward_and_gradient(config, params, x, t=diffusers_unet.TIMESTEP, **options):
    """Return eps and a gradient with respect to x, as one program."""

    def both(params, x):
        eps, pull_back = jax.vjp(lambda x: forward(config, params, x, t, **options), x)
        return eps, pull_back(jnp.cos(eps))[0]

    return jax.jit(both).lower(params, x).compile(seeded.RUN_ONCE)(params, x)


@functools.cache
def params_of(name, feeble=False):
    shapes = diffusers_unet.torch_shapes(config_of(name))
    return seeded.to_tree(diffusers_unet.state_dict(shapes, feeble=feeble))


def error(name, config=None, params=None, feeble=False, run=forward):
    """Return the relative error against diffusers' stored answer."""
    params = params_of(name, feeble) if params is None else params
    with np.load(GOLDEN) as golden:
        expected = golden[f"{name}_feeble" if feeble else name]
    eps = run(config or config_of(name), params, diffusers_unet.image())
    return seeded.relative_error(eps, expected)


# As deep as what was published; cifar10 and the small ones set all their switches.
DEEP = ("cifar10", "celebahq", "library")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in DEEP[1:] else ())
        for n in diffusers_unet.CONFIGS
    ],
)
def test_matches_the_stored_outputs_of_diffusers(name):
    run = compiled_forward if name in DEEP else forward
    assert error(name, run=run) < FORWARD


@pytest.mark.parametrize("name", diffusers_unet.FEEBLE)
def test_matches_where_the_epsilon_of_the_norms_matters(name):
    assert error(name, feeble=True) < FORWARD


# The switches that no shape betrays: name of the case, and how to set them wrongly.
WRONG = {
    "cos before sin": ("small_google", {"sin_first": False}),
    "sin before cos": ("small_library", {"sin_first": True}),
    "divisor half": ("small_google", {"divisor_shift": 0}),
    "divisor half - 1": ("small_library", {"divisor_shift": 1}),
    "padded on all sides": ("small_google", {"symmetric_padding": True}),
    "padded right and below": ("small_library", {"symmetric_padding": False}),
    "several heads": ("small_google", {"head_channels": 8}),
    "one head": ("small_library", {"head_channels": None}),
    "heads of another width": ("small_library", {"head_channels": 16}),
}


@pytest.mark.parametrize("trap", WRONG)
def test_a_wrong_switch_is_noticed(trap):
    name, change = WRONG[trap]
    wrong = dataclasses.replace(config_of(name), **change)
    assert wrong != config_of(name)
    assert error(name, wrong) > NOTICED


@pytest.mark.parametrize(
    ("name", "epsilon"), [("small_google", 1e-5), ("small_library", 1e-6)]
)
def test_a_wrong_epsilon_is_noticed(name, epsilon):
    wrong = dataclasses.replace(config_of(name), norm_epsilon=epsilon)
    assert error(name, wrong, feeble=True) > NOTICED


def edited(tree, change, path=()):
    """Return a tree with `change(path, leaf)` in place of every leaf."""
    return {
        name: edited(value, change, (*path, name))
        if isinstance(value, dict)
        else change((*path, name), value)
        for name, value in tree.items()
    }


def swapped(tree, one, other):
    """Return a tree where two sisters have changed places."""
    names = {one: other, other: one}
    return {
        name: swapped(tree[names.get(name, name)], one, other)
        if isinstance(value, dict)
        else value
        for name, value in tree.items()
    }


def transposed_attention(path, leaf):
    square = path[-2] in ("to_q", "to_k", "to_v", "to_out_0") and leaf.ndim == 2
    return leaf.T if square else leaf


def turned_kernels(path, leaf):
    return leaf.transpose(1, 0, 2, 3) if leaf.ndim == 4 else leaf


def shift_before_scale(path, leaf):
    if path[-2] != "time_emb_proj":
        return leaf
    return np.concatenate(np.split(leaf, 2, axis=-1)[::-1], axis=-1)


def last_channels(path, leaf):
    return np.roll(leaf, 3, axis=-1) if path[0] == "conv_out" else leaf


def skip_before_current(path, leaf):
    """Exchange the halves of what enters a block that is as wide as its skip."""
    if not path[0].startswith("up_blocks") or path[2] not in (
        ("norm1", "conv1", "conv_shortcut")
    ):
        return leaf
    is_kernel = leaf.ndim == 4
    axis = 2 if is_kernel else 0
    if not is_kernel and path[2] != "norm1":
        return leaf
    return np.roll(leaf, leaf.shape[axis] // 2, axis)


MISPLACED = {
    "skip before current": ("small_library", skip_before_current),
    "dense kernels (O, I)": ("small_google", transposed_attention),
    "kernels as WHIO": ("small_google", turned_kernels),
    "shift before scale": ("scale_shift", shift_before_scale),
    "sigma taken for eps": ("scale_shift", last_channels),
}


@pytest.mark.parametrize("trap", MISPLACED)
def test_a_misplaced_weight_is_noticed(trap):
    name, change = MISPLACED[trap]
    assert error(name, params=edited(params_of(name), change)) > NOTICED


@pytest.mark.parametrize(
    ("one", "other"),
    [("to_q", "to_k"), ("to_k", "to_v"), ("norm1", "norm2"), ("conv1", "conv2")],
)
def test_swapped_layers_are_noticed(one, other):
    """The blocks at the bottom are as wide as what enters them."""
    params = params_of("small_library")
    params = {**params, "mid_block": swapped(params["mid_block"], one, other)}
    assert error("small_library", params=params) > NOTICED


def test_a_scale_without_its_one_is_noticed(monkeypatch):
    def bare(self, projection):
        factor, shift = jnp.split(projection, 2, axis=-1)
        scale, bias = self.affine(factor.shape[-1])
        return scale * factor, bias * factor + shift  # without the 1 in (1 + factor)

    monkeypatch.setattr(layers.TimedGroupNorm, "condition", bare)
    assert error("scale_shift") > NOTICED


# Layout (b): the transcription


LEVELS = {"ch": 32, "ch_mult": (1, 2, 2), "blocks": 1, "attended": (1,)}


@functools.cache
def ermongroup(feeble=False):
    """Return a state dict with the names of the DDIM code, and its answer."""
    shapes = transcription.shapes(**LEVELS)
    weights = diffusers_unet.state_dict(shapes, feeble=feeble)
    x = diffusers_unet.image()
    eps = transcription.model(weights, x.transpose(0, 3, 1, 2), diffusers_unet.TIMESTEP)
    return weights, x, eps.transpose(0, 2, 3, 1)


def from_ermongroup(weights, rename=ddim.rename):
    """Return config and parameters as the converter makes them, without a file."""
    from checkpoints_convert import convert
    from checkpoints_convert.tensors import LazyTensor
    from diip_jax import prior as priors

    tensors = {n: LazyTensor(a.shape, lambda a=a: a) for n, a in weights.items()}
    config = ddim.architecture(tensors, {"image_size": 32})
    card = dataclasses.replace(
        seeded.card(seeded.TINY), family="ddpm", architecture=config
    )
    shapes = priors.abstract_params(card)
    return config, convert.fill(shapes, tensors, lambda name: rename(name, config))


@pytest.mark.parametrize("feeble", [False, True])
def test_matches_a_transcription_of_the_ddim_code(feeble):
    weights, x, expected = ermongroup(feeble)
    config, params = from_ermongroup(weights)
    assert seeded.relative_error(forward(config, params, x), expected) < FORWARD


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"sin_first": False},
        {"divisor_shift": 0},
        {"symmetric_padding": True},
        {"head_channels": 32},
        {"norm_epsilon": 1e-5},
    ],
)
def test_the_transcription_notices_a_wrong_switch(change):
    weights, x, expected = ermongroup(feeble="norm_epsilon" in change)
    config, params = from_ermongroup(weights)
    wrong = dataclasses.replace(config, **change)
    assert seeded.relative_error(forward(wrong, params, x), expected) > NOTICED


@pytest.mark.slow
def test_the_transcription_notices_swapped_projections():
    weights, x, expected = ermongroup()

    def wrong(name, config):
        exchanged = {".q.": ".k.", ".k.": ".q."}
        for one, other in exchanged.items():
            if one in name:
                return ddim.rename(name.replace(one, other), config)
        return ddim.rename(name, config)

    config, params = from_ermongroup(weights, wrong)
    assert seeded.relative_error(forward(config, params, x), expected) > NOTICED


def test_counting_the_way_up_in_running_order_is_noticed():
    """Even with levels of one width, where nearly all shapes agree."""
    from checkpoints_convert.tensors import ConversionError

    shapes = transcription.shapes(32, (1, 1, 1), 1, (1,))
    weights = seeded.tensors(shapes)

    def wrong(name, config):
        parts = name.split(".")
        if parts[0] == "up":
            parts[1] = str(len(config.widths) - 1 - int(parts[1]))
        return ddim.rename(".".join(parts), config)

    with pytest.raises(ConversionError, match="upsample"):
        from_ermongroup(weights, wrong)


# What the package adds


def one_level():
    """Return a network with attention at the bottom, its weights and an input."""
    config = DDPMConfig(32, (32,), 1, (False,), (False,), scale_shift=True)
    shapes = diffusers_unet.torch_shapes(config)
    x = diffusers_unet.image()[:, :5, :7]
    return config, seeded.to_tree(diffusers_unet.state_dict(shapes)), x


def test_blocks_recomputed_give_the_same_gradient():
    plain = forward_and_gradient(*one_level())
    again = forward_and_gradient(*one_level(), remat_blocks=True)
    for a, b in zip(plain, again, strict=True):
        assert seeded.relative_error(a, b) < SAME


def test_bfloat16_stays_near_float32_and_returns_float32():
    exact = compiled_forward(*one_level())
    rough = compiled_forward(*one_level(), dtype=jnp.bfloat16)
    assert rough.dtype == jnp.float32
    # Eight bits of mantissa: 2^-9 per rounding, some 20 layers deep.
    assert 1e-4 < seeded.relative_error(rough, exact) < 0.05


def test_published_numbers_of_parameters():
    """113.7 M and 35.7 M, as counted on the released files."""
    for json, expected in (
        (diffusers_unet.CELEBAHQ, 113_673_219),
        (diffusers_unet.CIFAR10, 35_746_307),
    ):
        config = diffusers.described({"config": json})
        shapes = diffusers_unet.torch_shapes(config)
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == expected


def test_stride():
    assert config_of("celebahq").stride == 32
    assert DDPMConfig(32, (32,), 1, (False,), (False,)).stride == 1


# Live, where PyTorch is installed


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "small_google",  # the stored outputs have the others
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("cifar10 in full", *diffusers_unet.CONFIGS)
            if n != "small_google"
        ),
    ],
)
def test_matches_diffusers(name):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    json = diffusers_unet.CONFIGS.get(name, diffusers_unet.CIFAR10)
    config, model, params = live(json)
    x = diffusers_unet.image()
    expected = diffusers_unet.torch_forward(model, x, 666.5)
    run = forward if name == "small_google" else compiled_forward
    actual = run(config, params, x, 666.5)
    assert seeded.relative_error(actual, expected) < FORWARD


@pytest.mark.slow
@pytest.mark.parity
def test_gradient_matches_diffusers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    config, model, params = live(diffusers_unet.CONFIGS["without_mid_attention"])
    x = diffusers_unet.image()
    nchw = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_(True)
    eps = model(nchw, torch.tensor(diffusers_unet.TIMESTEP)).sample
    eps.backward(torch.cos(eps.detach()))
    assert nchw.grad is not None
    expected = nchw.grad.permute(0, 2, 3, 1).numpy()
    _, gradient = forward_and_gradient(config, params, x)
    assert seeded.relative_error(gradient, expected) < GRADIENT


def live(json):
    """Return a configuration, diffusers' model of it and its weights as a tree."""
    model = diffusers_unet.unet2d(json)
    params = seeded.to_tree({n: a.numpy() for n, a in model.state_dict().items()})
    return diffusers.described({"config": json}), model, params
