"""Writes that are whole or not at all, whatever ends them and whatever they write."""

import errno
import functools
import itertools
import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from checkpoints_convert import download, registry
from diip_jax import compilation, engine, images, storage
from diip_jax import prior as priors
from diip_jax.bench import traces
from diip_jax.photos import find, record, resume
from helpers import seeded
from helpers.disks import small_disk
from helpers.mortal import fate


class Image:
    """A restored picture."""

    def __init__(self, folder):
        self.path = folder / "x.png"
        source = folder.parent / "source.png"
        images.write(source, np.zeros((8, 8, 3)), photo())
        self.like = images.read(source)

    def write(self, version):
        images.write(self.path, np.full((8, 8, 3), version / 255), self.like)

    def read(self):
        if not self.path.exists():
            return None
        values = np.unique(np.rint(255 * images.read(self.path).rgb))
        return int(values.item())  # one value: nothing of another version


class Result:
    """A picture and its record, one after the other."""

    def __init__(self, folder):
        self.path = folder / "x.png"

    def write(self, version):
        data = images.encode(np.full((8, 8, 3), version / 255), photo(), "PNG")
        output = {"path": str(self.path)}
        content = {"status": "ok", "version": version, "output": output}
        content["schema"] = record.SCHEMA
        record.write_beside(self.path, data, content)

    def read(self):
        if not self.path.exists():
            return None
        values = np.unique(np.rint(255 * images.read(self.path).rgb))
        assert find.is_result(self.path)  # or it would be taken for a photo
        content = record.read(self.path.with_suffix(".json"))
        assert content["status"] != "ok" or content["version"] == values.item()
        return int(values.item())


class NewResult(Result):
    """The same where nothing was before."""


class Trace:
    """A traced program; a trace has the name of its content, so none replaces one."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, version):
        def scale(x):
            return version * x

        program = compilation.cache_traces(scale, self.folder, lambda x: x)
        jax.jit(program)(np.float32(2))

    def read(self):
        (path, *others) = [*self.folder.glob("*.trace"), None]
        assert others in ([], [None])
        if path is None:
            return None
        assert compilation._read(path) is not None
        return 2


class Run:
    """A run of the benchmark that nothing stopped."""

    def __init__(self, folder):
        self.path = folder / "x.npz"

    def write(self, version):
        traces._write(self.path, "settings", {"losses": np.full(99, version)})

    def read(self):
        found = traces._read(self.path, "settings")
        if found is None:
            return None
        (version,) = np.unique(found["losses"])
        return int(version)


class State:
    """An unfinished restoration."""

    def __init__(self, folder):
        self.path = folder / ".x.png.state"
        y = np.zeros((8, 8, 3), np.float32)
        self.state = engine._begin(y, jax.random.key(0), seeded.PRESET)

    def write(self, version):
        leaves = jax.tree.map(lambda a: np.full_like(a, version), self.state)
        resume.save(self.path, leaves, "digest")

    def read(self):
        state = resume.load(self.path, self.state, "digest")
        if state is None:
            return None
        (version,) = {int(value) for value in np.unique(state.z)}
        assert int(state.k) == version
        return version


class ConvertedPrior:
    """A prior's folder."""

    def __init__(self, folder):
        self.path = folder / "prior"

    def write(self, version):
        priors.save(self.path, numbered_prior(version))

    def read(self):
        if not storage.settled(self.path).exists():
            return None
        loaded = priors.load(self.path)
        version = int(loaded.card.name)
        expected = numbered_prior(version).params
        jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
        return version


class Download:
    """A checkpoint's files and the hashes noted of them; only bad ones are replaced."""

    def __init__(self, folder):
        self.cache = folder
        self.checkpoint = registry.Checkpoint(
            name="made-up",
            layout="guided_diffusion",
            parameters=2,
            file="made-up.pt",
            licence="none",
            training_data="none",
            source="a test",
            urls=("https://example.org/made-up.pt",),
        )

    def write(self, version):
        def from_url(_, destination, **__):
            Path(destination).write_bytes(bytes([version]) * 8)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(download, "from_url", from_url)
            download.fetch(self.checkpoint, cache=self.cache, notify=lambda _: None)

    def read(self):
        path = storage.settled(self.cache / "downloads" / "made-up") / "made-up.pt"
        if not path.parent.exists():
            return None
        (version,) = set(path.read_bytes())
        assert path.stat().st_size == 8
        return version


@functools.cache
def numbered_prior(version):
    """Return a small prior that differs in weights and name from version to version."""
    one_level = seeded.ADMConfig(8, 32, (1,), (0,), ())
    return seeded.prior(one_level, seed=version, name=str(version))


KINDS = (Image, Result, NewResult, Trace, Run, State, ConvertedPrior, Download)
REPLACED = (Image, Result, Run, State, ConvertedPrior)


def photo():
    """Return what `images.write` must know of a plain 8-bit picture."""
    return images.Photo(
        np.zeros((8, 8, 3), np.float32), None, False, 8, "RGB", "PNG", 1, (8, 8)
    )


@pytest.mark.filterwarnings("ignore:cannot keep a trace")
@pytest.mark.parametrize(
    ("kind", "kill"),
    [
        pytest.param(
            kind,
            kill,
            id=f"{kind.__name__}-{'killed' if kill else 'fails'}",
            # Orbax takes long for each of its operations.
            marks=[pytest.mark.slow] if kind is ConvertedPrior and not kill else [],
        )
        for kind in KINDS
        for kill in (False, True)
    ],
)
def test_a_write_leaves_the_old_or_the_new(kind, kill, tmp_path, monkeypatch):
    """Failed or killed at each file operation in turn, until it ends undisturbed.

    Operations are counted in the folder of what is written. What Orbax does inside a
    folder that is still called otherwise cannot matter.
    """
    monkeypatch.setattr(storage, "_is_alive", lambda _: not kill)
    for survived in itertools.count():
        folder = tmp_path / str(survived) / "here"
        folder.mkdir(parents=True)
        stored = kind(folder)
        before = None
        if kind in REPLACED:
            before = 1
            stored.write(before)
        with fate([folder, folder / "downloads"], survived, kill=kill) as chosen:
            stored.write(2)
        after = stored.read()
        assert after in (before, 2)
        assert kill or after == 2 or not left_in(folder)
        stored.write(2)  # the next run is not hindered
        assert stored.read() == 2
        storage.sweep(folder)
        assert not left_in(folder)
        if not chosen.struck:
            break
    assert survived >= 2  # a file is opened and renamed at least


def left_in(folder):
    """Return the names of what is written and not yet, or no longer, in its place."""
    suffixes = (".tmp", ".new", ".diip-old")
    return [path.name for path in folder.iterdir() if path.name.endswith(suffixes)]


def test_what_fails_inside_replaces_nothing(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()

    def fail():
        with storage.replacing(tmp_path / "x") as folder:
            (folder / "new").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "old"]


def test_a_folder_is_found_between_the_renames_of_a_killed_process(tmp_path):
    folder = tmp_path / "x"
    for version in ("1", "2"):
        with storage.replacing(folder) as part:
            (part / version).touch()
    # A new folder, a deletion of what may have been left, the first rename.
    with fate([tmp_path], 3, kill=True), storage.replacing(folder) as part:
        pass
    assert not folder.exists()
    assert [path.name for path in storage.settled(folder).iterdir()] == ["2"]
    with storage.replacing(folder) as part:
        (part / "3").touch()
    assert storage.settled(folder) == folder
    assert [path.name for path in folder.iterdir()] == ["3"]
    storage.remove(folder)
    storage.remove(folder)  # gone already
    assert not folder.exists()


def test_a_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        storage.write_bytes(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_look_at_whether_a_file_can_be_written_leaves_it_alone(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    storage.check_writable(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"old"
    storage.check_writable(tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    with pytest.raises(OSError, match="it is a folder"):
        storage.check_writable(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        storage.check_writable(tmp_path / "none" / "x")


def test_sweeping_spares_what_is_in_use_or_somebody_elses(tmp_path):
    dead, machine = number_of_a_dead_process(), storage._machine()
    names = {
        f".x.png.{machine}-{dead}-0123abcd.tmp": False,
        f".x.png.{machine}-{os.getpid()}-0123abcd.tmp": True,
        f".x.png.00000000-{dead}-0123abcd.tmp": True,  # of another machine
        ".x.png.tmp": True,
        ".mine.old": True,
        ".y.diip-old": True,  # its y is gone: `settled` still needs it
        ".z.diip-old": False,
        "z": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
    storage.sweep(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_name_may_be_as_long_as_the_system_takes(tmp_path):
    for name in ("n" * 255, "é" * 127):
        storage.write_bytes(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"
        with storage.replacing(tmp_path / f"{name[:-20]}.d") as part:
            assert len(os.fsencode(part.name)) <= 255
    for name, said in (
        ("n" * 256, "File name too long"),
        ("a\0b", "cannot hold a NUL"),
    ):
        with pytest.raises(OSError, match=said):
            storage.write_bytes(tmp_path / name, b"")
        with pytest.raises(OSError, match=said):
            storage.check_writable(tmp_path / name)
    assert not left_in(tmp_path)


def test_a_folder_that_may_not_be_read_is_not_swept(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(storage.entries, "listing", refuse)
    storage.sweep(tmp_path)


def test_files_are_written_together_or_not_at_all(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "c").mkdir()
    files = [(tmp_path / name, b"new") for name in "abc"]
    with pytest.raises(OSError, match="it is a folder"):
        storage.write_together(files)
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"old"] * 2
    storage.write_together(files[:2])
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"new"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_room_on_a_disk_is_told_and_none_taken(tmp_path):
    storage.check_room(tmp_path, 10_000)
    with small_disk(tmp_path / "disk", 64) as disk:
        storage.check_room(disk, 30_000)
        with pytest.raises(OSError, match="No space left"):
            storage.check_room(disk, 100_000)
        assert not list(disk.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/of/a/part"),
        ValueError("RESOURCE_EXHAUSTED: Failed [os_error_code='28']\nand so on"),
        RuntimeError("Failed to write [os_error_code='28']"),
    ],
)
def test_what_the_system_refuses_is_an_error_of_the_place(tmp_path, error):
    """As the system says it, and as TensorStore does."""
    with (
        pytest.raises(OSError, match="No space left") as caught,
        storage.refusals(tmp_path),
    ):
        raise error
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize("error", [ValueError("[ENOSPC]"), OSError("no number")])
def test_what_the_system_has_not_said_stays(tmp_path, error):
    with pytest.raises(type(error)) as caught, storage.refusals(tmp_path):
        raise error
    assert caught.value is error


# Without the package's own __init__, which imports JAX.
WRITE = """
import sys, types
package = types.ModuleType("diip_jax")
package.__path__ = [sys.argv[1]]
sys.modules["diip_jax"] = package
from pathlib import Path
from diip_jax import storage
path, letter = Path(sys.argv[2]), sys.argv[3].encode()
for n in range(150):
    storage.check_writable(path)
    storage.write_bytes(path, letter * (1 + 7919 * n % 100_000))
    storage.sweep(path.parent)
"""


def test_processes_that_write_one_file_do_not_meet(tmp_path):
    package, path = Path(storage.__file__).parent, tmp_path / "x"
    line = [sys.executable, "-c", WRITE, str(package), str(path)]
    writers = [
        subprocess.Popen([*line, letter], stderr=subprocess.PIPE) for letter in "ab"
    ]
    num_seen = 0
    while any(writer.poll() is None for writer in writers):
        content = path.read_bytes() if path.exists() else b"a"
        assert len(set(content)) == 1  # whole: of one writer, and never empty
        num_seen += 1
    for writer in writers:
        assert writer.communicate()[1] == b""
        assert writer.returncode == 0
    assert num_seen > 10
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def number_of_a_dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_cache_dir_is_read_from_the_environment_at_each_call(monkeypatch, tmp_path):
    monkeypatch.setenv("DIIP_CACHE", str(tmp_path / "chosen"))
    assert storage.cache_dir() == tmp_path / "chosen"
    monkeypatch.delenv("DIIP_CACHE")
    assert storage.cache_dir().name == "diip_jax"
    if sys.platform.startswith("linux"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert storage.cache_dir() == tmp_path / "xdg" / "diip_jax"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert storage.cache_dir() == tmp_path / "home" / ".cache" / "diip_jax"


def test_no_home_is_told(monkeypatch):
    def unknown(_):
        raise KeyError("uid not found")

    pwd = pytest.importorskip("pwd")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "DIIP_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OSError, match="no home folder is known"):
        storage.cache_dir()
    monkeypatch.setenv("DIIP_CACHE", "~/here")
    with pytest.raises(OSError, match="no home folder is known"):
        storage.cache_dir()
