"""Other people's text made fit to print: ids, titles, file names, answers, replies of servers, messages that quote
them.

Such text can hold escape sequences that steer a terminal, characters that reverse what follows, and ten thousand
characters where a line is expected.  Everything that the package prints for people goes through one of these functions
where it is printed."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

LONGEST_LINE = 1000
"""Characters: more than any message of our own, a few lines of a terminal."""


def printable(text: object, *, keep: str = "\n\t") -> str:
    """`text` without control and formatting characters, but for those in `keep`; line breaks and tabs become spaces.

    What cannot be encoded (half a character, a byte of a file name that is not UTF-8) becomes
    "\N{REPLACEMENT CHARACTER}"."""
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character in keep else _PRINTED.get(_kind(character), character) for character in text)


def one_line(text: object, longest: int = LONGEST_LINE) -> str:
    """`text` on one line of at most `longest` characters; of a longer one the beginning and the end are kept."""
    text = str(text)
    if len(text) > 2 * longest:
        text = f"{text[:longest]}…{text[-longest:]}"
    line = printable(text, keep="")
    if len(line) > longest:
        half = longest // 2
        line = f"{line[: half - 2]} … {line[len(line) - half + 1 :]}"
    return line


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and what it counts: "1 question", "2,000 questions"; `many` where the plural is another."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


# By category: controls, formatting (zero width, direction), surrogates, separators of lines and paragraphs.
_PRINTED = {"Cc": "", "Cf": "", "Cs": "\N{REPLACEMENT CHARACTER}", "Zl": " ", "Zp": " ", "break": " "}


def _kind(character: str) -> str:
    return "break" if character in "\n\r\t\v\f\x85" else unicodedata.category(character)
