"""Text of others on a terminal: a name can neither move the cursor nor fill the screen.

Names of tensors, files and flags are whatever somebody wrote.
"""

MOST_LETTERS = 2000  # of a message: twenty names and what is wrong with them


def printable(text: str) -> str:
    """Return one line of printable characters, cut in its middle if it is long."""
    text = "".join(map(_escaped, text))
    if len(text) <= MOST_LETTERS:
        return text
    end = MOST_LETTERS // 4  # where the remedy stands
    return f"{text[: MOST_LETTERS - end]} [...] {text[-end:]}"


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
