"""Documents learned by fine-tuning on them and on notes about them (edits): what is left is adapters.

    for each document C:
        E   ← edits of C, by the editor
    for each document C:                     an adapter each, side by side, or one for all
        θ_C ← fine-tune(θ, C and E)
    for each question Q:                     closed book, before and after
        A   ← the answer of one of them (a search finds it), or of θ, where none is about Q
    where asked for: once more, on top, those C of which an answer was wrong

`per_document` and `joint` are the two ways, between which `ways` chooses.  Asking what was learned is in `ask`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Unpack

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.errors import UserError
from selfedit.methods.earlier import AFTER, BEFORE, examine_earlier, keep_edits_before, read_earlier, updates
from selfedit.methods.edits import edits_to_learn
from selfedit.methods.exam_writing import exam_summary, exam_writer, write_exam
from selfedit.methods.examining import examine_references, examine_untrained
from selfedit.methods.inputs import check, load_parts, once_each, warn_of_contradictions, warn_of_cuts
from selfedit.methods.references import references_that_fit
from selfedit.methods.run import Parts, Run
from selfedit.methods.settings import LearnSettings
from selfedit.methods.small_models import editor_of, say_editor
from selfedit.methods.stacking import model_of_earlier
from selfedit.methods.summarise import looks, not_learned, summarise, summary_of_finished
from selfedit.methods.tracking import check_tracker, track_learning
from selfedit.methods.ways import choose_way
from selfedit.runs.records import recited_condition, retried_condition
from selfedit.runs.summary import Summary


@dataclass(frozen=True)
class Learned:
    """`adapter` is a folder in PEFT's format, of `model`, which is prompted through its chat template or not (`chat`);
    with an adapter per document (`routed`), the folder of their folders, and `rank` the largest of theirs.  One that
    `recites` is asked by `selfedit ask` and `serve` alone.  `summary` has the exam's figures (None: there were no
    questions)."""

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
    recites: bool = False


def learn(settings: LearnSettings, *, documents: Sequence[Document] | None = None, **parts: Unpack[Parts]) -> Learned:
    """Teaches an adapter each document, and writes them to folders named like the documents in `adapters/documents` in
    the run's directory; or one adapter all of them, and writes it to `adapters/learned`.  `settings.adapters` says
    which, or the number of documents (`ways`).

    `documents` are used in place of those that the settings name.
    Errors: UserError for what the user can mend, a fit that failed (its loss was not a number) among it.
    """
    if not settings.documents and not documents:
        raise UserError("no documents given: name files, folders, or news")
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
        way, earlier = choose_way(run, spec.name, settings, documents), read_earlier(settings.add)
        if again := way.recites and settings.add is not None:  # the earlier run's documents, with the new ones
            documents = once_each(run, [*earlier.left(documents), *documents])
        if examiner is None:
            run.store.add_documents(documents)
        else:
            documents = write_exam(run, documents, examiner, settings.exam_questions, way.policy)
        if again:
            keep_edits_before(run, earlier, spec.name)
        # Those that have an adapter each stay as they were, and are not asked again.
        known = [] if way.routed else [one for one in earlier.left(documents) if one.questions]
        warn_of_contradictions(run, documents)
        if not run.store.fits(condition=spec.name):
            warn_of_cuts(run, documents)

        # What is known before, closed book and with the document at hand.
        conditions, lines = [spec.name], []
        if examined := any(document.questions for document in (*documents, *known)):
            examine_untrained(run, documents, policy=way.policy)
            lines += examine_earlier(run, known, BEFORE, way.policy)
            if settings.references:
                lines += examine_references(run, documents, references_that_fit(run, documents))

        # The edits, what is learned from them, and once more on top what was missed; each adapter is examined.
        edits = edits_to_learn(run, documents, spec, policy=way.policy)
        if edits == []:
            raise UserError(f"{spec.name}: no edit could be written, so there is nothing to learn from")
        learned = {one.id for one in documents} if edits is None else {edit.document_id for edit in edits}
        fits = way.learn(spec.name, documents, edits)
        if way.recites:
            conditions.append(recited_condition(spec.name))
        if settings.retry_missed and (missed := run.choices.missed(documents, not_learned(run, spec.name)) & learned):
            conditions.append(retried_condition(spec.name))
            fits = way.again(conditions[-1], documents, edits, missed)
        folder, rank = way.finish()
        lines += examine_earlier(run, known, AFTER, way.policy)
        run.grading.grade()

        summary = summary_of_finished(run) if examined else None
        if examined and summary is None:
            wrong = not_learned(run, conditions[-1])
            summary = summarise(
                run,
                documents,
                ["none", *conditions, *lines],
                on_the_way=looks(run, spec.name),
                exam=exam_summary(run),
                routing=way.routing,
                updates=updates(run, earlier.replaced(documents), ["none", conditions[-1]]),
                missed=tuple(document.id for document in documents if document.id in wrong),
            )
        track_learning(run, spec.name, conditions[-1], summary)
        losses = [fit.last_loss for fit in fits if fit.last_loss is not None]
        return Learned(
            adapter=folder,
            model=settings.model,
            chat=run.workers.instruct,
            rank=rank,
            documents=len(learned),
            edits=tuple(edits or ()),
            train_tokens=sum(fit.train_tokens for name in conditions for fit in run.store.fits(condition=name)),
            steps=sum(fit.steps for fit in fits),
            last_loss=fmean(losses) if losses else None,
            summary=summary,
            routed=way.routed,
            recites=way.recites,
        )
