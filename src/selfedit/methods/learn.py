"""One adapter that knows all the documents: edits, a fit, an exam before and after where there are questions.

Knows documents and one writer.  Asking the adapter afterwards is `ask`'s part.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.evaluation.statistics import accuracy_interval
from selfedit.execution.pool import Pool
from selfedit.methods.adapters import LEARNED
from selfedit.methods.experiment import Experiment, Learning, on_the_way
from selfedit.methods.model_card import model_card
from selfedit.methods.progress import Progress
from selfedit.methods.settings import FREE, LearnSettings
from selfedit.methods.small_models import say_editor, with_editor
from selfedit.methods.summarise import summarise, summary_of_finished
from selfedit.methods.tracking import check_tracker, make_tracker
from selfedit.runs.summary import Summary
from selfedit.training.tokens import longer_than

LOOKS = 3  # exams on the way, at each quarter


@dataclass(frozen=True)
class Learned:
    """`adapter` is a folder in PEFT's format; `summary` has the exam's figures, or None where there were no
    questions."""

    adapter: Path
    documents: int
    edits: tuple[Edit, ...]
    train_tokens: int
    last_loss: float | None
    summary: Summary | None


def learn(
    settings: LearnSettings,
    *,
    progress: Progress | None = None,
    pool: Pool | None = None,
    documents: Sequence[Document] | None = None,
    kind: Callable[..., Experiment] = Experiment,
) -> Learned:
    """Teaches one adapter all the documents, and writes it to `adapters/learned` in the run's directory.

    `documents` are used in place of those that the settings name.

    Errors: UserError for what the user can mend, a fit that failed (its loss was not a number) among it.
    """
    if not settings.documents and not documents:
        raise UserError("no documents given: name files, folders, or news")
    check_tracker(settings.track)
    asked, settings = settings.editor, with_editor(settings)
    spec = EditorSpec.parse(settings.editor)
    if spec.kind == "none":
        raise UserError("--editor none: there is nothing to learn from; use passage, self, replay:FILE or api:MODEL")
    with kind("learn", settings, progress=progress, pool=pool) as experiment:
        if documents is None:
            documents = experiment.load(settings.documents, limit=settings.limit, require_questions=False)
        experiment.check(documents, [spec], count=settings.edits, prompt=settings.edit_prompt)
        say_editor(experiment, asked, spec.kind)
        experiment.store.add_documents(documents)
        examined = any(document.questions for document in documents)
        if not experiment.store.fits(condition=spec.name):
            _say_what_is_cut(experiment, documents)
        if examined:
            experiment.examine_untrained(documents)
        learned = list(documents)
        if spec.kind != "passage":
            experiment.write_edits(documents, spec, count=settings.edits, prompt=settings.edit_prompt)
            learned = experiment.with_edits(documents, spec.name)
            if not learned:
                raise UserError(f"{spec.name}: no edit could be written, so there is nothing to learn from")
        folder = experiment.run.adapter(LEARNED)
        learning = Learning(spec.name, tuple(learned), _all_edits(experiment, learned, spec), keep=folder, looks=LOOKS)

        def beside(scratch: Path) -> None:
            # The tokenizers library cannot write below a directory whose name is not UTF-8.
            with tempfile.TemporaryDirectory() as plain:
                experiment.pool.tokenizer.hf.save_pretrained(plain)
                shutil.copytree(plain, scratch, dirs_exist_ok=True)
            card = model_card(
                settings.model,
                editor=spec.name,
                documents=len(learned),
                settings=experiment.recipe.model_dump(mode="json"),
            )
            (scratch / "README.md").write_text(card, encoding="utf-8")

        experiment.fit_and_examine([learning], label="learning", beside=beside)
        (fit,) = experiment.store.fits(condition=spec.name)
        if fit.error is not None:
            raise UserError(
                f"the fit failed: {fit.error}; try a lower learning rate (--set learning_rate=...) and another --out"
            )
        summary = None
        if examined:
            experiment.grade()
            summary = summary_of_finished(experiment) or summarise(
                experiment, documents, ["none", spec.name], on_the_way=_looks(experiment, spec.name, fit.steps)
            )
        _track(experiment, settings, learning.id, summary)
        edits = tuple(experiment.store.edits(writer=spec.name))
        return Learned(folder, len(learned), edits, fit.train_tokens, fit.last_loss, summary)


def _looks(experiment: Experiment, name: str, steps: int) -> list[dict[str, Any]]:
    """The accuracy in each exam on the way."""
    found = []
    for fit in experiment.store.fits():
        if fit.condition != on_the_way(name, fit.steps, steps):
            continue
        scores = experiment.scores(fit.condition)
        if any(score.graded for score in scores.values()):
            interval = accuracy_interval(scores)
            found.append(
                {"step": fit.steps, "steps": steps, "accuracy": interval.mean, "ci95": [interval.lo, interval.hi]}
            )
    return sorted(found, key=lambda look: look["step"])


def _track(experiment: Experiment, settings: LearnSettings, fit_id: str, summary: Summary | None) -> None:
    """Sends the loss curve and the scores on the way to where --track says, once the fit is done."""
    tracker = make_tracker(settings.track, settings.out, experiment.run.config)
    for step, loss in experiment.store.curve(fit_id):
        tracker.log({"loss": loss}, step=step)
    for look in summary.on_the_way if summary else ():
        tracker.log({"accuracy": look.accuracy}, step=look.step)
    tracker.finish()


def directory_by_content(settings: LearnSettings) -> Path:
    """`runs/learn-NAME-HASH`, where a run goes whose directory was not named: by its settings and its documents'
    content, so that the same command resumes and another one is another run."""
    digest = hashlib.sha256(
        json.dumps({k: v for k, v in settings.model_dump(mode="json").items() if k not in FREE}).encode()
    )
    for source in map(Path, settings.documents):
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        for file in files:
            if file.is_file() and os.access(file, os.R_OK):
                digest.update(str(file).encode("utf-8", "surrogateescape"))
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(settings.documents[0]).stem).strip(".-")[:40] or "documents"
    return Path("runs") / f"learn-{name}-{digest.hexdigest()[:8]}"


def _all_edits(
    experiment: Experiment, documents: Sequence[Document], spec: EditorSpec
) -> tuple[tuple[str | None, str] | None, ...]:
    """All edits of a document joined, in the order of documents; None for the passage alone."""
    if spec.kind == "passage":
        return (None,) * len(documents)
    texts: dict[str, list[str]] = {document.id: [] for document in documents}
    for stored in experiment.store.edits(writer=spec.name):
        texts[stored.document_id].append(stored.text)
    return tuple((None, "\n".join(texts[document.id])) for document in documents)


def _say_what_is_cut(experiment: Experiment, documents: Sequence[Document]) -> None:
    tokenizer = experiment.pool.tokenizer
    limit = min(experiment.recipe.max_sequence_tokens, experiment.pool.context_length)
    for document in documents:
        if longer_than(tokenizer, document.text, limit):
            line = (
                f"{document.id}: longer than the {limit:,} tokens that are learned at once: cut into overlapping parts"
            )
            experiment.warn("document cut into parts", line)
