"""How work is cut into tasks: by the work alone, evenly, and with nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfedit.engine import Completion, DecodeRequest, FitJob, FitSettings, LoraSpec, TokenSequence
from selfedit.execution.tasks import Fit, TaskResult, completion_tasks, even_groups, fit_tasks


def fit(name: str, tokens: int) -> Fit:
    job = FitJob((TokenSequence(tuple(range(1, tokens + 1))),), FitSettings(epochs=1), seed=0)
    return Fit(name, job)


def test_fits_of_similar_length_go_together_whatever_their_order() -> None:
    fits = [fit(f"t{k}", tokens) for k, tokens in enumerate([5, 9, 5, 9, 7, 7])]
    tasks = fit_tasks("fits", ("r1",), LoraSpec(rank=2, alpha=4.0), fits, size=2)
    assert [[one.id for one in task.fits] for task in tasks] == [["t1"], ["t3"], ["t4", "t5"], ["t0", "t2"]]
    assert tasks == fit_tasks("fits", ("r1",), LoraSpec(rank=2, alpha=4.0), fits[::-1], size=2)
    assert [task.id for task in tasks] == [f"fits/{k}" for k in range(4)]


def test_fits_of_one_length_fill_their_tasks() -> None:
    tasks = fit_tasks("fits", (), LoraSpec(rank=2, alpha=4.0), [fit(f"t{k:02}", 7) for k in range(10)], size=4)
    assert [len(task.fits) for task in tasks] == [4, 4, 2]


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


def test_what_belongs_together_stays_together_and_similar_lengths_share_a_task() -> None:
    lengths = {"a": (3,), "b": (9, 2), "c": (5,), "d": (7, 1, 2), "e": (4,)}
    requests = {id: [DecodeRequest(tuple(range(n)), 8) for n in some] for id, some in lengths.items()}
    cut = completion_tasks("edits", (), requests, size=2)
    assert [task.ids for task in cut] == [("b", "b"), ("d", "d", "d"), ("c", "e"), ("a",)]
    for task in cut:
        assert list(task.requests) == [request for id in dict.fromkeys(task.ids) for request in requests[id]]
    assert [task.cost for task in cut] == pytest.approx([27.0, 34.0, 25.0, 11.0])
    left = cut[2].without({"c", "x"})
    assert (left.id, left.ids, left.requests) == (cut[2].id, ("e",), tuple(requests["e"]))
    answers = (Completion((1,), True), Completion((2,), True))
    assert cut[0].completions(TaskResult("", 0.0, completions=answers)) == {"b": list(answers)}
