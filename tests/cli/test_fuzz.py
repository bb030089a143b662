"""Every flag of every command, given what nobody should give it: a result, or one line and exit code 2."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from selfedit.cli import main
from selfedit.cli.commands import COMMANDS
from selfedit.cli.flags import Parser
from selfedit.documents import load_documents
from selfedit.editors.prices import load_prices
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.evaluation.graders import judge_model
from selfedit.methods.adapters import find_adapters
from selfedit.methods.settings import (
    FREE,
    CompareSettings,
    ContinualSettings,
    LearnSettings,
    Settings,
    SweepSettings,
    TrainSettings,
)
from selfedit.models import load_outline
from selfedit.prompts import Prompts
from selfedit.runs.directory import RunDirectory
from selfedit.training.recipes import load_recipe
from tiny_world import rows, write_rows

PARSER, OUTLINE = cache(main._parser), cache(load_outline)
MISSING = object()  # the flag stands at the end, without its value
VALUES = [
    MISSING,
    *("", " ", "-1", "0", "nan", "inf", "1e400", str(10**30), "9" * 5000, "true"),
    *("=", "a=b", "rank=nan", "rank=1e400", "=1", "[1", "{a: b", "*a", "judge:", "replay:binary#x", "hf:", "#"),
    *("sub:binary.yaml", "x" * 100_000, "\udcff\udc80", "\x1b[31mred\nsecond line\r", "folder", "binary"),
    *("nowhere/file.yaml", "--", "-", "http://[", "%s{0}"),
]
METHODS = {
    "compare": "compare.compare",
    "sweep": "sweep.sweep",
    "learn": "learn.learn",
    "train": "restem.train",
    "continual": "continual.continual",
}
GOOD = {
    "compare": ["--documents", "good.jsonl", "--out", "run"],
    "sweep": ["--documents", "good.jsonl", "--out", "run", "--recipes", "seal"],
    "learn": ["good.jsonl", "--out", "run"],
    "train": ["--documents", "good.jsonl", "--out", "run"],
    "continual": ["--documents", "good.jsonl", "--out", "run"],
    "ask": ["folder", "Where?"],
    "report": ["folder"],
    "reproduce": ["folder"],
    "watch": ["folder"],
    "grade": ["graded.jsonl", "--grader", "lexical"],
    "cost": ["--model", "gpt-4.1", "--input-tokens", "5"],
    "serve": ["folder"],
    "export": ["folder", "merged"],
    "import-seal": ["folder"],
}


def flags(command: str) -> Iterator[str | None]:
    """A command's flags; None for its words without a flag.  What all methods share is tried with one of them."""
    parser = Parser(prog=command, add_help=False)
    COMMANDS[command].add_flags(parser)
    for action in parser._actions:
        if not action.option_strings:
            yield None
        elif command in ("compare", *set(COMMANDS) - set(METHODS)) or action.dest not in Settings.model_fields:
            yield action.option_strings[0]
        if isinstance(action, argparse.BooleanOptionalAction):
            assert action.option_strings[1].startswith("--no-")


CASES = [(command, flag) for command in COMMANDS for flag in dict.fromkeys(flags(command))]


class Stopped(UserError):
    """Everything that a user can give was read, and was good."""


def read_what_is_given(settings: Any, **_: object) -> None:
    """In the place of a method: reads all that a run reads before it loads a model."""
    if settings.recipe != "default" or settings.set:
        load_recipe(settings.recipe).with_settings(settings.set)
    if settings.prompt_file:
        Prompts(settings.prompt_file)
    if settings.prices:
        load_prices(settings.prices)
    judge_model(settings.grader)
    editors = getattr(settings, "editor", "self")
    for text in [editors] if isinstance(editors, str) else editors:
        if text != "auto":
            EditorSpec.parse(text)
    load_documents(
        list(settings.documents), limit=settings.limit, seed=settings.seed, require_questions=False, strict=True
    )
    if settings.out != Path("run"):
        RunDirectory.open(settings.out, settings.model_dump(mode="json"), free=FREE).close()
    raise Stopped("good")


class Asked:
    """In the place of a model that answers."""

    def __init__(self, source: Path, **_: object) -> None:
        find_adapters(source)
        raise Stopped("good")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: a folder with a file of each kind."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in METHODS.values():
        monkeypatch.setattr(f"selfedit.methods.{name}", read_what_is_given)
    # To make the parser, and to read of a model what a plan is made of, would take most of the time.
    monkeypatch.setattr("selfedit.cli.main._parser", PARSER)
    monkeypatch.setattr("selfedit.methods.plan.load_outline", OUTLINE)
    monkeypatch.setattr("selfedit.methods.ask.Asker", Asked)
    monkeypatch.setattr("selfedit.methods.export.export", lambda source, out, **_: Asked(source))
    write_rows(tmp_path / "good.jsonl", rows(1))
    write_rows(tmp_path / "graded.jsonl", [{"question": "Q?", "gold": "a", "answer": "a", "label": True}])
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"\x89PNG\r\n\x00\xff" * 50)
    return tmp_path


@pytest.mark.parametrize(("command", "flag"), CASES, ids=[f"{command} {flag or 'words'}" for command, flag in CASES])
def test_nothing_that_a_flag_is_given_is_a_traceback(
    run: Callable[..., Any], place: Path, command: str, flag: str | None
) -> None:
    for value in VALUES:
        words = [] if value is MISSING else [value]
        try_out(run, [command, *GOOD[command], *([flag] if flag else []), *words])


def try_out(run: Callable[..., Any], words: list[Any], what: str = "") -> None:
    what += f"{words!r:.300}: "
    try:
        result = run(*words)
    except SystemExit as ended:
        raise AssertionError(f"{what} ends by itself with {ended.code}") from ended
    except Exception as error:
        raise AssertionError(f"{what} {error!r:.300}") from error
    what += f"{result.code}, {result.err:.500}"
    assert result.code in (0, 2), what
    if result.code == 2:
        assert re.fullmatch(r"selfedit: [^\n\r\x1b]+\n", result.err), what
        assert len(result.err) < 2000, what


YAML = [
    "[]",
    "{}",
    "null",
    ".inf",
    ".nan",
    '"a\\0b"',
    "2026-01-01",
    "[[1]]",
    "{a: {b: [1]}}",
    "!!binary aGk=",
    "''",
    "yes",
]


@pytest.mark.parametrize("command", METHODS)
def test_nothing_that_a_file_of_settings_holds_is_a_traceback(
    run: Callable[..., Any], place: Path, command: str
) -> None:
    kind = {
        "compare": CompareSettings,
        "sweep": SweepSettings,
        "learn": LearnSettings,
        "train": TrainSettings,
        "continual": ContinualSettings,
    }
    for name in kind[command].model_fields:
        if command != "compare" and name in Settings.model_fields:
            continue
        for value in YAML:
            text = f"{name}: {value}\n" + ("" if name == "documents" else "documents: good.jsonl\n")
            (place / "mine.yaml").write_text(text + ("" if name == "out" else "out: run\n"))
            try_out(run, [command, "--config", "mine.yaml"], text)
