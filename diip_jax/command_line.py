"""What the commands `python -m diip_jax.NAME` share: flags, messages, the last resort.

No name of a file or flag reaches the terminal raw, and no traceback a user.
"""

import argparse
import os
import sys
from typing import NoReturn

from diip_jax.printable import printable

EXIT_UNEXPECTED, EXIT_MEMORY = 1, 6


class Help(
    argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter
):
    """Lines as they are written, and the defaults that there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or not action.option_strings:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that repeats no flag to the terminal as it was given."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the flags, and exit with 2."""
        super().error(printable(message))


def positive(text: str) -> int:
    """Read a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is smaller.
    """
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def say(text: str) -> None:
    """Write one line to stderr at once."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def fail(code: int, message: object) -> int:
    """Say an error; return the exit code, to be returned in turn."""
    say(f"error: {message}")
    return code


def unexpected(error: Exception, smaller: str) -> int:
    """Say in one line what nothing else caught, and return the exit code.

    Args:
        error: what was raised; raised again where DIIP_DEBUG is set.
        smaller: the remedy where a device has too little memory.
    """
    if os.environ.get("DIIP_DEBUG"):
        raise error
    first_line = (str(error).strip() or repr(error)).splitlines()[0]
    if "RESOURCE_EXHAUSTED" in first_line:
        return fail(EXIT_MEMORY, f"not enough memory; {smaller}")
    reason = f"{type(error).__name__}: {first_line}"
    return fail(EXIT_UNEXPECTED, f"{reason}; DIIP_DEBUG=1 shows the traceback")
