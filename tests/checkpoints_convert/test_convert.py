"""From checkpoint files to priors.

Independent here: files that PyTorch itself wrote (stored, and live where it is
installed), trees built by `seeded.to_tree`, azula's and diffusers' networks, and
pickles that really would run code, shown by running them.
"""

import collections
import dataclasses
import functools
import http.server
import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from checkpoints_convert import (
    __main__,
    convert,
    ddim,
    diffusers,
    guided_diffusion,
    reader,
    registry,
)
from checkpoints_convert.convert import Request
from checkpoints_convert.tensors import ConversionError, FactsError, LazyTensor
from diip_jax import prior as priors
from diip_jax.schedule import Schedule
from diip_jax.unets import layers
from diip_jax.unets.adm import ADMUNet
from helpers import azula_unet, diffusers_unet, seeded, transcription

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
FORWARD = 1e-5  # as in test_adm.py and test_ddpm.py
NOTICED = 1e-3

EARLY = seeded.ADM_CASES["early"]  # improved-diffusion's options
SMALL_ADM = dataclasses.replace(seeded.TINY, attention_factors=(2,))
ADM_FACTS = {"image_size": 16, "num_heads": 2, "new_attention_order": False}
LINEAR = {"kind": "linear", "num_train_timesteps": 1000}
SMALL_UNET2D = diffusers_unet.CONFIGS["small_google"]
DDPM_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "clip_sample": True,
    "trained_betas": None,
    "variance_type": "fixed_small",
}


def adm_weights(config=SMALL_ADM):
    return seeded.tensors(seeded.torch_shapes(config))


def unet2d_weights(config=SMALL_UNET2D):
    architecture = diffusers.architecture({}, {"config": config})
    return diffusers_unet.state_dict(diffusers_unet.torch_shapes(architecture))


def lazy(arrays):
    """Return arrays as the readers hand out tensors."""
    return {n: LazyTensor(a.shape, lambda a=a: a) for n, a in arrays.items()}


def save(path, arrays):
    """Write a .safetensors file."""
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, path)
    return path


@pytest.fixture
def adm_file(tmp_path):
    return save(tmp_path / "mine.safetensors", adm_weights())


@pytest.fixture
def unet2d_folder(tmp_path):
    """Return the folder of a diffusers pipeline with its configuration files."""
    for name, part in (("unet/config", SMALL_UNET2D), ("scheduler/", DDPM_SCHEDULER)):
        name = name if not name.endswith("/") else f"{name}scheduler_config"
        path = tmp_path / f"{name}.json"
        path.parent.mkdir()
        path.write_text(json.dumps(part))
    save(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", unet2d_weights())
    return tmp_path


def assert_trees_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.float32


# Reading files


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_files_of_both_formats_are_read_without_pytorch(form, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would fail
    expected = np.load(GOLDEN / "torch_files.npz")
    with reader.open_tensors(GOLDEN / f"torch_{form}.pt") as tensors:
        assert tensors.keys() == set(expected.files)
        for name, tensor in tensors.items():
            array = tensor.read()
            assert array.shape == tensor.shape
            np.testing.assert_array_equal(array.astype(np.float64), expected[name])


@pytest.mark.parity
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_reads_what_the_installed_pytorch_writes(tmp_path, options):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 5))
    path = tmp_path / "file.pt"
    torch.save(module.state_dict(), path, **options)
    with reader.open_tensors(path) as tensors:
        found = {name: tensor.read() for name, tensor in tensors.items()}
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(found.pop(name), tensor.numpy())
    assert not found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_become_float32(tmp_path, dtype):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    original = np.linspace(-1, 1, 6).reshape(2, 3).astype(kind)
    path = save(tmp_path / "x.safetensors", {"a": original})
    with reader.open_tensors(path) as tensors:
        leaf = convert.to_flax(tensors["a"], 2)
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, original.T.astype(np.float32))


def torch_zip(payload, storages=None):
    """Return the bytes of a .pt file around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", payload)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def torch_stream(payload):
    """Return the bytes of a .pt file of the old format around a pickle."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [0x1950A86A20F9469CFC6C, 1001, system]
    return b"".join(pickle.dumps(p, 2) for p in parts) + payload + pickle.dumps([], 2)


class Evil:
    """What a malicious pickle does: call something when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def create_by_open(path):
    return Evil(open, str(path), "w")


def create_by_shell(path):
    return Evil(os.system, f"touch {path}")


def create_by_exec(path):
    return Evil(exec, f"open({str(path)!r}, 'w').close()")


def hidden_in_weights(path):
    return {"a": collections.OrderedDict(b=[create_by_exec(path)])}


def in_a_second_element(path):
    return [{}, create_by_open(path)]


ATTACKS = (
    create_by_open,
    create_by_shell,
    create_by_exec,
    hidden_in_weights,
    in_a_second_element,
)
CONTAINERS = {
    "bare": lambda payload: payload,
    "zip": torch_zip,
    "stream": torch_stream,
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the attack opens and forgets
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    tmp_path, attack, container, protocol
):
    victim = tmp_path / "victim"
    payload = pickle.dumps(attack(victim), protocol)
    pickle.loads(payload)  # to see that the attack is real
    assert victim.exists()
    victim.unlink()

    path = tmp_path / "evil.pt"
    path.write_bytes(CONTAINERS[container](payload))
    with (
        pytest.raises(
            ConversionError, match="would run .*open|would run .*(system|ex)"
        ),
        reader.open_tensors(path),
    ):
        pass
    assert not victim.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"ctorch.storage\n_load_from_bytes\n",
        b"ctorch.serialization\nload\n",
        b"ctorch\nload\n",
        b"cbuiltins\ngetattr\n",
        b"ccollections\nOrderedDict.__init__\n",
        b"ccollections\nnamedtuple\n",
        b"ctorch._utils\n_rebuild_qtensor\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n",
    ],
)
def test_only_the_names_that_weights_need_are_known(tmp_path, name):
    path = tmp_path / "evil.pt"
    path.write_bytes(torch_zip(name + b"."))
    with (
        pytest.raises(ConversionError, match="would run"),
        reader.open_tensors(path),
    ):
        pass


def test_a_pickle_cannot_alter_the_reader(tmp_path):
    """The BUILD opcode sets attributes of what a pickle got by name."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    state = b"}X\x0c\x00\x00\x00__defaults__)s"
    tampering = {
        "function": rebuild + state + b"b.",
        "dtype": b"ctorch\nFloatStorage\n" + state + b"b.",
        "class": b"ccollections\nOrderedDict\n" + state + b"b.",
    }
    for name, payload in tampering.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(torch_zip(payload))
        with pytest.raises(ConversionError), reader.open_tensors(path):
            pass
    with reader.open_tensors(GOLDEN / "torch_zip.pt") as tensors:
        assert tensors["float32"].read().sum() == 276  # 0 + 1 + ... + 23


def pickled_tensor(length, offset, shape, strides):
    """Return a pickle of one tensor, as PyTorch would write it."""

    def integers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03"
    storage += b"\x00\x00\x00cpuJ" + struct.pack("<i", length) + b"tQ"
    arguments = b"(" + storage + b"J" + struct.pack("<i", offset)
    arguments += integers(shape) + integers(strides) + b"I00\n}t"
    return b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n" + (
        arguments + b"Rs."
    )


def test_a_handmade_tensor_is_read(tmp_path):
    """So that the test below refuses for the reason it states."""
    path = tmp_path / "x.pt"
    data = np.arange(6, dtype=np.float32)
    payload = pickled_tensor(6, 1, (2, 2), (2, 1))
    path.write_bytes(torch_zip(payload, {"0": data.tobytes()}))
    with reader.open_tensors(path) as tensors:
        np.testing.assert_array_equal(tensors["a"].read(), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("length", "offset", "shape", "strides"),
    [
        (6, 0, (2, 4), (4, 1)),  # beyond the end
        (6, 5, (2,), (1,)),
        (6, -1, (2,), (1,)),  # before the start
        (6, 5, (3,), (-1,)),
        (6, 0, (-2,), (1,)),
        (6, 0, (2, 2), (1,)),
        (9, 0, (3, 3), (3, 1)),  # a storage longer than its bytes
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path, length, offset, shape, strides
):
    path = tmp_path / "x.pt"
    payload = pickled_tensor(length, offset, shape, strides)
    path.write_bytes(torch_zip(payload, {"0": bytes(24)}))
    with (
        pytest.raises(ConversionError, match="damaged"),
        reader.open_tensors(path),
    ):
        pass


def refusal(path):
    """Read every tensor of a file; return the message if it is refused."""
    try:
        with reader.open_tensors(path) as tensors:
            for tensor in tensors.values():
                assert tensor.read().shape == tensor.shape
    except ConversionError as error:
        return str(error)
    return None


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_damaged_files_end_in_one_message(tmp_path, form):
    """Any byte may be wrong, any end missing: read correctly or refused, no crash."""
    original = (GOLDEN / f"torch_{form}.pt").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "x.pt"
    refused = 0
    for i in range(300):
        damaged = bytearray(original)
        if i % 3 == 0:
            del damaged[int(rng.integers(len(damaged))) :]
        else:
            for at in rng.integers(len(damaged), size=int(rng.integers(1, 6))):
                damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        if message := refusal(path):
            refused += 1
            assert "\n" not in message
    assert refused > 100  # every third is cut off


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!doctype html><title>Quota exceeded</title>", "no PyTorch file"),
        (b"PK\x03\x04 and no more", "no PyTorch file"),
        (pickle.dumps([1, 2]), "torch.save did not write it"),
        (torch_zip(pickle.dumps({"epoch": 3})), "a dict of epoch, no state dict"),
        (torch_zip(pickle.dumps([])), "a list, no state dict"),
        (struct.pack("<Q", 99) + b"{}", "not a complete safetensors file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "file.ckpt"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=message), reader.open_tensors(path):
        pass


def test_missing_file_and_folder(tmp_path):
    with (
        pytest.raises(ConversionError, match="does not exist"),
        reader.open_tensors(tmp_path / "no.pt"),
    ):
        pass
    with pytest.raises(ConversionError, match="a folder without diffusion_pytorch"):
        convert.convert(tmp_path)


# What training scripts wrap around a state dict

ONE, TWO = ({"a.b": LazyTensor((n,), lambda: np.zeros(1))} for n in (1, 2))
WRAPPED = {f"module.{name}": tensor for name, tensor in ONE.items()}


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        (ONE, ONE),
        (WRAPPED, ONE),
        ({f"model.{n}": t for n, t in ONE.items()}, ONE),
        ({"module.a": ONE["a.b"], "b": ONE["a.b"]}, None),  # not all: left alone
        ([WRAPPED, {"state": {}}, 3, 4000, TWO], TWO),  # ermongroup/ddim with averages
        ([WRAPPED, {"state": {}, "param_groups": []}, 3, 4000], ONE),  # without
        ((WRAPPED, {"state": {}}), ONE),
        ({"state_dict": ONE, "epoch": 7}, ONE),
        ({"model": ONE, "ema": TWO, "step": 1}, TWO),
        ({"model": ONE, "model_ema": TWO}, TWO),
        ({"state_dict": ONE, "state_dict_ema": TWO}, TWO),
        ({"model": {"state_dict": WRAPPED}}, ONE),
    ],
)
def test_unwrapping(loaded, expected):
    found = reader.unwrap(loaded, Path("x"))
    assert found == (loaded if expected is None else expected)


# Layouts


def test_guided_diffusion_is_inferred_from_the_names():
    for config in seeded.ADM_CASES.values():
        tensors = lazy(_empty(seeded.torch_shapes(config)))
        found = guided_diffusion.architecture(
            tensors,
            {
                "image_size": config.image_size,
                "num_heads": config.num_heads,
                "num_head_channels": config.num_head_channels,
                "new_attention_order": config.use_new_attention_order,
            },
        )
        assert convert.detect(tensors) is guided_diffusion
        assert found == config


def _empty(shapes):
    return {name: np.broadcast_to(np.float32(0), s) for name, s in shapes.items()}


def converted(arrays, layout, architecture):
    """Return the tree of weights that a layout's names lead to."""
    card = dataclasses.replace(
        seeded.card(seeded.TINY), family=layout.FAMILY, architecture=architecture
    )
    shapes = priors.abstract_params(card)
    return convert.fill(
        shapes, lazy(arrays), lambda name: layout.rename(name, architecture)
    )


@pytest.mark.parametrize("name", seeded.ADM_CASES)
def test_guided_diffusion_weights_go_where_they_belong(name):
    config = seeded.ADM_CASES[name]
    arrays = adm_weights(config)
    assert_trees_equal(
        converted(arrays, guided_diffusion, config), seeded.to_tree(arrays)
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
    architecture = diffusers.architecture({}, {"config": SMALL_UNET2D})
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


@pytest.mark.parametrize("name", ["cifar10", "celebahq"])
def test_ddim_weights_are_diffusers_weights_renamed(name):
    config = diffusers_unet.CONFIGS[name]
    architecture = diffusers.architecture({}, {"config": config})
    arrays = diffusers_unet.state_dict(diffusers_unet.torch_shapes(architecture))
    renamed = transcription.as_ermongroup(arrays, len(architecture.widths))
    tensors = lazy(renamed)
    assert convert.detect(tensors) is ddim
    found = ddim.architecture(tensors, {"image_size": config["sample_size"]})
    assert found == architecture
    assert_trees_equal(converted(renamed, ddim, found), seeded.to_tree(arrays))


def test_names_of_the_ddim_layout_are_those_of_its_transcription():
    shapes = transcription.shapes(128, (1, 1, 2, 2, 4, 4), 2, (4,))
    assert len(shapes) == 450
    assert sum(math.prod(shape) for shape in shapes.values()) == 113_673_219
    config = diffusers.architecture({}, {"config": diffusers_unet.CELEBAHQ})
    theirs = {
        transcription.ermongroup_name(name, 6): math.prod(shape)
        for name, shape in diffusers_unet.torch_shapes(config).items()
    }
    assert {name: math.prod(shape) for name, shape in shapes.items()} == theirs


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
    architecture = diffusers.architecture({}, {"config": SMALL_UNET2D})
    with pytest.raises(ConversionError, match=r"op.weight \(a second time\)"):
        converted(arrays, diffusers, architecture)


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
        ({"num_heads": 3}, "num_heads is 3, which does not divide the 64"),
        ({"num_head_channels": 48}, "num_head_channels is 48"),
        ({"num_head_channels": 0}, "num_head_channels is 0"),
    ],
)
def test_heads_must_divide_the_channels(heads, message):
    facts_ = {"image_size": 16, "new_attention_order": False, **heads}
    with pytest.raises(FactsError, match=message):
        guided_diffusion.architecture(lazy(adm_weights()), facts_)


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
        diffusers.architecture({}, {"config": config})


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
    found = diffusers.architecture({}, {"config": config})
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


def test_heads_on_the_command_line_win_over_those_of_a_row(adm_file):
    request = Request(like="dps-ffhq-10m", architecture={"num_heads": 2})
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


def test_known_checkpoints_are_recognised(tmp_path):
    rows = registry.known()
    assert list(rows)[:2] == ["natural64", "faces64"]
    assert set(registry.public()) < set(rows)
    path = tmp_path / "celeba256_250000.pt"
    path.write_bytes(b"x")
    by_name = registry.identify(path, "0" * 64, 552_814_086)
    assert by_name == rows["repaint-celeba256"]
    assert registry.identify(path, "0" * 64, 552_814_085) is None
    by_hash = registry.identify(path, str(rows["dps-ffhq-10m"].sha256), 1)
    assert by_hash == rows["dps-ffhq-10m"]


@pytest.mark.parametrize("name", [*registry.public(), "natural64", "faces64"])
def test_rows_hold_all_the_facts_that_their_layout_needs(name):
    row = registry.lookup(name)
    layout = {layout.NAME: layout for layout in convert.LAYOUTS}[str(row.layout)]
    given = dict(row.architecture)
    if layout is diffusers:
        given["config"] = SMALL_UNET2D
    assert layout.missing(given) == []
    schedule = convert._schedule(row.schedule, {}, layout)
    assert convert._missing_of_schedule(schedule, layout) == []
    assert len(Schedule(**schedule).alphas_cumprod()) == schedule["num_train_timesteps"]


# From end to end


def run(*arguments):
    """Run the command in this process; return its exit code."""
    try:
        return __main__.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse ends like this
        return error.code


ADM_FLAGS = (
    "--image-size=16",
    "--num_heads=2",
    "--no-new-attention-order",
    "--schedule=linear",
    "--num_train_timesteps=1000",
    "--licence=CC0",
    "--training_data=none",
    "--any_size",
)


def test_the_command_writes_a_prior_that_loads(adm_file, tmp_path, capsys):
    out = tmp_path / "deep" / "prior"
    assert run(adm_file, out, *ADM_FLAGS) == 0
    assert "prior" in capsys.readouterr().err
    loaded = priors.load(out)
    assert_trees_equal(loaded.params, seeded.to_tree(adm_weights()))
    card = loaded.card
    assert card.architecture == SMALL_ADM
    assert (card.name, card.licence, card.any_size) == ("prior", "CC0", True)
    assert card.parameters == sum(a.size for a in adm_weights().values())
    assert card.sha256 == registry.digest(adm_file)
    assert os.listdir(out.parent) == ["prior"]  # nothing else is left behind
    assert run(adm_file, out, *ADM_FLAGS, "--name", "again") == 0  # in its place
    assert priors.load(out).card.name == "again"


def test_a_diffusers_folder_needs_no_flags(unet2d_folder, tmp_path):
    out = tmp_path / "prior"
    assert run(unet2d_folder, out) == 0
    loaded = priors.load(out)
    assert loaded.card.family == "ddpm"
    assert loaded.card.schedule == Schedule()
    assert not loaded.card.any_size
    assert_trees_equal(loaded.params, seeded.to_tree(unet2d_weights()))


def test_config_files_may_lie_elsewhere(unet2d_folder, tmp_path, capsys):
    alone = tmp_path / "alone"
    alone.mkdir()
    path = save(alone / "w.safetensors", unet2d_weights())
    assert run(path, tmp_path / "a") == 2
    assert "does not reveal config" in capsys.readouterr().err
    files = ["--config", unet2d_folder / "unet" / "config.json"]
    files += ["--scheduler-config", unet2d_folder / "scheduler/scheduler_config.json"]
    assert run(path, tmp_path / "a", *files) == 0
    assert run(path, tmp_path / "b", "--config", tmp_path / "no.json") == 4
    assert "cannot read" in capsys.readouterr().err


def test_an_averaged_ddim_training_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = transcription.as_ermongroup(unet2d_weights(), 2)
    averaged = {n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}
    model = {f"module.{n}": torch.zeros_like(t) for n, t in averaged.items()}
    path = tmp_path / "ckpt.pth"
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}}
    torch.save([model, optimizer, 12, 4000, averaged], path)
    request = Request(architecture={"image_size": 16}, schedule=LINEAR)
    found = convert.convert(path, request)
    assert_trees_equal(found.params, seeded.to_tree(unet2d_weights()))


def test_exit_codes_and_one_line_messages(adm_file, tmp_path, capsys):
    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps(create_by_open(tmp_path / "victim")))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "holiday.jpg").write_bytes(b"")
    out = tmp_path / "out"
    for arguments, code, message in (
        ([tmp_path / "no.pt", out], 4, "does not exist"),
        ([evil, out], 4, "would run"),
        ([adm_file, out], 2, "does not reveal"),
        ([adm_file, taken, *ADM_FLAGS], 2, "exists and is no prior"),
        ([adm_file, out, "--like", "nobody"], 5, "no checkpoint is called"),
        (["--download", "nobody"], 5, "no checkpoint is called"),
        ([adm_file, out, *ADM_FLAGS, "--image_size=15"], 2, "multiple of 2"),
    ):
        assert run(*arguments) == code
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        assert output.err.count("\n") == 1
        assert message in output.err
    assert not out.exists()
    assert not (tmp_path / "victim").exists()
    zero = [adm_file, out, "--num_train_timesteps=0"]
    for arguments in ([], [adm_file], ["--list", adm_file, out], ["--no"], zero):
        assert run(*arguments) == 2
    capsys.readouterr()


def test_list_shows_the_registry(capsys):
    assert run("--list") == 0
    shown = capsys.readouterr().out
    for name in registry.public():
        assert name in shown


def test_a_failed_write_leaves_what_was_there(adm_file, tmp_path, monkeypatch):
    out = tmp_path / "prior"
    assert run(adm_file, out, *ADM_FLAGS) == 0
    before = (out / "card.json").read_text()

    def fail(_, params, __):
        params.mkdir()
        (params.parent / "card.json").write_text("{}")
        raise OSError("no space left on device")

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(OSError, match="no space"):
        run(adm_file, out, *ADM_FLAGS)
    assert (out / "card.json").read_text() == before
    assert sorted(os.listdir(tmp_path)) == ["mine.safetensors", "prior"]


def test_the_program_runs_without_pytorch(tmp_path, shared):
    """As a user without torch would: a process of its own, from the bundled file."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['safetensors'] = None\n"
        "from checkpoints_convert.__main__ import cli\n"
        f"sys.argv = ['x', {str(shared / 'priors' / 'natural64.pt')!r}, 'out']\n"
        "cli()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bundled, made = priors.load("natural64"), priors.load(tmp_path / "out")
    assert made.card == bundled.card  # the bundled one was made by this command
    assert_trees_equal(made.params, bundled.params)


# Public checkpoints: download, verify, convert once


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Serve a checkpoint on loopback and list it in the registry."""
    pytest.importorskip("pooch")
    folder = tmp_path / "server"
    folder.mkdir()
    path = save(folder / "tiny.safetensors", adm_weights())
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, format, *arguments):
            requests.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    row = registry.Checkpoint(
        name="tiny",
        layout="guided_diffusion",
        architecture=ADM_FACTS,
        schedule=LINEAR,
        parameters=sum(a.size for a in adm_weights().values()),
        file=path.name,
        sha256=registry.digest(path),
        urls=(f"http://127.0.0.1:{server.server_address[1]}/{path.name}",),
        licence="CC0",
        training_data="random numbers",
        source="a test",
    )
    monkeypatch.setattr(registry, "public", lambda: {"tiny": row})
    monkeypatch.setenv("DIIP_CACHE", str(tmp_path / "cache"))
    yield row, requests
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_public_checkpoint_is_downloaded_and_converted_once(published, capsys):
    row, requests = published
    assert run("--download", "tiny") == 0
    shown = capsys.readouterr()
    folder = Path(shown.out.strip())
    assert "licence: CC0" in shown.err
    loaded = priors.load(folder)
    assert loaded.card.name == "tiny"
    assert loaded.card.sha256 == row.sha256
    assert_trees_equal(loaded.params, seeded.to_tree(adm_weights()))
    assert len(requests) == 1
    assert run("--download", "tiny", "--offline") == 0
    assert len(requests) == 1
    (folder / "card.json").write_text("{")  # as if its writing had been cut short
    assert run("--download", "tiny", "--offline") == 0  # from the verified download
    assert priors.load(folder).card == loaded.card


def test_a_prior_of_other_weights_is_converted_again(published, monkeypatch, capsys):
    row, _ = published
    assert run("--download", "tiny") == 0
    folder = Path(capsys.readouterr().out.strip())
    card = priors.load(folder).card
    stale = dataclasses.replace(card, sha256="0" * 64)
    (folder / "card.json").write_text(stale.to_json())
    assert run("--download", "tiny", "--offline") == 0
    assert priors.load(folder).card.sha256 == row.sha256


def test_offline_without_a_download_is_refused(published, capsys):
    assert run("--download", "tiny", "--offline") == 5
    assert "offline mode forbids a download" in capsys.readouterr().err


# improved-diffusion against azula's network, through a file and the command


IDDPM_FLAGS = (
    "--image_size=16",
    "--num_heads=4",
    "--no-new_attention_order",
    "--schedule=cosine",
    "--num_train_timesteps=4000",
    "--rescale_timesteps",
)


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


# What a wrong reading of guided-diffusion would do, against azula's stored answers.
# "early" has improved-diffusion's options; its outputs are test_adm.py's.


def adm_error(name, config=None, params=None):
    """Return the relative error of the package, one operation at a time."""
    feeble = name == "early_feeble"
    case = seeded.ADM_CASES["early" if feeble else name]
    shapes = seeded.torch_shapes(case)
    if params is None:
        params = seeded.to_tree(diffusers_unet.state_dict(shapes, feeble=feeble))
    x, _ = azula_unet.inputs()
    with np.load(GOLDEN / ("ddpm.npz" if feeble else "adm.npz")) as golden:
        expected = golden[name if feeble else f"{name}_eps"]
    unet, variables = ADMUNet(config or case), {"params": params}
    t = jnp.float32(diffusers_unet.TIMESTEP)
    conditioning = unet.apply(variables, t, method="condition")
    return seeded.relative_error(unet.apply(variables, x, conditioning), expected)


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
    plain = layers.group_norm

    def ddpm_norm(x, scale, bias, epsilon, silu):
        assert epsilon == 1e-5
        return plain(x, scale, bias, 1e-6, silu)

    monkeypatch.setattr(layers, "group_norm", ddpm_norm)
    assert adm_error("early_feeble") > NOTICED


@pytest.mark.parametrize("wrong", [{"sin_first": True}, {"divisor_shift": 1}])
def test_the_embedding_of_the_other_layouts_is_noticed(monkeypatch, wrong):
    plain = layers.timestep_embedding
    embed = functools.partial(plain, **wrong)
    monkeypatch.setattr(layers, "timestep_embedding", embed)
    assert adm_error("early") > NOTICED


def test_the_padding_of_the_other_layouts_is_noticed(monkeypatch):
    """Which is also what XLA calls SAME."""
    plain = layers.Conv

    def conv(*arguments, **options):
        if options.get("stride") == 2:
            options["padding"] = (0, 1)
        return plain(*arguments, **options)

    monkeypatch.setattr(layers, "Conv", conv)
    assert adm_error("early") > NOTICED


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
