"""Has edits written, by whatever editor, and keeps them; those that are there are not written again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from selfedit.documents import Document
from selfedit.editors.base import AS_WRITTEN, Complete, Edit, Editor, Reader, Tools, edit_id, edit_writer
from selfedit.editors.spec import EditorSpec
from selfedit.editors.table import EDITORS
from selfedit.errors import UserError
from selfedit.methods.answering import answer_edits
from selfedit.methods.resuming import completer
from selfedit.methods.run import Run

NOT_WRITTEN = "edit not written"  # the kind of an event; its subject is the edit's id


def write_edits(
    run: Run,
    documents: Sequence[Document],
    spec: EditorSpec,
    *,
    count: int,
    prompt: str,
    condition: str | None = None,
    round: int = 0,
    policy: tuple[str, ...] = (),
    wanted: int | None = None,
    exam: bool = False,
    teacher: str | None = None,
) -> list[Edit]:
    """`count` edits of each document, written and committed, in the order of documents.

    Edits that could not be written are named (an event each) and left out; the next attempt at the run tries them
    again.  An `exam` is written like edits, but greedily, and however many are missing.  With the `teacher` open-book
    (left out: the settings') edits are kept as they were written, under a name of their own, and as they are learned.
    Errors: UserError where the missing ones are a larger share of the edits asked for (of the whole run's, `wanted`)
    than the settings allow.
    """
    name = condition or spec.name
    asked = {edit_id(round, d.id, name, k): (d, k) for d in documents for k in range(count)}
    done = {edit.id for edit in run.store.edits(round=round, writer=name)}
    # An adapter that learned several edits together is there as it was made, without those that were left out.
    joint = any(fit.edit_id is None for fit in run.store.fits(round=round, condition=name))
    if not joint and not done.issuperset(asked):

        def keep(edits: Sequence[Edit]) -> None:
            with run.store.transaction():
                run.store.add_edits(edits)
                for edit in edits:
                    run.store.drop_event(NOT_WRITTEN, edit.id)
                    if not edit.text and not exam:
                        note = "nothing was left of this edit; only the document is learned"
                        run.store.add_event("empty edit", edit.id, note)

        def fail(id: str, reason: str) -> None:
            run.store.set_event(NOT_WRITTEN, id, reason)
            run.progress.note(f"edit {id} could not be written: {reason}")

        if not exam and (teacher or run.settings.teacher) == "open-book":
            how: Any = {"count": count, "prompt": prompt, "round": round, "policy": policy, "wanted": wanted}
            written = write_edits(run, documents, spec, condition=name + AS_WRITTEN, teacher="writer", **how)
            answer_edits(run, documents, written, name, _complete(run, name, round, policy), done, keep, fail)
        else:
            temperature = 0.0 if exam else None
            make_editor(run, spec, prompt, name, round, policy, temperature).write(asked, done, keep, fail)
        if not exam:
            _check_left_out(run, name, asked, wanted)
    return [edit for edit in run.store.edits(round=round, writer=name) if edit.id in asked]


def edits_to_learn(
    run: Run, documents: Sequence[Document], spec: EditorSpec, *, of: int | None = None, **how: Any
) -> list[Edit] | None:
    """The edits of each document that the settings ask for, of so many documents in all (`of`, by default these); None
    where the passage alone is learned.  `how` is as for `write_edits`."""
    settings: Any = run.settings
    if spec.kind == "passage":
        return None
    how = {"count": settings.edits, "prompt": settings.edit_prompt, **how}
    return write_edits(run, documents, spec, wanted=of and of * settings.edits, **how)


def make_editor(
    run: Run,
    spec: EditorSpec,
    prompt: str,
    name: str = "",
    round: int = 0,
    policy: tuple[str, ...] = (),
    temperature: float | None = None,
) -> Editor:
    """The editor that `spec` names, with its tools; its model follows `policy`."""
    settings = run.settings

    def model(which: str) -> tuple[Reader, Complete]:
        return run.reader(which), _complete(run, name, round, policy, which)

    tools = Tools(
        name=name,
        round=round,
        prompt=prompt,
        prompts=run.prompts,
        student=run.workers,
        model=model,
        client=lambda model: run.client(model, "editor"),
        book=lambda model, result: run.ledger.book("edits", _learned_as(name), model, result, round),
        progress=run.progress,
        seed=lambda document_id, index: run.seed("edit", round, document_id, name, index),
        max_tokens=settings.max_edit_tokens,
        temperature=settings.temperature if temperature is None else temperature,
        top_p=settings.top_p,
        clean=settings.clean,
    )
    return EDITORS[spec.kind](spec, tools)


def _complete(run: Run, name: str, round: int, policy: tuple[str, ...], model: str = "") -> Complete:
    return completer(
        run,
        f"edits/{round}/{name}",
        lambda seconds: run.ledger.time("edits", _learned_as(name), seconds, round, model),
        phase=f"writing edits ({name})",
        policy=() if model else policy,
        model=model,
        size=lambda: run.workers.task_size,
    )


def _learned_as(name: str) -> str:
    """The condition that pays for edits."""
    return name.removesuffix(AS_WRITTEN)


def _check_left_out(run: Run, name: str, asked: Collection[str], wanted: int | None) -> None:
    """Of the edits `asked` for now; where so many are `wanted` one after another, of all by this writer."""
    left_out = [
        event
        for event in run.store.events(NOT_WRITTEN)
        if (event.subject in asked if wanted is None else edit_writer(event.subject) == name)
    ]
    of = wanted or len(asked)
    if len(left_out) > run.settings.max_missing_edits * of:
        raise UserError(
            f"{len(left_out)} of {of} edits by {name} could not be written, more than --max-missing-edits"
            f" {100 * run.settings.max_missing_edits:g}% allows (the last: {left_out[-1].subject}:"
            f" {left_out[-1].message}); the others are kept: the same command tries these again"
        )
