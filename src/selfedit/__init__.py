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
    from selfedit.errors import UserError
    from selfedit.methods.adapt import adapt
    from selfedit.methods.compare import compare
    from selfedit.methods.continual import continual
    from selfedit.methods.learn import learn
    from selfedit.methods.restem import train
    from selfedit.methods.settings import CompareSettings, ContinualSettings, LearnSettings, TrainSettings
    from selfedit.models import load_model
    from selfedit.reports import build_report
    from selfedit.training.recipes import Recipe

_HOMES = {
    "Document": "documents",
    "Question": "documents",
    "load_documents": "documents",
    "UserError": "errors",
    "load_model": "models",
    "adapt": "methods.adapt",
    "compare": "methods.compare",
    "continual": "methods.continual",
    "learn": "methods.learn",
    "train": "methods.restem",
    "CompareSettings": "methods.settings",
    "ContinualSettings": "methods.settings",
    "LearnSettings": "methods.settings",
    "TrainSettings": "methods.settings",
    "Recipe": "training.recipes",
    "build_report": "reports",
}

__all__ = [
    "CompareSettings",
    "ContinualSettings",
    "Document",
    "LearnSettings",
    "Question",
    "Recipe",
    "TrainSettings",
    "UserError",
    "adapt",
    "build_report",
    "compare",
    "continual",
    "learn",
    "load_documents",
    "load_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'selfedit' has no attribute {name!r}")
    return getattr(import_module(f"selfedit.{_HOMES[name]}"), name)
