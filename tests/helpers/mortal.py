"""Processes that die or fail at a chosen file operation, played inside this one.

Python announces what it does to files as audit events. A hook counts those in some
folders that change something, and raises at the chosen one. After a kill every later
one raises too: a dead process cleans nothing up.
"""

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


class Killed(BaseException):
    """The process is dead."""


class Fate:
    """What is to happen, and whether it has."""

    def __init__(self, folders: Collection[Path], survived: int, kill: bool):
        """Let `survived` operations in these folders pass; then fail one, or kill."""
        self._folders = {str(folder) for folder in folders}
        self._left, self._kill, self._lock = survived, kill, threading.Lock()
        self.struck = False

    def meet(self, event: str, arguments: tuple) -> None:
        """Count an audit event and raise if it is the chosen one."""
        if not self._counts(event, arguments):
            return
        with self._lock:
            self._left -= 1
            strikes = self._left < 0 and (self._kill or not self.struck)
            self.struck |= strikes
        if strikes and self._kill:
            raise Killed
        if strikes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])

    def _counts(self, event: str, arguments: tuple) -> bool:
        if event == "open":
            changes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            changes = event in CHANGES
        return bool(changes) and os.path.dirname(arguments[0]) in self._folders


_fates: list[Fate] = []
_installed: list[bool] = []


def _hook(event: str, arguments: tuple) -> None:
    for fate in _fates:
        fate.meet(event, arguments)


@contextlib.contextmanager
def fate(folders: Collection[Path], survived: int, *, kill: bool) -> Iterator[Fate]:
    """Fail or kill what runs in the context, after so many changes to files."""
    if not _installed:  # an audit hook stays for ever
        sys.addaudithook(_hook)
        _installed.append(True)
    chosen = Fate(folders, survived, kill)
    _fates.append(chosen)
    try:
        yield chosen
    except (Exception, Killed):
        if not chosen.struck:
            raise
    finally:
        _fates.remove(chosen)
