"""The documents of the run that `learn --add` goes on from: asked again before and after the new ones are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfedit.documents import Document, Question
from selfedit.errors import UserError
from selfedit.methods.adapters import exams_after_steps, find_adapters
from selfedit.methods.examining import examine_untrained
from selfedit.methods.inputs import once_each
from selfedit.methods.run import Run
from selfedit.methods.updates import replaced_by, still_true, superseded, update_summary
from selfedit.runs.directory import RunDirectory
from selfedit.runs.summary import UpdateSummary

BEFORE, AFTER = "earlier documents, before", "earlier documents, after"


@dataclass(frozen=True)
class Earlier:
    """`documents` are the earlier run's with the questions that still have their answers; `replaced` are those that a
    new document answers otherwise, by the new question's id."""

    documents: tuple[Document, ...]
    replaced: Mapping[str, Sequence[Question]]


def earlier_documents(source: Path | None, new: Sequence[Document], *, routed: bool) -> Earlier:
    """What was learned in the run `source` (none of another adapter's), without what is learned anew.

    Where questions are `routed` to adapters of a document each, which stay as they were, none is asked again."""
    if source is None or not (source / "config.yaml").is_file():
        return Earlier((), {})
    with RunDirectory.read(source) as run:
        learned = _learned(run)
    replaced = replaced_by(superseded([*learned, *new]), learned)
    left = [one for one in _left(learned, new) if one.questions]
    return Earlier(() if routed else tuple(left), replaced)


def learned_before(run: Run, source: Path | None, new: Sequence[Document]) -> list[Document]:
    """The documents that the run `source`, whose adapter recites, has learned, and these new ones: an adapter that has
    all of them by heart learns them together.  Those that a new one takes the place of, by its id, are left out.

    Errors: UserError for another kind of run, or an adapter without its run, which has the texts."""
    if source is None:
        return list(new)
    if not find_adapters(source).recites:
        raise UserError(f"--add {source}: not a run whose adapter recites; leave out --adapters")
    if not (source / "config.yaml").is_file():
        raise UserError(f"--add {source}: an adapter alone, without its documents; name the run that it was made by")
    with RunDirectory.read(source) as earlier:
        learned = _learned(earlier)
    return once_each(run, [*_left(learned, new), *new])


def keep_edits_before(run: Run, source: Path | None, writer: str) -> None:
    """Keeps what this writer wrote in the run `source` about documents that are learned again."""
    if source is None:
        return
    texts = {document.id: document.text for document in run.store.documents()}
    with RunDirectory.read(source) as earlier:
        same = {document.id for document in earlier.store.documents() if document.text == texts.get(document.id)}
        run.store.add_edits([edit for edit in earlier.store.edits(writer=writer) if edit.document_id in same])


def _learned(run: RunDirectory) -> list[Document]:
    """In the order in which they were learned."""
    procedure, documents = run.config.get("procedure"), run.store.documents()
    if procedure != "continual":
        return documents if procedure == "learn" else []
    by_id = {document.id: document for document in documents}
    exams = sorted(exams_after_steps(run), key=lambda exam: exam.round)
    return [by_id[id] for id in dict.fromkeys(exam.document_id for exam in exams) if id is not None]


def _left(learned: Sequence[Document], new: Sequence[Document]) -> list[Document]:
    """Those that are not learned anew, with the questions that still have their answers."""
    anew = {document.id for document in new}
    return [one for one in still_true(learned, new) if one.id not in anew]


def examine_earlier(run: Run, earlier: Earlier, when: str, policy: tuple[str, ...]) -> list[str]:
    """Asks about the earlier documents; the name of the condition, where there are any."""
    if not earlier.documents:
        return []
    run.store.add_documents(earlier.documents, "earlier")
    examine_untrained(run, earlier.documents, condition=when, policy=policy, general=False)
    return [when]


def updates(run: Run, earlier: Earlier, conditions: Sequence[str]) -> tuple[UpdateSummary, ...]:
    """What became of facts that the new documents change."""
    scored = ((name, run.store.scored_answers(run.grading.name, condition=name, round=0)) for name in conditions)
    found = (update_summary(name, earlier.replaced, answers) for name, answers in scored)
    return tuple(one for one in found if one is not None)
