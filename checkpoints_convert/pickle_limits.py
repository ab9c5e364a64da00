"""What a pickle may ask for, judged from its opcodes before any of them is obeyed.

A few bytes of a pickle can stand for a structure without end: a tuple of two times the
same tuple, forty deep, or a list inside itself. So the opcodes are played through with
sizes in place of objects.
"""

import dataclasses
import io
import pickletools
from collections.abc import Iterator
from typing import IO, Any

from checkpoints_convert.tensors import ConversionError

# A checkpoint of 600 tensors needs 0.1 MB, 2e4 opcodes and less than 20 levels.
MOST_BYTES = 16 << 20
MOST_OPCODES = 1_000_000
MOST_DEPTH = 100
MOST_VALUES = 50_000_000  # with shared ones as often as they appear; letters count too

_GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_UNUSED = ("DUP", "POP", "POP_MARK")  # but for a tuple that holds itself
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")


@dataclasses.dataclass(eq=False, slots=True)
class _Object:
    """What is known of an object that the pickle would build.

    Attributes:
        size: number of values in it, and letters of its text.
        depth: number of containers around the innermost value.
        used: something else holds it, so that it must not grow any more.
    """

    size: int = 1
    depth: int = 0
    used: bool = False


def read(stream: IO[bytes]) -> IO[bytes]:
    """Return the next pickle of a stream, which asks for no more than the limits.

    The stream is then at the end of the pickle.

    Raises:
        ConversionError: a limit is passed; the message says which, not of what file.
        ValueError: it is no pickle.
    """
    start = stream.tell()
    beginning = io.BytesIO(stream.read(MOST_BYTES))
    is_whole = beginning.getbuffer().nbytes < MOST_BYTES
    try:
        _check(beginning)
    except ConversionError:
        raise
    except ValueError as error:
        if is_whole:
            raise
        raise ConversionError(
            f"its pickle is longer than {MOST_BYTES} bytes"
        ) from error
    end = beginning.tell()
    stream.seek(start + end)
    return io.BytesIO(beginning.getbuffer()[:end])


def _check(pickle: IO[bytes]) -> None:
    """Play a pickle through, up to its end."""
    stack: list[_Object | None] = []  # None: a mark
    memo: dict[int, _Object] = {}
    values = 0
    for opcode, argument in _opcodes(pickle):
        if opcode.name == "MARK":
            stack.append(None)
        elif opcode.name in _MEMO:
            index = len(memo) if opcode.name == "MEMOIZE" else argument
            if index > MOST_OPCODES:
                raise ConversionError(f"its pickle numbers an object {index}")
            memo[index] = _value(stack[-1:])
        elif "GET" in opcode.name:
            stack.append(memo[int(argument)])
        else:
            operands = _operands(stack, opcode.stack_before)
            found = operands.pop(0) if opcode.name in _GROWING else _Object()
            values += 1 + _hold(found, operands, argument)
            if values > MOST_VALUES:
                raise ConversionError(
                    f"its pickle stands for more than {MOST_VALUES} values"
                )
            stack += [found] * len(opcode.stack_after)


def _opcodes(pickle: IO[bytes]) -> Iterator[tuple[Any, Any]]:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
        if count == MOST_OPCODES:
            raise ConversionError(f"its pickle has more than {MOST_OPCODES} opcodes")
        if opcode.name in _UNUSED:
            raise ValueError(f"its pickle has a {opcode.name}")
        yield opcode, argument


def _hold(container: _Object, parts: list[_Object], argument: Any) -> int:
    """Put parts, and the text that an opcode brings, into a container.

    Returns:
        By how much the container grew.
    """
    for part in parts:
        part.used = True
    if container.used:
        raise ConversionError(
            "its pickle fills a container that already is in another one"
        )
    text = len(argument) if isinstance(argument, str | bytes | bytearray) else 0
    grown = text + sum(part.size for part in parts)
    container.size += grown
    container.depth = max([container.depth, *(part.depth + 1 for part in parts)])
    if container.depth > MOST_DEPTH:
        raise ConversionError(
            f"its pickle nests containers more than {MOST_DEPTH} deep"
        )
    return grown


def _operands(stack: list[_Object | None], before: list[Any]) -> list[_Object]:
    """Take from the stack what an opcode works on, all above its mark included."""
    above: list[_Object] = []
    if pickletools.markobject in before:
        while stack and (top := stack.pop()) is not None:
            above.append(top)
        before = before[: before.index(pickletools.markobject)]
    fixed = [_value([stack.pop()] if stack else []) for _ in before]
    return [*fixed[::-1], *above[::-1]]


def _value(found: list[_Object | None]) -> _Object:
    if not found or found[0] is None:
        raise ValueError("its pickle takes a value where there is none")
    return found[0]
