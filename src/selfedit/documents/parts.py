"""Long documents in parts that can be learned and asked about one by one, and documents that say the same twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

from selfedit.documents.document import Document
from selfedit.documents.files import FENCE, markdown_heading
from selfedit.documents.rows import LONGEST_TITLE
from selfedit.documents.splitting import part_spans

_Headings = tuple[str, ...]  # those above a place, the outermost first


def document_parts(document: Document, size: int, *, length: Callable[[str], int] = len) -> list[Document]:
    """A document in parts of at most `size`, which `length` measures (characters, unless a token counter is given).

    Cuts fall before Markdown headings; neighbouring sections of one chapter share a part where they fit.  A longer
    section is cut as `part_spans` cuts.  A part's title is the document's with the headings above all of the part, so
    that it says what the part is about; its id has the part's number (`handbook.md#2`).  A document that fits, or has
    questions, which nobody could deal out to parts, comes back as it is.
    """

    def fits(text: str) -> bool:
        _, end = next(part_spans(text, size, length=length), (0, 0))
        return end >= len(text.rstrip())

    if document.questions or fits(document.text):
        return [document]
    parts: list[tuple[_Headings, str]] = []
    first = 0  # a part takes no heading above its first one, which would lose the headings that it is below
    open_part = False  # whether the last part takes further sections
    for headings, text in _sections(document.text):
        if open_part and len(headings) >= first and fits(parts[-1][1] + text):
            before, earlier = parts[-1]
            parts[-1] = (_shared(before, headings), earlier + text)
            continue
        first, open_part = len(headings), fits(text)
        if open_part:
            parts.append((headings, text))
        else:
            parts += ((headings, text[begin:end]) for begin, end in part_spans(text, size, length=length))
    return [
        Document(f"{document.id}#{number}", _title(document.title, headings), text.strip())
        for number, (headings, text) in enumerate(parts, 1)
    ]


def _sections(text: str) -> Iterator[tuple[_Headings, str]]:
    """The text cut before each of its headings, with the headings above; a section that is a heading alone goes with
    the next."""
    above: list[tuple[int, str]] = []
    lines: list[str] = []
    fenced = said = False
    for line in text.splitlines(keepends=True):
        heading = None if fenced else markdown_heading(line.rstrip())
        fenced ^= bool(FENCE.match(line))
        if heading:
            if said:
                yield tuple(title for _, title in above), "".join(lines)
                lines, said = [], False
            above = [*(one for one in above if one[0] < heading[0]), heading]
        lines.append(line)
        said |= not heading and bool(line.strip())
    yield tuple(title for _, title in above), "".join(lines)


def _shared(one: _Headings, other: _Headings) -> _Headings:
    return tuple(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _title(title: str, headings: _Headings) -> str:
    path = [title, *(heading for heading in headings if heading != title)]
    while len(path) > 1 and len(" / ".join(path)) > LONGEST_TITLE:
        path.pop()
    return " ".join(" / ".join(path).split())


def without_repeats(documents: Sequence[Document]) -> tuple[list[Document], list[str]]:
    """The documents without those whose text, but for case and white space, is an earlier one's, and a line that names
    each of these.  Documents with questions stay."""
    first: dict[str, str] = {}
    kept, lines = [], []
    for document in documents:
        same = first.setdefault(" ".join(document.text.casefold().split()), document.id)
        if same == document.id or document.questions:
            kept.append(document)
        else:
            lines.append(f"{document.id}: has the text of {same}, which is learned once")
    return kept, lines
