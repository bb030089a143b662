"""Language models that learn documents by fine-tuning on notes they write themselves.

    import selfedit

    model = selfedit.load_model()
    adapted = selfedit.adapt(model, selfedit.load_documents("news:test", limit=2))

Everything here is loaded when first used; importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfedit.documents import Document as Document
    from selfedit.documents import Question as Question
    from selfedit.documents import load_documents as load_documents
    from selfedit.editors.base import Edit as Edit
    from selfedit.editors.spec import EditorSpec as EditorSpec
    from selfedit.errors import UserError as UserError
    from selfedit.methods.adapt import adapt as adapt
    from selfedit.methods.compare import compare as compare
    from selfedit.methods.continual import continual as continual
    from selfedit.methods.edits import write_edits as write_edits
    from selfedit.methods.inner_loop import inner_loop as inner_loop
    from selfedit.methods.learn import learn as learn
    from selfedit.methods.learnings import Learning as Learning
    from selfedit.methods.learnings import all_in_one as all_in_one
    from selfedit.methods.learnings import one_each as one_each
    from selfedit.methods.restem import train as train
    from selfedit.methods.run import Run as Run
    from selfedit.methods.settings import CompareSettings as CompareSettings
    from selfedit.methods.settings import ContinualSettings as ContinualSettings
    from selfedit.methods.settings import LearnSettings as LearnSettings
    from selfedit.methods.settings import SweepSettings as SweepSettings
    from selfedit.methods.settings import TrainSettings as TrainSettings
    from selfedit.methods.sweep import sweep as sweep
    from selfedit.models import load_model as load_model
    from selfedit.reports import build_report as build_report
    from selfedit.training.recipes import Recipe as Recipe

_NAMES = {
    "documents": "Document Question load_documents",
    "editors.base": "Edit",
    "editors.spec": "EditorSpec",
    "errors": "UserError",
    "methods.adapt": "adapt",
    "methods.compare": "compare",
    "methods.continual": "continual",
    "methods.edits": "write_edits",
    "methods.inner_loop": "inner_loop",
    "methods.learn": "learn",
    "methods.learnings": "Learning all_in_one one_each",
    "methods.restem": "train",
    "methods.run": "Run",
    "methods.settings": "CompareSettings ContinualSettings LearnSettings SweepSettings TrainSettings",
    "methods.sweep": "sweep",
    "models": "load_model",
    "reports": "build_report",
    "training.recipes": "Recipe",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'selfedit' has no attribute {name!r}")
    return getattr(import_module(f"selfedit.{_HOMES[name]}"), name)
