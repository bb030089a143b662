"""examples/inner_loop.py, on a tiny model: each edit gets its reward."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfedit.documents import load_documents
from tiny_world import SMALL

EXAMPLE = Path(__file__).parents[2] / "examples" / "inner_loop.py"


def test_each_edit_gets_the_share_of_right_answers(chat_model: str, documents: Callable[[int], str]) -> None:
    (document,) = load_documents(documents(1))
    settings: dict[str, Any] = {k: v for k, v in SMALL.items() if not k.startswith("general_")}
    found = runpy.run_path(str(EXAMPLE))["rewards"](document, 3, model=chat_model, grader="lexical", **settings)
    assert len(found) == 3
    assert all(text for text, _ in found)
    assert len({text for text, _ in found}) > 1
    assert {reward for _, reward in found} <= {0.0, 0.5, 1.0}
