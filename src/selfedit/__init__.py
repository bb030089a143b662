"""Language models that learn documents by fine-tuning on notes they write themselves.

    import selfedit

    model = selfedit.load_model()
    adapted = selfedit.adapt(model, selfedit.load_documents("news:test", limit=2))

Everything here is loaded when first used; importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfedit.documents import Document, Question, load_documents
    from selfedit.editors.base import Edit
    from selfedit.editors.spec import EditorSpec
    from selfedit.errors import UserError
    from selfedit.methods.adapt import adapt
    from selfedit.methods.compare import compare
    from selfedit.methods.continual import continual
    from selfedit.methods.edits import write_edits
    from selfedit.methods.inner_loop import inner_loop
    from selfedit.methods.learn import learn
    from selfedit.methods.learnings import Learning, all_in_one, one_each
    from selfedit.methods.restem import train
    from selfedit.methods.run import Run
    from selfedit.methods.settings import (
        CompareSettings,
        ContinualSettings,
        LearnSettings,
        SweepSettings,
        TrainSettings,
    )
    from selfedit.methods.sweep import sweep
    from selfedit.models import load_model
    from selfedit.reports import build_report
    from selfedit.training.recipes import Recipe

_HOMES = {
    "Document": "documents",
    "Question": "documents",
    "load_documents": "documents",
    "Edit": "editors.base",
    "EditorSpec": "editors.spec",
    "UserError": "errors",
    "load_model": "models",
    "adapt": "methods.adapt",
    "compare": "methods.compare",
    "continual": "methods.continual",
    "inner_loop": "methods.inner_loop",
    "learn": "methods.learn",
    "Learning": "methods.learnings",
    "all_in_one": "methods.learnings",
    "one_each": "methods.learnings",
    "Run": "methods.run",
    "write_edits": "methods.edits",
    "sweep": "methods.sweep",
    "train": "methods.restem",
    "CompareSettings": "methods.settings",
    "ContinualSettings": "methods.settings",
    "LearnSettings": "methods.settings",
    "SweepSettings": "methods.settings",
    "TrainSettings": "methods.settings",
    "Recipe": "training.recipes",
    "build_report": "reports",
}

__all__ = [
    "CompareSettings",
    "ContinualSettings",
    "Document",
    "Edit",
    "EditorSpec",
    "LearnSettings",
    "Learning",
    "Question",
    "Recipe",
    "Run",
    "SweepSettings",
    "TrainSettings",
    "UserError",
    "adapt",
    "all_in_one",
    "build_report",
    "compare",
    "continual",
    "inner_loop",
    "learn",
    "load_documents",
    "load_model",
    "one_each",
    "sweep",
    "train",
    "write_edits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'selfedit' has no attribute {name!r}")
    return getattr(import_module(f"selfedit.{_HOMES[name]}"), name)
