"""One adapter for all documents, or one for each: which of the two `learn` takes where `--adapters` does not say."""

from __future__ import annotations

from collections.abc import Sequence

from selfedit.documents import Document
from selfedit.methods.adapters import find_adapters
from selfedit.methods.joint import Joint, Reciting
from selfedit.methods.per_document import PerDocument
from selfedit.methods.run import Run
from selfedit.methods.settings import AUTO, MANY, LearnSettings
from selfedit.text import counted

WAYS: dict[str, type[Joint | PerDocument]] = {"joint": Joint, "recite": Reciting, "per-document": PerDocument}


def choose_way(run: Run, editor: str, settings: LearnSettings, documents: Sequence[Document]) -> Joint | PerDocument:
    """The way that the settings name; else that of the run that is added to, else by the number of documents, which is
    told, and is the run's from then on."""
    chosen = settings.adapters
    if chosen == AUTO:
        number = len(documents)
        several, why = number >= MANY, counted(number, "document", "documents or parts")
        if settings.add is not None:
            several, why = bool(find_adapters(settings.add).documents), f"as in {settings.add}"
        chosen = run.directory.resolve("adapters", "per-document" if several else "joint")
        is_, other = ("one per document", "joint") if chosen == "per-document" else ("one for all", "per-document")
        run.progress.note(f"adapters: {is_} ({why}); other ways: --adapters {other}, recite")
    return WAYS[chosen](run, editor, settings)
