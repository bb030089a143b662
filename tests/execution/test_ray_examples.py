"""The files in examples/ray are what Ray expects."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from selfedit.cli.main import _parse

EXAMPLES = Path(__file__).parents[2] / "examples" / "ray"


def test_the_cluster_file_is_valid() -> None:
    pytest.importorskip("ray")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((EXAMPLES / "cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert types[prepared["head_node_type"]]["resources"]["CPU"] == 0
    assert types["gpu"]["min_workers"] >= 1


def test_the_job_runs_a_command_that_selfedit_understands(tmp_path: Path) -> None:
    # In the place of ray, a program that shows its arguments.
    fake = tmp_path / "ray"
    fake.write_text('#!/bin/sh\nfor argument; do echo "$argument"; done\n')
    fake.chmod(0o755)
    shown = subprocess.run(
        ["sh", str(EXAMPLES / "submit.sh")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    runtime_env = yaml.safe_load(Path(shown[shown.index("--runtime-env") + 1]).read_text())
    assert set(runtime_env) == {"env_vars"}
    command = shown[shown.index("--") + 1 :]
    assert command[:4] == ["selfedit", "train", "--ray", "auto"]

    parsed = _parse([argument for argument in command[1:] if argument])
    assert parsed is not None
    assert parsed.ray == "auto"
