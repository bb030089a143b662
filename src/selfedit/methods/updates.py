"""Documents that contradict earlier ones: "the fare is now 7 crowns".

Such a question is asked under the same title in the same words, and has other answers: closed book, the model is asked
one and the same thing, and has to say what the later document says.  Whether an answer is the earlier document's, the
lexical rule says, whatever grades the exam.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from selfedit.documents import Document, Question
from selfedit.evaluation.lexical import accepts
from selfedit.grouping import grouped
from selfedit.runs.records import ScoredAnswer
from selfedit.runs.summary import UpdateSummary


def superseded(documents: Sequence[Document]) -> dict[str, Question]:
    """By the id of a question that a later one of these documents answers otherwise, that document's question."""
    same = grouped(((d.title.casefold(), q.question.casefold()), q) for d in documents for q in d.questions)
    pairs = [(old, some[-1]) for some in same.values() for old in some[:-1]]
    return {old.id: new for old, new in pairs if not any(_says(old, answer) for answer in new.answers)}


def still_true(documents: Sequence[Document], later: Sequence[Document] = ()) -> list[Document]:
    """The documents without the questions that a later one, of them or of others, answers otherwise."""
    gone = superseded([*documents, *later])
    return [replace(d, questions=tuple(q for q in d.questions if q.id not in gone)) for d in documents]


def update_summary(condition: str, asked: Iterable[tuple[ScoredAnswer, Sequence[Question]]]) -> UpdateSummary | None:
    """How these answers go between new and old; each comes with the questions that its own replaces.  None where none
    was graded."""
    found = [(answer, replaced) for answer, replaced in asked if answer.score is not None]
    if not found:
        return None
    new = sum(answer.value == "right" for answer, _ in found)
    old = sum(
        answer.value != "right" and any(_says(question, answer.answer) for question in replaced)
        for answer, replaced in found
    )
    return UpdateSummary(condition=condition, asked=len(found), new=new / len(found), old=old / len(found))


def replaced_by(old: Mapping[str, Question], documents: Iterable[Document]) -> dict[str, list[Question]]:
    """What `superseded` found, the other way round: the old questions, of these documents, by the new one's id."""
    return grouped((old[q.id].id, q) for document in documents for q in document.questions if q.id in old)


def _says(question: Question, text: str) -> bool:
    return any(accepts(question.question, gold, text) for gold in question.answers)
