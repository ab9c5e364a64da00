"""Every method on every picture of every task."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


def silent(items: Iterable[Any], what: str) -> Iterable[Any]:
    """Return the items; the progress that nobody sees.

    Args:
        items: what is gone through.
        what: what is done with them.
    """
    return items


class Options(NamedTuple):
    """How tables and figures are to be made.

    Attributes:
        command: as it was typed, for the head of each table.
        seeds: of noise and starts; each is a run of its own.
        quick: with the reduced settings that fit in minutes.
        progress: goes through items, as `tqdm` does, and may show how far it is:
            `for image in options.progress(images, "table 1")`.
    """

    command: str = ""
    seeds: tuple[int, ...] = (0,)
    quick: bool = False
    progress: Callable[[Iterable[Any], str], Iterable[Any]] = silent
