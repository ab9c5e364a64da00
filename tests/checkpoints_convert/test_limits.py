"""Hostile checkpoints: none hangs, none takes more memory than its file is worth.

Each of them kept an earlier version busy for minutes, or took gigabytes.
"""

import io
import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert import convert, diffusers, pickle_limits, reader, torch_file
from checkpoints_convert.tensors import ConversionError, LazyTensor
from helpers.checkpoints import ADM_FLAGS, SMALL_UNET2D, lazy, run, save, unet2d_weights
from helpers.pickles import torch_stream, torch_zip

OUT = "out"
SECONDS = 10  # far above what a refusal takes, far below a hang


def doubled(levels):
    """Return opcodes of a tuple of twice the same tuple, and so on."""
    steps = b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(levels))
    return b"\x80\x02)q\x00" + steps


def refilled():
    """Return a pickle whose list grows after its use, to be copied a million times."""
    grown = b"(" + b"K\x01" * 1000 + b"e"
    return b"\x80\x02(]q\x00l(h\x00" + grown + b"t."


PICKLES = {
    "a dict whose key has 2^60 elements": (
        b"\x80\x02}" + doubled(60)[2:] + b"K\x01s.",
        "more than 50000000 values",
    ),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "already is in another"),
    "two lists in each other": (
        b"\x80\x02]q\x00]q\x01h\x00ah\x01\x30h\x00h\x01a.",
        "POP",
    ),
    "a list that grows after its use": (refilled(), "already is in another"),
    "a list of a list, deep": (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "deep"),
    "an object with a high number": (
        b"\x80\x02]r\xff\xff\xff\x7f.",
        "numbers an object 2147483647",
    ),
    "many opcodes": (b"\x80\x02" + b"N0" * 10 + b"(" * 1_100_000 + b".", "POP|opcodes"),
    "a storage with a list for its name": (
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n]K\x00K\x04tQ.",
        "a storage",
    ),
}


@pytest.mark.parametrize("container", [torch_zip, torch_stream])
@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_without_end_is_refused(tmp_path, what, container):
    payload, message = PICKLES[what]
    path = tmp_path / "x.pt"
    path.write_bytes(container(payload))
    began = time.monotonic()
    with (
        pytest.raises(ConversionError, match=message) as caught,
        reader.open_tensors(path),
    ):
        pass
    assert time.monotonic() - began < SECONDS
    assert len(str(caught.value)) < 400


def test_too_many_opcodes_are_refused(monkeypatch):
    monkeypatch.setattr(pickle_limits, "MOST_OPCODES", 100)
    small, large = (pickle.dumps(list(range(n))) for n in (10, 200))
    assert pickle_limits.read(io.BytesIO(small)).read() == small
    with pytest.raises(ConversionError, match="more than 100 opcodes"):
        pickle_limits.read(io.BytesIO(large))


def test_a_long_pickle_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(pickle_limits, "MOST_BYTES", 1000)
    path = tmp_path / "x.pt"
    for container in (torch_zip, torch_stream):
        path.write_bytes(container(pickle.dumps("x" * 2000)))
        with (
            pytest.raises(ConversionError, match=r"2\d\d\d bytes|longer than 1000"),
            reader.open_tensors(path),
        ):
            pass


def test_a_pickle_is_not_inflated_before_its_size_is_known(tmp_path):
    path = tmp_path / "x.pt"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w") as file,
    ):
        for _ in range(20):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 16
    with (
        pytest.raises(ConversionError, match="data.pkl has 20971520 bytes, more than"),
        reader.open_tensors(path),
    ):
        pass


@pytest.mark.parametrize(
    "loaded",
    [
        {"state_dict": [1.5, ("a", None)] * 1000, "betas": (0.9, 0.999)},
        [{str(i): [i, (i, i)] for i in range(1000)}] * 10,
        {b"x": {1, 2}, "y": frozenset([3]), "z": -1.5, "n": 10**30},
    ],
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_ordinary_pickles_pass(loaded, protocol):
    """Shared objects, all sorts of values, in each protocol that exists."""
    following = b"and what follows"
    stream = io.BytesIO(pickle.dumps(loaded, protocol) + following)
    assert pickle.loads(pickle_limits.read(stream).read()) == loaded
    assert stream.read() == following


def nested_wrappers(levels):
    found = {}
    for _ in range(levels):
        found = {name: found for name in ("ema", "model", "state_dict")}
    return found


def test_only_a_few_wrappings_are_looked_into(tmp_path):
    began = time.monotonic()
    with pytest.raises(ConversionError, match="no state dict"):
        reader.unwrap(nested_wrappers(60), tmp_path)
    assert time.monotonic() - began < SECONDS


# Tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{i}": (1,) for i in range(5001)}, "holds 5001 tensors; up to 5000"),
        ({"a" * 300: (1,)}, "a name of 300 letters, 'aaaaaaaaaaaaaaaaaaaa'"),
        ({"a": (10**18, 0, 3, 3)}, "a is empty"),
        ({"a": (200,), "b": (200,)}, "has 1000 bytes, but tensors of 1600"),
    ],
)
def test_more_than_a_file_can_hold_is_refused(tmp_path, tensors, message):
    path = tmp_path / "x.pt"
    path.write_bytes(bytes(1000))
    found = {n: LazyTensor(shape, lambda: np.zeros(1)) for n, shape in tensors.items()}
    with pytest.raises(ConversionError, match=message):
        reader.check_extent(found, path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    """With steps of zero, four bytes are as many numbers as one likes."""

    def integers(*values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03"
    storage += b"\x00\x00\x00cpuK\x01tQ"
    arguments = b"(" + storage + b"K\x00" + integers(2**31 - 1, 2**31 - 1)
    arguments += integers(0, 0) + b"\x89}t"
    payload = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n"
    path = tmp_path / "x.pt"
    path.write_bytes(torch_zip(payload + arguments + b"Rs.", {"0": bytes(4)}))
    with (
        pytest.raises(ConversionError, match="more elements than its storage"),
        reader.open_tensors(path),
    ):
        pass


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((2**70, 1), (1, 1)), ((1, 1), (2**70, 1)), ((1,) * 9, (1,) * 9), ((1.5,), (1,))],
)
def test_lengths_that_no_tensor_has_are_refused(shape, strides):
    storage = torch_file.Storage(np.dtype(np.float32), 4, lambda: bytes(16))
    with pytest.raises(ValueError, match="a tensor of shape"):
        torch_file._tensor(storage, 0, shape, strides)


# config.json


@pytest.fixture(scope="module")
def unet2d_tensors():
    """Return the tensors of a small model of diffusers."""
    return lazy(unet2d_weights())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers_per_block", 2000, "layers_per_block = 2000, but the file holds only"),
        ("layers_per_block", 10**30, "layers_per_block = "),
        ("layers_per_block", 2.5, "layers_per_block = 2.5"),
        ("layers_per_block", True, "layers_per_block = True"),
        ("layers_per_block", -1, "layers_per_block = -1"),
        ("block_out_channels", [32, 3200000], "but no tensor of the file has a side"),
        ("block_out_channels", [32, 10**300], "but no tensor of the file has a side"),
        ("block_out_channels", "abc", "block_out_channels = 'abc'"),
        ("block_out_channels", [], "block_out_channels = "),
        ("block_out_channels", [32, float("nan")], "block_out_channels = "),
        ("attention_head_dim", "8", "attention_head_dim = '8'"),
        ("norm_eps", -1e-6, "norm_eps = -1e-06"),
        ("norm_eps", float("nan"), "norm_eps = nan"),
        ("norm_eps", "small", "norm_eps = 'small'"),
        ("sample_size", "16", "sample_size = '16'"),
        ("an_option", ["x" * 1000] * 1000, "an_option = "),
    ],
)
def test_what_config_json_cannot_mean_is_refused(unet2d_tensors, name, value, message):
    config = {**SMALL_UNET2D, name: value}
    began = time.monotonic()
    with pytest.raises(ConversionError) as caught:
        diffusers.architecture(unet2d_tensors, {"config": config})
    assert time.monotonic() - began < SECONDS
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_image_size_is_judged_before_anything_is_made(unet2d_folder, capsys):
    config = {**SMALL_UNET2D, "sample_size": 100000000}
    (unet2d_folder / "unet" / "config.json").write_text(json.dumps(config))
    assert run(unet2d_folder, unet2d_folder / OUT) == 2
    assert "image_size is 100000000; up to 8192" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("[" + "1," * (1 << 19) + "1]", "longer than 1048576 bytes"),
    ],
)
def test_endless_json_is_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConversionError, match=message):
        reader.read_json(path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
def test_json_from_an_endless_device_is_refused():
    with pytest.raises(ConversionError, match="longer than"):
        reader.read_json(Path("/dev/zero"))


# Weights


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda a: np.where(a == a.max(), np.nan, a), "holds NaN"),
        (lambda a: np.where(a == a.max(), np.inf, a), "holds what is infinite"),
        (
            lambda a: np.where(a == a.max(), 1e300, a.astype("f8")),
            "holds what is infinite",
        ),
        (lambda a: a.astype(np.int8), "is stored as int8"),
        (lambda a: a.astype(np.int64), "is stored as int64"),
        (lambda a: a > 0, "is stored as bool"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(tmp_path, spoilt, message):
    """By name and, as files store their dtypes, through one."""
    arrays = {
        "a.weight": spoilt(np.ones((2, 3), np.float32)),
        "a.bias": np.ones(2, "f4"),
    }
    path = save(tmp_path / "x.safetensors", arrays)
    shapes = {"a": {"kernel": np.empty((3, 2)), "bias": np.empty(2)}}
    with (
        reader.open_tensors(path) as tensors,
        pytest.raises(ConversionError, match=f"a.weight {message}"),
    ):
        convert.fill(shapes, tensors, lambda name: tuple(name.split(".")))


@pytest.mark.parametrize(
    "flag",
    [
        "--beta_start=nan",
        "--beta_end=2",
        "--num_train_timesteps=1000000000000",
        "--image_size=100000000",
    ],
)
def test_facts_that_no_model_has_are_wrong_flags(adm_file, tmp_path, capsys, flag):
    assert (
        run(adm_file, tmp_path / OUT, *ADM_FLAGS, "--no-rescale_timesteps", flag) == 2
    )
    assert flag.partition("=")[2].rstrip("0") in capsys.readouterr().err
    assert not (tmp_path / OUT).exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train_timesteps", 10**12),
        ("num_train_timesteps", "1000"),
        ("num_train_timesteps", None),
        ("beta_start", -1),
        ("beta_end", float("nan")),
        ("beta_end", "x"),
    ],
)
def test_an_impossible_scheduler_is_the_files_fault(unet2d_folder, capsys, name, value):
    path = unet2d_folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    assert run(unet2d_folder, unet2d_folder / OUT) == 4
    assert f"no model is trained with this schedule: {name}" in capsys.readouterr().err
