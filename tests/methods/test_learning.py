"""A cheap check that Step B learns at all: a reward that favours one word, and a policy that comes to write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from making import Make

from selfedit.editors.base import Edit
from selfedit.methods import restem, rewards
from selfedit.methods.settings import TrainSettings
from selfedit.runs.store import Store
from tiny_world import PLACES


class Planted:
    """In place of fits and exams: 1 for an edit that has the word, else 0.  The word is one that the untrained model
    writes now and then, in about an eighth of its edits."""

    word = ""

    def __call__(self, round: rewards.Round, edits: Sequence[Edit]) -> dict[str, Any]:
        if not self.word:
            counts = {place: sum(place in stored.text for stored in edits) for place in PLACES}
            self.word = min(PLACES, key=lambda place: abs(counts[place] - len(edits) / 8))
        round.run.store.set_rewards({stored.id: float(self.word in stored.text) for stored in edits})
        return {}


def test_what_is_rewarded_is_written_more_often(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round's mean reward is how often the policy before it writes the word: 128 samples per round."""
    planted = Planted()
    monkeypatch.setitem(rewards.REWARDS, "fit", planted)
    settings = make(
        TrainSettings,
        8,
        rounds=4,
        edits=16,
        validation_share=0,
        keep_ties=False,
        outer_set={"rank": 8, "alpha": 16, "learning_rate": 6e-3, "epochs": 6, "batch_size": 2},
    )
    summary = restem.train(settings)

    assert summary.rounds is not None
    frequencies = [round.train_reward for round in summary.rounds]
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        for number, frequency in enumerate(frequencies, start=1):
            edits = store.edits(round=number, writer="train")
            assert len(edits) == 128
            assert frequency == pytest.approx(sum(planted.word in stored.text for stored in edits) / 128)
            kept = [stored.text for stored in edits if stored.kept]
            assert kept
            assert all(planted.word in text for text in kept)
    # If nothing were learned, 256 samples would exceed 128 others by a tenth about once in a thousand times.
    assert (frequencies[-2] + frequencies[-1]) / 2 > frequencies[0] + 0.1
    assert sum(frequencies[2:]) > sum(frequencies[:2])
