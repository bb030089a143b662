"""benchmarks/peers.py and prefixes.py run, small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import peers, prefixes

from selfedit.engine import FitJob, FitSettings, TokenSequence


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
