"""Benchmarks say how they are used, and those that can be small run, small."""

from __future__ import annotations

import json
import multiprocessing
import sys
from importlib import import_module
from pathlib import Path

import pytest
from benchmarks import many_documents, peers, prefixes

from selfedit.engine import FitJob, FitSettings, TokenSequence
from tiny_world import rows, write_rows

# Two arms of `peers` run in environments of their own.
PROGRAMS = {file.stem for file in Path(peers.__file__).parent.glob("[a-z]*.py")} - {"peers_moe", "peers_skyrl"}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_benchmark_says_how_it_is_used(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        import_module(f"benchmarks.{name}").main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_peers_of_this_environment_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # processes, however many cores there are
    # As forks they need not import torch, transformers and PEFT, which takes longer than all that is tried here.
    forks = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forks)
    out = tmp_path / "peers.json"
    words = f"peers --shape tiny --fits 3 --lines 2 --turns 2 --out {out}"
    monkeypatch.setattr(sys, "argv", words.split())
    peers.main()
    found = json.loads(out.read_text())
    assert [row["arm"] for row in found["rows"]] == ["bank", "peft", "processes"]
    for row in found["rows"]:
        assert len(row["seconds"]) == 2
        assert 0 < row["least"] <= row["bank_is_times_as_fast"] <= row["most"]
    assert found["rows"][0]["most"] == 1.0
    assert found["fits"] == 3


def test_a_prefix_counts_once_per_step() -> None:
    job = FitJob(
        tuple(TokenSequence(ids) for ids in ((1, 2, 3), (1, 2, 4, 5), (1, 2))),
        FitSettings(epochs=2, batch_size=3, shuffle=False),
        0,
    )
    # The last token of a sequence is no prefix of another: one token of each but one, in two steps.
    assert prefixes.shared(job) == 2 * 2
    alone = FitJob(job.sequences, FitSettings(epochs=2, batch_size=1), 0)
    assert prefixes.shared(alone) == 0


def test_prefixes_are_counted_for_each_recipe(
    chat_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prefixes", "--model", chat_model])
    prefixes.main()
    default, *one_by_one = capsys.readouterr().out.splitlines()
    assert default.startswith("default: 30 fits of ")
    assert not default.endswith(" 0.0% of the tokens are prefixes that a step computes again")
    assert [line.partition(";")[2][:5] for line in one_by_one] == [" 0.0%"] * 2, "one sequence per step"


def test_where_questions_are_sent_is_shown_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "documents.jsonl", rows(8))
    monkeypatch.setattr(sys, "argv", ["many_documents", str(file), "--routing", "--counts", "4,8"])
    many_documents.main()
    head, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("| documents | asked | questions |")
    asked = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in lines]
    ways = ("under its topic", "alone", "alone, in a chat")
    assert asked == [(str(n), way, str(n if "chat" in way else 2 * n)) for n in (4, 8) for way in ways]
