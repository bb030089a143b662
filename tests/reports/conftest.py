"""Run directories with made-up records, each written once for all tests that only read it."""

from __future__ import annotations

import shutil
from pathlib import Path

import fake_runs
import pytest


@pytest.fixture(scope="session")
def compare_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_runs.write_compare(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="session")
def partial_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_runs.write_compare(
        tmp_path_factory.mktemp("runs") / "part",
        finished=False,
        planned=("none", "passage", "replay:some/notes.jsonl#x"),
    )


@pytest.fixture(scope="session")
def train_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_runs.write_train(tmp_path_factory.mktemp("runs") / "train")


@pytest.fixture(scope="session")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine: the page cannot be opened")
    return found
