"""An adapter for each document, trained side by side and kept; each question goes to one of them (`routing`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.errors import UserError
from selfedit.grouping import grouped
from selfedit.methods.adapters import find_adapters
from selfedit.methods.examining import examine, known_general
from selfedit.methods.learnings import Asked, Learning, asked_about, one_per_document
from selfedit.methods.model_card import add_list_of_adapters
from selfedit.methods.policies import DELTA_FILES, is_whole
from selfedit.methods.routing import find_routes, routing_summary
from selfedit.methods.run import Run
from selfedit.methods.sequences import can_hold
from selfedit.methods.settings import LearnSettings
from selfedit.methods.stacking import adapter_rank, fit_kept, publish, stack
from selfedit.runs.files import directory_atomically
from selfedit.runs.records import FitRecord
from selfedit.runs.summary import RoutingSummary


class PerDocument:
    """Each adapter is trained on the model as it is (`policy`), whatever an earlier run has learned."""

    policy: tuple[str, ...] = ()
    routed, recites = True, False
    routing: RoutingSummary | None = None

    def __init__(self, run: Run, editor: str, settings: LearnSettings) -> None:
        self.run, self.editor = run, editor
        self._before = find_adapters(settings.add) if settings.add else None
        if self._before and not self._before.documents:
            raise UserError(f"--add {settings.add}: not a run with an adapter per document; leave out --adapters")
        # What may be learned once more does not lie where the run's adapters do.
        self._first = run.directory.adapter("once") if settings.retry_missed else run.directory.document_adapters
        self._adapters: dict[Path, Document] = {}

    def learn(self, condition: str, documents: Sequence[Document], edits: Sequence[Edit] | None) -> list[FitRecord]:
        """Trains an adapter for each document of which there is an edit, and has all questions answered through the
        routing."""
        run, learnings = self.run, one_per_document(condition, documents, edits)
        learned = [one.documents[0] for one in learnings]
        anew = {document.id for document in learned}  # an earlier run's adapters of these give way
        pairs = zip(self._before.folders, self._before.documents, strict=True) if self._before else ()
        earlier = {folder: document for folder, document in pairs if document.id not in anew}
        found = find_routes(run, [*earlier.values(), *learned], learned, asked_about(documents, known_general(run)))
        routed = grouped(found)
        self._learnings = [
            replace(one, keep=self._first / run.directory.document_adapter(d.id).name, asked=tuple(routed[d.id]))
            for one, d in zip(learnings, learned, strict=True)
        ]
        fits = fit_kept(run, self._learnings, label="learning")
        self._answer_others(condition, earlier, routed)
        self.routing = routing_summary(found)
        self._adapters = earlier | {_folder(one): one.documents[0] for one in self._learnings}
        return fits

    def _answer_others(
        self, condition: str, earlier: Mapping[Path, Document], routed: Mapping[str | None, Sequence[Asked]]
    ) -> None:
        """Has what is asked of no adapter, or of an earlier run's, answered, as the condition's answers.

        Of no adapter: the untrained model has answered it already."""
        run = self.run
        before = {answer.question_id: answer for fit in run.store.fits(condition="none") for answer in fit.answers}
        done = run.store.fit_ids()
        for number, folder in enumerate([None, *earlier]):
            # Exams without a fit are told apart by the number of the adapter.
            record, asked = FitRecord(condition, number), routed.get(earlier[folder].id if folder else None, ())
            if not asked or record.id in done:
                continue
            if folder is None:
                if all(question.id in before for _, question in asked):  # else some were given up, and are asked again
                    run.store.record_fits([replace(record, answers=tuple(before[q.id] for _, q in asked))])
            else:
                phase = f"exam ({condition}, an earlier adapter)"
                examine(run, {record: asked}, f"exam/{record.id}", phase, policy=(publish(run, folder),))
        run.grading.grade()

    def again(
        self, condition: str, documents: Sequence[Document], edits: Sequence[Edit] | None, missed: Collection[str]
    ) -> list[FitRecord]:
        """Trains another on top of each of the missed documents' adapters, to be one with it; the others, and what they
        answer, stay as they are."""
        run, first = self.run, {one.document_id: one for one in self._learnings}
        some = [document for document in documents if document.id in missed]
        anew: dict[str | None, Learning] = {}
        for one in one_per_document(condition, some, edits):
            before = first[one.document_id]
            below = (publish(run, _folder(before)),)
            # On top of different adapters they share a bank where holding these is the same as merging them.
            on = replace(one, below=below) if can_hold(run.recipe) else replace(one, policy=below)
            keep = run.directory.document_adapter(one.documents[0].id)
            anew[one.document_id] = replace(on, asked=before.asked, keep=keep)

        def beside(learning: Learning, scratch: Path) -> None:
            stack([_folder(first[learning.document_id])], scratch)

        fits = fit_kept(run, list(anew.values()), label="learning once more", beside=beside)
        done = run.store.fit_ids()
        same = [
            FitRecord(
                condition,
                fit.replicate,
                document_id=fit.document_id,
                neighbours=fit.neighbours,
                leaked=fit.leaked,
                leaked_before=fit.leaked_before,
                answers=fit.answers,
            )
            for fit in run.store.fits(condition=self._learnings[0].condition)
            if fit.document_id not in anew
        ]
        run.store.record_fits([record for record in same if record.id not in done])
        self._adapters = {
            _folder(anew[document.id]) if document.id in anew else folder: document
            for folder, document in self._adapters.items()
        }
        return fits

    def finish(self) -> tuple[Path, int]:
        """Puts all adapters, an earlier run's too, into one folder, as the same files where the disk allows it, and
        lists them; the folder, and the largest of the adapters' ranks."""
        folder = self.run.directory.document_adapters
        found = {folder / one.name: document for one, document in self._adapters.items()}
        ranks = [adapter_rank(one) for one in self._adapters]
        for one in self._adapters:
            if all(ranks) and not is_whole(folder / one.name):  # a plan's adapters are empty
                with directory_atomically(folder / one.name) as scratch:
                    for name in DELTA_FILES:
                        _link(one / name, scratch / name)
        add_list_of_adapters(self.run, self.editor, found)
        return folder, max(ranks)


def _folder(learning: Learning) -> Path:
    assert learning.keep is not None
    return learning.keep


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)
