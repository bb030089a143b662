"""Every editor, by the first word of what `--editor` says.  (`none` and `passage` are conditions without one.)"""

from __future__ import annotations

from collections.abc import Callable

from selfedit.editors.base import Editor, Tools
from selfedit.editors.model import ModelEditor
from selfedit.editors.remote import ApiEditor
from selfedit.editors.replay import ReplayEditor
from selfedit.editors.spec import EditorSpec

EDITORS: dict[str, Callable[[EditorSpec, Tools], Editor]] = {
    "self": ModelEditor,
    "model": ModelEditor,
    "replay": ReplayEditor,
    "api": ApiEditor,
}
