"""The layout of diffusers' UNet2DModel and its configuration files.

Independent here: trees built by `seeded.to_tree`, and diffusers where it is installed.
"""

import json

import numpy as np
import pytest

from checkpoints_convert import diffusers
from checkpoints_convert.tensors import ConversionError
from diip_jax.schedule import Schedule
from helpers import seeded
from helpers.checkpoints import (
    DDPM_SCHEDULER,
    SMALL_UNET2D,
    assert_trees_equal,
    converted,
    unet2d_weights,
)


def old_names(name):
    """Return the attention names of diffusers before 0.12."""
    for new, old in (
        (".to_q.", ".query."),
        (".to_k.", ".key."),
        (".to_v.", ".value."),
        (".to_out.0.", ".proj_attn."),
    ):
        name = name.replace(new, old)
    return name


@pytest.mark.parametrize("naming", ["new", "old", "old with 1x1 convolutions"])
def test_diffusers_weights_go_where_they_belong(naming):
    arrays = unet2d_weights()
    architecture = diffusers.described({"config": SMALL_UNET2D})
    expected = seeded.to_tree(arrays)
    if naming != "new":
        assert any("to_out" in name for name in arrays)
        arrays = {old_names(name): array for name, array in arrays.items()}
    if "1x1" in naming:
        arrays = {
            name: array[..., None, None]
            if "attentions" in name and array.ndim == 2
            else array
            for name, array in arrays.items()
        }
    assert_trees_equal(converted(arrays, diffusers, architecture), expected)


# config.json


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_class_name", "UNet2DConditionModel"),
        ("time_embedding_type", "fourier"),
        ("time_embedding_type", "learned"),
        ("time_embedding_type", "adm"),
        ("down_block_types", ["SkipDownBlock2D", "AttnSkipDownBlock2D"]),
        ("down_block_types", ["ResnetDownsampleBlock2D", "DownBlock2D"]),
        ("down_block_types", ["KDownBlock2D", "KDownBlock2D"]),
        ("up_block_types", ["DownBlock2D", "UpBlock2D"]),
        ("downsample_type", "resnet"),
        ("upsample_type", "resnet"),
        ("resnet_time_scale_shift", "spatial"),
        ("class_embed_type", "timestep"),
        ("num_class_embeds", 10),
        ("in_channels", 1),
        ("out_channels", 4),
        ("act_fn", "gelu"),
        ("norm_num_groups", 8),
        ("attn_norm_num_groups", 16),
        ("center_input_sample", True),
        ("mid_block_scale_factor", 1.4142),
        ("mid_block_type", None),
        ("freq_shift", 16),
        ("downsample_padding", 2),
        ("attention_head_dim", 24),
        ("sample_size", [16, 32]),
        ("an_option_of_tomorrow", True),
    ],
)
def test_what_config_json_asks_for_in_vain_is_named(name, value):
    config = {**SMALL_UNET2D, name: value}
    with pytest.raises(ConversionError, match=f"config.json asks for {name} = "):
        diffusers.described({"config": config})


def test_what_config_json_may_say():
    config = {
        **SMALL_UNET2D,
        "act_fn": "swish",
        "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift",
        "dropout": 0.1,
        "sample_size": [16, 16],
        "an_option_of_tomorrow": None,
        "_diffusers_version": "0.1.2",
    }
    found = diffusers.described({"config": config})
    assert found.mid_attention_norm
    assert found.scale_shift
    assert found.image_size == 16


def test_the_defaults_of_the_library_are_those_of_the_installed_one():
    """Where diffusers is installed, it is asked."""
    library = pytest.importorskip("diffusers")
    theirs = dict(library.UNet2DModel(block_out_channels=(32,) * 4).config)
    theirs["block_out_channels"] = (224, 448, 672, 896)
    for name, (default, _) in diffusers.FIELDS.items():
        if not name.startswith("_"):
            assert theirs[name] == default or list(theirs[name]) == list(default), name


# scheduler_config.json


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prediction_type", "v_prediction"),
        ("prediction_type", "sample"),
        ("beta_schedule", "scaled_linear"),
        ("beta_schedule", None),
        ("trained_betas", [0.1, 0.2]),
        ("rescale_betas_zero_snr", True),
    ],
)
def test_what_the_scheduler_asks_for_in_vain_is_named(tmp_path, name, value):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({**DDPM_SCHEDULER, name: value}))
    with pytest.raises(ConversionError, match=f"asks for {name} = "):
        diffusers.read_schedule(path, tmp_path / "weights.bin")


def test_a_cosine_scheduler_is_read(tmp_path):
    path = tmp_path / "scheduler_config.json"
    changes = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 4000}
    path.write_text(json.dumps({**DDPM_SCHEDULER, **changes}))
    schedule = Schedule(**diffusers.read_schedule(path, tmp_path / "weights.bin"))
    assert (schedule.kind, schedule.num_train_timesteps) == ("cosine", 4000)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("num_train_timesteps", [1000, 4000])
def test_schedules_are_those_of_diffusers(tmp_path, name, num_train_timesteps):
    library = pytest.importorskip("diffusers")
    scheduler = library.DDPMScheduler(
        num_train_timesteps=num_train_timesteps, beta_schedule=name
    )
    path = tmp_path / "scheduler_config.json"
    scheduler.save_pretrained(tmp_path)
    schedule = Schedule(**diffusers.read_schedule(path, tmp_path / "x.bin"))
    # diffusers multiplies in float32 and alpha_bar falls to 1e-9: compare logarithms.
    np.testing.assert_allclose(
        np.log(schedule.alphas_cumprod()),
        np.log(scheduler.alphas_cumprod.numpy().astype(np.float64)),
        rtol=2e-4,
        atol=1e-6,
    )
