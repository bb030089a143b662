"""Splitting: documents into train, validation and test by title, and a long text into overlapping parts."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

from selfedit.documents.document import Document
from selfedit.errors import UserError
from selfedit.grouping import grouped


def _plain_title(document: Document) -> str:
    """Titles that differ in case or white space alone are one."""
    return " ".join(document.title.casefold().split())


def sharing_titles(documents: Sequence[Document], others: Sequence[Document]) -> list[Document]:
    """Those of `documents` whose title is among the others' titles."""
    titles = {_plain_title(other) for other in others}
    return [document for document in documents if _plain_title(document) in titles]


def split_by_title(
    documents: Sequence[Document], shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, list[Document]]:
    """Splits documents so that no title is in two splits; the split depends on ids, titles and seed, not on order.

    Every document goes somewhere; the shares, which sum to 1, are met as closely as titles allow.  Titles that differ
    in case or white space alone are one.  Raises UserError where there are fewer titles than splits.
    """
    by_title = grouped((_plain_title(document), document.id) for document in documents)
    if len(by_title) < len(shares):
        raise UserError(
            f"{len(documents)} documents have {len(by_title)} titles, too few for the {len(shares)} splits"
            f" {', '.join(shares)} with no title on two sides; load more"
        )
    titles = sorted(by_title)
    random.Random(seed).shuffle(titles)
    chosen: dict[str, set[str]] = {}
    for name in reversed(list(shares)):  # a title for each split, of no more documents than it is to have
        fitting = (title for title in titles if len(by_title[title]) <= shares[name] * len(documents))
        first = next(fitting, None) or min(titles, key=lambda title: len(by_title[title]))
        titles.remove(first)
        chosen[name] = set(by_title[first])
    for title in titles:  # then each title to where most is missing
        name = max(shares, key=lambda name: shares[name] * len(documents) - len(chosen[name]))
        chosen[name].update(by_title[title])
    return {name: [document for document in documents if document.id in chosen[name]] for name in shares}


_SPACE = re.compile(r"\s*")
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n\s*")
_SENTENCE = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？]")
# Where a text may be cut, best first: after a paragraph, a line, a sentence, a word.
_BOUNDARIES = (_PARAGRAPH, re.compile(r"\n\s*"), _SENTENCE, re.compile(r"\s+"))


def part_spans(
    text: str, size: int, *, overlap: int = 0, length: Callable[[str], int] = len
) -> Iterator[tuple[int, int]]:
    """Where the parts of a text begin and end: each at most `size`, and beginning with up to `overlap` of the part
    before it, but for white space around it.

    `length` measures a string: characters unless a token counter is given.  Cuts fall after paragraphs, else lines,
    sentences, words, and inside a word only where one is longer than a part; a part is filled at least half before a
    better place to cut is preferred to a later one.  Nothing but white space is lost; each part holds some text that
    none before it holds.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"overlap must be at least 0 and below size, got overlap {overlap} and size {size}")

    def measure(begin: int, end: int) -> int:
        return length(text[begin:end].strip())

    stop = len(text.rstrip())
    begin = covered = _after_space(text, 0)
    guess = size
    while covered < stop:
        limit = _reach(partial(measure, begin), size, begin, stop, guess)
        end = stop if limit == stop else _cut(text, begin, covered, limit)
        if end <= covered and begin < covered:
            begin = covered  # the overlap leaves no room for the next word: this part begins without one
            continue
        if end <= covered or measure(begin, end) > size:
            end = limit
        if end <= covered:
            raise ValueError(f"a single character is longer than size {size}")
        yield begin, end
        guess, covered = end - begin, _after_space(text, end)
        if overlap:
            end = _overlap_begin(text, begin, end, partial(measure, end=end), overlap)
        begin = _after_space(text, end)


def sentences(text: str) -> list[str]:
    """The sentences of a text's paragraphs, as far as their ends show, on one line each."""
    found = []
    for paragraph in _PARAGRAPH.split(text):
        ends = [match.end() for match in _SENTENCE.finditer(paragraph)]
        found += [" ".join(paragraph[begin:end].split()) for begin, end in pairwise([0, *ends, len(paragraph)])]
    return [sentence for sentence in found if sentence]


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _reach(measure: Callable[[int], int], limit: int, begin: int, stop: int, guess: int) -> int:
    """The furthest end in (begin, stop] up to which the text measures at most `limit`, or begin.

    Tries `guess` characters first and goes on by interpolation, for measuring is what takes the time: neither a long
    text is measured whole nor one with much white space in many steps.
    """
    low, low_length = begin, 0
    high, high_length = stop + 1, 0  # 0 until an end is found that is too far
    end, margin, halve = begin + max(1, guess), 1, False
    while high - low > 1:
        end = min(max(end, low + 1), high - 1)
        found, width = measure(end), high - low
        if found <= limit:
            low, low_length = end, found
        else:
            high, high_length = end, found
        # Just beyond the limit after an end that fits, just within it after one that does not: so both sides close in.
        aim = limit + (found <= limit) - low_length
        if not high_length:
            end = low + min(low - begin, (low - begin) * aim // max(1, low_length)) + margin
            margin *= 2
        elif halve := (not halve and 2 * (high - low) > width) or high - low < 8:
            end = (low + high) // 2
        else:
            end = low + (high - low) * aim // (high_length - low_length)
    return low


def _cut(text: str, begin: int, covered: int, limit: int) -> int:
    """The best place to cut in (max(begin, covered), limit]; 0 where there is none."""
    floor = max(begin, covered)
    middle = max(floor, begin + (limit - begin) // 2)
    for boundary, lowest in [*((boundary, middle) for boundary in _BOUNDARIES), (_BOUNDARIES[-1], floor)]:
        # White space just beyond the limit belongs to no part, so a boundary may touch it.
        ends = [match.end() for match in boundary.finditer(text, lowest, limit + 1) if match.start() > lowest]
        if ends:
            return min(ends[-1], limit)
    return 0


def _overlap_begin(text: str, begin: int, end: int, measure: Callable[[int], int], limit: int) -> int:
    """Where the next part begins: the earliest start of a sentence, else of a word, in (begin, end] that fits."""
    for boundary in _BOUNDARIES[2:]:
        starts = [match.end() for match in boundary.finditer(text, begin, end) if begin < match.end() < end]
        first = bisect_left(starts, -limit, key=lambda start: -measure(start))  # later starts give shorter overlaps
        if first < len(starts):
            return starts[first]
    return end
