"""What a student is asked, before it learns anything, on the way and at the end; and what becomes of its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from selfedit.documents import Document, Question
from selfedit.editors.spec import EditorSpec
from selfedit.engine.jobs import Completion, DecodeRequest, TokenSequence
from selfedit.evaluation.general import general_questions
from selfedit.execution.tasks import Fit, FitOutcome
from selfedit.methods.learnings import Asked, Learning, asked_about
from selfedit.methods.references import REFERENCES, Passages
from selfedit.methods.resuming import completer
from selfedit.methods.run import Run
from selfedit.runs.records import Answer, CostRecord, FitRecord, recited_condition

OPEN_BOOK = EditorSpec("open-book")


def examine_untrained(
    run: Run,
    documents: Sequence[Document],
    *,
    condition: str = "none",
    passages: Passages | None = None,
    round: int = 0,
    replicate: int = 0,
    policy: tuple[str, ...] = (),
    general: bool = True,
) -> None:
    """Examines the policy without any adapter, document by document, closed book or with passages in the prompt; and
    asks it the general questions."""
    exams = {FitRecord(condition, replicate, round, d.id): asked_about([d]) for d in documents if d.questions}
    if general and run.settings.general_questions:
        asked = general_questions(run.settings.general_questions, run.settings.seed)
        run.store.add_general_questions(asked)
        exams[FitRecord(condition, replicate, round)] = asked_about((), asked)
    examine(run, exams, f"exam/{round}/{condition}", f"exam ({condition})", policy, passages)


def examine(
    run: Run,
    exams: Mapping[FitRecord, Sequence[Asked]],
    name: str,
    phase: str,
    policy: tuple[str, ...],
    passages: Passages | None = None,
) -> None:
    """Has the policy sit those of these exams that the store lacks; each is recorded like a fit.  All are of one
    condition and round; their tasks are named `name/N`."""
    by_id, done = {record.id: (record, asked) for record, asked in exams.items()}, run.store.fit_ids()
    if done.issuperset(by_id):
        return
    first = next(iter(exams))

    def keep(id: str, completions: Sequence[Completion], seconds: float) -> None:
        record, asked = by_id[id]
        given = answers(run, [question for _, question in asked], completions)
        run.store.record_fits([replace(record, answers=given, seconds=seconds)])

    def request(document: Document | None, question: Question) -> DecodeRequest:
        return run.exam.request(document, question, passages(document, question) if passages and document else ())

    def spend(seconds: float) -> CostRecord:
        return run.ledger.time("answers", first.condition, seconds, first.round)

    complete = completer(run, name, spend, phase=phase, policy=policy)
    complete({id: [request(*one) for one in asked] for id, (_, asked) in by_id.items()}, done, keep)


def examine_references(run: Run, documents: Sequence[Document], specs: Sequence[EditorSpec]) -> list[str]:
    """Examines the model under the reference lines among the editors; their names."""
    lines = [spec for spec in specs if spec.kind in REFERENCES]
    for spec in lines:
        passages = REFERENCES[spec.kind](spec, documents)
        examine_untrained(run, documents, condition=spec.name, passages=passages, general=False)
    return [spec.name for spec in lines]


def known_general(run: Run) -> list[Question]:
    """The general questions that the model answered rightly before any adaptation."""
    if not run.settings.general_questions:
        return []
    run.grading.grade()
    right = run.grading.right_before()
    return [question for question in run.store.general_questions() if question.id in right]


def exam_questions(run: Run, documents: Sequence[Document], known: Sequence[Question], id: str) -> list[Asked]:
    """What the adapter of this fit is asked: its documents' questions, and some of the general ones that were known."""
    chosen = sorted(known, key=lambda question: run.seed("general", id, question.id))
    return asked_about(documents, chosen[: run.settings.general_questions])


def open_book_answers(run: Run, documents: Sequence[Document]) -> dict[str, TokenSequence]:
    """By question, what the model itself answers rightly with the document in its prompt, behind the closed-book prompt
    (an accepted answer as it is written is none that a model would give, and says more of form than of knowledge)."""
    passages = REFERENCES[OPEN_BOOK.kind](OPEN_BOOK, documents)
    examine_untrained(run, documents, condition=OPEN_BOOK.name, passages=passages, general=False)
    run.grading.grade()
    scored = run.store.scored_answers(run.grading.name, condition=OPEN_BOOK.name, round=0)
    right = {one.question_id: one.answer for one in scored if one.value == "right"}
    asked = [(d, q) for d in documents for q in d.questions if q.id in right]
    found = {question.id: run.exam.answered(document, question, right[question.id]) for document, question in asked}
    return {id: sequence for id, sequence in found.items() if sequence.labelled}


def answers(run: Run, asked: Sequence[Question], completions: Sequence[Completion]) -> tuple[Answer, ...]:
    """The answers to these questions (none from a fit that failed)."""
    pairs = zip(asked, completions, strict=bool(completions))
    return tuple(Answer(question.id, run.exam.answer(c.ids), len(c.ids)) for question, c in pairs)


def on_the_way(
    run: Run, learning: Learning, fit: Fit, outcome: FitOutcome, asked: Sequence[Question]
) -> Iterator[FitRecord]:
    """The exams that a fit sat before its end, each like a fit of fewer steps."""
    for look in outcome.looks:
        given = answers(run, [asked[k] for k in fit.looked_at], look.completions)
        name = condition_on_the_way(learning.condition, look.step, fit.job.steps)
        yield replace(learning, condition=name).record(steps=look.step, answers=given)


def recited(run: Run, learning: Learning, outcome: FitOutcome, asked: Sequence[Question]) -> Iterator[FitRecord]:
    """The exam that a fit sat by recitation, like another fit; in place of training texts it has what was recited."""
    found = outcome.recited
    if found.completions:
        pairs = zip(answers(run, asked, found.completions), found.topics, strict=True)
        given = tuple(replace(one, topic=topic) for one, topic in pairs)
        name = recited_condition(learning.condition)
        yield replace(learning, condition=name).record(sequences=found.texts, answers=given)


def condition_on_the_way(condition: str, step: int, steps: int) -> str:
    """The condition under which answers are stored that a fit gave before its end."""
    return f"{condition} after {step} of {steps} steps"
