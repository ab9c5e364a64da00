"""A file system that is full soon, where this machine lets a test mount one."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, num_kilobytes: int) -> Iterator[Path]:
    """Mount so small a disk on a folder; skip the test where that is not allowed."""
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    options = ["-t", "tmpfs", "-o", f"size={num_kilobytes}k"]
    done = subprocess.run(
        ["mount", *options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
