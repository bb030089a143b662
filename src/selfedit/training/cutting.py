"""Cuts an edit and its document into training sequences.

Texts are cut here and become token ids in `tokens`; where a length matters, the caller passes a counter of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from selfedit.documents import Document, part_spans
from selfedit.training.objectives import OBJECTIVES, Notes, TrainingSequence
from selfedit.training.recipes import Recipe
from selfedit.training.seal import seal_texts

_FORM = 48  # tokens that a chat template may put around a text
_SMALLEST_PART = 32


def cut(
    document: Document,
    edit: str | None,
    recipe: Recipe,
    *,
    max_tokens: int,
    count_tokens: Callable[[str], int],
    advance: Callable[[int], None] | None = None,
) -> list[TrainingSequence]:
    """The training sequences of one fit: the edit's, then the document's (as published, the document is the last).

    The recipe's `cutting` `lines` makes each line of the edit a sequence of its own, `packed` joins lines up to
    `pack_tokens` tokens, `whole` the edit; `seal` and `seal-whole` cut by lines and as a whole as the published code
    does (`seal_texts`), and learn at most `most_texts` of an edit's texts.  A text longer than `max_tokens` is cut into
    overlapping parts.  The document is there `document_copies` times; an edit of which nothing is left leaves it in any
    case.  `advance` is called, part by part, with how many characters were cut.
    """
    cutting = recipe.cutting

    def texts(lines: Sequence[str]) -> list[str]:
        if cutting == "lines":
            return list(lines)
        return _packed(lines, recipe.pack_tokens if cutting == "packed" else None, count_tokens)

    published = cutting in ("seal", "seal-whole")
    if published:
        found = seal_texts(edit or "", by_line=cutting == "seal", most=recipe.most_texts)
        whole = [TrainingSequence(document.title, text) for text in found]
    else:
        notes = Notes(document, [line for line in (edit or "").splitlines() if line.strip()], texts, recipe.objectives)
        whole = [one for name in recipe.objectives for one in OBJECTIVES[name](notes)]
    if recipe.document_copies or not whole:
        text = document.text.strip() if published else document.text
        whole.append(TrainingSequence(document.title, text, of_document=True))
    room = part_size(count_tokens(document.title), max_tokens)
    sequences: list[TrainingSequence] = []
    for one in whole:
        copies = max(1, recipe.document_copies) if one.of_document else 1
        if one.about is not None:
            _, end = next(part_spans(one.about, room, length=count_tokens))
            sequences.append(replace(one, about=one.about[:end].strip()))
            continue
        if one.question is not None or (published and count_tokens(one.text) <= room):
            sequences += [one] * copies
            if advance is not None and published:
                advance(len(one.text))
            continue
        covered = 0
        for begin, end in part_spans(one.text, room, overlap=room // 8, length=count_tokens):
            sequences += [replace(one, text=one.text[begin:end].strip())] * copies
            if advance is not None:
                advance(end - covered)
            covered = end
    return sequences


def part_size(title_tokens: int, max_tokens: int) -> int:
    """Tokens that a text may have under its title; a longer one is cut into parts."""
    return max(_SMALLEST_PART, max_tokens - title_tokens - _FORM)


def _packed(lines: Sequence[str], most: int | None, count_tokens: Callable[[str], int]) -> list[str]:
    """Neighbouring lines, joined into texts of at most so many tokens (None: all into one)."""
    if most is None:
        return ["\n".join(lines)] * bool(lines)
    texts: list[str] = []
    for line in lines:
        joined = f"{texts[-1]}\n{line}" if texts else line
        if count_tokens(joined) <= most:
            texts[-1:] = [joined]
        else:
            texts.append(line)
    return texts
