"""All documents in one adapter, which is kept: trained on top of those of an earlier run, where there is one, and
written as one with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.methods.adapters import LEARNED, RETRIED
from selfedit.methods.examining import examine_untrained
from selfedit.methods.learnings import Learning, all_in_one
from selfedit.methods.model_card import add_tokenizer_and_card
from selfedit.methods.run import Run
from selfedit.methods.settings import LearnSettings
from selfedit.methods.stacking import adapter_rank, earlier_adapters, fit_kept, publish, stack
from selfedit.runs.records import FitRecord
from selfedit.runs.summary import RoutingSummary

LOOKS = 3  # exams on the way, at each quarter


class Joint:
    """`policy` is what has been learned so far, by the name that the workers know it by; no question is routed."""

    routing: RoutingSummary | None = None

    def __init__(self, run: Run, editor: str, settings: LearnSettings) -> None:
        self.run, self.editor = run, editor
        self._learned, self.policy = earlier_adapters(run, settings.add)

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
            add_tokenizer_and_card(self.run, self.editor, len(learning.documents), scratch)

        learnings = all_in_one(condition, documents, edits, keep=keep, looks=looks, policy=self.policy)
        fits = fit_kept(self.run, learnings, label=label, beside=beside)
        self._learned, self.policy = [keep], (publish(self.run, keep),)
        return fits
