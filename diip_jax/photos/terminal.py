"""What a command says on a terminal, and how it hears Ctrl-C."""

import os
import signal
import socket
import sys
import threading
import time

from tqdm import tqdm

from diip_jax.config import DIIPConfig
from diip_jax.photos.run import Progress

SECONDS_BETWEEN_LINES = 30
EXIT_INTERRUPTED = 130


def say(text: str) -> None:
    """Write a line to stderr, above the bar that may be there."""
    with tqdm.external_write_mode(file=sys.stderr):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


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
        self._total = num_photos if self._many else config.max_iterations
        self._bar = tqdm(
            total=self._total,
            disable=quiet or not sys.stderr.isatty(),
            file=sys.stderr,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} |{bar:6}| {elapsed}{postfix}",
        )
        self._bar.set_postfix_str("compiling")

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, progress: Progress) -> None:
        """Tell where a run stands."""
        if self._many:
            self._bar.n = progress.num_done
        if not progress.lanes:
            self._bar.refresh()
            return
        text = self._of_folder(progress) if self._many else self._of_photo(progress)
        if not self._many:
            self._bar.n = progress.lanes[0].iteration + 1
        if not self._bar.disable:
            self._bar.set_postfix_str(text)
        elif not self._quiet and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._pause
            unit = "photos" if self._many else "iterations at most"
            say(f"{self._bar.n} of {self._total} {unit}: {text}")

    def _of_photo(self, progress: Progress) -> str:
        lane = progress.lanes[0]
        return (
            f"loss {lane.loss:.4f}, decrease {lane.decrease:.1e} (epsilon "
            f"{self._config.epsilon:.0e}), {progress.seconds_per_iteration:.2g} s/it, "
            f"sharpness {lane.sharpness:.3g}"
        )

    def _of_folder(self, progress: Progress) -> str:
        elapsed = time.monotonic() - self._began
        pace = f"{elapsed / progress.num_done:.1f}" if progress.num_done else "?"
        return (
            f"{len(progress.lanes)} lanes busy, {pace} s/photo, at most "
            f"{tqdm.format_interval(progress.bound)} left"
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

    def __enter__(self) -> "Stopper":
        self._ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._theirs = theirs
        self._wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._before = [signal.signal(s, lambda *_: None) for s in self.SIGNALS]
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self.SIGNALS, self._before, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._theirs.close()  # ends the thread

    def asked(self) -> bool:
        """Tell whether the run is to end after this chunk."""
        return self._count > 0

    def _listen(self) -> None:
        with self._ours:
            while number := self._ours.recv(1):
                if number[0] in self.SIGNALS:
                    self._hear()

    def _hear(self) -> None:
        self._count += 1
        if self._count == 1 and not self._quiet:
            say("stopping after this chunk; press Ctrl-C again to stop at once")
        elif self._count > 1:
            sys.stderr.write("error: stopped; nothing more was written\n")
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)
