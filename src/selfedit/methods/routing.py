"""An adapter per document, and for each question the adapter of the document that it is about.

Which document that is, a search by words says (`evaluation.search`), by what the model is asked: topic and question.
It needs no adapter, so each adapter's exam is known before it is trained: it is asked what is routed to it, together
with the adapters that share its bank.  A question that no document matches is answered by the model as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.evaluation.exam import asked_title
from selfedit.evaluation.search import Search
from selfedit.grouping import grouped
from selfedit.methods.adapters import Adapters
from selfedit.methods.examining import examine, known_general
from selfedit.methods.learnings import Asked, Learning, asked_about, one_per_document
from selfedit.methods.run import Run
from selfedit.methods.stacking import publish
from selfedit.runs.records import FitRecord
from selfedit.runs.summary import RoutingSummary

Route = tuple[str | None, Asked]
"""The document whose adapter answers (None: the model as it is), and what it is asked."""


@dataclass(frozen=True)
class Routing:
    """`learnings` are an adapter per document each, asked what is routed to it.  `earlier` are documents with an
    adapter of an earlier run, by its folder; `others` are what is asked of those, or of none (None)."""

    learnings: tuple[Learning, ...]
    earlier: Mapping[Path, Document]
    others: Mapping[Path | None, Sequence[Asked]]
    summary: RoutingSummary


def route(
    run: Run,
    condition: str,
    documents: Sequence[Document],
    edits: Sequence[Edit] | None,
    folder: Path,
    before: Adapters | None = None,
) -> Routing:
    """An adapter for each document of which there is an edit, kept in `folder`, and for each of the documents'
    questions, and of the general ones that the model knows, the adapter that answers it.

    `before` are an earlier run's, each of which has learned a document; one that is learned anew gives way."""
    learnings = [
        replace(one, keep=folder / run.directory.document_adapter(one.documents[0].id).name)
        for one in one_per_document(condition, documents, edits)
    ]
    anew = {learning.document_id for learning in learnings}
    pairs = zip(before.folders, before.documents, strict=True) if before else ()
    earlier = {folder: document for folder, document in pairs if document.id not in anew}
    learned = [learning.documents[0] for learning in learnings]
    found = find_routes(run, [*earlier.values(), *learned], learned, asked_about(documents, known_general(run)))
    routed = grouped(found)
    others: dict[Path | None, Sequence[Asked]] = {None: routed.get(None, ())}
    others |= {folder: routed[document.id] for folder, document in earlier.items() if document.id in routed}
    asked = tuple(replace(one, asked=tuple(routed.get(one.document_id, ()))) for one in learnings)
    return Routing(asked, earlier, others, routing_summary(found))


def find_routes(
    run: Run, documents: Sequence[Document], learned: Sequence[Document], asked: Sequence[Asked]
) -> list[Route]:
    """The document of each question, among these, by topic and question; `learned` are those that the run learns."""
    search, found = Search(documents), []
    for about, question in asked:
        to = search.about(f"{asked_title(about)}\n{question.question}")
        to = to if about is None else run.choices.route(to, learned)
        found.append((to.id if to else None, (about, question)))
    return found


def routing_summary(routes: Sequence[Route]) -> RoutingSummary:
    """How often the right document was found."""
    own = [(chosen, about.id) for chosen, (about, _) in routes if about is not None]
    general = [chosen for chosen, (about, _) in routes if about is None]
    return RoutingSummary(
        asked=len(own),
        right=sum(chosen == id for chosen, id in own),
        none=sum(chosen is None for chosen, _ in own),
        general=len(general),
        general_to_adapters=sum(chosen is not None for chosen in general),
    )


def answer_others(run: Run, condition: str, routing: Routing) -> None:
    """Has what is asked of no adapter, or of an earlier run's, answered, as the condition's answers.

    Of no adapter: the untrained model has answered it already."""
    before = {answer.question_id: answer for fit in run.store.fits(condition="none") for answer in fit.answers}
    done = run.store.fit_ids()
    order = {folder: number for number, folder in enumerate([None, *routing.earlier])}
    for folder, asked in routing.others.items():
        # Exams without a fit are told apart by the number of the adapter.
        record = FitRecord(condition, replicate=order[folder])
        if not asked or record.id in done:
            continue
        if folder is None:
            if all(question.id in before for _, question in asked):  # else some were given up, and are asked again
                run.store.record_fits([replace(record, answers=tuple(before[q.id] for _, q in asked))])
        else:
            phase = f"exam ({condition}, an earlier adapter)"
            examine(run, {record: asked}, f"exam/{record.id}", phase, policy=(publish(run, folder),))
    run.grading.grade()
