"""Which editor a model gets where none was named: small models do not write notes worth learning.

At 135 million parameters own notes are mostly untrue.  At 0.5 billion they neither help nor harm by more than noise
(docs/results.md).  The limit of 1 billion is a judgement."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.methods.run import Run
from selfedit.methods.settings import AUTO, ContinualSettings, LearnSettings
from selfedit.models import parameter_count
from selfedit.runs.directory import read_recorded

SMALL = 1_000_000_000  # parameters: models of fewer are small
# To name topics it takes questions about them, not their answers; passages alone teach it next to none.
RECITES = "self:exam-questions"

S = TypeVar("S", LearnSettings, ContinualSettings)


def default_editor(parameters: int) -> str:
    return "passage" if parameters < SMALL else "self"


def editor_of(settings: S) -> tuple[S, EditorSpec]:
    """The settings with an editor named (the one that the run began with, else that of an adapter that recites, or by
    the model's size), and that editor.  Errors: UserError where it writes nothing to learn from."""
    if settings.editor == AUTO:
        config = settings.out / "config.yaml"
        editor = read_recorded(config)[0].get("editor") if config.is_file() else None
        if not editor and _recites(settings):
            editor = RECITES
        elif not editor:
            editor = default_editor(parameter_count(settings.model, trust_remote_code=settings.trust_remote_code))
        settings = settings.model_copy(update={"editor": str(editor)})
    spec = EditorSpec.parse(settings.editor)
    if not spec.learns:
        raise UserError(
            f"--editor {spec.name}: there is nothing to learn from; use passage, self, model:NAME, replay:FILE or"
            " api:MODEL"
        )
    return settings, spec


def say_editor(run: Run, asked: str, editor: str) -> None:
    """Tells which editor was chosen for a small model, or that one was named that is too large for it; once a run, and
    not of an adapter that recites."""
    settings = run.settings
    if run.store.documents() or (asked != AUTO and editor != "self") or _recites(settings):
        return
    parameters = parameter_count(settings.model, trust_remote_code=settings.trust_remote_code)
    if parameters >= SMALL:
        return
    size = f"{Path(settings.model).name} has {parameters / 1e6:,.0f} million parameters"
    if asked == AUTO:
        run.warn("editor chosen", f"{size}, too few to write notes worth learning: it learns the passages alone")
    else:
        run.warn(
            "small editor",
            f"{size}, too few to write notes worth learning: much of what it writes will be untrue; --editor passage,"
            " model:NAME, replay:FILE or api:MODEL teaches it better",
        )


def _recites(settings: object) -> bool:
    return isinstance(settings, LearnSettings) and settings.adapters == "recite"
