"""Documents one after another: what each step teaches, and what it makes the model forget.

    for each sequence of documents, and each remedy against forgetting that merges:
        θ ← the model
        for each document:
            edits ← θ's, or another editor's, of it
            θ ← θ with an adapter merged in that was trained on them (and on what the remedy adds)
            examine θ on this document and all earlier ones

The paper's continual self-editing experiment (Zweiger et al. 2025, section 5) is of this form.  The sequences go side
by side, all in one bank: what each has learned is held below the adapter that it trains, which comes to the same as
merging it (`FitJob.below`).  A single sequence is merged.  `apart.py` has the remedy that merges nothing, the default,
`retention.py` the figures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

from selfedit.editors.base import Edit
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.methods.apart import learn_apart
from selfedit.methods.edits import edits_to_learn
from selfedit.methods.examining import examine_untrained
from selfedit.methods.inner_loop import inner_loop
from selfedit.methods.inputs import check, load
from selfedit.methods.learnings import Learning, asked_about
from selfedit.methods.policies import read_delta
from selfedit.methods.retention import compare_remedies, new_and_earlier, remedy_updates, retention_summary
from selfedit.methods.run import Parts, Run
from selfedit.methods.sequences import Lane, lanes, record_exam, remedy_recipe
from selfedit.methods.settings import ContinualSettings
from selfedit.methods.small_models import editor_of, say_editor
from selfedit.methods.summarise import summarise, summary_of_finished
from selfedit.runs.summary import Summary


def continual(settings: ContinualSettings, **parts: Unpack[Parts]) -> Summary:
    """Learns the documents of each sequence in their order.

    The summary's `retention` has, for each remedy, the accuracy on each document after each step and what follows from
    it; `differences` compare the remedies after the last step, `updates` what became of facts that a later document
    changes.  A document whose edits could not be written is passed over.
    Errors: UserError for what the user can mend.
    """
    asked = settings.editor
    settings, spec = editor_of(settings)
    with Run("continual", settings, **parts) as run:
        documents = load(run, settings.documents, limit=settings.limit)
        every = lanes(run, settings, documents, spec.name)
        used = {document.id for lane in every for document in lane.documents}
        documents = [document for document in documents if document.id in used]
        check(run, documents, [spec], count=settings.edits, prompt=settings.edit_prompt)
        say_editor(run, asked, spec.kind)
        if "retain" not in settings.model_fields_set:
            run.progress.note("retain: an adapter per document; --retain none merges each document into the model")
        run.store.add_documents(documents)
        examine_untrained(run, documents)
        merged = [lane for lane in every if lane.retain != "per-document"]
        steps = len(every[0].documents)
        for step in range(1, steps + 1):
            _step(run, spec, merged, step, f"step {step} of {steps}")
        routing = learn_apart(run, spec, [lane for lane in every if lane.retain == "per-document"])
        run.grading.grade()
        by_remedy = {retain: [one for one in every if one.retain == retain] for retain in settings.retain}
        return summary_of_finished(run) or summarise(
            run,
            documents,
            ["none"],
            steps=tuple(new_and_earlier(run, every[0], step) for step in range(1, steps + 1)),
            retention=tuple(retention_summary(run, some) for some in by_remedy.values()),
            updates=tuple(one for some in by_remedy.values() for one in remedy_updates(run, some)),
            compared=compare_remedies(run, list(by_remedy.values())),
            routing=routing,
        )


def _step(run: Run, spec: EditorSpec, every: list[Lane], step: int, label: str) -> None:
    learnings: list[tuple[Lane, Learning]] = []
    for lane in every:
        edits = _edits(run, spec, lane, step)
        if edits != []:
            learning = _learning(run, lane, edits, step)
            lane.learned.append((lane.documents[step - 1], edits))
            if lane.held:  # the adapter itself takes the exam after the step
                learning = replace(learning, asked=tuple(asked_about(lane.asked(), run.store.general_questions())))
            learnings.append((lane, learning))
    recipes = {lane.condition: remedy_recipe(run.recipe, lane.retain) for lane in every}
    inner_loop(run, [learning for _, learning in learnings], label=label, recipes=recipes)
    fits = {fit.id: fit for fit in run.store.fits(round=step)}
    for lane, learning in learnings:
        folder, fit = lane.folder(run, step), fits[learning.id]
        if not folder.exists():
            raise UserError(
                f"step {step}: the fit on {lane.documents[step - 1].id} failed ({fit.error}); try a lower learning"
                " rate (--set learning_rate=...) and another --out"
            )
        run.workers.publish(folder.name, read_delta(folder))
        lane.policy = (*lane.policy, folder.name)
        if learning.asked is not None:
            about = {question.id: document for document, question in learning.asked}
            record_exam(run, lane, step, [(about[answer.question_id], answer) for answer in fit.answers])
            continue
        examine_untrained(
            run, lane.asked(), condition=lane.after, round=step, replicate=lane.number, policy=lane.policy
        )


def _edits(run: Run, spec: EditorSpec, lane: Lane, step: int) -> list[Edit] | None:
    """The edits of a step's document; None: the passage alone is learned."""
    if spec.kind == "passage":
        return None
    document = lane.documents[step - 1]
    own = (lane.number, lane.condition), (lane.number, lane.after)
    reached = (fit.round for fit in run.store.fits() if (fit.replicate, fit.condition) in own)
    if step > max(reached, default=0):  # what was left out of an earlier step is not in the models of the later ones
        how: Any = {"condition": lane.writer, "round": step, "policy": lane.policy}
        edits_to_learn(run, [document], spec, of=len(lane.documents), **how)
    return run.store.edits(round=step, writer=lane.writer, document_id=document.id)


def _learning(run: Run, lane: Lane, edits: list[Edit] | None, step: int) -> Learning:
    """One adapter on the document and all its edits, and on what is learned again."""
    taught = [(lane.documents[step - 1], edits), *lane.again(run, step)]
    return Learning(
        lane.condition,
        tuple(document for document, _ in taught),
        tuple(None if some is None else tuple(edit.text for edit in some) for _, some in taught),
        edits[0].id if edits and len(edits) == len(taught) == 1 else None,
        lane.number,
        round=step,
        policy=() if lane.held else lane.policy,
        below=lane.policy if lane.held else (),
        keep=lane.folder(run, step),
        examine=False,
    )
