"""The command, as a user types it: what it writes, what it says, how it exits.

In-process where possible; in a process of its own where it is to be killed, where it
must not have imported anything yet, or where its standard output is closed. Expected
exit codes are those that `--help` lists.
"""

import ast
import contextlib
import dataclasses
import functools
import gc
import hashlib
import http.server
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import main
from checkpoints_convert import registry
from diip_jax import diip, engine, images, restore
from diip_jax import prior as priors
from diip_jax.config import DEFAULT
from diip_jax.photos import find
from diip_jax.photos import terminal as console
from helpers import diffusers_unet, seeded
from helpers.disks import small_disk
from helpers.photos import CONFIG as PRESET
from helpers.photos import SIZE, save

ROOT = Path(__file__).parents[1]
ENDLESS = ["--criterion=never", "--max_iterations=100000"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return a cache folder whose programs are those of the whole session."""
    path = tmp_path_factory.mktemp("cache")
    (path / "xla").symlink_to(os.environ["JAX_COMPILATION_CACHE_DIR"])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a tiny prior, as `--prior` takes it."""
    path = tmp_path_factory.mktemp("priors") / "tiny"
    priors.save(path, seeded.prior(preset=PRESET))
    return path


@pytest.fixture(autouse=True)
def _own_runtime(monkeypatch, cache, tmp_path):
    """Keep what the command sets for its process away from other tests."""
    monkeypatch.setenv("DIIP_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_platforms",
        "jax_log_compiles",
    )
    before = {name: getattr(jax.config, name) for name in names}
    thresholds = gc.get_threshold()
    compilation_cache.reset_cache()  # so that the command opens the one it wants
    yield
    gc.set_threshold(*thresholds)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def run(capsys, folder):
    """Return a function that runs the command: exit code, standard output, error."""

    def command(*arguments, prior=folder):
        chosen = [] if prior is None else ["--prior", str(prior)]
        code = main.main(["main.py", *map(str, arguments), *chosen])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def start(folder):
    """Return a function that starts the command as a process."""
    processes = []

    def command(*arguments, **options):
        line = [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]
        line += ["--prior", str(folder)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen(line, **streams)
        processes.append(process)
        return process

    yield command
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(condition, process, seconds=120):
    """Wait until something happens; the limit is there so that no test hangs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def is_one_line(err):
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    return len(lines) == 1 and "Traceback" not in err


# Acceptance, `ux.md` section 6.


def test_acceptance_1_one_photo_and_no_other_flag(run, tmp_path):
    save(tmp_path / "x.png")
    code, out, err = run("--image", "x.png")
    assert code == 0
    assert out == ""
    assert images.read(tmp_path / "x_diip.png").rgb.shape == (*SIZE, 3)
    record = json.loads((tmp_path / "x_diip.json").read_text())
    assert record["schema"] == "diip.result/1"
    device = jax.devices()[0].device_kind
    reason = console.REASONS[record["stop"]["reason"]]
    assert all(said in err for said in (device, "seeded", "Apache-2.0", reason))
    assert listing(tmp_path) == ["x.png", "x_diip.json", "x_diip.png"]


@pytest.mark.slow
def test_the_default_preset_takes_a_prior_of_the_ddpm_family(run, tmp_path):
    """As converted ones and those that are trained with `--family ddpm`."""
    prior = diffusers_unet.prior("small_library")
    card = dataclasses.replace(prior.card, preset=DEFAULT.replace(max_iterations=2))
    priors.save(tmp_path / "ddpm", prior.replace(card=card))
    for name in ("a.png", "b.png"):  # two, so that lanes are counted
        save(tmp_path / "in" / name, seeded.image(16, 16))
    code, out, _ = run("in", "--dry_run", "--json", prior=tmp_path / "ddpm")
    assert code == 0
    assert all(json.loads(line)["memory_bytes"] > 0 for line in out.splitlines())
    code, _, err = run("in", "--output", "out", prior=tmp_path / "ddpm")
    assert (code, err.count("error")) == (0, 0)
    restored = images.read(tmp_path / "out" / "a_diip.png").rgb
    assert restored.shape == (16, 16, 3)


def test_the_bundled_prior_is_the_default(run, tmp_path):
    save(tmp_path / "x.png", image=seeded.image(64, 64))
    code, _, err = run("x.png", "--max_iterations=2", prior=None)
    assert code == 0
    assert "prior natural64" in err


def test_acceptance_3_a_folder_with_all_kinds_of_trouble(run, tmp_path):
    save(tmp_path / "in" / "a.png", seed=1)
    save(tmp_path / "in" / "photo čeština 照片.png", seed=2)
    save(tmp_path / "in" / "sub" / "a.png", seed=3)
    (tmp_path / "in" / "desktop.ini").write_text("junk")
    (tmp_path / "in" / "Thumbs.db").write_text("junk")
    whole = io.BytesIO()
    Image.fromarray(np.uint8(255 * seeded.image(*SIZE))).save(whole, "JPEG")
    half = whole.getvalue()[: len(whole.getvalue()) // 2]
    (tmp_path / "in" / "cut.jpg").write_bytes(half)

    code, out, err = run("in", "-o", "out", "-r", "--json", "--batch_size=1")
    assert code == 3
    assert listing(tmp_path / "out") == [
        "a_diip.json",
        "a_diip.png",
        "photo čeština 照片_diip.json",
        "photo čeština 照片_diip.png",
        "sub",
        "sub/a_diip.json",
        "sub/a_diip.png",
    ]
    records = [json.loads(line) for line in out.splitlines()]
    by_input = {record["input"]["path"]: record for record in records}
    assert {name: r["status"] for name, r in by_input.items()} == {
        "in/a.png": "ok",
        "in/photo čeština 照片.png": "ok",
        "in/sub/a.png": "ok",
        "in/cut.jpg": "failed",
    }
    assert by_input["in/cut.jpg"]["error"]["exit_code"] == 4
    assert "in/cut.jpg" in err
    assert "junk" not in err
    assert "ini" not in err


@pytest.mark.slow
def test_acceptance_4_killed_and_run_again(run, start, tmp_path):
    flags = ["in", "-o", "out", "--criterion=never", "--max_iterations=60"]
    flags += ["--batch_size=1"]
    for n in range(2):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    process = start(*flags, "--save_every=5")
    out = tmp_path / "out"
    # The first photo is finished, and the second is in the middle.
    wait_for((out / "0_diip.json").is_file, process)
    wait_for((out / ".1_diip.png.state" / "digest.json").is_file, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "1_diip.json").exists()
    finished = {p: p.stat().st_mtime_ns for p in out.glob("0_diip.*")}
    assert len(finished) == 2

    code, text, _ = run(*flags, "--save_every=5", "--json")
    assert code == 0
    records = [json.loads(line) for line in text.splitlines()]
    status = {Path(r["input"]["path"]).name: r["status"] for r in records}
    assert status == {"0.png": "skipped", "1.png": "ok"}
    second = records[-1]
    assert second["resumed_from"] >= 5
    assert all(p.stat().st_mtime_ns == time for p, time in finished.items())
    names = [f"{n}_diip.{e}" for n in range(2) for e in ("json", "png")]
    assert listing(out) == names  # no state, no temporary file

    # Bit for bit what a run gives that nobody killed.
    flags[2] = "whole"
    assert run(*flags)[0] == 0
    for n in range(2):
        name = f"{n}_diip.png"
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    curves = [
        json.loads((tmp_path / folder / "1_diip.json").read_text())["curves"]
        for folder in ("out", "whole")
    ]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_acceptance_5_the_same_photo_alone_in_a_batch_and_in_a_shard(
    run, tmp_path, monkeypatch, tiny_prior
):
    for n in range(6):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    sources = [find.Source(Path(f"in/{n}.png"), Path(f"{n}.png")) for n in range(6)]
    mine = find.shard(sources, 2, 3)[0].relative  # a photo of shard 2/3
    begun = {}
    original = engine.run

    def spy(prior, jobs, *args, **kwargs):
        for job in jobs:  # jobs are in the order of the tasks, told by their pictures
            picture = np.asarray(job.load())
            start = diip.prepare(tiny_prior, picture, job.key, PRESET)[1]
            begun[hashlib.sha256(picture.tobytes()).hexdigest()] = np.asarray(start.z)
        return original(prior, jobs, *args, **kwargs)

    monkeypatch.setattr(engine, "run", spy)
    starts, stops, pictures = [], [], []
    photo = images.read(tmp_path / "in" / mine).rgb
    for name, arguments in {
        "alone": [f"in/{mine}"],
        "batch": ["in", "--batch_size=4"],
        "shard": ["in", "--shard=2/3", "--batch_size=1"],
    }.items():
        begun.clear()
        code, *_ = run(*arguments, "-o", name)
        assert code == 0
        starts.append(begun[hashlib.sha256(photo.tobytes()).hexdigest()])
        record = json.loads((tmp_path / name / f"{mine.stem}_diip.json").read_text())
        stops.append(record["stop"])
        pictures.append(images.read(tmp_path / name / f"{mine.stem}_diip.png").rgb)
    np.testing.assert_array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(starts[0], starts[2])
    for stop, picture in zip(stops, pictures, strict=True):
        assert (stop["reason"], stop["at"]) == (stops[0]["reason"], stops[0]["at"])
        # Lanes may be added up in another order: a grey level where one is halfway.
        assert np.abs(picture - pictures[0]).max() <= 1.01 / 255


def test_shards_share_the_work(run, tmp_path):
    for n in range(4):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    planned = [
        json.loads(line)["input"]["path"]
        for i in (1, 2)
        for line in run("in", "--shard", f"{i}/2", "--dry_run", "--json")[1].split("\n")
        if line
    ]
    assert sorted(planned) == [f"in/{n}.png" for n in range(4)]


def test_photos_of_a_store_go_to_a_store(run, folder, tmp_path):
    store = pytest.importorskip("fsspec").filesystem("memory")
    store.store.clear()
    store.put(str(folder), "/priors/tiny", recursive=True)
    names = ["a.png", "photo čeština 照片 [1].png"]
    for n, name in enumerate(names):
        path = save(tmp_path / "in" / name, seed=n)
        store.pipe_file(f"/bucket/in/{name}", path.read_bytes())
    store.pipe_file("/bucket/in/cut.jpg", b"\xff\xd8\xff")
    assert run("in", "-o", "out", "--batch_size=1")[0] == 0
    flags = ["memory://bucket/in/", "-o", "memory://bucket/out", "--batch_size=1"]
    code, _, err = run(*flags, prior="memory://priors/tiny")
    assert code == 3, err
    assert "cannot read memory://bucket/in/cut.jpg: " in err
    written = [name.removeprefix("/bucket/out/") for name in store.find("/bucket/out")]
    assert written == listing(tmp_path / "out")
    for name in written:
        content = store.cat_file(f"/bucket/out/{name}")
        if name.endswith(".png"):
            assert content == (tmp_path / "out" / name).read_bytes()
        else:
            record = json.loads(content)
            assert record["input"]["path"].startswith("memory://bucket/in/")
            assert record["output"]["path"].startswith("memory://bucket/out/")
    code, _, err = run(*flags)
    assert (code, err.count("is finished")) == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["memory://nothing/here/"], 4, "nothing is there"),
        (["s3://u:secret@bucket/x.png"], 4, "own means"),
        (["x.png", "-o", "memory://b/", "--save_every=1"], 2, "no folder of this"),
        (["x.png", "--prior", "memory://nothing/prior"], 5, "no card.json"),
    ],
)
def test_a_wrong_address_is_one_line(run, folder, tmp_path, arguments, code, said):
    pytest.importorskip("fsspec")
    save(tmp_path / "x.png")
    prior = None if "--prior" in arguments else folder
    found, _, err = run(*arguments, prior=prior)
    assert found == code
    assert is_one_line(err)
    assert said in err
    assert "secret" not in err


def in_shards(run, shards, monkeypatch, environment):
    """Return the photos of each shard, by the plan, in an environment of a task."""
    found = []
    for shard, variables in zip(shards, environment, strict=True):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        code, out, err = run("in", "--shard", shard, "--dry_run", "--json")
        assert code == 0, err
        found.append([json.loads(line)["input"]["path"] for line in out.splitlines()])
    return found


def slurm(task, first, last, step=1):
    names = {"ID": task, "MIN": first, "MAX": last, "STEP": step}
    names["COUNT"] = (last - first) // step + 1
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


def test_shards_count_from_0_or_from_1_or_as_the_scheduler_does(
    run, tmp_path, monkeypatch
):
    for n in range(8):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    everything = sorted(f"in/{n}.png" for n in range(8))
    nothing = [{}, {}, {}]
    one = in_shards(run, ["1/3", "2/3", "3/3"], monkeypatch, nothing)
    assert sorted(sum(one, [])) == everything
    zero = in_shards(run, ["0/3", "1/3", "2/3"], monkeypatch, nothing)
    assert zero == [one[2], one[0], one[1]]
    pods = [{"JOB_COMPLETION_INDEX": str(n)} for n in range(3)]
    assert in_shards(run, ["auto/3"] * 3, monkeypatch, pods) == zero
    tasks = [slurm(task, 4, 8, 2) for task in (4, 6, 8)]
    assert in_shards(run, ["auto"] * 3, monkeypatch, tasks) == one
    alone = in_shards(run, ["auto/3"], monkeypatch, [slurm(2, 2, 2)])  # done again
    assert alone == [one[1]]


@pytest.mark.parametrize(
    ("shard", "environment", "said"),
    [
        ("auto", {}, "JOB_COMPLETION_INDEX"),
        ("auto", {"JOB_COMPLETION_INDEX": "1"}, "auto/N"),
        ("auto/2", {"JOB_COMPLETION_INDEX": "3"}, "auto: 3/2"),
        ("auto", slurm(1, 1, 7) | {"SLURM_ARRAY_TASK_COUNT": "3"}, "gaps"),
        ("0/0", {}, "--shard is 0/0"),
    ],
)
def test_an_array_that_cannot_be_told_exits_2(
    run, tmp_path, monkeypatch, shard, environment, said
):
    save(tmp_path / "x.png")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, err = run("x.png", "--shard", shard)
    assert code == 2
    assert is_one_line(err)
    assert said in err


FIRST_OF_JAX = 2**16 - 2**12  # of the ports that it takes under SLURM


def free_port(first):
    """Return the first port from here on that nobody listens to."""
    for port in range(first, 2**16):
        with socket.socket() as asked, contextlib.suppress(OSError):
            asked.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no port from {first} on is free")


@pytest.mark.slow
def test_processes_of_one_slice_share_the_photos(run, folder, tmp_path):
    for n in range(6):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    assert run("in", "-o", "alone", "--batch_size=1")[0] == 0
    flags = ["in", "-o", "out", "--json", "--batch_size=1", f"--prior={folder}"]
    flags += ["--save_every=2"]  # neither waits for the other to save
    line = [sys.executable, str(ROOT / "main.py"), *flags, "--distributed"]
    # What SLURM tells the tasks of a job. JAX takes the port from the job's number.
    job = {
        "SLURM_JOB_ID": str(free_port(FIRST_OF_JAX) - FIRST_OF_JAX),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
    }
    processes = [
        subprocess.Popen(
            line,
            env=dict(os.environ, **job, SLURM_PROCID=str(n), SLURM_LOCALID=str(n)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for n in range(2)
    ]
    done = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        done.append([json.loads(n)["input"]["path"] for n in out.splitlines()])
    assert sorted(sum(done, [])) == sorted(f"in/{n}.png" for n in range(6))
    assert all(done)  # neither has them all: the names are such
    for n in range(6):
        name = f"{n}_diip.png"
        ours, alone = tmp_path / "out" / name, tmp_path / "alone" / name
        assert ours.read_bytes() == alone.read_bytes()


def test_acceptance_8_import_takes_no_device(tmp_path):
    code = (
        "import diip_jax, jax\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_acceptance_8_no_network_is_needed(run, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("the network is off")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    save(tmp_path / "x.png")
    assert run("x.png")[0] == 0


# A public checkpoint by name.


@pytest.fixture
def public(tmp_path, monkeypatch):
    """Return the registry row of a tiny checkpoint on a server, and what was asked."""
    pytest.importorskip("pooch")
    numpy = pytest.importorskip("safetensors.numpy")
    folder = tmp_path / "server"
    folder.mkdir()
    path = folder / "tiny.safetensors"
    numpy.save_file(seeded.tensors(seeded.torch_shapes(seeded.SMALL)), path)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    row = registry.Checkpoint(
        name="tiny-public",
        layout="guided_diffusion",
        parameters=sum(
            t.size for t in seeded.tensors(seeded.torch_shapes(seeded.SMALL)).values()
        ),
        file=path.name,
        licence="Licence of the tiny one",
        training_data="random numbers",
        source="this test",
        architecture={
            "image_size": 16,
            "num_heads": 2,
            "num_head_channels": -1,
            "num_heads_upsample": -1,
            "new_attention_order": seeded.SMALL.use_new_attention_order,
        },
        schedule={"kind": "linear", "num_train_timesteps": 1000},
        urls=(f"http://127.0.0.1:{server.server_port}/{path.name}",),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    rows = {row.name: row}
    monkeypatch.setattr(registry, "public", lambda: rows)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DIIP_CACHE", str(tmp_path / "cache"))
    yield rows, asked
    server.shutdown()
    thread.join()
    server.server_close()


BRIEFLY = ["--max_iterations=3", "--gradient=frozen", "--num_steps=5"]


@pytest.mark.slow
def test_a_public_checkpoint_is_fetched_once_with_its_licence(run, tmp_path, public):
    _, asked = public
    save(tmp_path / "x.png", image=seeded.image(16, 16))
    code, _, err = run("x.png", *BRIEFLY, prior="tiny-public")
    assert code == 0, err
    assert "Licence of the tiny one" in err
    assert len(asked) == 1
    record = json.loads((tmp_path / "x_diip.json").read_text())
    assert record["model"]["name"] == "tiny-public"
    assert record["model"]["licence"] == "Licence of the tiny one"
    code, *_ = run("x.png", *BRIEFLY, "--offline", prior="tiny-public")
    assert code == 0
    assert len(asked) == 1


def test_acceptance_8_a_wrong_hash_exits_5_and_nothing_is_kept(run, tmp_path, public):
    rows, asked = public
    rows["tiny-public"] = dataclasses.replace(rows["tiny-public"], sha256="0" * 64)
    save(tmp_path / "x.png")
    code, _, err = run("x.png", prior="tiny-public")
    assert code == 5
    assert is_one_line(err)
    assert asked
    left = [p for p in (tmp_path / "cache").rglob("*") if "tiny" in p.name]
    assert left == []
    assert not (tmp_path / "x_diip.png").exists()


def test_offline_without_the_weights_exits_5(run, tmp_path, public):
    _, asked = public
    save(tmp_path / "x.png")
    code, _, err = run("x.png", "--offline", prior="tiny-public")
    assert code == 5
    assert is_one_line(err)
    assert "offline" in err
    assert not asked


# Bad input: one clear line, the documented exit code, nothing left half-written.


def bad_file(name, path):
    data = io.BytesIO()
    Image.fromarray(np.uint8(255 * seeded.image(*SIZE))).save(data, "PNG")
    content = {
        "text called .png": b"this is no picture\n",
        "truncated PNG": data.getvalue()[:600],
        "0 bytes": b"",
    }
    if name == "1x1 picture":
        save(path, image=np.zeros((1, 1, 3)))
    elif name != "missing file":
        path.write_bytes(content[name])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing file", "No such file"),
        ("text called .png", "not a picture"),
        ("truncated PNG", "truncated"),
        ("0 bytes", "empty"),
        ("1x1 picture", "1x1"),
    ],
)
def test_bad_files_exit_4(run, tmp_path, name, said):
    bad_file(name, tmp_path / "x.png")
    before = listing(tmp_path)
    code, out, err = run("--image", "x.png", "--json")
    assert code == 4
    assert is_one_line(err)
    assert said in err
    assert "x.png" in err
    record = json.loads(out)
    assert (record["status"], record["error"]["exit_code"]) == ("failed", 4)
    assert said in record["error"]["message"]
    assert listing(tmp_path) == before


def test_a_nan_array_is_refused_by_the_library(tiny_prior, key):
    y = np.full((16, 16, 3), 0.5, np.float32)
    y[3, 4, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        restore(tiny_prior, y, key)


def test_an_unknown_prior_exits_5(run, tmp_path):
    save(tmp_path / "x.png")
    code, _, err = run("x.png", prior="natrual64")
    assert code == 5
    assert is_one_line(err)
    assert "natrual64" in err
    assert "natural64" in err
    assert listing(tmp_path) == ["x.png"]


@pytest.mark.parametrize("output", ["file/out/", "file/x.png", "folder.d/"])
def test_an_unwritable_output_exits_4_before_the_work(
    run, tmp_path, monkeypatch, output
):
    def no_work(*_, **__):
        raise AssertionError("the restoration began")

    monkeypatch.setattr(engine, "run", no_work)
    save(tmp_path / "x.png")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.d" / "x_diip.json").mkdir(parents=True)
    before = listing(tmp_path)
    code, _, err = run("x.png", "--output", output)
    assert code == 4
    assert is_one_line(err)
    assert "cannot write" in err
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("prior/card.json", "{", "damaged"),
        ("prior/card.json", '{"schema": "diip.prior/1"}', "damaged"),
        ("prior/card.json", '{"schema": "diip.prior/9"}', "diip.prior/9"),
        ("prior", "weights", "python -m checkpoints_convert prior OUT"),
    ],
)
def test_what_is_no_prior_exits_5(run, tmp_path, name, content, said):
    save(tmp_path / "x.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    code, _, err = run("x.png", prior="prior")
    assert code == 5
    assert is_one_line(err)
    assert said in err


@pytest.mark.parametrize("flag", ["image", "output", "reference", "prior", "suffix"])
@pytest.mark.parametrize(
    "name", ["n" * 300, "a\0b", "loop/x"], ids=["long", "nul", "loop"]
)
def test_what_the_system_refuses_to_look_at_exits_4(run, tmp_path, flag, name):
    save(tmp_path / "x.png")
    for link in ("loop", "x_loop"):
        (tmp_path / link).symlink_to(link)
    code, out, err = run(
        *([] if flag == "image" else ["x.png"]),
        f"--{flag}={name}",
        **{"prior": name} if flag == "prior" else {},
    )
    assert code == 4
    assert out == ""
    assert is_one_line(err)
    said = ("File name too long", "NUL", "null byte", "Too many levels")
    assert any(reason in err for reason in said)
    assert listing(tmp_path) == ["loop", "x.png", "x_loop"]


def test_an_empty_folder_exits_4(run, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    code, _, err = run("in")
    assert code == 4
    assert is_one_line(err)
    assert "--recursive" in err


def test_strange_entries_of_a_folder_exit_3(run, tmp_path):
    save(tmp_path / "in" / "good.png")
    save(tmp_path / "in" / "IMG_1.JPG", seed=1)
    (tmp_path / "in" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    save(tmp_path / "in" / f"{'n' * 246}.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    code, out, err = run("in", "-o", "out", "--json", "--batch_size=1")
    assert code == 3
    records = [json.loads(line) for line in out.splitlines()]
    status = {Path(r["input"]["path"]).name[:6]: r["status"] for r in records}
    assert status == {
        "good.p": "ok",
        "IMG_1.": "ok",  # the JPG comes after the HEIC
        "loop.p": "failed",
        "nnnnnn": "failed",
        "pipe.p": "failed",
    }
    assert "IMG_1.HEIC: HEIF is not read here" in err
    names = ["IMG_1_diip.json", "IMG_1_diip.png", "good_diip.json", "good_diip.png"]
    assert listing(tmp_path / "out") == names


def test_a_folder_of_bad_files_exits_4(run, tmp_path):
    (tmp_path / "in").mkdir()
    for n in range(2):
        (tmp_path / "in" / f"{n}.png").touch()
    code, out, err = run("in", "--json")
    assert code == 4
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["failed"] * 2
    assert "Traceback" not in err
    assert listing(tmp_path) == ["in", "in/0.png", "in/1.png"]


# Other exit codes.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no image given"),
        (["x.png", "--quite"], "quiet"),
        (["x.png", "--num_steps=two"], "num_steps"),
        (["x.png", "--num_steps=0"], "num_steps is 0"),
        (["x.png", "--epsilon=nan"], "epsilon"),
        (["x.png", "--learning_rate=-1"], "learning_rate"),
        (["x.png", "--gradient=half"], "half"),
        (["x.png", "--criterion=best"], "best"),
        (["x.png", "--quality=101"], "quality"),
        (["x.png", "--batch_size=0"], "batch_size"),
        (["x.png", "--shard=3/2"], "shard"),
        (["x.png", "--shard=2"], "shard"),
        (["x.png", "--tile=15"], "multiple of 2"),
        (["x.png", "--tile=16", "--tile_overlap=16"], "tile_overlap"),
        (["x.png", "--size_mode=native", "--tile=16"], "no tiles"),
        (["x.png", "--tile_overlap=x"], "tile_overlap"),
        (["x.png", "-o", "x.png"], "is an input"),
        (["x.png", "y.png", "-o", "z.png"], "one file"),
        (["in"], "would both be written"),
        (["in", "--reference", "x.png"], "no folder"),
        (["x.png", "--reference", "y.png", "--save_every=5"], "in one go"),
        (["x.png", "-o", "-", "--json"], "stdout"),
        (["x.png", "-o", "-", "--save_every=1"], "save_every"),
        (["x.png", "y.png", "-o", "-"], "one image"),
    ],
)
def test_wrong_flags_exit_2(run, tmp_path, arguments, said):
    for name in ("x.png", "y.png", "in/a.png", "in/a.tiff"):
        save(tmp_path / name)
    before = listing(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert is_one_line(err)
    assert said in err
    assert listing(tmp_path) == before


def test_out_of_memory_exits_6(run, tmp_path, monkeypatch):
    def starved(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 bytes")

    monkeypatch.setattr(engine, "run", starved)
    save(tmp_path / "x.png")
    code, _, err = run("x.png")
    assert code == 6
    assert is_one_line(err)
    assert "--tile" in err


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_no_such_device_exits_7(run, tmp_path, device):
    if jax.default_backend() != "cpu":
        pytest.skip("there is another device here")
    save(tmp_path / "x.png")
    code, _, err = run("x.png", "--device", device)
    assert code == 7
    assert is_one_line(err)
    assert "cpu" in err


def test_a_gpu_that_is_not_used_is_a_warning(run, tmp_path, monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("there is another device here")
    save(tmp_path / "x.png")
    monkeypatch.setattr(main, "_gpu_is_present", lambda: True)
    assert "cuda12" in run("x.png", "--dry_run")[2]
    assert "cuda12" not in run("x.png", "--dry_run", "--device=cpu")[2]


def test_every_error_of_the_package_has_its_exit_code():
    """A FactsError is a ConversionError; private ones never leave their module."""
    defined = {"MemoryError", "DeviceError"}  # Python's, and main's own
    for folder in ("diip_jax", "checkpoints_convert"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name in ("training", "bench"):  # codes of their own
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
            names = {node.name for node in classes if node.name.endswith("Error")}
            defined |= {name for name in names if not name.startswith("_")}
    assert defined - {"FactsError"} == set(main.ERRORS)


def test_no_name_steers_the_terminal(capsys):
    assert main.main(["main.py", "--image", "x.png", "--device", "\x1b[2Jé\u202e"]) == 2
    err = capsys.readouterr().err
    assert err.strip().isprintable()
    assert r"\x1b[2Jé\u202e" in err


def test_an_unexpected_error_has_no_traceback(monkeypatch, capsys):
    def broken(_):
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(main, "main", broken)
    with pytest.raises(SystemExit) as caught:
        main.cli()
    assert caught.value.code == 1
    err = capsys.readouterr().err
    assert is_one_line(err)
    assert "first line" in err
    assert "second line" not in err
    monkeypatch.setenv("DIIP_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main.cli()


# Ctrl-C.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_the_best_so_far(run, tmp_path, monkeypatch, number):
    save(tmp_path / "x.png")
    show = console.Meter.show

    def interrupting(meter, progress):
        if progress.lanes and progress.lanes[0].iteration > 3 and not sent:
            sent.append(os.kill(os.getpid(), number))
        show(meter, progress)

    sent, handler = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(console.Meter, "show", interrupting)
    code, out, err = run("x.png", "--json", *ENDLESS)
    assert code == 130
    assert "press Ctrl-C again" in err
    record = json.loads(out)
    assert record["status"] == "interrupted"
    assert record["stop"]["reason"] == "interrupted"
    assert 3 < record["stop"]["at"] < 99999
    assert listing(tmp_path) == ["x.png", "x_diip.json", "x_diip.png"]
    assert images.read(tmp_path / "x_diip.png").rgb.shape == (*SIZE, 3)
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_twice_stops_at_once(start, tmp_path):
    """Even while the program compiles: no chunk is waited for."""
    save(tmp_path / "x.png")
    process = start("x.png", *ENDLESS, "--num_steps=50", "--gradient=last-3")
    os.set_blocking(process.stderr.fileno(), False)
    said = bytearray()

    def heard(text):
        said.extend(process.stderr.read() or b"")
        return text in said

    wait_for(lambda: heard(b"prior seeded"), process)
    time.sleep(0.5)  # the run begins, and the compilation
    process.send_signal(signal.SIGINT)
    wait_for(lambda: heard(b"press Ctrl-C again"), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    os.set_blocking(process.stderr.fileno(), True)
    said.extend(process.stderr.read())
    assert said.count(b"error:") == 1
    assert b"Traceback" not in said
    assert listing(tmp_path) == ["x.png"]


# Devices.


@pytest.mark.slow
def test_several_devices_share_a_folder(run, start, tmp_path, monkeypatch):
    """Four devices that XLA plays on the host, for six photos in four lanes."""
    for n in range(6):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    process = start("in", "-o", "four", "--batch_size=4")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert run("in", "-o", "one", "--batch_size=1")[0] == 0
    for n in range(6):
        pair = [tmp_path / name / f"{n}_diip.json" for name in ("four", "one")]
        stops = [json.loads(path.read_text())["stop"] for path in pair]
        assert stops[0]["at"] == stops[1]["at"]
        several, alone = (images.read(path.with_suffix(".png")).rgb for path in pair)
        # Lanes may be added up in another order: a grey level where one is halfway.
        assert np.abs(several - alone).max() <= 1.01 / 255


# Streams.


def test_json_is_one_object_per_line_and_nothing_else(run, tmp_path):
    save(tmp_path / "x.png")
    code, out, err = run("x.png", "--json", "--quiet")
    assert code == 0
    assert err == ""
    (line,) = out.splitlines()
    assert json.loads(line) == json.loads((tmp_path / "x_diip.json").read_text())


def test_from_stdin_to_stdout(start, tmp_path):
    path = save(tmp_path / "x.png")
    with path.open("rb") as file:
        process = start("-", stdin=file)
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert images.read(out).rgb.shape == (*SIZE, 3)
    assert b"iterations" in err
    assert listing(tmp_path) == ["x.png"]


def test_from_stdin_to_a_file(run, tmp_path, monkeypatch):
    class Stream:
        buffer = io.BytesIO(save(tmp_path / "x.png").read_bytes())

    monkeypatch.setattr(sys, "stdin", Stream)
    assert run("-", "-o", "y.webp")[0] == 0
    assert listing(tmp_path) == ["x.png", "y.json", "y.webp"]
    assert json.loads((tmp_path / "y.json").read_text())["input"]["path"] == "-"


def test_a_reader_that_goes_away_does_not_end_the_run(start, tmp_path):
    for n in range(2):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    process = start("in", "-o", "out", "--json", "--batch_size=1")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 0
    assert b"Traceback" not in err
    assert b"Broken" not in err
    assert len(listing(tmp_path / "out")) == 4


def test_a_line_now_and_then_where_there_is_no_terminal(run, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    save(tmp_path / "x.png")
    err = run("x.png")[2]
    assert "of 12 iterations at most: loss" in err
    assert "s/it" in err
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.png")
    err = run("in", "--batch_size=1")[2]
    assert "0 of 2 photos: 1 lanes busy" in err
    assert "2 restored, 0 failed" in err
    assert "\r" not in err


def test_a_pipe_is_read_once(run, tmp_path):
    if not Path("/dev/fd").exists():
        pytest.skip("this system names no pipes")
    save(tmp_path / "x.png")
    reading, writing = os.pipe()
    os.write(writing, (tmp_path / "x.png").read_bytes())
    os.close(writing)
    code, _, err = run(f"/dev/fd/{reading}", "-o", "y.png")
    os.close(reading)
    assert code == 0, err
    assert listing(tmp_path) == ["x.png", "y.json", "y.png"]


@pytest.fixture
def cli(monkeypatch, folder, capsys):
    """Return a function that runs the program on streams: its exit code."""

    def command(*arguments, **streams):
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)
        line = ["main.py", *arguments, "--prior", str(folder)]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as caught:
            main.cli()
        return caught.value.code

    return command


def test_names_that_stdout_cannot_encode_are_escaped(cli, tmp_path):
    for name in ("č.png", "b.png", os.fsdecode(b"\xff.png")):
        save(tmp_path / "in" / name)
    for encoding in ("ascii", "utf-8"):
        with open(tmp_path / "out", "w", encoding=encoding) as stdout:
            assert cli("in", "--dry_run", stdout=stdout) == 0
        lines = (tmp_path / "out").read_text(encoding).splitlines()
        names = {line.partition(" -> ")[0] for line in lines}
        czech = "č" if encoding == "utf-8" else "\\u010d"
        assert names == {"in/b.png", f"in/{czech}.png", "in/\\udcff.png"}


def test_nothing_said_is_no_reason_to_end(cli, tmp_path):
    save(tmp_path / "x.png")
    assert cli("x.png", "--dry_run", stderr=None) == 0
    with open("/dev/full", "w") as stderr:
        assert cli("x.png", "--dry_run", stderr=stderr) == 0
        assert cli("none.png", "--dry_run", stderr=stderr) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["x.png", "--dry_run"],
        ["x.png", "--dry_run", "--json"],
    ],
    ids=lambda arguments: arguments[-1],
)
def test_a_standard_output_that_is_full_exits_4(cli, tmp_path, capsys, arguments):
    save(tmp_path / "x.png")
    with open("/dev/full", "w") as stdout:
        assert cli(*arguments, stdout=stdout) == 4
    err = capsys.readouterr().err
    assert is_one_line(err)
    assert "cannot write to standard output: No space left on device" in err


def test_photos_are_restored_though_standard_output_is_full(cli, tmp_path, capsys):
    for n in range(2):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    with open("/dev/full", "w") as stdout:
        code = cli("in", "-o", "out", "--json", "--batch_size=1", stdout=stdout)
    assert code == 4
    assert len(listing(tmp_path / "out")) == 4
    err = capsys.readouterr().err
    assert is_one_line(err)
    assert "2 restored, 0 failed" in err
    with open("/dev/full", "w") as stdout:
        assert cli("in/0.png", "-o", "-", stdout=stdout) == 4
    assert "standard output: No space left" in capsys.readouterr().err


def test_a_working_directory_that_is_gone(run, tmp_path, monkeypatch):
    source = save(tmp_path / "x.png")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run(source, "--dry_run")[0] == 0
    code, _, err = run("x.png", "--dry_run")
    assert code == 4
    assert is_one_line(err)
    assert "No such file" in err
    assert run(source, "-o", "y.png")[0] == 4


def test_no_home_is_no_reason_to_end(run, tmp_path, monkeypatch):
    def unknown(_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pytest.importorskip("pwd"), "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "DIIP_CACHE"):
        monkeypatch.delenv(name, raising=False)
    save(tmp_path / "x.png")
    code, _, err = run("x.png", "--dry_run")
    assert code == 0
    assert "warning: no cache: no home folder is known; set DIIP_CACHE" in err
    assert listing(tmp_path) == ["x.png"]


SITUATIONS = {
    "ascii": ("PYTHONIOENCODING=ascii", "", 0),
    "no stderr": ("", "2>&-", 0),
    "no streams": ("", "<&- >&- 2>&-", 4),
    "full stdout": ("", "--json > /dev/full", 4),
    "full stderr": ("", "2> /dev/full", 0),
    "gone": ("mkdir gone; cd gone; rmdir ../gone;", "", 0),
    "process substitution": ("", "", 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SITUATIONS)
def test_situations_of_a_real_process(folder, tmp_path, name):
    before, after, expected = SITUATIONS[name]
    source = save(tmp_path / "č.png")
    image = f"<(cat '{source}')" if name == "process substitution" else f"'{source}'"
    line = f"{before} '{sys.executable}' '{ROOT / 'main.py'}' --image {image} --dry_run"
    line += f" --output '{tmp_path}/y.png' --prior '{folder}' {after}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
    assert done.returncode == expected, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


# Plans.


def test_dry_run_tells_what_it_would_take_and_writes_nothing(run, tmp_path):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.png", image=seeded.image(23, 39))
    (tmp_path / "in" / "c.png").touch()
    before = listing(tmp_path)
    code, out, err = run("in", "--dry_run", "--json", "--tile=32")
    assert code == 3
    assert "c.png" in err
    records = [json.loads(line) for line in out.splitlines()]
    plans = {r["input"]["path"]: r.get("plan") for r in records}
    assert plans["in/c.png"] is None
    a, b = plans["in/a.png"], plans["in/b.png"]
    assert (a["size"], a["canvas"]) == ([16, 16], [16, 16])
    assert (b["size"], b["canvas"]) == ([39, 23], [40, 32])
    assert (a["size_mode"], a["num_tiles"]) == ("native", 1)
    assert (b["size_mode"], b["num_tiles"]) == ("tile", 2)
    assert a["max_unet_calls"] == 12 * 5  # iterations, steps
    assert b["max_unet_calls"] == 12 * 5 * 2
    # More than the picture's own state (five copies of it and more), less than a GB.
    for plan in (a, b):
        assert 5 * 4 * 3 * 16 * 16 < plan["memory_bytes"] < 1e9
    assert listing(tmp_path) == before

    code, out, _ = run("in/a.png", "--dry_run")
    assert code == 0
    assert "16x16" in out
    assert "60 UNet calls" in out
    assert listing(tmp_path) == before


def test_a_folder_is_done_once(run, tmp_path):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.png", seed=1)
    assert run("in", "--batch_size=1")[0] == 0
    assert len(listing(tmp_path / "results")) == 4
    code, out, err = run("in", "--json")
    assert code == 0
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["skipped"] * 2
    assert "--overwrite" in err
    code, out, _ = run("in", "--json", "--overwrite", "--batch_size=1")
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["ok"] * 2


def test_reference_prints_the_scores(run, tmp_path):
    save(tmp_path / "x.png")
    save(tmp_path / "clean.png", seed=3)
    code, out, err = run("x.png", "--reference", "clean.png", "--json")
    assert code == 0
    scores = json.loads(out)["metrics"]
    for name in ("psnr_before", "psnr", "oracle_psnr"):
        assert f"{scores[name]:.2f}" in err
    assert f"{scores['ssim']:.3f}" in err
    assert f"iteration {scores['oracle_iteration']:.0f}" in err
    assert "SSIM: Gaussian" in err
    assert "LPIPS (alex) -" in err  # the picture is too small for it
    assert scores["lpips_alex"] is None


def test_a_wrong_file_for_lpips_exits_5_before_anything_runs(run, tmp_path):
    save(tmp_path / "x.png")
    (tmp_path / "w.ckpt").write_bytes(b"no weights")
    code, _, err = run("x.png", "--reference=x.png", "--lpips_weights=w.ckpt")
    assert code == 5
    assert "w.ckpt has sha256" in err
    assert not (tmp_path / "x_diip.png").exists()


# Flags.


def test_hyphens_aliases_and_short_names(run, tmp_path):
    save(tmp_path / "x.png")
    code, out, _ = run(
        "-q",
        "-i",
        "x.png",
        "--max-iters=12",
        "--lr",
        "0.01",
        "--k-min=7",
        "--eps=0.5",
        "--steps=5",
        "--json",
        "-o",
        "y.png",
    )
    assert code == 0
    config = json.loads(out)["config"]
    assert config["max_iterations"] == 12
    assert config["learning_rate"] == 0.01
    assert config["k_min"] == 7
    assert config["epsilon"] == 0.5


def test_flags_of_one_run_do_not_reach_the_next(run, tmp_path):
    save(tmp_path / "x.png")
    save(tmp_path / "y.png")
    assert run("-i", "x.png", "--dry_run", "--json")[0] == 0
    code, out, _ = run("-i", "y.png", "--dry_run")
    assert code == 0
    assert out.startswith("y.png")


def test_a_file_of_flags_and_the_command_line_over_it(run, tmp_path):
    save(tmp_path / "x.png")
    save(tmp_path / "y.png")
    text = 'image = ["x.png"]\nk-min = 7\neps = 0.5\njson = true\nquiet = true\n'
    (tmp_path / "my.toml").write_text(text)
    code, out, err = run("y.png", "--config=my.toml", "--eps=0.25", "-o", "out")
    assert code == 0
    assert err == ""  # quiet
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["input"]["path"] for r in records] == ["x.png", "y.png"]
    for record in records:
        assert record["config"]["k_min"] == 7
        assert record["config"]["epsilon"] == 0.25
    code, out, _ = run("y.png", "--config=my.toml", "--no-json", "-o", "y2.png")
    assert out == ""


def test_a_file_of_flags_may_say_no(run, tmp_path):
    save(tmp_path / "x.png")
    (tmp_path / "my.toml").write_text("no_progress = true\nno-json = false\n")
    assert main._parse(["main.py", "x.png", "--config=my.toml"]) == ["x.png"]
    assert (main.FLAGS.progress, main.FLAGS.json) == (False, True)
    code, out, err = run("x.png", "--no_json=1")  # a value that such a flag has not
    assert (code, out) == (2, "")
    assert is_one_line(err)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 4, "No such file"),
        ("k_min 7", 2, "not a TOML file"),
        ("k_minimum = 7", 2, "k_minimum"),
        ("k_min = 'seven'", 2, "seven"),
        ("num_steps = true\nk_min = 7", 2, "num_steps"),
        ("[k_min]\nvalue = 7", 2, "k_min"),
    ],
)
def test_a_wrong_file_of_flags(run, tmp_path, text, code, said):
    save(tmp_path / "x.png")
    if text is not None:
        (tmp_path / "my.toml").write_text(text)
    given, out, err = run("x.png", "--config", "my.toml")
    assert given == code
    assert out == ""
    assert is_one_line(err)
    assert "my.toml" in err
    assert said in err
    assert not (tmp_path / "x_diip.png").exists()


def test_verbose_tells_settings_plan_and_times(run, tmp_path, caplog):
    save(tmp_path / "x.png")
    few = run("x.png")[2]
    said = run("x.png", "-v")[2]
    for text in ("num_steps 5", "canvas 16x16", "60 UNet calls", "compile_s"):
        assert text in said
        assert text not in few
    assert len(re.findall("iterations at most: loss", said)) > 1  # a line per chunk
    assert "Compiling" not in caplog.text
    run("x.png", "-vv", "--max_iterations=3")
    assert "Compiling" in caplog.text


@pytest.mark.parametrize(
    ("given", "verbose", "named"),
    [
        (["-v"], 1, ["x.png"]),
        (["-v", "2"], 2, ["x.png"]),
        (["--verbose", "0", "y.png"], 0, ["x.png", "y.png"]),
        (["-vv", "3"], 2, ["x.png", "3"]),
        (["--", "-v", "--my-photo.png"], 0, ["x.png", "-v", "--my-photo.png"]),
        (["--suffix", "--no-x"], 0, ["x.png"]),
    ],
)
def test_what_is_a_flag_and_what_a_photo(given, verbose, named):
    assert main._parse(["main.py", "x.png", *given]) == named
    assert main.FLAGS.verbose == verbose
    assert main.FLAGS.suffix in ("diip", "--no-x")


def test_settings_that_nothing_reads_are_told_and_asked_iterations_are_had(
    run, tmp_path
):
    save(tmp_path / "x.png", seeded.image(400, 400))
    matched = ["--start=matched", "--criterion=discrepancy", "--num_steps=1"]
    given = [*matched, "--dry_run", "--json"]
    code, out, err = run("x.png", *given, "--max_iterations=50", "--k_min=5")
    assert code == 0
    # 224x224 pixels; a look at the photo, and at each start
    assert json.loads(out)["plan"]["max_unet_calls"] == 50 + 2
    warnings_said = [line for line in err.splitlines() if "no effect" in line]
    assert len(warnings_said) == 1
    assert warnings_said[0].startswith("warning: k_min has no effect where start is")
    code, out, err = run("x.png", *given, "--start=random")
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert "use num_steps 3 or more" in err


def test_no_progress_leaves_the_rest(run, tmp_path):
    save(tmp_path / "x.png")
    said = run("x.png", "-v", "--no-progress")[2]
    assert "iterations at most: loss" not in said
    assert "x_diip.png: stopped" in said


def test_presets(run, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "memory", None)  # nothing is compiled for it
    save(tmp_path / "x.png")
    planned = run("x.png", "--preset=paper", "--dry_run", "--json")
    plan = json.loads(planned[1])["plan"]
    assert plan["max_unet_calls"] == 1500 * 10  # the budget and the steps of PAPER
    assert plan["memory_bytes"] > 1e6
    assert "about 1 MB" in run("x.png", "--dry_run")[1]


def test_help_and_version_need_no_jax(tmp_path):
    code = (
        "import sys, main\n"
        "assert main.main(['main.py', '--help']) == 0\n"
        "assert main.main(['main.py', '--version']) == 0\n"
        "assert main.main(['main.py', '--nonsense']) == 2\n"
        "assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    for name in main.FLAGS:
        assert len(name) == 1 or f"--{name}" in done.stdout
    first = done.stdout.splitlines()[:6]
    assert sum("python main.py --image" in line for line in first) == 3
    for number in (0, 1, 2, 3, 4, 5, 6, 7, 130):
        assert f"  {number}  " in done.stdout
    assert "default: natural64" in done.stdout
    assert "diip-jax 0." in done.stdout


@pytest.mark.parametrize("size_mode", ["auto", "tile", "native"])
def test_a_prior_of_one_size_is_never_run_at_another(run, tmp_path, size_mode):
    """Another size is tiled, and said to be, or refused with the remedies."""
    folder = tmp_path / "prior"
    priors.save(folder, seeded.prior(any_size=False, preset=PRESET))
    save(tmp_path / "x.png", image=seeded.image(24, 20))
    code, out, err = run("x.png", "--size_mode", size_mode, "--json", prior=folder)
    record = json.loads(out)
    if size_mode == "native":
        assert code == 4
        assert "16x16 only" in err
        return
    assert code == 0
    config = record["config"]
    assert (config["size_mode"], config["num_tiles"]) == ("tile", 4)
    assert (config["tile"], config["tile_overlap"]) == (16, 4)
    assert config["canvas"] == [20, 24]
    assert images.read(tmp_path / "x_diip.png").rgb.shape == (24, 20, 3)


def test_a_cache_that_cannot_be_used_is_a_warning(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIIP_CACHE", str(tmp_path / "file"))
    save(tmp_path / "x.png")
    code, _, err = run("x.png")
    assert code == 0
    assert "DIIP_CACHE" in err


def test_warnings_of_the_cache_are_one_line(monkeypatch):
    """As JAX and `compilation` give them, one for each program."""
    said = []
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        main._warn_once(main.CACHE_WARNINGS, "the cache x cannot be used", said.append)
        for n in range(3):
            for beginning in main.CACHE_WARNINGS:
                warnings.warn(f"{beginning} entry {n}:\nit is full", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    (line,) = said
    assert line.startswith("warning: the cache x cannot be used: Error reading")
    assert line.endswith("entry 0: it is full; set DIIP_CACHE to another folder")
    assert [str(warning.message) for warning in others] == ["something else"]


@pytest.mark.slow  # all is compiled
@pytest.mark.parametrize("quiet", [True, False])
def test_a_cache_that_is_full_is_one_line(run, tmp_path, monkeypatch, quiet):
    save(tmp_path / "x.png")
    with small_disk(tmp_path / "disk", 8) as disk:
        monkeypatch.setenv("DIIP_CACHE", str(disk))
        compilation_cache.reset_cache()
        jax.clear_caches()
        with warnings.catch_warnings(record=True) as others:
            warnings.simplefilter("always")
            code, _, err = run("x.png", *(["--quiet"] if quiet else []))
    assert code == 0
    lines = [line for line in err.splitlines() if "warning" in line and "cache" in line]
    assert len(lines) == (not quiet)
    assert not [w for w in others if "cache" in str(w.message)]


def test_a_second_run_of_the_same_size_compiles_nothing(
    start, run, tmp_path, monkeypatch
):
    """In two processes, and by the count of what was not in the cache."""
    monkeypatch.setenv("DIIP_CACHE", str(tmp_path / "cache"))
    compilation_cache.reset_cache()
    save(tmp_path / "x.png")
    process = start("x.png")
    process.communicate()
    assert process.returncode == 0
    programs = [p for p in listing(tmp_path / "cache") if not p.endswith("atime")]
    assert len(programs) > 3

    missed, found = [], []

    def count(event, **_):
        if event == "/jax/compilation_cache/cache_misses":
            missed.append(event)
        if event == "/jax/compilation_cache/cache_hits":
            found.append(event)

    save(tmp_path / "y.png", seed=1)
    jax.clear_caches()
    jax.monitoring.register_event_listener(count)
    try:
        assert run("y.png", "--seed=3", "--learning_rate=0.02")[0] == 0
    finally:
        jax.monitoring.unregister_event_listener(count)
    assert not missed
    assert len(found) > 3
    again = [p for p in listing(tmp_path / "cache") if not p.endswith("atime")]
    assert again == programs


@pytest.mark.slow  # two processes with programs of their own
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_jax_enable_x64_changes_neither_the_picture_nor_the_stop(
    start, tmp_path, preset
):
    pixels = np.rint(255 * seeded.image(9, 8)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    flags = ("--image=x.png", f"--preset={preset}", "--num_steps=5")
    # Frozen, in a loop: compiled in a fraction of the time.
    flags += ("--gradient=frozen", "--max_iterations=6", "--save_every=2")
    found = []
    for x64 in ("0", "1"):
        names = f"out{x64}.png"
        environment = {**os.environ, "JAX_ENABLE_X64": x64, "PYTHONWARNINGS": "error"}
        process = start(*flags, f"--output={names}", env=environment, cwd=tmp_path)
        _, err = process.communicate()
        assert process.returncode == 0, err
        record = json.loads((tmp_path / names).with_suffix(".json").read_text())
        with Image.open(tmp_path / names) as restored:
            found.append((record["stop"], np.asarray(restored, int)))
    (stop, picture), (stop_x64, picture_x64) = found
    assert stop["reason"] == stop_x64["reason"]
    assert (stop["at"], stop["returned"]) == (stop_x64["at"], stop_x64["returned"])
    assert abs(picture - picture_x64).max() <= 1  # a rounding at the edge of a level
