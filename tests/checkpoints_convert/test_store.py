"""Where converted priors go: public ones are downloaded and converted once."""

import dataclasses
import http.server
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import orbax.checkpoint as ocp
import pytest

from checkpoints_convert import download, registry, store
from diip_jax import prior as priors
from helpers import seeded
from helpers.checkpoints import (
    ADM_FACTS,
    ADM_FLAGS,
    LINEAR,
    adm_weights,
    assert_trees_equal,
    run,
    save,
)
from helpers.disks import small_disk

ROOT = Path(__file__).parents[2]


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


def test_a_full_disk_is_a_place_where_nothing_can_be_written(
    adm_file, tmp_path, capsys
):
    with small_disk(tmp_path / "disk", 300) as disk:
        assert run(adm_file, disk / "prior", *ADM_FLAGS) == 2
        assert not list(disk.iterdir())
    said = capsys.readouterr().err
    assert said == (
        f"error: cannot write {disk / 'prior'}: No space left on device; give another "
        "folder\n"
    )


def test_a_cache_that_is_full_is_an_error_of_a_file(published, monkeypatch, tmp_path):
    """As `main.py --prior` hears it."""
    cache = tmp_path / "cache"
    download.fetch(published[0], cache=cache, notify=print)

    def full(*_):
        raise ValueError("RESOURCE_EXHAUSTED: Failed [os_error_code='28']")

    monkeypatch.setattr(priors, "save_arrays", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        store.locate("tiny", cache=cache, notify=print)
    assert caught.value.filename == str(cache / "priors" / "tiny")


INTERRUPTED = """
import os, signal, sys, threading, time
import orbax.checkpoint as ocp
from checkpoints_convert.__main__ import cli

def save(checkpointer, params, arguments):
    def write():
        for i in range(40):
            (params / str(i)).mkdir(parents=True, exist_ok=True)
            time.sleep(0.01)

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(2):  # an impatient user
        os.kill(os.getpid(), number)
        time.sleep(0.1)
    thread.join()

# A shell starts jobs in the background with this signal ignored, and so do those who
# start processes there, down to this one: Python then leaves it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
number = int(sys.argv.pop())
ocp.Checkpointer.save = save
cli()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_write_leaves_nothing(adm_file, tmp_path, number):
    """Orbax writes in threads, which go on while the main one is interrupted."""
    out = tmp_path / "out" / "prior"
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, adm_file, out, *ADM_FLAGS, str(number)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "error: stopped; nothing was written\n"
    assert os.listdir(out.parent) == []
