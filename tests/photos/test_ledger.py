"""What is noted beside the records, on files and in a store."""

import pytest

from diip_jax import addresses
from diip_jax.photos import ledger
from diip_jax.photos.ledger import Done


@pytest.fixture(params=["files", "store"])
def output(request, tmp_path):
    """Return an empty output folder of either kind."""
    if request.param == "files":
        return tmp_path
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").store.clear()
    return addresses.path("memory://bucket/out")


def put(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"{}")


def test_what_was_noted_is_read_by_its_settings(output):
    assert ledger.read(output, "aa") == (frozenset(), {})
    one = Done("sub/é [1].png", "12 tag", "sub/é [1]_diip.png")
    two = Done("y.jpg", "3 tag", "y_diip.png")
    ledger.write(output, "aa", [one])
    ledger.write(output, "aa", [two, one])  # a batch that was done twice
    ledger.write(output, "bb", [two])
    ledger.write(output, "bb", [])
    for name in ("sub/é [1]_diip.png", "sub/é [1]_diip.json", "y_diip.png"):
        put(output, name)
    found = ledger.read(output, "aa")
    assert found.outputs == {one[:2]: one.output}  # the other has no record
    assert {"y_diip.png", "sub/é [1]_diip.json"} <= found.there
    put(output, "y_diip.json")
    assert ledger.read(output, "aa").outputs[two[:2]] == two.output
    assert ledger.read(output, "bb").outputs == {two[:2]: two.output}
    assert len([name for name in found.there if ".diip/bb/" in name]) == 1
