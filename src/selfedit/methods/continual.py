"""Documents one after another into one model: what is learned at each step, and what is forgotten of the steps before.

Knows steps: each document's delta is merged into the policy before the next document is learned.  The paper's continual
self-editing experiment (Zweiger et al. 2025, section 5) is of this form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfedit.documents import Document
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.evaluation.statistics import DocumentScore, accuracy_interval
from selfedit.execution.pool import Pool
from selfedit.methods.experiment import Experiment, Learning
from selfedit.methods.policies import read_delta
from selfedit.methods.progress import Progress
from selfedit.methods.settings import ContinualSettings
from selfedit.methods.small_models import say_editor, with_editor
from selfedit.methods.summarise import summarise, summary_of_finished
from selfedit.runs.summary import Summary


def continual(
    settings: ContinualSettings,
    *,
    progress: Progress | None = None,
    pool: Pool | None = None,
    kind: Callable[..., Experiment] = Experiment,
) -> Summary:
    """Learns the documents in their order; after each step the model is examined on all documents learned so far.

    The summary's `steps` has, for each step, the accuracy on the new document and on the earlier ones (with its
    interval).  A document whose edits could not be written is passed over. Errors: UserError for what the user can
    mend."""
    asked, settings = settings.editor, with_editor(settings)
    spec = EditorSpec.parse(settings.editor)
    if spec.kind == "none":
        raise UserError("--editor none: there is nothing to learn from; use passage, self, replay:FILE or api:MODEL")
    with kind("continual", settings, progress=progress, pool=pool) as experiment:
        documents = experiment.load(settings.documents, limit=settings.limit, require_questions=True)
        experiment.check(documents, [spec], count=settings.edits, prompt=settings.edit_prompt)
        say_editor(experiment, asked, spec.kind)
        experiment.store.add_documents(documents)
        experiment.examine_untrained(documents)
        chain: tuple[str, ...] = ()
        learned: list[Document] = []
        reached = max((fit.round for fit in experiment.store.fits()), default=0)
        for step, document in enumerate(documents, start=1):
            folder = experiment.run.checkpoint(step)
            edits: tuple[tuple[str | None, str] | None, ...] = (None,)
            if spec.kind != "passage":
                if step > reached:  # what was left out of an earlier step is not in the models of the later ones
                    experiment.write_edits(
                        [document],
                        spec,
                        count=settings.edits,
                        prompt=settings.edit_prompt,
                        round=step,
                        policy=chain,
                        wanted=len(documents) * settings.edits,
                    )
                stored = experiment.store.edits(round=step, writer=spec.name, document_id=document.id)
                if not stored:
                    continue
                text = "\n".join(edit.text for edit in stored)
                edits = ((stored[0].id if len(stored) == 1 else None, text),)
            experiment.fit_and_examine(
                [Learning(spec.name, (document,), edits, 0, step, chain, folder, examine=False)],
                label=f"step {step} of {len(documents)}",
            )
            if not folder.exists():
                (failed,) = experiment.store.fits(round=step, condition=spec.name)
                raise UserError(
                    f"step {step}: the fit on {document.id} failed ({failed.error}); try a lower learning rate"
                    " (--set learning_rate=...) and another --out"
                )
            experiment.publish(folder.name, read_delta(folder))
            chain = (*chain, folder.name)
            learned.append(document)
            experiment.examine_untrained(learned, condition="after", round=step, policy=chain, general=True)
        experiment.grade()
        if (finished := summary_of_finished(experiment)) is not None:
            return finished
        steps = [_step(experiment, step, document.id) for step, document in enumerate(documents, start=1)]
        return summarise(experiment, documents, ["none"], steps=tuple(steps))


def _step(experiment: Experiment, step: int, document_id: str) -> dict[str, Any]:
    scores = experiment.scores("after", round=step)
    earlier = {document: score for document, score in scores.items() if document != document_id}
    return {
        "step": step,
        "document": document_id,
        "new": _accuracy({document_id: scores[document_id]} if document_id in scores else {}),
        "earlier": _accuracy(earlier),
    }


def _accuracy(scores: dict[str, DocumentScore]) -> dict[str, Any] | None:
    if not any(score.graded for score in scores.values()):
        return None
    found = accuracy_interval(scores)
    return {"accuracy": found.mean, "ci95": [found.lo, found.hi], "documents": len(scores)}
