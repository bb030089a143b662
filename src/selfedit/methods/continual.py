"""Documents one after another into one model: what each step teaches, and what it makes the model forget.

    θ ← the model
    for each document:
        edits ← θ's, or another editor's, of it
        θ ← θ with an adapter merged in that was trained on them
        examine θ on this document and all earlier ones

The paper's continual self-editing experiment (Zweiger et al. 2025, section 5) is of this form.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.errors import UserError
from selfedit.methods.edits import write_edits
from selfedit.methods.examining import examine_untrained
from selfedit.methods.inner_loop import inner_loop
from selfedit.methods.inputs import check, load
from selfedit.methods.learnings import all_in_one
from selfedit.methods.policies import read_delta
from selfedit.methods.run import Parts, Run
from selfedit.methods.settings import ContinualSettings
from selfedit.methods.small_models import editor_of, say_editor
from selfedit.methods.summarise import accuracy, summarise, summary_of_finished
from selfedit.runs.summary import Summary


def continual(settings: ContinualSettings, **parts: Unpack[Parts]) -> Summary:
    """Learns the documents in their order.

    The summary's `steps` has, for each step, the accuracy on the new document and on the earlier ones (with its
    interval).  A document whose edits could not be written is passed over.
    Errors: UserError for what the user can mend.
    """
    asked = settings.editor
    settings, spec = editor_of(settings)
    with Run("continual", settings, **parts) as run:
        documents = load(run, settings.documents, limit=settings.limit)
        check(run, documents, [spec], count=settings.edits, prompt=settings.edit_prompt)
        say_editor(run, asked, spec.kind)
        run.store.add_documents(documents)
        examine_untrained(run, documents)
        policy: tuple[str, ...] = ()
        learned: list[Document] = []
        reached = max((fit.round for fit in run.store.fits()), default=0)
        for step, document in enumerate(documents, start=1):
            edits = None
            if spec.kind != "passage":
                if step > reached:  # what was left out of an earlier step is not in the models of the later ones
                    write_edits(
                        run,
                        [document],
                        spec,
                        count=settings.edits,
                        prompt=settings.edit_prompt,
                        round=step,
                        policy=policy,
                        wanted=len(documents) * settings.edits,
                    )
                edits = run.store.edits(round=step, writer=spec.name, document_id=document.id)
                if not edits:
                    continue
            policy = (
                *policy,
                _learn(run, spec.name, document, edits, step, policy, f"step {step} of {len(documents)}"),
            )
            learned.append(document)
            examine_untrained(run, learned, condition="after", round=step, policy=policy)
        run.grading.grade()
        return summary_of_finished(run) or summarise(
            run,
            documents,
            ["none"],
            steps=tuple(_step(run, step, document.id) for step, document in enumerate(documents, start=1)),
        )


def _learn(
    run: Run,
    condition: str,
    document: Document,
    edits: list[Edit] | None,
    step: int,
    policy: tuple[str, ...],
    label: str,
) -> str:
    """Trains one adapter on the document and all its edits; the name of its delta, which the workers then know."""
    folder = run.directory.checkpoint(step)
    (learning,) = all_in_one(condition, [document], edits, round=step, policy=policy, keep=folder, examine=False)
    if edits is not None and len(edits) == 1:
        learning = replace(learning, edit_id=edits[0].id)
    inner_loop(run, [learning], label=label)
    if not folder.exists():
        (failed,) = run.store.fits(round=step, condition=condition)
        raise UserError(
            f"step {step}: the fit on {document.id} failed ({failed.error}); try a lower learning rate"
            " (--set learning_rate=...) and another --out"
        )
    run.workers.publish(folder.name, read_delta(folder))
    return folder.name


def _step(run: Run, step: int, document_id: str) -> dict[str, Any]:
    scores = run.grading.scores("after", round=step)

    def part(new: bool) -> dict[str, Any] | None:
        some = {id: score for id, score in scores.items() if (id == document_id) == new}
        found = accuracy(some)
        return found and {**found, "documents": len(some)}

    return {"step": step, "document": document_id, "new": part(True), "earlier": part(False)}
