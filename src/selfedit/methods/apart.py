"""Documents one after another into an adapter each, none of which changes another: no step forgets by training.

What is lost is lost by routing: the more documents there are, the more often a question goes to another's adapter.
Which adapter a question goes to after each step is known before anything is trained, so every document is learned once,
all side by side, and its adapter is asked all that any sequence sends it after any step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.methods.edits import edits_to_learn
from selfedit.methods.examining import known_general
from selfedit.methods.learnings import Asked, asked_about, one_per_document
from selfedit.methods.model_card import add_list_of_adapters
from selfedit.methods.routing import Route, find_routes, routing_summary
from selfedit.methods.run import Run
from selfedit.methods.sequences import Lane, record_exam
from selfedit.methods.stacking import fit_kept
from selfedit.methods.updates import still_true
from selfedit.runs.summary import RoutingSummary


def learn_apart(run: Run, spec: EditorSpec, every: Sequence[Lane]) -> RoutingSummary | None:
    """Learns the documents of all lanes, and records what is answered after each step, as the lanes' exams; where
    questions went after the last step of each (None: no lane is given).

    Errors: UserError for a fit that failed, and where the first sequence has no edit."""
    if not every:
        return None
    condition = every[0].condition
    documents = list({document.id: document for lane in every for document in lane.documents}.values())
    edits = edits_to_learn(run, documents, spec, condition=condition)
    learnings = {one.documents[0].id: one for one in one_per_document(condition, documents, edits)}
    if not any(document.id in learnings for document in every[0].documents):
        raise UserError(f"{spec.name}: no edit of the first sequence could be written, so nothing can be learned")
    known = known_general(run)
    routes: dict[tuple[int, int], list[Route]] = {}
    asked: dict[str | None, dict[str, Asked]] = {}
    for lane in every:
        for step in range(1, len(lane.documents) + 1):
            learned = [document for document in lane.documents[:step] if document.id in learnings]
            questions = asked_about(still_true(learned), known)
            routes[lane.number, step] = find_routes(run, learned, learned, questions)
            for id, one in routes[lane.number, step]:
                asked.setdefault(id, {})[one[1].id] = one
    learnings = {
        id: replace(one, asked=tuple(asked.get(id, {}).values()), keep=run.directory.document_adapter(id))
        for id, one in learnings.items()
    }
    fits = fit_kept(run, list(learnings.values()), label="an adapter per document")
    answers = {(fit.document_id, answer.question_id): answer for fit in fits for answer in fit.answers}
    answers |= {(None, one.question_id): one for fit in run.store.fits(condition="none") for one in fit.answers}
    for lane in every:
        for step in range(1, len(lane.documents) + 1):
            found = [(about, (to, question.id)) for to, (about, question) in routes[lane.number, step]]
            # Where an untrained exam was given up, the next attempt records the document's exam, whole.
            lacking = [about for about, key in found if key not in answers]
            record_exam(run, lane, step, [(about, answers[key]) for about, key in found if about not in lacking])
    if every[0].main:
        own = [learnings[document.id] for document in every[0].documents if document.id in learnings]
        add_list_of_adapters(run, spec.name, {one.keep: one.documents[0] for one in own if one.keep is not None})
    return routing_summary([route for lane in every for route in routes[lane.number, len(lane.documents)]])
