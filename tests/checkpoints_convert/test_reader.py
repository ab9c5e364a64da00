"""What training scripts wrap around a state dict, and files that hold none."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert import convert, reader
from checkpoints_convert.tensors import ConversionError, LazyTensor
from helpers.pickles import torch_zip

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
