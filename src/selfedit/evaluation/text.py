"""Normalised tokens, in the manner of SQuAD's evaluation script: what graders compare.

Beyond SQuAD's rule (lower case, no punctuation, no articles) it drops accents and unifies numbers where that is safe:
`1,200` and `1200`, `three` and `3`, `twenty-one` and `21`, `eleventh` and `11th`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINAL_UNITS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth"
).split()
_ORDINAL_TENS = "twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth".split()


def _ordinal(number: int) -> str:
    if 10 <= number % 100 <= 20:
        return f"{number}th"
    return f"{number}" + {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _number_words() -> dict[str, str]:
    """Units, tens, tens followed by a unit, and their ordinals, as digits.  `hundred` and above stay words."""
    found = {word: str(value) for value, word in enumerate(_UNITS)}
    found |= {word: _ordinal(value) for value, word in enumerate(_ORDINAL_UNITS, start=1)}
    for value, (tens, ordinal_tens) in enumerate(zip(_TENS, _ORDINAL_TENS, strict=True), start=2):
        found |= {tens: str(10 * value), ordinal_tens: _ordinal(10 * value)}
        for unit in range(1, 10):
            found[f"{tens} {_UNITS[unit]}"] = str(10 * value + unit)
            found[f"{tens} {_ORDINAL_UNITS[unit - 1]}"] = _ordinal(10 * value + unit)
    return found


_NUMBERS = _number_words()

# A number with thousands separators or decimals is one token; letters and digits that touch (`11th`, `1990s`) stay
# together. Scripts without blanks between words (kana, Chinese characters, Thai) are taken character by character.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_TOKEN = re.compile(rf"\d+(?:\.\d+)+|[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ACCENTS = re.compile("[\u0300-\u036f]")
_APOSTROPHE = re.compile(r"['’ʼ`´]")
_POSSESSIVE = re.compile(r"['’](?=s\b)")
_DOTTED = re.compile(r"\b(?:[^\W\d_]\.){2,}")  # U.S., p.m.
_CURRENCY = re.compile(r"[$€£¥%]")
_NUMERIC = re.compile(r"\d+(?:\.\d+)*(?:st|nd|rd|th|s)?")
_WORD_BREAKS = re.compile(r"[_\-‐‑–—/]")


def _fold(text: str) -> str:
    """Lower case without accents; compatibility forms (full-width digits, ligatures) made plain."""
    decomposed = unicodedata.normalize("NFKD", text.casefold()).replace("ı", "i")  # its capital is I
    # Only the Latin, Greek and Cyrillic accents: other scripts' marks (vowel signs, voicing) make other words.
    return unicodedata.normalize("NFC", _ACCENTS.sub("", decomposed)).casefold()


def _unify_numbers(tokens: Sequence[str]) -> list[str]:
    """Number words to digits."""
    out: list[str] = []
    place = 0
    while place < len(tokens):
        two = " ".join(tokens[place : place + 2])
        word = two if two in _NUMBERS else tokens[place]
        place += 1 + word.count(" ")
        if word.isdecimal() and len(word) < 300:
            word = str(int(word))  # also other scripts' digits; leading zeros carry no meaning in a quantity or a date
        out.append(_NUMBERS.get(word, word))
    return out


def tokens(text: str) -> list[str]:
    """The normalised tokens of `text`; empty where it is nothing but punctuation.  Articles stay where there is nothing
    else."""
    folded = _fold(text)
    folded = _THOUSANDS.sub("", folded)
    folded = _POSSESSIVE.sub(" ", folded)
    folded = _APOSTROPHE.sub("", folded)
    folded = _DOTTED.sub(lambda m: m.group().replace(".", ""), folded)
    folded = _CURRENCY.sub(" ", folded)
    folded = _WORD_BREAKS.sub(" ", folded)
    words = _unify_numbers(_TOKEN.findall(folded))
    return [w for w in words if w not in _ARTICLES and w != "s"] or words


def is_number(token: str) -> bool:
    """Whether a normalised token is a quantity, a year, a decade or an ordinal (`21`, `3.5`, `1990s`, `11th`)."""
    return _NUMERIC.fullmatch(token) is not None


def contains(haystack: Sequence[str], needle: Sequence[str]) -> bool:
    """Whether the tokens of `needle` occur in `haystack` side by side and in order.  An empty needle occurs nowhere."""
    n = len(needle)
    return n > 0 and any(list(haystack[i : i + n]) == list(needle) for i in range(len(haystack) - n + 1))


# Where a model has answered and then goes on inventing: a new question, or a line of somebody's system prompt.
_RUN_ON = re.compile(
    r"\n\s*(?:q(?:uestion)?\s*\d*\s*[:.]|topic\s*:|passage\s*:|context\s*:|you are an? (?:ai|helpful)\b)", re.IGNORECASE
)
_LEAD = re.compile(r"^\s*(?:(?:the\s+)?answer\s*(?:is)?\s*:|a\s*:)\s*", re.IGNORECASE)


def first_answer(answer: str) -> str:
    """The answer without a leading `Answer:` and without what a model writes after it has finished (a new question)."""
    cut = _RUN_ON.split(answer.strip(), maxsplit=1)[0]
    return _LEAD.sub("", cut).strip()
