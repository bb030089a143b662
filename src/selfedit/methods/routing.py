"""An adapter per document, and for each question the adapter of the document that it is about.

Which document that is, a search by words says (`evaluation.search`), by what the model is asked: topic and question.
It needs no adapter, so each adapter's exam is known before it is trained: it is asked what is routed to it, together
with the adapters that share its bank.  A question that no document matches is answered by the model as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.evaluation.general import GENERAL_TITLE
from selfedit.evaluation.search import Search
from selfedit.methods.examining import known_general
from selfedit.methods.learnings import Asked, Learning, one_per_document
from selfedit.methods.run import Run
from selfedit.runs.records import FitRecord
from selfedit.runs.summary import RoutingSummary


@dataclass(frozen=True)
class Routing:
    """`learnings` are an adapter per document each, asked what is routed to it; `unrouted` is asked of no adapter."""

    learnings: tuple[Learning, ...]
    unrouted: tuple[Asked, ...]

    def summary(self) -> RoutingSummary:
        """How often the right document was found."""
        own, general = [], []
        routes = [(learning.document_id, asked) for learning in self.learnings for asked in learning.asked or ()]
        for chosen, (document, _) in [*routes, *((None, asked) for asked in self.unrouted)]:
            if document is None:
                general.append(chosen)
            else:
                own.append((chosen, document.id))
        return RoutingSummary(
            asked=len(own),
            right=sum(chosen == id for chosen, id in own),
            none=sum(chosen is None for chosen, _ in own),
            general=len(general),
            general_to_adapters=sum(chosen is not None for chosen in general),
        )


def route(
    run: Run,
    condition: str,
    documents: Sequence[Document],
    edits: Sequence[Edit] | None,
    keep: Callable[[str], Path],
) -> Routing:
    """An adapter for each document of which there is an edit, kept where `keep` says of the document's id, and for each
    of the documents' questions, and of the general ones that the model knows, the adapter that answers it."""
    learnings = one_per_document(condition, documents, edits)
    learned = [learning.documents[0] for learning in learnings]
    search = Search(learned)
    questions: list[Asked] = [(document, question) for document in documents for question in document.questions]
    if questions:
        questions += [(None, question) for question in known_general(run)]
    routed: dict[str | None, list[Asked]] = {}
    for about, question in questions:
        found = search.about(f"{about.title if about else GENERAL_TITLE}\n{question.question}")
        if about is not None:
            found = run.choices.route(found, learned)
        routed.setdefault(found.id if found else None, []).append((about, question))
    return Routing(
        tuple(
            replace(one, keep=keep(document.id), asked=tuple(routed.get(document.id, ())))
            for one, document in zip(learnings, learned, strict=True)
        ),
        tuple(routed.get(None, ())),
    )


def answer_unrouted(run: Run, condition: str, unrouted: Sequence[Asked]) -> None:
    """Records what the untrained model answered as the condition's answers to what is asked of no adapter."""
    record = FitRecord(condition)
    if not unrouted or record.id in run.store.fit_ids():
        return
    before = {answer.question_id: answer for fit in run.store.fits(condition="none") for answer in fit.answers}
    if all(question.id in before for _, question in unrouted):  # else some were given up, and are asked again
        given = tuple(before[question.id] for _, question in unrouted)
        run.store.record_fits([replace(record, answers=given)])
        run.grading.grade()
