"""What a command says: messages, the bar, JSON, and how it hears Ctrl-C.

Pictures and JSON go to standard output, all else to standard error.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from diip_jax.config import DIIPConfig
from diip_jax.images import ImageError
from diip_jax.photos import record
from diip_jax.photos.run import Outcome, Progress

SECONDS_BETWEEN_LINES = 30
SECONDS_BETWEEN_TICKS = 1
WORTH_TELLING = 20  # seconds
EXIT_INTERRUPTED = 130
REASONS = {
    "high_frequency": "stopped before the noise came in",
    "low_frequency": "stopped before the sharpness was lost",
    "max_iterations": "reached the budget of iterations",
    "diverged": "diverged",
    "interrupted": "interrupted",
}
WARNINGS = {
    "interrupted": "this is the restoration as it stood",
    "no_stop": "no criterion fired; --max_iterations ended the run",
    "diverged": "the loss is not finite; try a smaller --learning_rate",
    "no_peak": "no sharpness peak was seen; the sharpest late iterate was taken",
    "scaled_down": "the photo was scaled down to the prior's size and up again; "
    "--size_mode tile keeps its detail",
    "colour_shift": "the mean colour moved by more than 2 %",
    "tiled_for_memory": "the device had too little memory; smaller tiles were taken",
    "nothing_found": "found nothing to restore; the picture is almost as it was",
}


def write_line(text: str) -> None:
    """Write a line to stderr, above the bar that may be there.

    What cannot be said, as on a full disk, is no reason to end the work.
    """
    try:
        with tqdm.external_write_mode(file=sys.stderr):
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let what is still written to a stream vanish without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Terminal:
    """What one command says, as its flags ask for it."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        json: bool = False,
        progress: bool = True,
        failure_code: int = 1,
    ):
        """Note what is wanted.

        Args:
            quiet: errors alone are said.
            verbose: details are said too.
            json: a JSON object per photo goes to standard output.
            progress: a bar shows how far a run is, or a line now and then.
            failure_code: what the JSON of a photo that failed gives as exit code.
        """
        self.quiet, self.verbose, self.json = quiet, verbose, json
        self.lost_output = False  # standard output did not take what it was given
        self._progress, self._failure_code = progress and not quiet, failure_code
        self._stdout = sys.stdout  # results alone; a library may be redirected from it

    def say(self, text: str) -> None:
        """Say something that --quiet keeps silent."""
        if not self.quiet:
            write_line(text)

    def detail(self, text: str) -> None:
        """Say something that --verbose asks for."""
        if self.verbose:
            self.say(text)

    def fail(self, photo: Path, reason: str) -> None:
        """Tell that a photo failed."""
        write_line(f"error: {' '.join(reason.splitlines())}")
        self.emit(record.failure(photo, reason, self._failure_code))

    def emit(self, content: Mapping[str, Any]) -> None:
        """Print a JSON object if that was asked for."""
        if self.json:
            self._print(json.dumps(content, allow_nan=False))

    def give(self, text: str, content: Mapping[str, Any]) -> None:
        """Give a result on standard output: a line of text, or a JSON object."""
        if self.json:
            self.emit(content)
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        """Print a line on standard output.

        A reader that went away does not end the run: the files are what it is for. No
        more does a full disk, but it is told, once.
        """
        try:
            self._stdout.write(f"{text}\n")
            self._stdout.flush()
        except BrokenPipeError:
            _discard(self._stdout)
        except OSError as error:
            _discard(self._stdout)
            self.lost_output = True
            write_line(f"error: {_unprinted(error)}")

    def announce(self, outcome: Outcome) -> None:
        """Tell of a photo that is done: its picture, its JSON, and a few lines.

        Raises:
            ImageError: standard output does not take the picture.
        """
        if outcome.record is None:
            self.fail(outcome.task.source.path, str(outcome.error))
            return
        if outcome.data is not None:
            _print_picture(outcome.data)
        self.emit(outcome.record)
        name = outcome.record["output"]["path"]
        self.say(f"{name}: {_summary(outcome.record)}")
        timing = outcome.record["timing"].items()
        times = ", ".join(f"{key} {_number(value, 3)}" for key, value in timing)
        self.detail(f"{name}: {times}")
        for code in outcome.record["warnings"]:
            self.say(f"{name}: warning: {WARNINGS.get(code, code)}")
        if outcome.task.reference is not None:
            for line in _scores(outcome.record["metrics"]):
                self.say(line)

    def meter(self, num_photos: int, config: DIIPConfig) -> "Meter":
        """Return what shows how far a run over so many photos is."""
        pause = 0 if self.verbose else SECONDS_BETWEEN_LINES
        return Meter(
            num_photos, config, quiet=not self._progress, seconds_between_lines=pause
        )

    def counter(self, num_photos: int) -> "Counter":
        """Return what shows how many photos are done, where others restore them."""
        return Counter(num_photos, quiet=not self._progress)


class Counter:
    """Photos done, failed, per second, and the time left: a bar, or a line."""

    def __init__(self, num_photos: int, *, quiet: bool):
        """Start to count.

        Args:
            num_photos: how many there are.
            quiet: show nothing at all.
        """
        self._total, self._quiet = num_photos, quiet
        self._done = self._failed = 0
        self._began = time.monotonic()
        self._due = self._began + SECONDS_BETWEEN_LINES
        self._bar = tqdm(
            total=num_photos,
            disable=quiet or not sys.stderr.isatty(),
            file=sys.stderr,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} |{bar:6}| {elapsed}{postfix}",
        )

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, done: int, failed: int) -> None:
        """Count photos that were restored, or could not be; show it if it is time."""
        self._done, self._failed = self._done + done, self._failed + failed
        self._bar.set_postfix_str(self.text(), refresh=False)
        self._bar.update(done + failed)
        if self._bar.disable and not self._quiet and time.monotonic() >= self._due:
            self._due = time.monotonic() + SECONDS_BETWEEN_LINES
            over = self._done + self._failed
            write_line(f"{over} of {self._total} photos: {self.text()}")

    def text(self) -> str:
        """Return failures, photos per second, and the time left at that pace."""
        over = self._done + self._failed
        pace = over / max(time.monotonic() - self._began, 1e-9)
        left = tqdm.format_interval((self._total - over) / pace) if over else "?"
        return f"{self._failed} failed, {pace:.3g} photos/s, about {left} left"


def _print_picture(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(sys.stdout)
        raise ImageError(_unprinted(error)) from error


def _unprinted(error: OSError) -> str:
    return f"cannot write to standard output: {error.strerror or error}"


def _summary(content: Mapping[str, Any]) -> str:
    stop, seconds, work = content["stop"], content["timing"]["total_s"], content["work"]
    if content["found"]["damage"] is None and work["num_starts"] == 1:
        return (
            f"{REASONS[stop['reason']]}, after {stop['at'] + 1} iterations; the "
            f"picture is that of iteration {stop['returned']}; {seconds:.1f} s"
        )
    damage, most = content["found"]["damage"], max(work["iterations"])
    found = "" if damage is None else f"damage of {100 * damage:.1f} % of the range; "
    how = f"with up to {most} iterations each" if most else "without an iteration"
    interrupted = "interrupted; " if content["status"] == "interrupted" else ""
    return (
        f"{found}mean of {work['num_starts']} start(s) {how}; {interrupted}"
        f"{seconds:.1f} s"
    )


def _scores(scores: Mapping[str, Any]) -> list[str]:
    (lpips,) = (n for n in scores if n.startswith("lpips_") and n.endswith("_before"))
    lpips = lpips.removesuffix("_before")
    missing = scores["lpips_missing"] or ""
    return [
        f"PSNR {_change(scores, 'psnr', 2)} dB, SSIM {_change(scores, 'ssim', 3)} "
        f"({scores['convention']})",
        f"LPIPS ({lpips.removeprefix('lpips_')}) {_change(scores, lpips, 3)} "
        f"{missing}".rstrip(),
        f"oracle stop: {_number(scores['oracle_psnr'], 2)} dB at iteration "
        f"{_number(scores['oracle_iteration'], 0)}",
    ]


def _change(scores: Mapping[str, Any], name: str, digits: int) -> str:
    before, after = scores[f"{name}_before"], scores[name]
    return f"{_number(before, digits)} -> {_number(after, digits)}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


class Meter:
    """One progress bar on a terminal, a line now and then elsewhere."""

    def __init__(
        self,
        num_photos: int,
        config: DIIPConfig,
        *,
        quiet: bool,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
    ):
        """Start to measure.

        Args:
            num_photos: photos to restore; a single one is measured in iterations.
            config: the settings.
            quiet: show nothing at all.
            seconds_between_lines: where there is no terminal to draw a bar on.
        """
        self._many, self._config, self._quiet = num_photos > 1, config, quiet
        self._began, self._pause = time.monotonic(), seconds_between_lines
        self._due = self._began + self._pause
        self._by_start = config.num_starts > 1
        self._total = num_photos if self._many else config.max_iterations
        if self._by_start and not self._many:
            self._total = config.num_starts
        self._told = False  # how long it takes
        self._bar = tqdm(
            total=self._total,
            disable=quiet or not sys.stderr.isatty(),
            file=sys.stderr,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} |{bar:6}| {elapsed}{postfix}",
        )
        self._bar.set_postfix_str("compiling")
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Meter":
        if not self._bar.disable:
            self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._clock.is_alive():
            self._clock.join()
        self._bar.close()

    def _tick(self) -> None:
        """Let the bar's clock run: one evaluation of a large photo takes a while."""
        while not self._over.wait(SECONDS_BETWEEN_TICKS):
            self._bar.refresh()

    def show(self, progress: Progress) -> None:
        """Tell where a run stands."""
        if self._many:
            self._bar.n = progress.num_done
        if not progress.lanes:
            self._bar.refresh()
            return
        if not self._told and not self._quiet and progress.left > WORTH_TELLING:
            left = tqdm.format_interval(progress.left)
            write_line(f"about {left} left; Ctrl-C gives what is there")
        self._told = True
        text = self._of_folder(progress) if self._many else self._of_photo(progress)
        if not self._many:
            starts = progress.starts_done + len(progress.lanes)
            iterations = progress.lanes[0].num_iterations
            self._bar.n = starts if self._by_start else iterations
        if not self._bar.disable:
            self._bar.set_postfix_str(text)
        elif not self._quiet and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._pause
            alone = "starts" if self._by_start else "iterations at most"
            unit = "photos" if self._many else alone
            write_line(f"{self._bar.n} of {self._total} {unit}: {text}")

    def _of_photo(self, progress: Progress) -> str:
        lane = progress.lanes[0]
        if self._by_start:
            left = tqdm.format_interval(progress.left)
            return (
                f"loss {lane.loss:.4f} after {lane.num_iterations} iterations, about "
                f"{left} left"
            )
        return (
            f"loss {lane.loss:.4f}, decrease {lane.decrease:.1e} (epsilon "
            f"{self._config.epsilon:.0e}), {progress.seconds_per_iteration:.2g} s/it, "
            f"sharpness {lane.sharpness:.3g}"
        )

    def _of_folder(self, progress: Progress) -> str:
        elapsed = time.monotonic() - self._began
        pace = f"{elapsed / progress.num_done:.1f}" if progress.num_done else "?"
        return (
            f"{len(progress.lanes)} lanes busy, {pace} s/photo, about "
            f"{tqdm.format_interval(progress.left)} left"
        )


class Stopper:
    """Note the first Ctrl-C (or SIGTERM); at the second one, leave at once.

    Python runs a signal's handler when the main thread comes back to it, and while it
    compiles or waits for the device that may take a minute. So signals are also passed
    to a thread, which counts them. Leaving without clean-up is safe: files are written
    under another name and then renamed.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, *, quiet: bool = False):
        """Prepare to listen; `quiet` says nothing at the first signal."""
        self._count, self._quiet = 0, quiet
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "Stopper":
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._undo.callback(theirs.close)  # ends the thread
        wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, wakeup)
        for number in self.SIGNALS:
            handler = signal.signal(number, lambda *_: None)
            self._undo.callback(signal.signal, number, handler)
        threading.Thread(target=self._listen, args=(ours,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def asked(self) -> bool:
        """Tell whether the run is to end after this chunk."""
        return self._count > 0

    def _listen(self, ours: socket.socket) -> None:
        with ours:
            while number := ours.recv(1):
                if number[0] in self.SIGNALS:
                    self._hear()

    def _hear(self) -> None:
        self._count += 1
        if self._count == 1 and not self._quiet:
            write_line("stopping after this chunk; press Ctrl-C again to stop at once")
        elif self._count > 1:
            with contextlib.suppress(OSError):
                sys.stderr.write("error: stopped; nothing more was written\n")
                sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)
