"""Tiny models, tiny documents, and settings that keep runs short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from making import Make, S

from tiny_world import SMALL, rows, write_rows


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Equal thread counts give equal sums; the tiny model gains nothing from more."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def documents(tmp_path: Path) -> Callable[[int], str]:
    """`documents(n)`: a file of n documents."""

    def write(count: int) -> str:
        return str(write_rows(tmp_path / f"documents-{count}.jsonl", rows(count)))

    return write


@pytest.fixture
def quick(tmp_path: Path) -> dict[str, Any]:
    """Settings that keep a run short; `out` is a new folder."""
    return {**SMALL, "out": tmp_path / "run"}


@pytest.fixture
def make(quick: dict[str, Any], documents: Callable[[int], str], chat_model: str) -> Make:
    def settings(kind: type[S], count: int, **more: Any) -> S:
        return kind(**{**quick, "model": chat_model, "documents": (documents(count),), **more})

    return settings


@pytest.fixture
def small_train(quick: dict[str, Any], documents: Callable[[int], str], chat_model: str) -> dict[str, Any]:
    """Settings of a run of `train`: four documents to train on, two to validate, two rounds, K = 2, S = 1."""
    return {
        **quick,
        "model": chat_model,
        "documents": (documents(6),),
        "validation_share": 0.34,
        "rounds": 2,
        "edits": 2,
        "replicates": 1,
        "outer_set": {"rank": 4, "learning_rate": 3e-3},
    }


@pytest.fixture
def another_model(tiny_model: Callable[..., Any], chat_model: str, tmp_path: Path) -> str:
    """A model of another shape than `chat_model`, with its tokenizer."""
    from transformers import AutoTokenizer

    folder = tmp_path / "other"
    tiny_model("llama").save_pretrained(folder)
    AutoTokenizer.from_pretrained(chat_model).save_pretrained(folder)
    return str(folder)
