"""The prompts in a clone of SEAL's released code, as a file of prompts of ours.  The code is read, and not run."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from selfedit.errors import UserError

WRITING, ASKING = "src/data_generation/make_squad_data.py", "src/utils.py"

_JUDGED = {"question": "{{ question }}", "gold": "{{ gold }}", "pred": "{{ answer }}"}
_FIELDS = {"title": "{{ title }}", "context": "{{ text }}", "question": "Topic: {{ title }}\n{{ question }}"}
_TURN = re.compile(r"<\|im_start\|>(?:system|user)\n(.*?)<\|im_end\|>", re.DOTALL)


def seal_prompts(home: Path) -> dict[str, Any]:
    """The prompts for edits, the exam and a judge, in the form of `prompts.yaml`.  Errors: UserError."""
    writing, asking = constants(home / WRITING), constants(home / ASKING)

    def get(found: Mapping[str, Any], place: str, name: str, kind: type) -> Any:
        if not isinstance(found.get(name), kind):
            raise UserError(f"{home / place}: no {name} in it; the clone is of another version")
        return found[name]

    base = get(writing, WRITING, "MAKE_SQUAD_DATA_TEMPLATES_BASE", dict)
    chat = get(writing, WRITING, "MAKE_SQUAD_DATA_TEMPLATE_INSTRUCT", str)
    edit: dict[str, dict[str, str]] = {name: {"base": _template(text)} for name, text in base.items()}
    edit.setdefault("implications", {})["chat"] = _message(chat)
    # A judge is told all in one message, without one of the system's.
    judged = asking.get("SQUAD_GRADE_TEMPLATE")
    judge = {"judge": {"system": "", "chat": _template(judged, _JUDGED)}} if isinstance(judged, str) else {}
    return {
        **judge,
        "edit": edit,
        "exam": {
            "chat": _message(get(asking, ASKING, "SQUAD_ANSWER_TEMPLATE_QWEN_INSTRUCT", str)),
            "base": _template(get(asking, ASKING, "SQUAD_ANSWER_TEMPLATE_BASE", str)),
        },
    }


def constants(file: Path) -> dict[str, Any]:
    """The values that a Python file's names have, where they are written out in it."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError, RecursionError):
        raise UserError(f"{file}: not Python code that can be read; the clone is of another version") from None
    found = {}
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and node.value is not None:
            try:
                found[target.id] = ast.literal_eval(node.value)
            except (ValueError, TypeError, RecursionError):
                continue
    return found


def _template(text: str, fields: Mapping[str, str] = _FIELDS) -> str:
    """A template of Python's as one of ours."""
    try:
        parts = [(literal, field) for literal, field, _, _ in Formatter().parse(text)]
        return "".join(literal + (fields[field] if field else "") for literal, field in parts)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"a prompt of the clone has a field that none here has ({error}): another version") from None


def _message(text: str) -> str:
    """The one user's message that a prompt of system and user's messages becomes."""
    return _template("\n\n".join(turn.strip() for turn in _TURN.findall(text)) or text)
