"""The documents of the run that `learn --add` goes on from: asked again before and after the new ones are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfedit.documents import Document, Question
from selfedit.editors.base import Edit
from selfedit.methods.adapters import exams_after_steps
from selfedit.methods.examining import examine_untrained
from selfedit.methods.run import Run
from selfedit.methods.updates import replaced_by, still_true, superseded, update_summary
from selfedit.runs.directory import RunDirectory
from selfedit.runs.summary import UpdateSummary

BEFORE, AFTER = "earlier documents, before", "earlier documents, after"


@dataclass(frozen=True)
class Earlier:
    """What an earlier run has learned, in that order, and the edits that it has."""

    documents: Sequence[Document] = ()
    edits: Sequence[Edit] = ()

    def left(self, new: Sequence[Document]) -> list[Document]:
        """The documents that are not learned anew, with the questions that still have their answers."""
        anew = {document.id for document in new}
        return [one for one in still_true(self.documents, new) if one.id not in anew]

    def replaced(self, new: Sequence[Document]) -> dict[str, list[Question]]:
        """The questions that a new document answers otherwise, by the new question's id."""
        return replaced_by(superseded([*self.documents, *new]), self.documents)


def read_earlier(source: Path | None) -> Earlier:
    """Nothing where there is none, or an adapter without its run."""
    if source is None or not (source / "config.yaml").is_file():
        return Earlier()
    with RunDirectory.read(source) as run:
        procedure, documents = run.config.get("procedure"), run.store.documents()
        if procedure == "learn":
            return Earlier(documents, run.store.edits())
        if procedure != "continual":
            return Earlier()
        by_id = {document.id: document for document in documents}
        exams = sorted(exams_after_steps(run), key=lambda exam: exam.round)
        return Earlier([by_id[id] for id in dict.fromkeys(exam.document_id for exam in exams) if id is not None])


def keep_edits_before(run: Run, earlier: Earlier, writer: str) -> None:
    """Keeps what this writer wrote in the earlier run about documents that are learned again."""
    now = {document.id: document.text for document in run.store.documents()}
    same = {document.id for document in earlier.documents if document.text == now.get(document.id)}
    run.store.add_edits([edit for edit in earlier.edits if edit.writer == writer and edit.document_id in same])


def examine_earlier(run: Run, documents: Sequence[Document], when: str, policy: tuple[str, ...]) -> list[str]:
    """Asks about earlier documents; the name of the condition, where there are any."""
    if not documents:
        return []
    run.store.add_documents(documents, "earlier")
    examine_untrained(run, documents, condition=when, policy=policy, general=False)
    return [when]


def updates(
    run: Run, replaced: Mapping[str, Sequence[Question]], conditions: Sequence[str]
) -> tuple[UpdateSummary, ...]:
    """What became of facts that the new documents change."""
    scored = ((name, run.store.scored_answers(run.grading.name, condition=name, round=0)) for name in conditions)
    found = (
        update_summary(name, [(one, replaced[one.question_id]) for one in answers if one.question_id in replaced])
        for name, answers in scored
    )
    return tuple(one for one in found if one is not None)
