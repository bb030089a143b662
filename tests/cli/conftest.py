"""A way to run the command line in this process, tiny models and documents for it, and a fake API server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from selfedit.cli.main import main
from tiny_world import FEW_WORDS, rows, write_rows


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("cost", "--json", ...)`: one command, in this process."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def mistake(run: Run) -> Callable[..., str]:
    """Runs a command that must fail as a user's mistake does: exit code 2, and one line; returns the line."""

    def call(*words: object, after_loading: bool = False) -> str:
        result = run(*words)
        assert result.code == 2
        lines = result.err.splitlines()
        assert "Traceback" not in result.err
        if not after_loading:  # progress comes before mistakes that only a loaded model shows
            assert len(lines) == 1, result.err
        assert lines[-1].startswith("selfedit: ")
        assert [line for line in lines if line.startswith("selfedit: ")] == lines[-1:]
        assert result.out == ""
        return lines[-1]

    return call


@pytest.fixture
def documents(tmp_path: Path) -> Callable[[int], Path]:
    """`documents(n)`: a file of n documents."""

    def write(count: int) -> Path:
        return write_rows(tmp_path / f"documents-{count}.jsonl", rows(count))

    return write


@pytest.fixture
def run_words(chat_model: str, tmp_path: Path) -> list[str]:
    """What a short run of any method takes beside its documents; it goes to `tmp_path / "run"`."""
    return ["--model", chat_model, "--out", str(tmp_path / "run"), *FEW_WORDS]


@pytest.fixture
def compare_words(run_words: list[str], documents: Callable[[int], Path]) -> list[str]:
    """A command that works, to which a test adds one mistake (the last of a flag's values wins)."""
    return ["compare", "--documents", str(documents(2)), *run_words]
