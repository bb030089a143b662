"""All documents in one adapter, which is kept: trained on top of those of an earlier run, where there is one, and
written as one with them.  Or one that recites them, for the model without it to read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.errors import UserError
from selfedit.methods.adapters import LEARNED, RETRIED, find_adapters, one_model
from selfedit.methods.by_heart import ByHeart
from selfedit.methods.examining import examine_untrained, known_general
from selfedit.methods.learnings import Learning, all_in_one, asked_about
from selfedit.methods.model_card import add_tokenizer_and_card
from selfedit.methods.routing import routing_summary
from selfedit.methods.run import Run
from selfedit.methods.settings import LearnSettings
from selfedit.methods.stacking import adapter_rank, fit_kept, publish, stack
from selfedit.runs.records import FitRecord, recited_condition
from selfedit.runs.summary import RoutingSummary
from selfedit.training.objectives import apart_by_title

LOOKS = 3  # exams on the way, at each quarter


class Joint:
    """`policy` is what has been learned so far, by the name that the workers know it by; no question is routed."""

    routed, recites = False, False  # whether it is examined by recitation too
    routing: RoutingSummary | None = None

    def __init__(self, run: Run, editor: str, settings: LearnSettings) -> None:
        self.run, self.editor = run, editor
        self._learned = list(one_model(settings.add).folders) if settings.add else []
        self.policy = tuple(publish(run, folder) for folder in self._learned)

    def learn(self, condition: str, documents: Sequence[Document], edits: Sequence[Edit] | None) -> list[FitRecord]:
        """Trains the adapter on all documents of which there is an edit, and examines it, on the way too."""
        folder = self.run.directory.adapter(LEARNED)
        return self._fit("learning", condition, documents, edits, keep=folder, looks=LOOKS)

    def again(
        self, condition: str, documents: Sequence[Document], edits: Sequence[Edit] | None, missed: Collection[str]
    ) -> list[FitRecord]:
        """Trains another on top, on the missed documents alone, and asks all questions again."""
        some = [document for document in documents if document.id in missed]
        others = [document for document in documents if document.id not in missed]
        fits = self._fit("learning once more", condition, some, edits, keep=self.run.directory.adapter(RETRIED))
        examine_untrained(self.run, others, condition=condition, policy=self.policy, general=False)
        return fits

    def finish(self) -> tuple[Path, int]:
        """The adapter's folder, and its rank."""
        (folder,) = self._learned
        return folder, adapter_rank(folder)

    def _fit(
        self,
        label: str,
        condition: str,
        documents: Sequence[Document],
        edits: Sequence[Edit] | None,
        *,
        keep: Path,
        looks: int = 0,
    ) -> list[FitRecord]:
        below = self._learned

        def beside(learning: Learning, scratch: Path) -> None:
            stack(below, scratch)
            count = len(learning.documents)
            add_tokenizer_and_card(self.run, self.editor, count, scratch, recites=self.recites)
            if self.recites:
                student = self.run.workers.tokenizer, self.run.prompts
                ByHeart.of(learning.documents, self.run.recipe, *student).write(scratch)

        learnings = all_in_one(
            condition, documents, edits, keep=keep, looks=looks, policy=self.policy, recite=self.recites
        )
        fits = fit_kept(self.run, learnings, label=label, beside=beside)
        self._documents = learnings[0].documents
        self._learned, self.policy = [keep], (publish(self.run, keep),)
        return fits


class Reciting(Joint):
    """One adapter that has the documents by heart (`by_heart`)."""

    recites = True

    def __init__(self, run: Run, editor: str, settings: LearnSettings) -> None:
        self.run, self.editor = run, editor
        self._learned, self.policy = [], ()  # what an earlier run recites is learned anew
        if settings.retry_missed:
            raise UserError("--retry-missed: not with --adapters recite, which learns all documents at once")
        if "topics" not in run.recipe.objectives:
            raise UserError("--adapters recite: the recipe has to have the objective topics, as the recipe recite has")
        if (add := settings.add) is not None and not find_adapters(add).recites:
            raise UserError(f"--add {add}: not a run whose adapter recites; leave out --adapters")
        if add is not None and not (add / "config.yaml").is_file():
            raise UserError(f"--add {add}: an adapter alone, without its documents; name the run that it was made by")

    def learn(self, condition: str, documents: Sequence[Document], edits: Sequence[Edit] | None) -> list[FitRecord]:
        """Trains the adapter and examines it, both asked directly and by recitation (`recited_condition`)."""
        fits = self._fit("learning", condition, documents, edits, keep=self.run.directory.adapter(LEARNED))
        by_title = {document.title: document.id for document in apart_by_title(self._documents)}
        named = {
            answer.question_id: by_title.get(answer.topic or "")
            for fit in self.run.store.fits(condition=recited_condition(condition))
            for answer in fit.answers
        }
        asked = asked_about(documents, known_general(self.run))
        routes = [(named[question.id], (about, question)) for about, question in asked if question.id in named]
        self.routing = routing_summary(routes).model_copy(update={"named": True})
        return fits
