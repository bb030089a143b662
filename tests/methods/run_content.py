"""All that a run came to, but times: what must be equal however the run was interrupted."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from selfedit.runs.store import Store

TIMES = ("seconds", "total_seconds", "device_seconds", "question_seconds", "worth_it")  # which names some


def content(out: Path) -> dict[str, Any]:
    """A run's edits, fits with their losses and answers, grades, rounds, costs, summary, adapters and checkpoints."""
    with Store(out / "run.sqlite", readonly=True) as store:
        found: dict[str, Any] = {
            "edits": store.edits(),
            "answers": {grader: store.scored_answers(grader) for grader in store.graders()},
            "fits": [replace(fit, seconds=0.0) for fit in store.fits()],
            "rounds": [without_times(record.model_dump()) for record in store.rounds()],
            "costs": sorted(astuple(replace(cost, seconds=0.0)) for cost in store.costs()),
            "curves": store.curves(),
            "own texts": store._rows("SELECT * FROM own_texts ORDER BY policy, prompt_id"),
            "events": store.events(),
        }
    summary = out / "summary.json"
    found["summary"] = without_times(json.loads(summary.read_text())) if summary.exists() else None
    found["files"] = {
        str(path.relative_to(out)): path.read_bytes()
        for folder in ("checkpoints", "adapters")
        for path in sorted((out / folder).rglob("*"))
        if path.is_file()
    }
    found["left over"] = sorted(path.name for path in out.rglob("*") if path.name.startswith("."))
    return found


def without_times(value: Any) -> Any:
    """Plain data without the keys that hold times."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list | tuple):
        return [without_times(item) for item in value]
    return value
