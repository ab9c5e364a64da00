"""The layout of guided-diffusion and improved-diffusion.

Independent here: trees built by `seeded.to_tree`, azula's network and its stored
answers.
"""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert import convert, guided_diffusion
from checkpoints_convert.tensors import ConversionError, FactsError
from diip_jax import prior as priors
from diip_jax.unets import layers, ops
from diip_jax.unets.adm import ADMUNet
from helpers import azula_unet, diffusers_unet, seeded
from helpers.checkpoints import (
    ADM_FACTS,
    adm_weights,
    assert_trees_equal,
    converted,
    lazy,
    run,
)

GOLDEN = Path(__file__).parents[1] / "golden"
FORWARD = 1e-5  # as in test_adm.py and test_ddpm.py
NOTICED = 1e-3
EARLY = seeded.ADM_CASES["early"]  # improved-diffusion's options
IDDPM_FLAGS = (
    "--image_size=16",
    "--num_heads=4",
    "--num_heads_upsample=4",
    "--no-new_attention_order",
    "--schedule=cosine",
    "--num_train_timesteps=4000",
    "--rescale_timesteps",
)


def test_guided_diffusion_is_inferred_from_the_names():
    for config in seeded.ADM_CASES.values():
        tensors = lazy(_empty(seeded.torch_shapes(config)))
        found = guided_diffusion.architecture(
            tensors,
            {
                "image_size": config.image_size,
                "num_heads": config.num_heads,
                "num_heads_upsample": config.num_heads_upsample,
                "num_head_channels": config.num_head_channels,
                "new_attention_order": config.use_new_attention_order,
            },
        )
        assert convert.detect(tensors) is guided_diffusion
        assert found == config


def _empty(shapes):
    return {name: np.broadcast_to(np.float32(0), s) for name, s in shapes.items()}


@pytest.mark.parametrize("name", seeded.ADM_CASES)
def test_guided_diffusion_weights_go_where_they_belong(name):
    config = seeded.ADM_CASES[name]
    arrays = adm_weights(config)
    assert_trees_equal(
        converted(arrays, guided_diffusion, config), seeded.to_tree(arrays)
    )


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("input_blocks.0.0.weight", (32, 4, 3, 3), "maps 4 channels to 3, not RGB"),
        ("input_blocks.0.0.weight", (32, 6, 3, 3), "super-resolution"),
        ("out.2.weight", (8, 32, 3, 3), "maps 3 channels to 8"),
    ],
)
def test_networks_on_other_channels_are_refused(name, shape, message):
    arrays = {**adm_weights(), name: np.zeros(shape, np.float32)}
    with pytest.raises(ConversionError, match=message):
        guided_diffusion.architecture(lazy(arrays), ADM_FACTS)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (
            {"num_heads": 3, "num_heads_upsample": 2},
            "num_heads is 3, which does not divide the 64",
        ),
        (
            {"num_heads": 2, "num_heads_upsample": 3},
            "num_heads_upsample is 3, which does not divide the 64",
        ),
        ({"num_head_channels": 48}, "num_head_channels is 48"),
        ({"num_head_channels": 0}, "num_head_channels is 0"),
    ],
)
def test_heads_must_divide_the_channels(heads, message):
    facts = {"image_size": 16, "new_attention_order": False, **heads}
    with pytest.raises(FactsError, match=message):
        guided_diffusion.architecture(lazy(adm_weights()), facts)


# improved-diffusion against azula's network, through a file and the command


@pytest.mark.parity
def test_improved_diffusion_matches_azula(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("azula")
    model = azula_unet.build(EARLY)
    path = tmp_path / "iddpm.pt"
    torch.save(model.state_dict(), path)
    assert run(path, tmp_path / "prior", *IDDPM_FLAGS) == 0
    prior = priors.load(tmp_path / "prior")
    assert prior.card.architecture == EARLY
    x = np.random.default_rng(0).standard_normal((16, 16, 3)).astype(np.float32)

    def azula(t):
        nchw = torch.from_numpy(x.transpose(2, 0, 1)[None].copy())
        with torch.no_grad():
            eps = model(nchw, torch.tensor([t], dtype=torch.float32))[0, :3]
        return eps.permute(1, 2, 0).numpy()

    found = seeded.predicted(prior, x, 1333)
    assert seeded.relative_error(found, azula(1333 * 1000 / 4000)) < FORWARD
    # The trap: the unscaled timestep is another answer.
    assert seeded.relative_error(found, azula(1333)) > NOTICED


@pytest.mark.slow
@pytest.mark.parity
def test_other_heads_on_the_way_up_match_azula(tmp_path):
    """Read with the heads of the way down, the error would be 0.1 or more."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("azula")
    config = dataclasses.replace(EARLY, num_heads_upsample=1)
    model = azula_unet.build(config)
    path = tmp_path / "x.pt"
    torch.save(model.state_dict(), path)
    flags = [f for f in IDDPM_FLAGS if "upsample" not in f]
    assert run(path, tmp_path / "prior", *flags, "--num_heads_upsample=1") == 0
    prior = priors.load(tmp_path / "prior")
    assert prior.card.architecture == config
    x = np.random.default_rng(0).standard_normal((16, 16, 3)).astype(np.float32)
    nchw = torch.from_numpy(x.transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        expected = model(nchw, torch.tensor([400.0]))[0, :3].permute(1, 2, 0).numpy()
    assert seeded.relative_error(seeded.predicted(prior, x, 1600), expected) < FORWARD
    card = dataclasses.replace(prior.card, architecture=EARLY)
    wrong = seeded.predicted(prior.replace(card=card), x, 1600)
    assert seeded.relative_error(wrong, expected) > NOTICED


def facts(**changes):
    """Return what is told of a file, without the heads on the way up."""
    told = {n: v for n, v in ADM_FACTS.items() if n != "num_heads_upsample"}
    return {**told, **changes}


def test_the_heads_on_the_way_up_are_asked_for_where_they_matter():
    tensors = lazy(adm_weights())
    with pytest.raises(FactsError, match="does not reveal num_heads_upsample"):
        guided_diffusion.architecture(tensors, facts())
    by_width = guided_diffusion.architecture(tensors, facts(num_head_channels=32))
    told = guided_diffusion.architecture(tensors, facts(num_heads_upsample=1))
    same = guided_diffusion.architecture(tensors, facts(num_heads_upsample=2))
    found = [c.num_heads_upsample for c in (by_width, told, same)]
    assert found == [-1, 1, -1]
    plain = dataclasses.replace(seeded.SMALL, attention_factors=())
    tensors = lazy(_empty(seeded.torch_shapes(plain)))  # attention at the bottom only
    assert guided_diffusion.architecture(tensors, facts()) == plain


def test_a_network_without_convolutions_for_resampling_is_told_so():
    arrays = {
        name: array
        for name, array in adm_weights().items()
        if ".op." not in name and not re.search(r"^output.*\.conv\.", name)
    }
    with pytest.raises(
        ConversionError, match="input_blocks.2 has no weights.*conv_resam"
    ):
        guided_diffusion.architecture(lazy(arrays), ADM_FACTS)


# What a wrong reading of guided-diffusion would do, against azula's stored answers.
# "early" has improved-diffusion's options; its outputs are test_adm.py's.


def program(config):
    """Return the network of an architecture, to be compiled anew."""

    def network(params, x, conditioning):
        return ADMUNet(config).apply({"params": params}, x, conditioning)

    return jax.jit(network)


compiled = functools.cache(program)


def adm_error(name, config=None, params=None, network=compiled):
    """Return the relative error of the package.

    Give `program` as the network where a part of it was replaced.
    """
    feeble = name == "early_feeble"
    case = seeded.ADM_CASES["early" if feeble else name]
    shapes = seeded.torch_shapes(case)
    if params is None:
        params = seeded.to_tree(diffusers_unet.state_dict(shapes, feeble=feeble))
    x, _ = azula_unet.inputs()
    with np.load(GOLDEN / ("ddpm.npz" if feeble else "adm.npz")) as golden:
        expected = golden[name if feeble else f"{name}_eps"]
    config, t = config or case, jnp.float32(diffusers_unet.TIMESTEP)
    conditioning = ADMUNet(config).apply({"params": params}, t, method="condition")
    eps = network(config)(params, x, conditioning)
    return seeded.relative_error(eps, expected)


@pytest.mark.parametrize("name", ["early", "early_feeble"])
def test_the_right_reading_of_guided_diffusion(name):
    """The base of the tests below; test_adm.py has more."""
    assert adm_error(name) < FORWARD


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("early", {"use_new_attention_order": True}),
        ("early", {"num_heads": 1}),
        ("early", {"num_head_channels": 16}),
        pytest.param(
            "modern", {"use_new_attention_order": False}, marks=pytest.mark.slow
        ),
        pytest.param("modern", {"num_head_channels": 32}, marks=pytest.mark.slow),
    ],
)
def test_a_wrong_fact_about_guided_diffusion_is_noticed(name, change):
    wrong = dataclasses.replace(seeded.ADM_CASES[name], **change)
    assert wrong != seeded.ADM_CASES[name]
    assert adm_error(name, wrong) > NOTICED


def test_the_epsilon_of_the_other_layouts_is_noticed(monkeypatch):
    plain = ops.group_norm

    def ddpm_norm(x, scale, bias, epsilon, silu):
        assert epsilon == 1e-5
        return plain(x, scale, bias, 1e-6, silu)

    monkeypatch.setattr(ops, "group_norm", ddpm_norm)
    assert adm_error("early_feeble", network=program) > NOTICED


@pytest.mark.parametrize("wrong", [{"sin_first": True}, {"divisor_shift": 1}])
def test_the_embedding_of_the_other_layouts_is_noticed(monkeypatch, wrong):
    plain = ops.timestep_embedding
    embed = functools.partial(plain, **wrong)
    monkeypatch.setattr(ops, "timestep_embedding", embed)
    assert adm_error("early") > NOTICED


def test_the_padding_of_the_other_layouts_is_noticed(monkeypatch):
    """Which is also what XLA calls SAME."""
    plain = layers.Conv

    def conv(*arguments, **options):
        if options.get("stride") == 2:
            options["padding"] = (0, 1)
        return plain(*arguments, **options)

    monkeypatch.setattr(layers, "Conv", conv)
    assert adm_error("early", network=program) > NOTICED


@pytest.mark.slow
def test_sigma_taken_for_eps_is_noticed():
    config = seeded.ADM_CASES["modern"]
    params = seeded.to_tree(adm_weights(config))
    params["out_2"] = jax.tree.map(lambda a: np.roll(a, 3, -1), params["out_2"])
    assert adm_error("modern", params=params) > NOTICED


@pytest.mark.slow
def test_shift_before_scale_is_noticed():
    params = seeded.to_tree(adm_weights(seeded.ADM_CASES["modern"]))
    for block in params.values():
        for name in {"emb_layers_1"} & block.keys():
            block[name] = jax.tree.map(
                lambda a: np.roll(a, a.shape[-1] // 2, -1), block[name]
            )
    assert adm_error("modern", params=params) > NOTICED
