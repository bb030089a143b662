"""What each adapter is asked and measured on: its own documents, what the model knew before, and other documents.

A *leak* is an answer about another document that is wrong and that an answer about the adapter's own document would be
right: the adapter says what it learned where it was not asked for.  Leaks are found by the lexical rule, whatever
grades the exam, and an untrained model has some by chance; so they are counted in its answers too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfedit.documents import Document, Question
from selfedit.engine.jobs import Completion, DecodeRequest, TokenSequence
from selfedit.evaluation.lexical import accepts
from selfedit.methods.examining import Asked, answers, exam_questions, gold_answers, known_general
from selfedit.methods.general_texts import measured_texts
from selfedit.methods.learnings import Learning
from selfedit.methods.run import Run


@dataclass(frozen=True)
class Sitting:
    """What one adapter is asked: about its documents and in general (`asked`), and about other documents
    (`neighbours`; `before`: what the untrained model answered to these, None where it was not asked); and the sequences
    that it is measured on."""

    asked: tuple[Asked, ...]
    neighbours: tuple[Asked, ...]
    before: tuple[str | None, ...]
    texts: tuple[TokenSequence, ...]
    gold: tuple[TokenSequence, ...]

    @property
    def questions(self) -> list[Question]:
        return [question for _, question in self.asked]

    def requests(self, run: Run) -> tuple[DecodeRequest, ...]:
        return tuple(run.exam.request(document, question) for document, question in (*self.asked, *self.neighbours))

    def results(self, run: Run, own: Sequence[Document], completions: Sequence[Completion]) -> dict[str, Any]:
        """What is recorded of the answers (none from a fit that failed)."""
        found: dict[str, Any] = {"answers": answers(run, self.questions, completions[: len(self.asked)])}
        if self.neighbours and completions:
            asked = [question for _, question in self.neighbours]
            said = [run.exam.answer(completion.ids) for completion in completions[len(self.asked) :]]
            found |= {"neighbours": len(asked), "leaked": leaks(own, asked, said)}
            if None not in self.before:
                found["leaked_before"] = leaks(own, asked, [str(text) for text in self.before])
        return found


def sittings(run: Run, learnings: Sequence[Learning]) -> dict[str, Sitting]:
    """What the adapter of each learning is asked and measured on, by the learning's id."""
    known = known_general(run) if any(learning.examine for learning in learnings) else []
    texts = measured_texts(run, learnings)
    documents = {document.id: document for learning in learnings for document in learning.documents}
    untrained: dict[str, str] = {}
    if run.settings.neighbour_questions:
        before = run.store.fits(round=0, condition="none")
        untrained = {answer.question_id: answer.text for fit in before for answer in fit.answers}
    found = {}
    for learning in learnings:
        asked = exam_questions(run, learning.documents, known, learning.id) if learning.examine else []
        gold = gold_answers(run, learning.documents) if learning.gold else ()
        near = _neighbours(run, learning, list(documents.values())) if learning.examine else ()
        said = tuple(untrained.get(question.id) for _, question in near)
        found[learning.id] = Sitting(tuple(asked), near, said, texts.get(learning.id, ()), gold)
    return found


def _neighbours(run: Run, learning: Learning, documents: Sequence[Document]) -> tuple[Asked, ...]:
    """Questions of other documents, those with the same title first; the same for all edits and conditions."""
    if not run.settings.neighbour_questions or learning.document_id is None:
        return ()
    (own,) = learning.documents
    draw = random.Random(run.seed("neighbours", own.id, learning.replicate))
    chosen: list[Asked] = []
    for near in (True, False):
        others = [d for d in documents if d.id != own.id and (d.title == own.title) == near]
        asked: list[Asked] = [(document, question) for document in others for question in document.questions]
        chosen += draw.sample(asked, min(run.settings.neighbour_questions - len(chosen), len(asked)))
    return tuple(chosen)


def leaks(own: Sequence[Document], asked: Sequence[Question], said: Sequence[str]) -> int:
    """How many of these answers to questions of other documents are leaks."""
    mine = [gold for document in own for question in document.questions for gold in question.answers]

    def right(question: Question, accepted: Sequence[str], answer: str) -> bool:
        return any(accepts(question.question, gold, answer) for gold in accepted)

    return sum(
        not right(question, question.answers, answer) and right(question, mine, answer)
        for question, answer in zip(asked, said, strict=True)
    )
