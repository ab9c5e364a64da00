"""Files of `torch.save`, read without PyTorch and without running any of them.

Independent here: files that PyTorch itself wrote (stored, and live where it is
installed), and pickles that really would run code, shown by running them.
"""

import collections
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert import reader
from checkpoints_convert.tensors import ConversionError
from helpers.pickles import (
    create_by_exec,
    create_by_open,
    create_by_shell,
    torch_stream,
    torch_zip,
)

GOLDEN = Path(__file__).parents[1] / "golden"


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
