"""Golden runs: what every procedure came to on a tiny model, recorded, so that a rebuild of the code shows that it
changes nothing.

Other tests hold properties; this one holds results: edits, answers, grades, kept edits, numbers of trained tokens and
steps and the selected round must be those in `golden/`, word by word; losses, scores and rewards to 1e-4, because
processors add in different orders.  The model is kept beside them, since training it would not end in the same weights
everywhere.

A change that is meant to change results (a prompt, a grader, a recipe's default) records them anew, and its commit says
why:

    GOLDEN=record python -m pytest tests/methods/test_golden.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from all_methods import METHODS
from counting_pool import CountingPool

from overlap_grader import overlap_grader  # noqa: F401
from selfedit.runs.store import Store
from tiny_world import SMALL, build_model, rows, write_rows

GOLDEN = Path(__file__).with_name("golden")
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "compare": (
        3,
        {"editor": ("none", "passage", "self", "self:self-qa"), "edits": 2, "replicates": 2, "general_questions": 1},
    ),
    "train": (
        6,
        {"validation_share": 0.34, "rounds": 2, "edits": 3, "replicates": 1}
        | {"outer_set": {"rank": 4, "learning_rate": 3e-3}},
    ),
    "learn": (4, {"editor": "self", "edits": 2, "set": {**SMALL["set"], "learning_rate": 3e-3}}),
    "continual": (3, {"editor": "self", "retain": ("per-document", "none")}),
}


RECORD = os.environ.get("GOLDEN") == "record"


@pytest.fixture(scope="module")
def model() -> str:
    folder = GOLDEN / "model"
    if RECORD and not folder.exists():
        record_model(folder)
    return str(folder)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_to_what_was_recorded(name: str, model: str, tmp_path: Path) -> None:
    (method, kind), (count, changes) = METHODS[name], RUNS[name]
    # The model has seen the last answers: some are right.
    file = write_rows(tmp_path / "documents.jsonl", rows(8)[-count:])
    settings = kind(
        **{**SMALL, "model": model, "documents": (str(file),), "grader": "overlap", "out": tmp_path / "run", **changes}
    )
    method(settings, pool=CountingPool(model))
    found = come_to(settings.out)
    recorded = GOLDEN / f"{name}.json"
    if RECORD:
        recorded.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        pytest.skip(f"recorded in {recorded.name}")
    expected = json.loads(recorded.read_text(encoding="utf-8"))
    assert found.keys() == expected.keys()
    for part in found:
        assert found[part] == alike(expected[part]), part


def come_to(out: Path) -> dict[str, Any]:
    """A run's results, as plain data."""
    with Store(out / "run.sqlite", readonly=True) as store:
        grades = {(a.fit_id, a.question_id): (a.value, a.score) for a in store.scored_answers("overlap")}
        found = {
            "edits": {e.id: {"text": e.text, "reward": e.reward, "kept": e.kept} for e in store.edits()},
            "fits": {
                fit.id: {
                    "status": fit.status,
                    "trained": [fit.train_tokens, fit.steps, fit.first_loss, fit.last_loss],
                    "answers": {a.question_id: [a.text, *grades[fit.id, a.question_id]] for a in fit.answers},
                }
                for fit in store.fits()
            },
            "rounds": [[r.round, r.train_reward, r.validation_accuracy, r.kept_edits] for r in store.rounds()],
        }
    summary = out / "summary.json"
    data = json.loads(summary.read_text()) if summary.exists() else {}
    found["conditions"] = {c["name"]: [c["correct"], c["graded"], c["accuracy"]] for c in data.get("conditions", ())}
    found["selected round"] = data.get("selected_round")
    return found


def alike(value: Any) -> Any:
    """The same, but for rounding in numbers that are not whole."""
    if isinstance(value, dict):
        return {key: alike(item) for key, item in value.items()}
    if isinstance(value, list):
        return [alike(item) for item in value]
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


def record_model(folder: Path) -> None:
    """The tiny model, with weights that float16 holds exactly."""
    from transformers import AutoModelForCausalLM

    build_model(folder)
    AutoModelForCausalLM.from_pretrained(folder).half().save_pretrained(folder)
