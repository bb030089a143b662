"""An exam for documents that have none, written before anything is learned.

    for each document without questions:
        asked ← questions with answers that a model writes about it
        kept  ← those that the student answers rightly with the document in its prompt, and wrongly without

So what is kept can be answered from the document, and is not known yet.  Before learning the score on these questions
is 0, and with the book open 1, by this selection: reports say who wrote them, and that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from selfedit.documents import Document, Question, make_questions
from selfedit.editors.base import EXAM_WRITER, Edit
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.evaluation.text import tokens
from selfedit.methods.edits import write_edits
from selfedit.methods.examining import OPEN_BOOK, examine_untrained
from selfedit.methods.references import open_book
from selfedit.methods.run import Run
from selfedit.methods.settings import AUTO, LearnSettings
from selfedit.runs.summary import ExamSummary
from selfedit.text import listed

PROMPT = "exam-questions"
_ASKED_PER_KEPT = 3  # questions of a document that are tried, for each that may be kept
_LONGEST_ANSWER = 12  # words, without articles
_WRITTEN, _CHOSEN = "exam written", "exam chosen"  # the kinds of the events that say how far it has come


def exam_writer(settings: LearnSettings, editor: EditorSpec) -> EditorSpec:
    """Who writes the exam: whom `--exam-by` names, else the model that writes the edits, else the student itself."""
    if settings.exam_by != AUTO:
        spec = EditorSpec.parse(settings.exam_by)
        if spec.kind not in ("self", "model", "api"):
            raise UserError(f"--exam-by {settings.exam_by}: writes no questions; use self, model:NAME or api:MODEL")
        return spec
    if editor.kind in ("model", "api"):
        return replace(editor, prompt="")
    return EditorSpec("self")


def write_exam(
    run: Run, documents: Sequence[Document], writer: EditorSpec, most: int, policy: tuple[str, ...] = ()
) -> list[Document]:
    """The documents, those that had no questions with at most `most` each, as they are now in the run's store (which
    may hold those of an earlier run beside them, as a split of their own).

    A document of which no question is kept is named, and is learned all the same."""
    store = run.store
    known = {document.id: document.questions for document in store.documents("exam")}
    bare = [document.id for document in documents if not document.questions]
    store.add_documents([d if d.questions else replace(d, questions=known.get(d.id, ())) for d in documents])
    if not store.events(_WRITTEN):
        asked = [document for document in store.documents("exam") if document.id in set(bare)]
        edits = write_edits(run, asked, writer, count=1, prompt=PROMPT, condition=EXAM_WRITER, exam=True)
        candidates = {edit.document_id: questions(run, edit, most * _ASKED_PER_KEPT) for edit in edits}
        with store.transaction():
            store.add_questions(candidates)
            store.add_event(_WRITTEN, writer.name, str(sum(map(len, candidates.values()))))
    if not store.events(_CHOSEN):
        asked = [document for document in store.documents("exam") if document.id in set(bare) and document.questions]
        examine_untrained(run, asked, general=False, policy=policy)
        examine_untrained(run, asked, condition=OPEN_BOOK.name, passages=open_book(writer, asked), general=False)
        run.grading.grade()
        kept = run.choices.exam(asked, _right(run, OPEN_BOOK.name), _right(run, "none"), most)
        with store.transaction():
            store.drop_questions(q.id for d in asked for q in d.questions if q.id not in kept)
            store.add_event(_CHOSEN, writer.name, str(len(kept)))
            _name_unasked(run, [document for document in store.documents("exam") if document.id in set(bare)])
    return store.documents("exam")


def exam_summary(run: Run) -> ExamSummary | None:
    """Who wrote how many questions, and how many of them were kept; None where none were written."""
    written, chosen = run.store.events(_WRITTEN), run.store.events(_CHOSEN)
    if not written or not chosen:
        return None
    return ExamSummary(by=written[0].subject, written=int(written[0].message), kept=int(chosen[0].message))


def questions(run: Run, edit: Edit, most: int) -> tuple[Question, ...]:
    """The questions of what was written, each once; those with a whole sentence for an answer, which small models like
    to write, are none that an answer could be graded by."""
    pairs = dict.fromkeys(pair for pair in run.choices.pairs(edit.text) if len(tokens(pair[1])) <= _LONGEST_ANSWER)
    return make_questions(edit.document_id, [(question, [answer]) for question, answer in list(pairs)[:most]])


def _right(run: Run, condition: str) -> Mapping[str, bool]:
    """By question, whether it was answered rightly; those that could not be graded are missing."""
    answers = run.store.scored_answers(run.grading.name, condition=condition, round=0)
    return {answer.question_id: answer.value == "right" for answer in answers if answer.value != "ungraded"}


def _name_unasked(run: Run, documents: Sequence[Document]) -> None:
    unasked = [document.id for document in documents if not document.questions]
    for id in unasked:
        run.store.add_event("no exam", id, "no question about it was kept; it is learned without an exam")
    if unasked:
        run.progress.note(
            f"no exam question for {len(unasked):,} of {len(documents):,} documents, which are learned all the same:"
            f" {listed(unasked, 5)}"
        )
