"""A store in a temporary directory, and documents for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tasks_of_work import make_experiment

from selfedit.documents.document import Document
from selfedit.runs.store import Store


@pytest.fixture
def documents() -> tuple[Document, ...]:
    return make_experiment(0).documents


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "run.sqlite") as opened:
        yield opened
