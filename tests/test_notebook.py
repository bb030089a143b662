"""The cells of examples/inner_loop.ipynb, one after another, with a tiny model in place of the named one."""

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_world import rows, write_rows

NOTEBOOK = Path(__file__).parents[1] / "examples" / "inner_loop.ipynb"


def test_the_cells_run(chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.set_num_threads(1)
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    documents = str(write_rows(tmp_path / "documents.jsonl", rows(1)))
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if "outputs" in cell]
    for name, here in (("qwen2.5-coder-0.5b", chat_model), ("news:test", documents)):
        assert sum(f'"{name}"' in cell for cell in cells) == 1
        cells = [cell.replace(f'"{name}"', repr(here)) for cell in cells]
    cells = [cell.replace("max_edit_tokens=128", "max_edit_tokens=16, max_answer_tokens=4") for cell in cells]
    scope: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell, str(NOTEBOOK), "exec"), scope)
    assert len(scope["edits"]) == len(scope["fits"]) == 4
    assert all(fit.error is None and fit.last_loss < fit.first_loss for fit in scope["fits"])
    assert all(len(scores) == 2 for scores in scope["scores"].values())


def test_what_is_shown_was_written_by_these_cells() -> None:
    """Each cell that prints has its output, in the order in which they ran; nothing of the machine is in it."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if "outputs" in cell]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert bool(cell["outputs"]) == ("print(" in "".join(cell["source"]))
        assert all(output["name"] == "stdout" for output in cell["outputs"])
