"""Many machines: what the driver decides, and whole runs beside one machine's.

Whole runs are processes, as users start them, on Rays of this machine; the partner is
the same command without a cluster, whose files must be the same bytes. Lanes are one,
because more of them may add up a grey level differently.
"""

import collections
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diip_jax import addresses
from diip_jax import prior as priors
from diip_jax.addresses import Address
from diip_jax.photos import cluster, command, find, ledger, plan, record
from diip_jax.photos.cluster import Cluster
from diip_jax.photos.find import OutputError
from diip_jax.photos.plan import Options
from diip_jax.photos.run import Outcome
from diip_jax.photos.terminal import Terminal
from diip_jax.prior import Prior
from helpers import seeded
from helpers.photos import CONFIG, planned, save

# Ray begins its processes beside JAX's threads.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
ROOT = Path(__file__).parents[2]
STORE_BYTES = 200 * 2**20
ODD = "photo čeština 照片 [1].png"


# What the driver decides.


def test_batches_hold_one_canvas_and_every_photo_once():
    canvases = np.array([(16, 16), (16, 32), (16, 16), (0, 0), (16, 16), (16, 32)])
    indices = np.array([7, 3, 5, 9, 1, 0])
    batches = [list(map(int, b)) for b in cluster.batched(indices, canvases, 2)]
    assert batches == [[9], [1, 5], [7], [0, 3]]
    large = np.full((3, 2), 8192)  # 2^26 pixels: each alone
    assert [len(b) for b in cluster.batched(np.arange(3), large, 64)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("resources", "asked", "num_workers", "demands"),
    [
        ({"CPU": 64, "GPU": 8}, {}, 8, {"num_gpus": 1}),
        ({"CPU": 64, "GPU": 8}, {"devices_per_worker": 4}, 2, {"num_gpus": 4}),
        ({"CPU": 64, "GPU": 8}, {"num_workers": 3}, 3, {"num_gpus": 1}),
        ({"CPU": 64, "TPU": 4}, {}, 4, {"resources": {"TPU": 1}}),
        ({"CPU": 64, "GPU": 8}, {"device": "cpu"}, 2, {"num_cpus": 1}),
        ({"CPU": 3}, {"num_workers": 2}, 2, {"num_cpus": 0.75}),
    ],
)
def test_workers_are_as_many_as_the_cluster_has_devices(
    resources, asked, num_workers, demands
):
    found = cluster.layout(resources, 2, Cluster("auto", **asked))
    assert found == (num_workers, demands)


@pytest.mark.parametrize(
    ("resources", "asked", "said"),
    [
        ({"CPU": 8, "GPU": 2}, {"num_workers": 3}, "has 2; pass at most 2"),
        ({"CPU": 8}, {"device": "gpu"}, "no gpu"),
        ({"CPU": 2}, {"num_workers": 8}, "has 2 cores"),
    ],
)
def test_a_cluster_without_room_is_told(resources, asked, said):
    with pytest.raises(cluster.ClusterError, match=said):
        cluster.layout(resources, 1, Cluster("auto", **asked))


def test_a_header_tells_the_upright_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    for options, expected in (({}, (30, 40)), ({"exif": exif}, (40, 30))):
        file = io.BytesIO()
        Image.new("RGB", (40, 30)).save(file, "JPEG", **options)
        assert cluster.header_size(file.getvalue()[:700]) == expected


def work_for(folder, **changes):
    options = Options(output=str(folder), num_lanes=1, **changes)
    return cluster.Work("none", CONFIG, options, folder, records=False)


def test_what_is_finished_is_told_by_names_and_versions(tmp_path):
    prior = Prior(None, seeded.card(seeded.TINY))
    for n in range(3):
        save(tmp_path / "in" / f"{n}.png", seed=n)
    sources = find.sources([str(tmp_path / "in")])
    work = work_for(tmp_path / "out")
    found = cluster.survey(prior, sources, work)
    assert [p.source.path.name for p in found.photos] == ["0.png", "1.png", "2.png"]
    assert all(photo.is_free for photo in found.photos)

    digest = plan.digest(prior, CONFIG, work.options)
    for n in range(2):
        save(tmp_path / "out" / f"{n}_diip.png")
        (tmp_path / "out" / f"{n}_diip.json").write_text("{}")
    done = [
        ledger.Done(f"{n}.png", str(photo.version), f"{n}_diip.png")
        for n, photo in enumerate(found.photos)
    ]
    ledger.write(tmp_path / "out", digest, done)
    again = cluster.survey(prior, sources, work)  # the third has no picture any more
    assert [path.name for path, _ in again.finished] == ["0.png", "1.png"]
    assert [p.source.path.name for p in again.photos] == ["2.png"]

    save(tmp_path / "in" / "0.png", seed=9)  # another photo of that name
    os.utime(tmp_path / "in" / "0.png", (1, 1))
    changed = cluster.survey(prior, sources, work)
    assert [p.source.path.name for p in changed.photos] == ["0.png", "2.png"]
    assert not changed.photos[0].is_free  # its record is asked
    other = work_for(tmp_path / "out", seed=1)
    assert len(cluster.survey(prior, sources, other).photos) == 3
    over = work_for(tmp_path / "out", overwrite=True)
    assert len(cluster.survey(prior, sources, over).photos) == 3


def test_photos_for_one_place_fail_and_no_others(tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        save(tmp_path / "in" / name)
    sources = find.sources([str(tmp_path / "in")])
    prior = Prior(None, seeded.card(seeded.TINY))
    found = cluster.survey(prior, sources, work_for(tmp_path / "out"))
    assert [p.source.path.name for p in found.photos] == ["b.png"]
    assert all("both be written" in reason for _, reason in found.failed)
    assert len(found.failed) == 2


@pytest.mark.parametrize("place", ["beside", "through a link", "among clean images"])
def test_an_input_is_never_written_over(tmp_path, place):
    """Neither a photo nor a clean image, whatever is asked for."""
    photos = output = tmp_path / "in"
    names = ("x.png", "x_diip.png")
    for name in names:
        save(photos / name)
    reference = None
    if place == "through a link":
        output = tmp_path / "link"
        output.symlink_to(photos)
    elif place == "among clean images":
        output = reference = tmp_path / "clean"
        for name in names:
            save(reference / name)
    prior = Prior(None, seeded.card(seeded.TINY))
    x, other = find.sources([str(photos)])
    work = work_for(output, reference=reference, overwrite=True)
    with pytest.raises(OutputError, match="x_diip.png is an input"):
        cluster.survey(prior, [x, other], work)
    assert len(cluster.survey(prior, [other], work).photos) == 1
    work = work_for(tmp_path / "out", reference=reference)
    assert len(cluster.survey(prior, [x, other], work).photos) == 2


def dry_run(card, patterns, options, terminal):
    return cluster.run(
        *("none", card, [str(pattern) for pattern in patterns], CONFIG, options),
        *(terminal, Cluster("local")),
        dry_run=True,
    )


def test_many_photos_take_a_folder_of_clean_ones(tiny_prior, tmp_path):
    photo = save(tmp_path / "in" / "a.png")
    options = Options(output=str(tmp_path / "out"), reference=photo)
    card, terminal = tiny_prior.card, Terminal(quiet=True)
    with pytest.raises(plan.UsageError, match="a.png is no folder"):
        dry_run(card, [tmp_path / "in"], options, terminal)
    assert dry_run(card, [photo], options, terminal).num_done == 1


def test_a_dry_run_gives_the_plan_of_one_machine(tiny_prior, tmp_path, capsys):
    """Line by line and number by number, without a cluster."""
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.jpg", seeded.image(40, 20))
    save(tmp_path / "in" / "c.png", np.zeros((1, 1, 3)))  # too small for any prior
    save(tmp_path / "in" / "d.png")
    save(tmp_path / "out" / "d_diip.png")  # somebody's own
    options = Options(output=str(tmp_path / "out"), num_lanes=1)
    patterns = [str(tmp_path / "in")]
    for terminal in (Terminal(json=True), Terminal()):
        expected = command.run(
            tiny_prior, patterns, CONFIG, options, terminal, dry_run=True
        )
        one = capsys.readouterr()
        found = dry_run(tiny_prior.card, patterns, options, terminal)
        many = capsys.readouterr()
        assert found == expected == (2, 2, False)
        assert sorted(many.out.splitlines()) == sorted(one.out.splitlines())
        assert errors(many.err) == errors(one.err)
        assert len(errors(one.err)) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["d_diip.png"]


def errors(said):
    return sorted(line for line in said.splitlines() if line.startswith("error: "))


def test_a_dry_run_says_where_a_header_does_not_tell(tiny_prior, tmp_path, capsys):
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * cluster.HEADER_BYTES)
    photo = save(tmp_path / "x.png", pnginfo=text)
    options = Options(output=str(tmp_path / "out"))
    dry_run(tiny_prior.card, [photo], options, Terminal())
    assert capsys.readouterr().out == (
        f"{photo} -> {tmp_path / 'out' / 'x_diip.png'}: its header does not tell its "
        "size\n"
    )
    dry_run(tiny_prior.card, [photo], options, Terminal(json=True))
    content = json.loads(capsys.readouterr().out)
    assert content["status"] == "planned"
    assert "plan" not in content


# What a task does before an actor.


class Rows(list):
    """Rows that pass for Arrow's, which is in the extra [cluster]."""

    def to_pylist(self):
        return self


@pytest.fixture
def read_all(tiny_prior, tmp_path, monkeypatch):
    """Return what surveys photos and reads them as a task does: rows by their names."""
    priors.save(tmp_path / "prior", tiny_prior)
    monkeypatch.setattr(cluster, "_arrow", lambda rows, _: rows)

    def read_all(photos, output, **changes):
        work = work_for(output, **changes)._replace(prior=str(tmp_path / "prior"))
        sources = find.sources([str(photos)])
        found = cluster.survey(Prior(None, tiny_prior.card), sources, work)
        assert len(found.photos) == len(sources)
        rows = Rows()
        for index, (source, stem, version, is_free) in enumerate(found.photos):
            row = {"index": index, "path": str(source.path), "stem": str(stem)}
            row |= {"relative": str(source.relative), "version": version}
            rows.append({**row, "is_free": is_free})
        return {Path(row["path"]).name: row for row in cluster.read(rows, work)}

    return read_all


@pytest.fixture(params=["files", "store"])
def place_of(request, tmp_path):
    """Return what makes a place of a name, in a folder or in a store."""
    if request.param == "files":
        return lambda name: tmp_path / name
    pytest.importorskip("fsspec").filesystem("memory").store.clear()
    return lambda name: addresses.path(f"memory://bucket/{name}")


def fill(folder, *names, content=None):
    """Write a small photo, or something else, under each of the names."""
    file = io.BytesIO()
    Image.fromarray(np.uint8(255 * seeded.image(16, 16))).save(file, "PNG")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(file.getvalue() if content is None else content)


def test_a_picture_of_somebody_else_is_not_replaced_unasked(place_of, read_all):
    photos, output = place_of("in"), place_of("out")
    fill(photos, "free.png", "kept.png", "other.png", "ours.png", "text.png")
    fill(output, "kept_diip.png", "other_diip.jpg", "ours_diip.png", "text_diip.png")
    ours = json.dumps({"schema": record.SCHEMA}).encode()
    fill(output, "ours_diip.json", content=ours)
    fill(output, "text_diip.json", content=b"{}")
    found = read_all(photos, output)
    failed = {name: row["error"] for name, row in found.items() if row["error"]}
    assert failed.keys() == {"kept.png", "text.png"}
    assert "kept_diip.png: a picture without a record is there" in failed["kept.png"]
    assert "text_diip.json: a file is there that is no record" in failed["text.png"]
    assert all("or pass --overwrite" in reason for reason in failed.values())
    again = read_all(photos, output, overwrite=True)
    assert {row["status"] for row in again.values()} == {"read"}


def test_a_store_is_not_asked_for_what_its_listing_told(
    tmp_path, read_all, monkeypatch
):
    pytest.importorskip("fsspec").filesystem("memory").store.clear()
    output, asked = addresses.path("memory://bucket/out"), collections.Counter()
    fill(tmp_path / "in", *(f"{n}.png" for n in range(5)))
    fill(output, "3_diip.png", "4_diip.png")
    ours = json.dumps({"schema": record.SCHEMA}).encode()
    fill(output, "3_diip.json", content=ours)
    for name in ("find", "read_bytes"):
        original = getattr(Address, name)

        def counted(address, original=original):
            asked[address.name.partition("_")[0]] += 1
            return original(address)

        monkeypatch.setattr(Address, name, counted)
    read_all(tmp_path / "in", output)
    del asked["out"]  # by the listing
    assert set(asked) == {"3", "4"}  # those of which something is there
    assert asked["3"] == 3  # its record is asked for its settings, and if it is ours


# What an actor does.


def exhausted(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
    yield


def test_what_memory_is_too_small_for_is_tried_alone_then_in_tiles_then_told(
    tiny_prior, tmp_path, monkeypatch
):
    big = seeded.image(300, 200)
    for n in range(2):
        save(tmp_path / "in" / f"{n}.png", big)
    config = dataclasses.replace(CONFIG, tile=512, tile_overlap=128)
    tasks = planned(tiny_prior, [tmp_path / "in"], config).tasks
    tried = []

    def remember(prior, tasks, config, options, **keywords):
        tried.append((len(tasks), config.tile, tasks[0].placement.num_tiles > 1))
        return exhausted()

    monkeypatch.setattr(cluster, "restore_photos", remember)
    results = cluster.restore(tiny_prior, tasks, config, Options())
    each = [(1, 512, False), (1, 152, True), (1, 76, True)]  # of a canvas of 304
    assert tried == [(2, 512, False), *each, *each]
    for task in tasks:
        assert "out of memory" in results[str(task.output)].error
        assert str(task.source.path) in results[str(task.output)].error


def test_the_picture_in_smaller_tiles_says_so(tiny_prior, tmp_path, monkeypatch):
    save(tmp_path / "x.png", seeded.image(150, 140))
    config = dataclasses.replace(CONFIG, tile=512, tile_overlap=128)
    (task,) = planned(tiny_prior, [tmp_path / "x.png"], config).tasks

    def restored(prior, tasks, config, options, write):
        if config.tile == 512:
            yield from exhausted()
        content = {"warnings": ["no_peak"], "tile": config.tile}
        write(tasks[0].output, b"picture", content)
        yield Outcome(tasks[0], content)

    monkeypatch.setattr(cluster, "restore_photos", restored)
    results = cluster.restore(tiny_prior, [task], config, Options())
    found = results[str(task.output)]
    assert (found.picture, found.error) == (b"picture", "")
    assert found.content == {"warnings": ["no_peak", "tiled_for_memory"], "tile": 76}


def test_what_diverges_is_written_and_is_an_error(tiny_prior, tmp_path):
    save(tmp_path / "x.png")
    config = dataclasses.replace(CONFIG, learning_rate=1e30)
    (task,) = planned(tiny_prior, [tmp_path / "x.png"], config).tasks
    options = Options(num_lanes=1)
    found = cluster.restore(tiny_prior, [task], config, options)[str(task.output)]
    assert found.picture
    assert "diverged" in found.error
    assert str(tmp_path / "x.png") in found.error


def test_a_fault_of_one_batch_is_the_error_of_its_photos(
    tiny_prior, tmp_path, monkeypatch
):
    (task,) = planned(tiny_prior, [save(tmp_path / "x.png")]).tasks

    def fault(*_, **__):
        raise LookupError("of ours")

    monkeypatch.setattr(cluster, "restore_photos", fault)
    found = cluster.restore(tiny_prior, [task], CONFIG, Options())[str(task.output)]
    assert found.error == "LookupError: of ours"


# Whole runs.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a tiny prior and a cache, and skip without Ray."""
    pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("cluster")
    priors.save(folder / "tiny", seeded.prior(preset=CONFIG))
    (folder / "cache").mkdir()
    (folder / "cache" / "xla").symlink_to(os.environ["JAX_COMPILATION_CACHE_DIR"])
    return folder


def begin(place, *arguments, **variables):
    line = [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]
    line += ["--prior", str(place / "tiny"), "--batch_size=1", "--json"]
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    own = {"DIIP_CACHE": str(place / "cache"), "PYTHONPATH": path}
    own["RAY_worker_niceness"] = "0"  # a busy machine would leave them nothing
    return subprocess.Popen(
        line,
        env=dict(os.environ, **own, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(place, *arguments, timeout=900, **variables):
    """Return exit code, the records by the name of the photo, and standard error."""
    process = begin(place, *arguments, **variables)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    records = [json.loads(line) for line in out.splitlines()]  # nothing else is there
    assert "Traceback" not in err, err
    found = {Path(r["input"]["path"]).name: r for r in records}
    assert len(found) == len(records)
    return process.returncode, found, err


def pictures(folder):
    """Return the bytes of all pictures of a folder; each has its whole record."""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        content = record.read(path.with_suffix(".json"))
        assert content is not None
        assert content["status"] == "ok"
        found[path.name] = path.read_bytes()
    return found


def make(folder, count):
    """Write small photos of two sizes."""
    for n in range(count):
        size = (16, 16) if n % 3 else (16, 24)
        save(folder / f"{n:02}.png", seeded.image(*size, seed=n))


@pytest.mark.slow
def test_one_machine_two_workers_and_two_shards_give_the_same_bytes(place, tmp_path):
    make(tmp_path / "in", 24)
    photos = tmp_path / "in"
    assert run(place, photos, "-o", tmp_path / "one")[0] == 0
    expected = pictures(tmp_path / "one")
    assert len(expected) == 24

    local = ["--cluster=local", "--num_workers=2", "--device=cpu"]
    code, found, err = run(place, photos, "-o", tmp_path / "two", *local)
    assert code == 0, err
    assert {r["status"] for r in found.values()} == {"ok"}
    assert pictures(tmp_path / "two") == expected

    shares = []
    for shard in ("0/2", "1/2"):
        flags = ["-o", tmp_path / "parts", "--shard", shard]
        code, found, err = run(place, photos, *flags)
        assert code == 0, err
        shares.append(set(found))
    assert pictures(tmp_path / "parts") == expected
    assert not shares[0] & shares[1]
    assert all(shares)

    code, found, _ = run(place, photos, "-o", tmp_path / "two", *local)
    assert code == 0
    assert {r["status"] for r in found.values()} == {"skipped"}


@pytest.fixture
def nodes(place, monkeypatch):
    """Return a Ray of three nodes on this machine: its address, and its nodes."""
    from ray.cluster_utils import Cluster as Nodes

    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("RAY_worker_niceness", "0")
    own = {"num_cpus": 2, "object_store_memory": STORE_BYTES}
    found = Nodes(
        initialize_head=True, head_node_args={**own, "include_dashboard": False}
    )
    others = [found.add_node(**own) for _ in range(2)]
    yield found.address, others
    found.shutdown()


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


LONG = ["--criterion=never"]  # as many iterations for each photo


@pytest.mark.slow
def test_a_node_that_dies_loses_no_photo_and_none_is_twice(place, nodes, tmp_path):
    address, (victim, _) = nodes
    make(tmp_path / "in", 60)
    photos, out = tmp_path / "in", tmp_path / "out"
    assert run(place, photos, "-o", tmp_path / "one", *LONG)[0] == 0
    process = begin(place, photos, "-o", out, "--cluster", address, *LONG)
    try:
        wait_for(lambda: len(list(out.glob("*.png"))) >= 15, process)
        raylet = victim.all_processes["raylet"][0].process.pid
        os.kill(raylet, signal.SIGKILL)
        told, err = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "Traceback" not in err, err
    rows = [json.loads(line) for line in told.splitlines()]  # nothing else is there
    names = {row["input"]["path"] for row in rows}
    assert len(rows) == len(names) == 60
    assert pictures(out) == pictures(tmp_path / "one")


@pytest.mark.slow
def test_a_driver_that_dies_leaves_only_what_was_not_finished(place, nodes, tmp_path):
    address, _ = nodes
    make(tmp_path / "in", 40)
    photos, out = tmp_path / "in", tmp_path / "out"
    assert run(place, photos, "-o", tmp_path / "one", *LONG)[0] == 0
    flags = [photos, "-o", out, "--cluster", address, *LONG]
    process = begin(place, *flags)
    wait_for(lambda: len(list(out.glob("*.png"))) >= 10, process)
    process.kill()
    process.communicate()

    def state():
        files = out.glob("*_diip.*")
        return {path: path.stat().st_mtime_ns for path in files}

    before: dict = {}
    while before != state():  # Ray ends what the driver began
        before = state()
        time.sleep(5)
    assert len(before) < 80
    whole = {
        path.stem.removesuffix("_diip"): time
        for path, time in before.items()
        if path.suffix == ".png"
        and record.read(path.with_suffix(".json"))["status"] == "ok"
    }
    code, found, err = run(place, *flags)
    assert code == 0, err
    assert pictures(out) == pictures(tmp_path / "one")
    skipped = {Path(n).stem for n, r in found.items() if r["status"] == "skipped"}
    assert skipped == set(whole)
    for name, written in whole.items():
        assert (out / f"{name}_diip.png").stat().st_mtime_ns == written


@pytest.fixture
def bucket(place):
    """Return an S3 server of this process: its address, and a client of it."""
    server_of = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing-key",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = s3fs.S3FileSystem(
        key="testing-key",
        secret="testing-secret",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    if not client.exists("bucket"):  # all servers of a process have the same buckets
        client.mkdir("bucket")
    yield client, variables
    server.stop()


def upload(client, folder, place, count):
    """Put photos in a bucket and in a folder, every twentieth of them broken."""
    make(folder, count - 1)
    save(folder / ODD, seed=99)
    for n in range(0, count, 20):
        (folder / f"{n:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for path in folder.iterdir():
        client.pipe_file(f"bucket/scans/{path.name}", path.read_bytes())
    client.put(str(place / "tiny"), "bucket/prior", recursive=True)


@pytest.mark.slow
def test_from_bucket_to_bucket_with_broken_photos(place, bucket, tmp_path):
    client, variables = bucket
    upload(client, tmp_path / "in", place, 20)
    code, _, _ = run(place, tmp_path / "in", "-o", tmp_path / "one")
    assert code == 3
    expected = pictures(tmp_path / "one")
    assert len(expected) == 19
    flags = ["s3://bucket/scans/", "-o", "s3://bucket/out/"]
    flags += ["--cluster=local", "--num_workers=2", "--device=cpu"]
    for statuses in ({"ok", "failed"}, {"skipped", "failed"}):
        code, found, err = run(place, *flags, "--prior=s3://bucket/prior", **variables)
        assert code == 3, err
        assert {r["status"] for r in found.values()} == statuses
        assert len(found) == 20
        assert [n for n, r in found.items() if r["status"] == "failed"] == ["00.png"]
        assert "failed: s3://bucket/scans/00.png" in err
        assert "testing-" not in err + json.dumps(found)
    keys = [key for key in client.find("bucket/out") if "/.diip/" not in key]
    written = {k.rpartition("/")[2]: client.cat_file(k) for k in keys}
    assert {n: data for n, data in written.items() if n.endswith("png")} == expected
    records = [json.loads(data) for n, data in written.items() if n.endswith("json")]
    assert len(records) == 19
    assert b"testing-" not in b"".join(written.values())
    assert ODD.replace(".png", "_diip.json") in written


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--cluster=local"]])
def test_403_and_404_are_one_line_and_exit_4(place, bucket, tmp_path, flags):
    import requests

    client, variables = bucket
    save(tmp_path / "x.png")
    client.put(str(tmp_path / "x.png"), "bucket/scans/x.png")
    cases = [
        ("s3://bucket/none/", "s3://bucket/out"),
        ("s3://nobucket/scans/", "s3://bucket/out"),
        ("s3://bucket/scans/", "s3://nobucket/out"),
    ]
    for image, output in cases:
        code, _, err = run(place, image, "-o", output, *flags, **variables)
        assert (code, err.count("error:")) == (4, 1), err
        assert "nothing is there" in err
    policy = f"{variables['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    requests.post(policy, data="0")  # from now on nobody may do anything
    try:
        code, _, err = run(
            place, "s3://bucket/scans/", "-o", "s3://bucket/out", *flags, **variables
        )
    finally:
        requests.post(policy, data="inf")
    assert (code, err.count("error:")) == (4, 1), err
    assert "testing-" not in err


@pytest.mark.slow  # Ray waits for it
def test_no_such_cluster_is_one_line_and_exits_7(place, tmp_path):
    save(tmp_path / "x.png")
    code, _, err = run(place, tmp_path / "x.png", "--cluster=127.0.0.1:1")
    assert code == 7
    assert err.count("error:") == 1
