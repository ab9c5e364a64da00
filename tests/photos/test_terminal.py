"""The bar on a terminal that is played by a string, and lines where there is none.

What a bar must say is written out here; the run behind it is made up.
"""

import contextlib
import io
import re
import sys
import threading
import types

import pytest

from diip_jax.engine import LaneReport
from diip_jax.photos import terminal as console
from diip_jax.photos.run import Progress
from helpers import seeded

CONFIG = seeded.PRESET.replace(max_iterations=40, epsilon=5e-4)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        """Say so."""
        return True

    def lines(self):
        """Return what was drawn, one drawing after the other."""
        return [t for t in re.split(r"[\r\n]+", self.getvalue()) if t.strip()]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "40")
    stream = Terminal()
    monkeypatch.setattr(console, "sys", types.SimpleNamespace(stderr=stream))
    return stream


def lane(job=0, done=7):
    def unused():
        raise AssertionError("a bar needs no picture")

    return LaneReport(job, 0, done - 1, done, 0.25, 0.0124, 123.4, None, unused, unused)


def test_one_photo(terminal):
    with console.Meter(1, CONFIG, quiet=False) as meter:
        meter.show(Progress([lane()], 0, 0, 0.125, 4.0))
    drawn = terminal.lines()
    assert any(d.startswith("0/40") and "compiling" in d for d in drawn)
    last = drawn[-1]
    assert last.startswith("7/40")
    said = "loss 0.2500, decrease 1.2e-02 (epsilon 5e-04), 0.12 s/it, sharpness 123"
    assert said in last


def test_one_photo_of_several_starts(terminal):
    config = CONFIG.replace(num_starts=4)
    with console.Meter(1, config, quiet=False) as meter:
        meter.show(Progress([lane()], 0, 1, 0.125, 65.0))
        meter.show(Progress([lane()], 0, 2, 0.125, 4.0))
    drawn = terminal.lines()
    told = [line for line in drawn if "Ctrl-C gives what is there" in line]
    assert len(told) == 1  # once, before the minutes that it takes
    assert "about 01:05 left" in told[0]
    assert drawn[-1].startswith("3/4")
    assert "loss 0.2500 after 7 iterations, about 00:04 left" in drawn[-1]


def test_the_clock_runs_between_two_reports(terminal, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_TICKS", 0.01)
    ticks = threading.Event()
    with console.Meter(1, CONFIG, quiet=False) as meter:
        monkeypatch.setattr(meter._bar, "refresh", lambda: ticks.set())
        assert ticks.wait(30)


def test_a_folder(terminal):
    with console.Meter(3, CONFIG, quiet=False) as meter:
        meter.show(Progress([lane(0), lane(1)], 0, 0, 0.125, 3725.0))
        meter.show(Progress([], 2, 0, 0.125, 0.0))
        meter.show(Progress([lane(2)], 2, 0, 0.125, 59.0))
        meter.show(Progress([], 3, 0, 0.125, 0.0))
    drawn = terminal.lines()
    assert any(
        d.startswith("0/3") and "2 lanes busy" in d and "1:02:05 left" in d
        for d in drawn
    )
    assert any(
        re.match(r"2/3 .* 1 lanes busy, \d+\.\d s/photo, about 00:59 left", d)
        for d in drawn
    )
    assert drawn[-1].startswith("3/3")


def test_a_line_goes_above_the_bar(terminal):
    with console.Meter(1, CONFIG, quiet=False) as meter:
        meter.show(Progress([lane()], 0, 0, 0.125, 4.0))
        console.write_line("a line")
    drawn = terminal.lines()
    assert "a line" in drawn
    assert drawn[drawn.index("a line") + 1].startswith("7/40")  # drawn again


def test_quiet_draws_nothing(terminal, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    with console.Meter(1, CONFIG, quiet=True) as meter:
        meter.show(Progress([lane()], 0, 0, 0.125, 4.0))
    assert terminal.getvalue() == ""


def test_lines_off_a_terminal_come_now_and_then(monkeypatch):
    clock = iter([0.0, 10.0, 31.0, 31.0, 45.0, 62.0, 62.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    monkeypatch.setattr(console, "sys", types.SimpleNamespace(stderr=stream))
    with console.Meter(1, CONFIG, quiet=False) as meter:
        for iteration in (1, 2, 3, 4):
            meter.show(Progress([lane(done=iteration + 1)], 0, 0, 0.125, 4.0))
    said = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in said] == [
        "3 of 40 iterations at most",
        "5 of 40 iterations at most",
    ]


def test_a_counter_tells_how_many_how_fast_and_how_long(capsys, monkeypatch):
    now = iter([0.0, 10.0, 10.0, 40.0, 40.0, 40.0, 40.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with console.Counter(100, quiet=False) as counter:
        counter.add(4, 1)  # 5 in 10 s; no line is due yet
        counter.add(14, 1)  # 20 in 40 s
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "20 of 100 photos: 2 failed, 0.5 photos/s, about 02:40 left"


def test_what_a_library_prints_is_kept_off_the_results(capsys):
    terminal = console.Terminal(json=True)
    with contextlib.redirect_stdout(io.StringIO()) as elsewhere:
        sys.stdout.write("a machine died\n")
        terminal.emit({"status": "ok"})
    assert capsys.readouterr().out == '{"status": "ok"}\n'
    assert elsewhere.getvalue() == "a machine died\n"
