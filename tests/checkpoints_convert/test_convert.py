"""From a checkpoint file to a prior: every tensor once, every fact told by somebody."""

import jax
import ml_dtypes
import numpy as np
import pytest

from checkpoints_convert import convert, diffusers, guided_diffusion, reader, registry
from checkpoints_convert.convert import Request
from checkpoints_convert.tensors import ConversionError, FactsError
from diip_jax import prior as priors
from diip_jax.config import PAPER
from diip_jax.schedule import Schedule
from helpers import transcription
from helpers.checkpoints import (
    ADM_FACTS,
    LINEAR,
    SMALL_ADM,
    SMALL_UNET2D,
    adm_weights,
    converted,
    lazy,
    save,
    unet2d_weights,
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_become_float32_but_bfloat16_stays(tmp_path, dtype):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    original = np.linspace(-1, 1, 6).reshape(2, 3).astype(kind)
    path = save(tmp_path / "x.safetensors", {"a": original})
    with reader.open_tensors(path) as tensors:
        leaf = convert.to_flax(tensors["a"], 2)
    assert leaf.dtype == (kind if dtype == "bfloat16" else np.float32)
    np.testing.assert_array_equal(
        leaf.astype(np.float32), original.T.astype(np.float32)
    )


def test_a_checkpoint_in_bfloat16_stays_so_from_end_to_end(tmp_path):
    """Converted, saved and loaded: half of the bytes, and the same numbers."""
    weights = {n: a.astype(ml_dtypes.bfloat16) for n, a in adm_weights().items()}
    path = save(tmp_path / "x.safetensors", weights)
    facts = {"architecture": ADM_FACTS, "schedule": LINEAR}
    prior = convert.convert(path, Request(**facts))
    priors.save(tmp_path / "prior", prior)
    loaded = priors.load(tmp_path / "prior")
    for before, after in zip(
        jax.tree.leaves(prior.params), jax.tree.leaves(loaded.params), strict=True
    ):
        assert before.dtype == after.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(before, np.asarray(after))
    size = sum(f.stat().st_size for f in (tmp_path / "prior").rglob("*"))
    assert size < 1.3 * path.stat().st_size  # and what Orbax writes about the arrays


def test_every_name_must_match():
    arrays = adm_weights()
    missing, wrong = "input_blocks.1.0.in_layers.2.weight", "out.2.bias"
    del arrays[missing]
    arrays["surplus.weight"] = np.zeros(3, np.float32)
    arrays[wrong] = np.zeros(4, np.float32)
    with pytest.raises(ConversionError) as caught:
        converted(arrays, guided_diffusion, SMALL_ADM)
    message = str(caught.value)
    assert message.startswith("3 names did not match: ")
    listed = message.partition(": ")[2].split("; ")
    assert listed == sorted(listed)
    assert listed == [
        "input_blocks_1_0/in_layers_2/kernel (not in the file)",
        "out.2.bias (shape (4,) for (3,))",
        "surplus.weight (not in the model)",
    ]


def test_a_long_list_of_names_is_cut():
    arrays = {f"{name}x": array for name, array in adm_weights().items()}
    with pytest.raises(ConversionError, match=r"; and \d+ more$"):
        converted(arrays, guided_diffusion, SMALL_ADM)


def test_one_parameter_from_two_tensors_is_refused():
    arrays = unet2d_weights()
    arrays["down_blocks.0.downsamplers.0.op.weight"] = arrays[
        "down_blocks.0.downsamplers.0.conv.weight"
    ]
    architecture = diffusers.described({"config": SMALL_UNET2D})
    with pytest.raises(ConversionError, match=r"op.weight \(a second time\)"):
        converted(arrays, diffusers, architecture)


# Which layout it is


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.map_noise.freqs", "model.enc.64x64_conv.weight"], "EDM"),
        (["enc.32x32_block0.norm0.weight", "dec.8x8_in0.qkv.weight"], "EDM"),
        (["map_layer0.weight"], "EDM"),
        (["timestep_embed.weight", "u_net.d_blocks.0.1.main.2.weight"], "k-diffusion"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "latent"),
        (["diffusion_model.input_blocks.0.0.weight"], "latent"),
        (["first_stage_model.encoder.conv_in.weight"], "latent"),
        (
            [
                "input_blocks.0.0.weight",
                "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
            ],
            "text-conditional",
        ),
        (["downsamples.level_0.0.conv1.weight", "in_conv.weight"], "ddpm-torch"),
        (["all_modules.0.W", "all_modules.1.weight"], "score_sde"),
        (["init_conv.weight", "downs.0.0.block1.proj.weight"], "denoising-diffusion"),
        (["input_blocks.0.0.weight", "label_emb.weight"], "class-conditional"),
        (
            ["time_embedding.linear_1.weight", "class_embedding.weight"],
            "class-conditional",
        ),
        (
            ["fc.weight", "layer1.0.bias"],
            "unknown layout, with names such as fc.weight",
        ),
    ],
)
def test_other_networks_are_refused_by_name(names, message):
    tensors = lazy({name: np.zeros(3, np.float32) for name in names})
    with pytest.raises(ConversionError, match=message) as caught:
        convert.detect(tensors)
    assert any(name in str(caught.value) for name in names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["guided_diffusion", "ddim", "diffusers"])
def test_known_layouts_are_not_taken_for_others(layout):
    arrays = {
        "guided_diffusion": adm_weights(),
        "ddim": transcription.as_ermongroup(unet2d_weights(), 2),
        "diffusers": unet2d_weights(),
    }[layout]
    assert convert.recognise_foreign(arrays) is None
    assert layout == convert.detect(lazy(arrays)).NAME


# Facts


def test_a_file_alone_is_not_enough(adm_file):
    with pytest.raises(FactsError) as caught:
        convert.convert(adm_file)
    for name in ("image_size", "num_heads or num_head_channels", "schedule"):
        assert name in str(caught.value)
    assert "new_attention_order" in str(caught.value)
    assert "num_train_timesteps" in str(caught.value)
    assert "--like NAME" in str(caught.value)


@pytest.mark.parametrize("left_out", [*ADM_FACTS, *LINEAR])
def test_no_fact_is_guessed(adm_file, left_out):
    request = Request(
        architecture={n: v for n, v in ADM_FACTS.items() if n != left_out},
        schedule={n: v for n, v in LINEAR.items() if n != left_out},
    )
    name = "schedule" if left_out == "kind" else left_out
    with pytest.raises(FactsError, match=f"does not reveal {name}"):
        convert.convert(adm_file, request)


def test_rescaling_must_be_said_where_it_matters(adm_file):
    cosine = {"kind": "cosine", "num_train_timesteps": 4000}
    with pytest.raises(FactsError, match="does not reveal rescale_timesteps"):
        convert.convert(adm_file, Request(architecture=ADM_FACTS, schedule=cosine))
    request = Request(
        architecture=ADM_FACTS, schedule={**cosine, "rescale_timesteps": True}
    )
    schedule = convert.convert(adm_file, request).card.schedule
    assert schedule == Schedule("cosine", 4000, rescale_timesteps=True)
    seen = schedule.network_timesteps(np.array([0, 1, 1333, 3999]))
    np.testing.assert_allclose(seen, [0, 0.25, 333.25, 999.75], rtol=1e-6)


def test_linear_betas_of_guided_diffusion_follow_the_number_of_timesteps(adm_file):
    """Its `get_named_beta_schedule` scales both ends by 1000 / T."""
    schedule = {**LINEAR, "num_train_timesteps": 500, "rescale_timesteps": False}
    request = Request(architecture=ADM_FACTS, schedule=schedule)
    found = convert.convert(adm_file, request).card.schedule
    assert found.beta_start == pytest.approx(2e-4)
    assert found.beta_end == pytest.approx(0.04)


def test_unapplicable_facts_are_refused(tmp_path, adm_file):
    arrays = transcription.as_ermongroup(unet2d_weights(), 2)
    path = save(tmp_path / "b.safetensors", arrays)
    request = Request(architecture={"image_size": 16, "num_heads": 2}, schedule=LINEAR)
    with pytest.raises(FactsError, match="--num_heads says nothing about .* ddim"):
        convert.convert(path, request)
    request = Request(
        architecture=ADM_FACTS, schedule=LINEAR, config=tmp_path / "config.json"
    )
    with pytest.raises(FactsError, match="--config says nothing"):
        convert.convert(adm_file, request)


def test_like_takes_the_facts_and_nothing_else(adm_file):
    request = Request(
        like="iddpm-cifar10-uncond",
        architecture={"image_size": 16},
        fallback_name="mine",
    )
    card = convert.convert(adm_file, request).card
    assert card.name == "mine"
    assert card.licence == "unknown"
    assert card.architecture.num_heads == 4
    assert card.architecture.image_size == 16
    assert card.schedule == Schedule("cosine", 4000, rescale_timesteps=True)
    with pytest.raises(registry.WeightsError, match="no checkpoint is called 'nobody'"):
        convert.convert(adm_file, Request(like="nobody"))


def test_like_takes_the_preset_of_ours_and_not_its_name_or_terms(adm_file):
    request = Request(like="natural64", architecture={"image_size": 16})
    card = convert.convert(adm_file, request).card
    ours = registry.lookup("natural64")
    assert card.preset == ours.preset
    assert card.preset != PAPER
    assert card.any_size
    assert (card.name, card.licence, card.source) == ("custom", "unknown", "unknown")


def test_what_a_row_never_told_is_not_inherited(adm_file):
    """At ours' 1000 timesteps rescaling means nothing, so their rows do not tell."""
    request = Request(
        like="natural64",
        architecture={"image_size": 16},
        schedule={"num_train_timesteps": 500},
    )
    with pytest.raises(FactsError, match="does not reveal rescale_timesteps"):
        convert.convert(adm_file, request)


def test_heads_on_the_command_line_win_over_those_of_a_row(adm_file):
    request = Request(
        like="dps-ffhq-10m", architecture={"num_heads": 2, "num_heads_upsample": 2}
    )
    found = convert.convert(adm_file, request).card.architecture
    assert (found.num_heads, found.num_head_channels) == (2, -1)


def test_a_relative_must_have_the_same_layout(tmp_path):
    arrays = transcription.as_ermongroup(unet2d_weights(), 2)
    path = save(tmp_path / "b.safetensors", arrays)
    with pytest.raises(ConversionError, match="layout ddim, but dps-ffhq-10m has"):
        convert.convert(path, Request(like="dps-ffhq-10m"))


def test_a_file_is_not_taken_for_a_checkpoint_with_another_hash(adm_file):
    with pytest.raises(ConversionError, match="pass --like dps-ffhq-10m instead"):
        convert.convert(adm_file, Request(known_as="dps-ffhq-10m"))


def test_a_file_without_published_hash_must_have_the_right_size(tmp_path):
    path = save(tmp_path / "celeba256_250000.pt", adm_weights())
    with pytest.raises(FactsError, match="does not reveal"):  # not recognised
        convert.convert(path)
    with pytest.raises(ConversionError, match="repaint-celeba256 has 552814086"):
        convert.convert(path, Request(known_as="repaint-celeba256"))
