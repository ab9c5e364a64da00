"""What the commands of the package share."""

import pytest

from diip_jax import command_line


def test_a_message_is_one_line_without_control_characters(capsys):
    assert command_line.fail(4, "no a\nb\x1b[31m") == 4
    assert capsys.readouterr().err == "error: no a\\nb\\x1b[31m\n"


def test_flags_are_repeated_without_control_characters(capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.Parser("name").parse_args(["--\x1b[31m"])
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("first\nsecond"), 1, "ValueError: first; DIIP_DEBUG=1"),
        (KeyError(), 1, "KeyError: KeyError(); DIIP_DEBUG=1"),
        (RuntimeError("RESOURCE_EXHAUSTED: x"), 6, "not enough memory; take less"),
    ],
)
def test_what_nothing_else_caught_is_one_line(error, code, text, capsys, monkeypatch):
    monkeypatch.delenv("DIIP_DEBUG", raising=False)
    assert command_line.unexpected(error, "take less") == code
    told = capsys.readouterr().err
    assert told.startswith(f"error: {text}")
    assert told.count("\n") == 1
    monkeypatch.setenv("DIIP_DEBUG", "1")
    with pytest.raises(type(error)):
        command_line.unexpected(error, "take less")
