"""One adapter that knows all the documents: their edits, one fit, an exam before and after where there are questions.

Or an adapter for each document, to which questions are routed (`routing`).  Asking them afterwards is in `ask`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Unpack

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.methods.adapters import LEARNED, RETRIED, Adapters, find_adapters
from selfedit.methods.earlier import AFTER, BEFORE, earlier_documents, examine_earlier, updates
from selfedit.methods.edits import write_edits
from selfedit.methods.exam_writing import exam_summary, exam_writer, write_exam
from selfedit.methods.examining import condition_on_the_way, examine_references, examine_untrained
from selfedit.methods.inputs import check, load_parts, warn_of_cuts
from selfedit.methods.learnings import Learning, all_in_one
from selfedit.methods.model_card import add_list_of_adapters, add_tokenizer_and_card
from selfedit.methods.references import references_that_fit
from selfedit.methods.routing import answer_others, route, take_over
from selfedit.methods.run import Parts, Run
from selfedit.methods.settings import LearnSettings
from selfedit.methods.small_models import editor_of, say_editor
from selfedit.methods.stacking import adapter_rank, earlier_adapters, fit_kept, model_of_earlier, publish, stack
from selfedit.methods.summarise import accuracy, summarise, summary_of_finished
from selfedit.methods.tracking import check_tracker, make_tracker
from selfedit.methods.updates import superseded
from selfedit.runs.summary import Summary

REFERENCE_LINES = [EditorSpec.parse(name) for name in ("open-book", "retrieval")]
LOOKS = 3  # exams on the way, at each quarter


@dataclass(frozen=True)
class Learned:
    """`adapter` is a folder in PEFT's format, of `model`, which is prompted through its chat template or not (`chat`);
    with an adapter per document (`routed`), the folder of their folders.  `summary` has the exam's figures (None: there
    were no questions)."""

    adapter: Path
    model: str
    chat: bool
    rank: int
    documents: int
    edits: tuple[Edit, ...]
    train_tokens: int
    steps: int
    last_loss: float | None
    summary: Summary | None
    routed: bool = False


def learn(settings: LearnSettings, *, documents: Sequence[Document] | None = None, **parts: Unpack[Parts]) -> Learned:
    """Teaches one adapter all the documents, and writes it to `adapters/learned` in the run's directory; or an adapter
    each, and writes them to folders named like the documents in `adapters/documents`.

    `documents` are used in place of those that the settings name.

    Errors: UserError for what the user can mend, a fit that failed (its loss was not a number) among it.
    """
    if not settings.documents and not documents:
        raise UserError("no documents given: name files, folders, or news")
    before = _earlier_routed(settings)
    check_tracker(settings.track)
    asked = settings.editor
    settings, spec = editor_of(model_of_earlier(settings))
    examiner = exam_writer(settings, spec) if settings.exam == "auto" else None
    with Run("learn", settings, **parts) as run:
        if documents is None:
            documents = load_parts(run, settings.documents, limit=settings.limit, part_tokens=settings.part_tokens)
        specs = [spec] if examiner is None or examiner == spec else [spec, examiner]
        check(run, documents, specs, count=settings.edits, prompt=settings.edit_prompt)
        say_editor(run, asked, spec.kind)
        earlier, policy = earlier_adapters(run, None if before else settings.add)
        if examiner is None:
            run.store.add_documents(documents)
        else:
            documents = write_exam(run, documents, examiner, settings.exam_questions, policy)
        known = earlier_documents(settings.add, documents, routed=before is not None)
        examined = any(document.questions for document in (*documents, *known.documents))
        if changed := superseded(documents):
            old, new = next(iter(changed.items()))
            run.warn(
                "documents that contradict each other",
                f"questions that a later document answers otherwise: {len(changed)} (first: {old}, by {new.id})",
            )
        if not run.store.fits(condition=spec.name):
            warn_of_cuts(run, documents)
        lines: list[str] = []
        if examined:
            examine_untrained(run, documents, policy=policy)
            lines += examine_earlier(run, known, BEFORE, policy)
            if settings.references:
                lines += examine_references(run, documents, references_that_fit(run, documents, REFERENCE_LINES))
        edits = None
        if spec.kind != "passage":
            edits = write_edits(run, documents, spec, count=settings.edits, prompt=settings.edit_prompt, policy=policy)
            if not edits:
                raise UserError(f"{spec.name}: no edit could be written, so there is nothing to learn from")
        names = [spec.name]
        routing = None
        if settings.adapters == "per-document":
            routing = route(run, spec.name, documents, edits, before)
            learnings = routing.learnings
            fits = fit_kept(run, learnings, label="learning")
            answer_others(run, spec.name, routing)
            folder = run.directory.document_adapters
            add_list_of_adapters(run, spec.name, take_over(routing))
        else:
            folder = run.directory.adapter(LEARNED)
            learnings = tuple(all_in_one(spec.name, documents, edits, keep=folder, looks=LOOKS, policy=policy))
            fits = fit_kept(run, learnings, label="learning", beside=_beside(run, spec.name, learnings, earlier))
        if settings.retry_missed and (again := run.choices.missed(documents, _missed(run, names))):
            # Once more, on top of what was learned, what was not.
            names.append(f"{spec.name} twice")
            first, folder = folder, run.directory.adapter(RETRIED)
            some = None if edits is None else [edit for edit in edits if edit.document_id in again]
            retried = [document for document in documents if document.id in again]
            policy = (publish(run, first),)
            second = all_in_one(names[-1], retried, some, keep=folder, policy=policy)
            fits = fit_kept(run, second, label="learning", beside=_beside(run, spec.name, second, [first]))
            others = [document for document in documents if document.id not in again]
            final = (publish(run, folder),)
            examine_untrained(run, others, condition=names[-1], policy=final, general=False)
            run.grading.grade()
        if BEFORE in lines:
            lines += examine_earlier(run, known, AFTER, (publish(run, folder),))
            run.grading.grade()
        summary = summary_of_finished(run) if examined else None
        if examined and summary is None:
            missed = _missed(run, names[-1:])
            summary = summarise(
                run,
                documents,
                ["none", *names, *lines],
                on_the_way=_looks(run, spec.name, run.store.fits(condition=spec.name)[0].steps),
                exam=exam_summary(run),
                routing=routing and routing.summary(),
                updates=updates(run, known, ["none", names[-1]]),
                missed=tuple(document.id for document in documents if document.id in missed),
            )
        _track(run, settings, learnings[0].id, summary)
        losses = [fit.last_loss for fit in fits if fit.last_loss is not None]
        return Learned(
            adapter=folder,
            model=settings.model,
            chat=run.workers.instruct,
            rank=adapter_rank((routing and learnings[0].keep) or folder),
            documents=sum(len(learning.documents) for learning in learnings),
            edits=tuple(edits or ()),
            train_tokens=sum(fit.train_tokens for name in names for fit in run.store.fits(condition=name)),
            steps=sum(fit.steps for fit in fits),
            last_loss=fmean(losses) if losses else None,
            summary=summary,
            routed=routing is not None,
        )


def _earlier_routed(settings: LearnSettings) -> Adapters | None:
    """With an adapter per document, those of the run to add to.  Errors: UserError for what does not go with them."""
    if settings.adapters != "per-document":
        return None
    if settings.retry_missed:
        raise UserError("--retry-missed: with --adapters per-document, give all more steps instead (--set steps=...)")
    if settings.track is not None:
        raise UserError(f"--track {settings.track}: with --adapters per-document there is no one loss curve to follow")
    if settings.add is None:
        return None
    found = find_adapters(settings.add)
    if not found.documents:
        raise UserError(f"--add {settings.add}: not a run with an adapter per document; leave out --adapters")
    return found


def _beside(run: Run, editor: str, learnings: Sequence[Learning], earlier: Sequence[Path]) -> Callable[[Path], None]:
    """What completes the folder of an adapter that was trained on top of earlier ones: they are then in it."""
    (learning,) = learnings

    def beside(folder: Path) -> None:
        stack(earlier, folder)
        add_tokenizer_and_card(run, editor, len(learning.documents), folder)

    return beside


def _missed(run: Run, names: Sequence[str]) -> set[str]:
    """The documents of which a question was answered wrongly under these conditions."""
    scored = [a for name in names for a in run.store.scored_answers(run.grading.name, condition=name, round=0)]
    return {answer.document_id for answer in scored if answer.value == "wrong" and answer.document_id is not None}


def _looks(run: Run, name: str, steps: int) -> list[dict[str, Any]]:
    """The accuracy in each exam on the way."""
    found = []
    for fit in run.store.fits():
        if fit.condition != condition_on_the_way(name, fit.steps, steps):
            continue
        if look := accuracy(run.grading.scores(fit.condition)):
            found.append({"step": fit.steps, "steps": steps, **look})
    return sorted(found, key=lambda look: look["step"])


def _track(run: Run, settings: LearnSettings, fit_id: str, summary: Summary | None) -> None:
    """Sends the loss curve and the scores on the way to where --track says, once the fit is done."""
    tracker = make_tracker(settings.track, settings.out, run.directory.config)
    for step, loss in run.store.curve(fit_id):
        tracker.log({"loss": loss}, step=step)
    for look in summary.on_the_way if summary else ():
        tracker.log({"accuracy": look.accuracy}, step=look.step)
    tracker.finish()
