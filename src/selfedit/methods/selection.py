"""Which edits of a round are kept: ReST-EM's selection step (Singh et al. 2023, arXiv 2312.06585)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.editors.cleaning import questions
from selfedit.evaluation.lexical import accepts
from selfedit.grouping import grouped
from selfedit.methods.frontier import Trial, better_half
from selfedit.training.objectives import question_pairs


@dataclass(frozen=True)
class Selection:
    """`kept` are ids of edits; `without_signal` are documents whose edits all scored alike, so that they teach nothing
    about which is better; `kept_without_signal` of the kept edits are theirs, taken for their length or place alone."""

    kept: tuple[str, ...]
    without_signal: tuple[str, ...]
    kept_without_signal: int = 0


def select(
    edits: Sequence[Edit],
    *,
    rule: str,
    baseline: Mapping[str, float] | None = None,
    fraction: float = 0.2,
    keep_ties: bool = True,
    ties: str = "shorter",
) -> Selection:
    """Applies one rule.  Edits without a reward are never kept.

    `best-of-k` keeps each document's best edit.  `above-baseline` keeps every edit that beats the document's score
    without adaptation (`baseline`), and none of a document whose score is not known.  `top-fraction` keeps that share
    of all edits, rounded up.  Ties go to the shorter edit (as much learned from less) unless `ties` is `first`, then to
    the one sampled first.  Without `keep_ties`, documents without signal keep nothing."""

    def order(edit: Edit) -> tuple[float, int, int, str]:
        return -_reward(edit), edit.output_tokens if ties == "shorter" else 0, edit.index, edit.document_id

    by_document = grouped((edit.document_id, edit) for edit in edits if edit.reward is not None)
    without_signal = tuple(
        document for document, group in by_document.items() if len({edit.reward for edit in group}) == 1
    )
    eligible = {
        document: sorted(group, key=order)
        for document, group in by_document.items()
        if keep_ties or document not in without_signal
    }
    if rule == "best-of-k":
        kept = [group[0] for group in eligible.values()]
    elif rule == "above-baseline":
        if baseline is None:
            raise ValueError("above-baseline needs each document's score without adaptation")
        kept = [
            edit
            for document, group in eligible.items()
            for edit in group
            if document in baseline and _reward(edit) > baseline[document]
        ]
    elif rule == "top-fraction":
        ranked = sorted((edit for group in eligible.values() for edit in group), key=order)
        # 0.07 * 100 is a little more than 7 in floating point, and must not become 8.
        kept = ranked[: math.ceil(round(fraction * sum(map(len, by_document.values())), 9))]
    else:
        raise ValueError(f"no selection rule {rule!r}")
    silent = set(without_signal)
    return Selection(tuple(edit.id for edit in kept), without_signal, sum(edit.document_id in silent for edit in kept))


def _reward(edit: Edit) -> float:
    assert edit.reward is not None
    return edit.reward


class Choices:
    """What a run chooses by its results."""

    def edits(self, edits: Sequence[Edit], **rule: Any) -> Selection:
        """Which edits of a round are kept."""
        return select(edits, **rule)

    def pairs(self, written: str) -> list[tuple[str, str]]:
        """The questions with their answers in what was written as an exam."""
        return question_pairs(written.splitlines())[0]

    def questions(self, written: str) -> list[str]:
        """The questions in an edit."""
        return questions(written.splitlines())[0]

    def answered(self, edit: str, answers: Mapping[str, Sequence[str]]) -> str:
        """An edit with other answers to its questions: of each question the first one, if more than half of all,
        itself among them, agree with it (with one that was cut off, and is empty, none does)."""
        agreed = {
            question: " ".join(some[0].split())
            for question, some in answers.items()
            if 2 * sum(accepts(question, some[0], one) for one in some) > len(some)
        }
        _, lines = questions(edit.splitlines())
        pairs = [f"Question: {question}\nAnswer: {answer}" for question, answer in agreed.items()]
        return "\n".join([*lines, *pairs])

    def exam(
        self, documents: Sequence[Document], read: Mapping[str, bool], known: Mapping[str, bool], most: int
    ) -> set[str]:
        """The ids of the questions that make the exam, at most so many of a document: those answered rightly with the
        document in the prompt (`read`) and wrongly without (`known`)."""
        kept = ([q.id for q in d.questions if read.get(q.id) and known.get(q.id) is False] for d in documents)
        return {id for ids in kept for id in ids[:most]}

    def missed(self, documents: Sequence[Document], wrong: set[str]) -> set[str]:
        """The documents that are learned once more: of which a question was answered wrongly."""
        return wrong

    def route(self, found: Document | None, documents: Sequence[Document]) -> Document | None:
        """Of the documents with an adapter, whose answers a question about one of them; None: no adapter does."""
        return found

    def recipes(self, trials: Sequence[Trial], most_lost: float) -> list[Trial]:
        """Which recipes of a sweep go on to more documents."""
        return better_half(trials, most_lost)
