"""How work is cut into units: by the work alone, evenly, and with nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfedit.engine import DecodeRequest, FitJob, FitSettings, LoraSpec, TokenSequence
from selfedit.workers.units import FitTask, even_groups, fit_units, write_units


def task(name: str, tokens: int) -> FitTask:
    job = FitJob((TokenSequence(tuple(range(1, tokens + 1))),), FitSettings(epochs=1), seed=0)
    return FitTask(name, job)


def test_fits_of_similar_length_go_together_whatever_their_order() -> None:
    tasks = [task(f"t{k}", tokens) for k, tokens in enumerate([5, 9, 5, 9, 7, 7])]
    units = fit_units("fits", ("r1",), LoraSpec(rank=2, alpha=4.0), tasks, size=2)
    assert [[t.id for t in unit.tasks] for unit in units] == [["t1"], ["t3"], ["t4", "t5"], ["t0", "t2"]]
    assert units == fit_units("fits", ("r1",), LoraSpec(rank=2, alpha=4.0), tasks[::-1], size=2)
    assert [unit.id for unit in units] == [f"fits/{k}" for k in range(4)]


def test_fits_of_one_length_fill_their_units() -> None:
    units = fit_units("fits", (), LoraSpec(rank=2, alpha=4.0), [task(f"t{k:02}", 7) for k in range(10)], size=4)
    assert [len(unit.tasks) for unit in units] == [4, 4, 2]


@given(amounts=st.lists(st.integers(1, 1000), max_size=60), size=st.integers(1, 20))
def test_groups_hold_everything_once_and_none_is_much_larger_than_the_average(amounts: list[int], size: int) -> None:
    ordered = sorted(amounts, reverse=True)
    groups = even_groups(ordered, size=size)
    assert [number for group in groups for number in group] == list(range(len(ordered)))
    for group in groups:
        assert len(group) <= size
        if len(group) > 1:
            assert sum(ordered[k] for k in group) <= size * sum(ordered) / len(ordered) * 1.0001
    # Never more than a full group and a half-full one beside it.
    assert len(groups) <= 2 * -(-len(ordered) // size) + 1


def test_requests_keep_their_numbers() -> None:
    requests = [DecodeRequest(tuple(range(1, length)), 8) for length in (3, 9, 5, 7, 4)]
    cut = write_units("edits", (), requests, size=2)
    assert sorted(number for _, group in cut for number in group) == list(range(5))
    for unit, group in cut:
        assert list(unit.requests) == [requests[number] for number in group]
    assert [unit.cost for unit, _ in cut] == pytest.approx([30.0, 23.0, 10.0])
