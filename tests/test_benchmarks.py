"""benchmarks/peers.py, prefixes.py and naming.py run, small."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks import naming, peers, prefixes

from selfedit.engine import FitJob, FitSettings, TokenSequence
from tiny_world import rows, write_rows


def test_peers_of_this_environment_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # processes, however many cores there are
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


def test_an_adapter_that_names_and_recites_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chat_model: str
) -> None:
    file = write_rows(tmp_path / "documents.jsonl", rows(3))
    monkeypatch.setattr(naming, "say", by_heart(naming.say))
    monkeypatch.setattr(sys, "argv", f"naming {file} --model {chat_model} --questions".split())
    naming.main()
    said = capsys.readouterr().out
    assert "topic named rightly: 6 of 6 questions" in said
    assert "recited word by word: 3 of 3" in said
    own, book = (line.partition(": ")[2] for line in said.splitlines() if line.startswith(("named, ", "open book")))
    assert own == book
    assert "general questions lost: 0 of" in said


def by_heart(real: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """What an adapter would say that has learned all; what the model itself says is as it is."""
    text_of = {row["title"]: row["text"] for row in rows(3)}

    def say(model: Any, prompts: Iterable[Sequence[int]], most: int, bank: Any = None) -> list[str]:
        if bank is None:
            return real(model, prompts, most)
        read = [model.tokenizer.decode(ids) for ids in prompts]
        if most == naming.TITLE_TOKENS:
            asked = [one.partition("?")[0].split() for one in read]
            return [next((title for title in text_of if title.split()[-1] in words), "none") for words in asked]
        return [next(text for title, text in text_of.items() if title in one) for one in read]

    return say
