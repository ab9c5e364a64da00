"""Downloads, against real servers on loopback.

Independent here: the servers are plain `http.server` ones that misbehave on purpose,
hashes come from `hashlib` over the bytes that were to be served, and the stand-in for
the hub speaks the hub's headers to the unmodified `huggingface_hub` client, in its own
process because the client reads HF_ENDPOINT when it is imported.
"""

import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from checkpoints_convert import download, registry
from checkpoints_convert.registry import Checkpoint, HubFile, WeightsError

pytest.importorskip("pooch")
pytest.importorskip("huggingface_hub")
pytest.importorskip("gdown")

DATA = bytes(range(256)) * 800  # 204,800 bytes: several socket buffers
OTHER = DATA[::-1]
SHA256 = hashlib.sha256(DATA).hexdigest()
PAGE = b"<!DOCTYPE html><html><head><title>Quota\n exceeded</title></head></html>"
BY_HAND = "`python -m checkpoints_convert tiny.pt OUT`"


# Servers. An answer is a function of the request handler.


def whole(body, content_type="application/octet-stream"):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def half(handler):
    """Promise everything, send one half, hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(DATA)))
    handler.end_headers()
    handler.wfile.write(DATA[: len(DATA) // 2])


def half_of_unknown_length(handler):
    """Send one half without having promised a length: the client sees no error."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(DATA[: len(DATA) // 2])


def not_found(handler):
    handler.send_error(404)


@pytest.fixture
def listen():
    """Return a function that runs a handler class on a free port, until the test ends.

    It returns the address.
    """
    servers = []

    def start(handler):
        handler.log_message = lambda *_: None
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def serve(listen):
    """Return a function that starts a server: its n-th request gets the n-th answer.

    The last answer repeats. It returns a URL and the list of the paths asked for.
    """

    def start(*answers):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                answers[min(len(asked), len(answers)) - 1](self)

        return listen(Handler) + "/tiny.pt", asked

    return start


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # gdown and the hub write there
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def dead_address():
    """Return the URL of a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/tiny.pt"


def tiny(*urls, **fields):
    published = {"sha256": SHA256, "bytes": len(DATA), "layout": "ddim"}
    return Checkpoint(
        name="tiny",
        parameters=len(DATA) // 4,
        file="tiny.pt",
        licence="CC BY-NC 4.0",
        training_data="noise",
        source="example.org/tiny",
        urls=urls,
        **(published | fields),
    )


def unpublished(*urls):
    return tiny(*urls, sha256=None, bytes=None)


def fetch(checkpoint, cache, **options):
    """Fetch, and return the result with the notices that were given."""
    notices = []
    options = {"progress": False} | options
    fetched = download.fetch(checkpoint, cache=cache, notify=notices.append, **options)
    assert not any("\n" in notice for notice in notices)
    return fetched, notices


def refusal(checkpoint, cache, **options):
    """Return the one line with which fetching is refused; nothing usable is left."""
    with pytest.raises(WeightsError) as caught:
        fetch(checkpoint, cache, **options)
    assert "\n" not in str(caught.value)
    left = [p for p in cache.rglob("*") if p.is_file() and p.name != download.LOCK]
    assert left == []
    return str(caught.value)


# A plain server


def test_plain_download_is_verified_and_kept(serve, cache):
    url, asked = serve(whole(DATA))
    fetched, _ = fetch(tiny(url), cache)
    assert fetched.path.read_bytes() == DATA
    assert fetched.path.is_relative_to(cache)
    assert fetched.sha256 == SHA256
    assert fetched.extra_files == {}
    again, notices = fetch(tiny(url), cache)
    assert again == fetched
    assert notices == []
    assert len(asked) == 1


def test_licence_is_shown_before_the_first_request(serve, cache):
    url, asked = serve(whole(DATA))
    shown = []

    def notify(text):
        if "CC BY-NC 4.0" in text:
            shown.append(len(asked))

    download.fetch(tiny(url), cache=cache, progress=False, notify=notify)
    assert shown == [0]
    download.fetch(tiny(url), cache=cache, progress=False, notify=notify)
    assert shown == [0]


def test_published_md5_is_enough(serve, cache):
    url, _ = serve(whole(DATA))
    md5 = hashlib.md5(DATA).hexdigest()
    fetched, notices = fetch(tiny(url, sha256=None, md5=md5), cache)
    assert fetched.sha256 == SHA256
    assert not any("nobody publishes" in notice for notice in notices)


def test_progress_goes_to_stderr_only(serve, cache, capfd):
    url, _ = serve(whole(DATA))
    fetch(tiny(url), cache, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err


def test_unchanged_files_are_not_hashed_again(serve, cache, monkeypatch):
    url, asked = serve(whole(DATA))
    fetched, _ = fetch(tiny(url), cache)
    hashed = []
    digest = hashlib.file_digest

    def counting(file, algorithm):
        hashed.append(algorithm)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    fetch(tiny(url), cache)
    assert hashed == []
    os.utime(fetched.path, (1, 1))
    fetch(tiny(url), cache)
    assert hashed == ["sha256"]
    fetch(tiny(url), cache)
    assert hashed == ["sha256"]
    assert len(asked) == 1


# Servers that misbehave


def test_cut_connection_is_tried_again(serve, cache):
    url, asked = serve(half, whole(DATA))
    fetched, _ = fetch(tiny(url), cache)
    assert fetched.path.read_bytes() == DATA
    assert len(asked) == 2


def test_connection_cut_every_time_leaves_nothing(serve, cache):
    url, asked = serve(half)
    message = refusal(tiny(url), cache)
    assert f"tiny: no source gave it: {url}: IncompleteRead(" in message
    assert message.endswith(f"get tiny.pt by other means and run {BY_HAND}")
    assert len(asked) == download.ATTEMPTS
    # and what was left is not trusted by a run whose server works
    working, _ = serve(whole(DATA))
    assert fetch(tiny(working), cache)[0].path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("published", "reason"),
    [
        ({}, "tiny.pt has 102400 bytes, not 204800"),
        ({"bytes": None}, rf"sha256 of tiny.pt is [0-9a-f]{{64}}, not {SHA256}"),
        (
            {"bytes": None, "sha256": None},
            "tiny.pt has 102400 bytes, too few for 51200 float32 parameters",
        ),
    ],
)
def test_silently_cut_file_is_refused(serve, cache, published, reason):
    url, _ = serve(half_of_unknown_length)
    assert re.search(
        f"{re.escape(url)}: {reason};", refusal(tiny(url, **published), cache)
    )
    assert not (cache / download.LOCK).exists()


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_wrong_bytes_are_deleted(serve, cache, algorithm):
    url, asked = serve(whole(OTHER))
    wanted = hashlib.new(algorithm, DATA).hexdigest()
    found = hashlib.new(algorithm, OTHER).hexdigest()
    checkpoint = tiny(url, **({"sha256": None} | {algorithm: wanted}))
    message = refusal(checkpoint, cache)
    assert f"{url}: {algorithm} of tiny.pt is {found}, not {wanted};" in message
    assert len(asked) == 1  # the same bytes would come again


@pytest.mark.parametrize("checkpoint", [tiny, unpublished])
def test_html_page_is_named_as_such(serve, cache, checkpoint):
    url, _ = serve(whole(PAGE, "text/html"))
    message = refusal(checkpoint(url), cache)
    assert f"{url}: an HTML page (Quota exceeded) came instead of tiny.pt;" in message
    assert not (cache / download.LOCK).exists()


def test_dead_mirror_falls_through_to_the_next(serve, cache):
    dead = dead_address()
    missing, _ = serve(not_found)
    wrong, _ = serve(whole(OTHER))
    url, asked = serve(whole(DATA))
    fetched, notices = fetch(tiny(dead, missing, wrong, url), cache)
    assert fetched.path.read_bytes() == DATA
    assert len(asked) == 1
    assert any(f"{dead}: [Errno" in notice for notice in notices)
    assert any(f"{missing}: 404" in notice for notice in notices)
    assert any(f"{wrong}: sha256 of" in notice for notice in notices)


def test_final_error_lists_every_source_with_its_reason(serve, cache):
    dead = dead_address()
    missing, asked = serve(not_found)
    page, _ = serve(whole(PAGE))
    message = refusal(tiny(dead, missing, page), cache)
    assert re.search(rf"{dead}: \[Errno \d+\] Connection refused; ", message)
    assert re.search(rf"; {missing}: 404 Client Error: Not Found for url", message)
    assert f"; {page}: an HTML page" in message
    assert len(asked) == 1  # a 404 is an answer: not asked again


def test_reason_is_not_that_of_an_error_being_handled(cache):
    dead = dead_address()
    try:
        raise KeyError("outer")
    except KeyError:
        assert "Connection refused" in refusal(tiny(dead), cache)


# Interruptions


def test_ctrl_c_leaves_nothing(cache, monkeypatch):
    def interrupted(checkpoint, destination, **_):
        destination.write_bytes(DATA[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "from_url", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(tiny("http://127.0.0.1/"), cache)
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_killed_download_is_not_trusted_later(serve, cache):
    """SIGKILL leaves no time to clean up; the next run must not be fooled."""
    arrived, leave = threading.Event(), threading.Event()

    def stall(handler):
        half(handler)
        handler.wfile.flush()
        arrived.set()
        leave.wait(60)

    url, asked = serve(stall, whole(DATA))
    process = start_fetch(unpublished(url), cache)
    try:
        assert arrived.wait(60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        leave.set()
    assert not (cache / download.LOCK).exists()
    fetched, _ = fetch(unpublished(url), cache)
    assert fetched.path.read_bytes() == DATA
    assert len(asked) == 2


def test_two_runs_at_once_both_succeed(serve, cache):
    both = threading.Barrier(2)

    def together(handler):
        both.wait(60)
        whole(DATA)(handler)

    url, asked = serve(together)
    results = []

    def run():
        results.append(fetch(tiny(url), cache)[0])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 2
    assert [fetched.path.read_bytes() for fetched in results] == [DATA, DATA]
    assert [p.name for p in (cache / "downloads").iterdir()] == ["tiny"]


# The cache and the lock file


def test_unpublished_hash_is_recorded_shown_and_compared(serve, cache):
    url, _ = serve(whole(DATA), whole(OTHER))
    fetched, notices = fetch(unpublished(url), cache)
    assert fetched.sha256 == SHA256
    lock = cache / download.LOCK
    assert f"recorded in {lock}" in notices[-1]
    assert f"tiny.pt {SHA256}" in notices[-1]
    recorded = lock.read_bytes()
    assert json.loads(recorded)["tiny"]["tiny.pt"]["sha256"] == SHA256
    assert fetch(unpublished(url), cache)[1] == []  # said once

    shutil.rmtree(fetched.path.parent)  # the publisher replaces the file
    message = refusal(unpublished(url), cache)
    found = hashlib.sha256(OTHER).hexdigest()
    assert f"sha256 of tiny.pt is {found}, but {SHA256} was recorded in" in message
    assert "delete that entry if the publisher replaced it" in message
    assert lock.read_bytes() == recorded

    lock.write_text("{}")  # the remedy of the message
    assert fetch(unpublished(url), cache)[0].sha256 == found


@pytest.mark.parametrize("checkpoint", [tiny, unpublished])
def test_file_damaged_in_the_cache_is_fetched_again(serve, cache, checkpoint):
    url, asked = serve(whole(DATA))
    fetched, _ = fetch(checkpoint(url), cache)
    fetched.path.write_bytes(OTHER)
    os.utime(fetched.path, (1, 1))  # a coarse clock could hide the change
    again, notices = fetch(checkpoint(url), cache)
    assert again.path.read_bytes() == DATA
    assert "was deleted: sha256 of tiny.pt" in notices[0]
    assert len(asked) == 2


def test_a_new_entry_keeps_the_others(serve, cache):
    cache.mkdir()
    (cache / download.LOCK).write_text('{"other": {"file": {"sha256": "00"}}}')
    url, _ = serve(whole(DATA))
    fetch(unpublished(url), cache)
    lock = json.loads((cache / download.LOCK).read_text())
    assert lock["other"] == {"file": {"sha256": "00"}}
    assert set(lock) == {"other", "tiny"}


def test_unreadable_lock_file_deletes_no_weights(serve, cache):
    url, _ = serve(whole(DATA))
    fetched, _ = fetch(tiny(url), cache)
    (cache / download.LOCK).write_text("{")
    with pytest.raises(WeightsError, match="is not valid JSON; repair it"):
        fetch(tiny(url), cache)
    assert fetched.path.exists()


def test_unusable_cache_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot use the cache .*set DIIP_CACHE"):
        fetch(tiny("http://127.0.0.1/"), tmp_path / "file" / "cache")


# Offline


def test_offline_names_the_file_and_the_way_out(serve, cache):
    url, asked = serve(whole(DATA))
    checkpoint = tiny(url, hub=HubFile("o/tiny", "t.pt", "1" * 40), gdrive="ID")
    message = refusal(checkpoint, cache, offline=True)
    assert "tiny.pt is not in" in message
    assert "offline mode forbids a download from" in message
    for address in (url, "https://huggingface.co/o/tiny/resolve/1", "uc?id=ID;"):
        assert address in message
    assert message.endswith(BY_HAND)
    assert asked == []


def test_offline_uses_what_is_there_if_it_is_sound(serve, cache):
    url, asked = serve(whole(DATA))
    fetched, _ = fetch(tiny(url), cache)
    assert fetch(tiny(url), cache, offline=True)[0] == fetched
    fetched.path.write_bytes(DATA[:-1])
    message = refusal(tiny(url), cache, offline=True)
    assert "was deleted: tiny.pt has 204799 bytes, not 204800, and offline" in message
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("library", "place"),
    [
        ("pooch", {"urls": ("http://127.0.0.1/",)}),
        ("huggingface_hub", {"hub": HubFile("o/tiny", "t.pt", "1" * 40)}),
        ("gdown", {"gdrive": "ID"}),
    ],
)
def test_missing_library_names_the_extra(cache, monkeypatch, library, place):
    monkeypatch.setitem(sys.modules, library, None)
    message = refusal(tiny(*place.pop("urls", ()), **place), cache)
    assert f"downloading needs {library}: " in message
    assert 'pip install "diip-jax[hub]"' in message


# Google Drive


def test_drive_download(serve, cache, monkeypatch, capfd):
    url, asked = serve(whole(DATA))
    monkeypatch.setattr(download, "DRIVE_URL", url + "?id={}")
    fetched, _ = fetch(tiny(gdrive="ID"), cache)
    assert fetched.path.read_bytes() == DATA
    assert asked == ["/tiny.pt?id=ID"]
    assert capfd.readouterr() == ("", "")  # progress=False


def test_drive_connection_cut(serve, cache, monkeypatch):
    url, _ = serve(half)
    monkeypatch.setattr(download, "DRIVE_URL", url + "?id={}")
    assert f"no source gave it: {url}?id=ID: Incomplete" in refusal(
        tiny(gdrive="ID"), cache
    )


def test_drive_page_instead_of_the_file(serve, cache, monkeypatch):
    url, _ = serve(whole(PAGE, "text/html"))
    monkeypatch.setattr(download, "DRIVE_URL", url + "?id={}")
    message = refusal(tiny(gdrive="ID"), cache)
    assert f"{url}?id=ID: an HTML page (Quota exceeded) came instead" in message


def test_drive_refusal_is_one_line(cache, monkeypatch):
    """The client explains a refusal on several lines; ours is one."""
    import gdown

    def refuse(**_):
        raise gdown.exceptions.FileURLRetrievalError("Cannot retrieve\n\n\tthe link.")

    monkeypatch.setattr(gdown, "download", refuse)
    message = refusal(tiny(gdrive="ID"), cache)
    assert "https://drive.google.com/uc?id=ID: Cannot retrieve the link; get" in message


# The hub, in another process


def start_fetch(checkpoint, cache, **environment):
    """Start a process that fetches and prints the result, or the error, as JSON."""
    script = """
        import json, sys
        from pathlib import Path
        from checkpoints_convert.download import fetch
        from checkpoints_convert.registry import Checkpoint, HubFile, WeightsError
        from diip_jax import DIIPConfig
        cache, checkpoint, notices = Path(sys.argv[1]), eval(sys.argv[2]), []
        try:
            got = fetch(checkpoint, cache=cache, progress=False, notify=notices.append)
            extras = {name: str(path) for name, path in got.extra_files.items()}
            print(json.dumps([str(got.path), got.sha256, extras, notices]))
        except WeightsError as error:
            print(json.dumps(str(error)))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(cache), repr(checkpoint)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | environment,
    )


def fetch_elsewhere(checkpoint, cache, endpoint, **environment):
    """Fetch in a fresh process whose hub is at endpoint; return what it printed."""
    process = start_fetch(checkpoint, cache, HF_ENDPOINT=endpoint, **environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(listen):
    """Return a function that starts a stand-in for the hub.

    As the hub does, it redirects large files to another address, where they lie, and
    gives their size and hash in its own headers. It returns the endpoint and the list
    of the paths asked for.
    """

    def start(files, revision=REVISION):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.wfile.write(self.answer())

            def answer(self):
                asked.append(self.path)
                folder, name = self.path.rsplit("/", 1)
                if folder not in (f"/o/tiny/resolve/{revision}", "/cdn"):
                    return self.head(404, b"", [("X-Error-Code", "RevisionNotFound")])
                body = files[name]
                etag = f'"{hashlib.sha256(body).hexdigest()}"'
                headers = [("X-Repo-Commit", revision), ("ETag", etag)]
                if folder == "/cdn" or len(body) < 100:
                    return self.head(200, body, headers)
                linked = [("X-Linked-ETag", etag), ("X-Linked-Size", str(len(body)))]
                where = f"http://127.0.0.1:{self.server.server_port}/cdn/{name}"
                return self.head(302, b"", [*headers, *linked, ("Location", where)])

            def head(self, status, body, headers):
                self.send_response(status)
                for header in [*headers, ("Content-Length", str(len(body)))]:
                    self.send_header(*header)
                self.end_headers()
                return body

        return listen(Handler), asked

    return start


FILES = {
    "hub.bin": DATA,
    "config.json": b'{"_class_name": "UNet2DModel"}',
    "scheduler_config.json": b'{"num_train_timesteps": 1000}',
}
ON_HUB = HubFile("o/tiny", "hub.bin", REVISION)


def test_hub_download_with_configuration(hub, cache):
    endpoint, asked = hub(FILES)
    checkpoint = tiny(hub=ON_HUB, layout="diffusers")
    path, sha256, extras, notices = fetch_elsewhere(checkpoint, cache, endpoint)
    assert sha256 == SHA256
    assert Path(path).name == "tiny.pt"
    assert Path(path).read_bytes() == DATA
    assert set(extras) == set(registry.CONFIG_FILES)
    for name, extra in extras.items():
        assert Path(extra).read_bytes() == FILES[name]
        assert Path(extra).parent == Path(path).parent
    resolved = [p.split("/") for p in asked if "/resolve/" in p]
    assert {parts[4] for parts in resolved} == {REVISION}
    assert {parts[5] for parts in resolved} == set(FILES)
    # nobody publishes hashes of the configuration: trusted on first use, and said
    recorded = json.loads((cache / download.LOCK).read_text())["tiny"]
    for name in registry.CONFIG_FILES:
        assert recorded[name]["sha256"] == hashlib.sha256(FILES[name]).hexdigest()
        assert name in notices[-1]
    assert "tiny.pt" not in notices[-1].split(": ", 3)[-1]
    left = {p.name for p in Path(path).parent.iterdir()}
    assert left == {"tiny.pt", *registry.CONFIG_FILES}  # no scratch of the client

    count = len(asked)
    again = fetch_elsewhere(checkpoint, cache, endpoint)
    assert again == [path, sha256, extras, []]
    assert len(asked) == count


def test_changed_configuration_is_refused(hub, cache):
    checkpoint = tiny(hub=ON_HUB, layout="diffusers")
    path, *_ = fetch_elsewhere(checkpoint, cache, hub(FILES)[0])
    shutil.rmtree(Path(path).parent)
    changed, _ = hub(FILES | {"config.json": b'{"_class_name": "UNet2DMODEL"}'})
    message = fetch_elsewhere(checkpoint, cache, changed)
    assert "sha256 of config.json is" in message
    assert "was recorded in weights.lock.json" in message
    assert list((cache / "downloads").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "revision", "environment", "reason"),
    [
        (FILES | {"hub.bin": OTHER}, REVISION, {}, "sha256 of tiny.pt is"),
        (FILES | {"hub.bin": PAGE}, REVISION, {}, "an HTML page (Quota exceeded) came"),
        (FILES, "f" * 40, {}, "404"),
        (FILES, REVISION, {"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
    ],
    ids=["wrong bytes", "page", "no such revision", "HF_HUB_OFFLINE"],
)
def test_hub_that_fails(hub, cache, files, revision, environment, reason):
    endpoint, asked = hub(files, revision)
    checkpoint = tiny(hub=ON_HUB, bytes=None)
    message = fetch_elsewhere(checkpoint, cache, endpoint, **environment)
    assert isinstance(message, str), message
    assert "\n" not in message
    assert f"{endpoint}/o/tiny/resolve/{REVISION}/hub.bin: " in message
    assert reason in message
    assert message.endswith(BY_HAND)
    assert list((cache / "downloads").iterdir()) == []
    assert bool(asked) == ("HF_HUB_OFFLINE" not in environment)


def test_hub_is_tried_after_the_urls(hub, serve, cache):
    url, _ = serve(not_found)
    endpoint, asked = hub(FILES)
    path, *_, notices = fetch_elsewhere(tiny(url, hub=ON_HUB), cache, endpoint)
    assert Path(path).read_bytes() == DATA
    assert any(f"{url}: 404" in notice for notice in notices)
    assert asked
