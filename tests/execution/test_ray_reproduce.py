"""`selfedit reproduce --workers N`: a plan's runs have their tasks done by Ray, and come to what they come to alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfedit.cli.main import main
from tiny_world import SMALL, rows, write_rows


def without_times(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: without_times(value) for key, value in found.items() if "seconds" not in key}
    return [without_times(one) for one in found] if isinstance(found, list) else found


def adapters(out: Path) -> dict[Path, bytes]:
    return {file.relative_to(out): file.read_bytes() for file in out.rglob("*.safetensors")}


def test_a_plan_comes_to_the_same_with_a_worker(
    ray_cluster: Any, chat_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {
        "settings": {
            **SMALL,
            "documents": str(write_rows(tmp_path / "documents.jsonl", rows(5))),
            "task_size": 2,
            "cpus_per_worker": 1,
        },
        "train": {"rounds": 1, "edits": 2, "replicates": 1, "validation_share": 0.4, "outer_set": {"rank": 2}},
        "models": [chat_model],
        "reported": False,
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    found = []
    for name, more in (("alone", ()), ("workers", ("--workers", "1"))):
        capsys.readouterr()
        assert main(["reproduce", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / name), "--json", *more]) == 0
        found.append((without_times(json.loads(capsys.readouterr().out)), adapters(tmp_path / name)))
    assert found[0] == found[1]
    assert found[0][1]
    for run in ("train", "compare"):
        config = tmp_path / "workers" / Path(chat_model).name / run / "config.yaml"
        assert yaml.safe_load(config.read_text())["workers"] == 1
