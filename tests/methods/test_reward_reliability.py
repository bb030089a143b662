"""benchmarks/reward_reliability.py: it finds what was put in, and runs on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benchmarks import reward_reliability
from benchmarks.reward_reliability import between_seeds, figures, predicts, replicates_needed
from counting_pool import CountingPool

from selfedit.errors import UserError
from selfedit.methods.rehearsal import _AllRight


def test_the_variance_that_was_put_in_is_found() -> None:
    """Edits with a deviation of 1 and seeds with one of 2: a fifth of the variance is the edit's."""
    rng = np.random.default_rng(0)
    edits = rng.normal(size=(800, 5, 1))
    documents = 10 * rng.normal(size=(800, 1, 1))
    noisy, exact = (documents + edits + deviation * rng.normal(size=(800, 5, 3)) for deviation in (2.0, 0.1))
    share, low, high = between_seeds(noisy)
    assert low < share < high
    assert share == pytest.approx(0.2, abs=0.03)
    assert between_seeds(exact)[0] == pytest.approx(1 / 1.01, abs=0.01)
    # One exact fit against the mean of two noisy ones: 1 / sqrt(1 + 4 / 2).
    assert predicts(exact, noisy)[0] == pytest.approx(3**-0.5, abs=0.03)
    assert predicts(noisy, noisy)[0] == pytest.approx((5 * 3) ** -0.5, abs=0.03)
    found = figures(noisy, exact)
    assert found["likelihood"]["replicates_for_90"] == 1
    assert found["accuracy"]["replicates_for_90"] == pytest.approx(38, abs=8)


def test_so_many_replicates_order_two_edits() -> None:
    rng = np.random.default_rng(1)
    needed = replicates_needed(0.2, 0.8)
    assert needed == 8
    better, worse = np.sort(rng.normal(size=(2, 200_000)), axis=0)[::-1]
    noise = 2 / needed**0.5 * rng.normal(size=(2, 200_000))
    assert (better + noise[0] > worse + noise[1]).mean() == pytest.approx(0.8, abs=0.01)
    assert replicates_needed(0.0, 0.8) is None
    assert replicates_needed(0.999, 0.8) == 1


def test_it_runs_and_goes_on(chat_model: str, documents: Callable[[int], str], tmp_path: Path) -> None:
    words = f"--model {chat_model} --documents {documents(3)} --edits 2 --replicates 2 --max-edit-tokens 16".split()
    words += f"--max-answer-tokens 4 --set rank=4 --set epochs=2 --out {tmp_path / 'run'}".split()
    words += ["--record", str(tmp_path / "figures.json")]
    with pytest.raises(UserError, match="no document has a question that is answered rightly open book"):
        reward_reliability.main([*words, "--out", str(tmp_path / "nothing")], pool=CountingPool(chat_model))
    right = {"grader": lambda spec: _AllRight(spec)}
    found = reward_reliability.main(words, pool=(pool := CountingPool(chat_model)), **right)
    assert len(pool.fits) == 12
    assert found["documents"] == 3
    assert found["likelihood"]["mean"] < 0
    recorded = json.loads((tmp_path / "figures.json").read_text())
    assert recorded["likelihood"] == found["likelihood"]
    again = reward_reliability.main(words, pool=(pool := CountingPool(chat_model)), **right)
    assert not pool.tasks
    assert again["likelihood"] == found["likelihood"]
