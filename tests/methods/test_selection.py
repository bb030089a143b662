"""Selection on given reward tables: every rule, ties, documents without signal, unknown rewards."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfedit.editors.base import Edit
from selfedit.methods import selection as module
from selfedit.methods.selection import Selection


def edit(document: str, index: int, tokens: int, reward: float | None) -> Edit:
    return Edit(document, "train", index, "text", output_tokens=tokens, reward=reward)


def short(id: str) -> str:
    """Document and number, of an edit's id."""
    _, document, _, index = id.split("|")
    return document + index


def select(edits: list[Edit], **rule: Any) -> Selection:
    """The selection, with short ids."""
    found = module.select(edits, **rule)
    return replace(found, kept=tuple(map(short, found.kept)))


def table(rewards: dict[str, list[float | None]], tokens: dict[str, list[int]] | None = None) -> list[Edit]:
    return [
        edit(document, k, tokens[document][k] if tokens else 10, reward)
        for document, row in rewards.items()
        for k, reward in enumerate(row)
    ]


REWARDS: dict[str, list[float | None]] = {"a": [0.2, 0.8, 0.6], "b": [0.5, 0.5, 0.5], "c": [None, 0.1, 0.0]}


def test_best_of_k_keeps_each_documents_best() -> None:
    assert select(table(REWARDS), rule="best-of-k") == Selection(("a1", "b0", "c1"), ("b",), 1)


def test_documents_without_signal_are_dropped_on_request() -> None:
    assert select(table(REWARDS), rule="best-of-k", keep_ties=False) == Selection(("a1", "c1"), ("b",))


def test_ties_go_to_the_shorter_edit_then_to_the_earlier_one() -> None:
    rewards: dict[str, list[float | None]] = {"a": [0.5, 0.7, 0.7, 0.7]}
    assert select(table(rewards, {"a": [1, 30, 20, 20]}), rule="best-of-k").kept == ("a2",)
    # The order in which edits are handed in decides nothing.
    assert select(table(rewards, {"a": [1, 30, 20, 20]})[::-1], rule="best-of-k").kept == ("a2",)


def test_ties_go_to_the_edit_sampled_first_if_asked() -> None:
    rewards: dict[str, list[float | None]] = {"a": [0.5, 0.7, 0.7, 0.7]}
    tied = table(rewards, {"a": [1, 30, 20, 20]})
    assert select(tied[::-1], rule="best-of-k", ties="first").kept == ("a1",)


def test_above_baseline_keeps_all_that_beat_the_document_unadapted() -> None:
    baseline = {"a": 0.5, "b": 0.5, "c": 0.0}
    selection = select(table(REWARDS), rule="above-baseline", baseline=baseline)
    assert set(selection.kept) == {"a1", "a2", "c1"}
    # Nothing can be said to beat a score that is not known.
    known = {"a": 0.5, "c": 0.0}
    assert not any(id.startswith("b") for id in select(table(REWARDS), rule="above-baseline", baseline=known).kept)
    with pytest.raises(ValueError, match="needs each document's score"):
        select(table(REWARDS), rule="above-baseline")


def test_top_fraction_counts_edits_with_a_reward() -> None:
    # Eight edits have a reward; a quarter of them is two.
    assert select(table(REWARDS), rule="top-fraction", fraction=0.25).kept == ("a1", "a2")
    assert len(select(table(REWARDS), rule="top-fraction", fraction=1.0).kept) == 8
    assert len(select(table(REWARDS), rule="top-fraction", fraction=0.01).kept) == 1
    # Those of documents without signal, which are not kept, are counted too.
    assert select(table(REWARDS), rule="top-fraction", fraction=0.5, keep_ties=False).kept == ("a1", "a2", "a0", "c1")


def test_top_fraction_is_not_misled_by_floating_point() -> None:
    hundred = [edit(str(k), 0, 1, k / 100) for k in range(100)]
    assert 0.07 * 100 > 7
    assert len(select(hundred, rule="top-fraction", fraction=0.07).kept) == 7


def test_edits_without_a_reward_are_never_kept() -> None:
    nothing: dict[str, list[float | None]] = {"a": [None, None]}
    for rule in ("best-of-k", "above-baseline", "top-fraction"):
        assert select(table(nothing), rule=rule, baseline={"a": 0.0}, fraction=1.0) == Selection((), ())


def test_an_unknown_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="no selection rule 'worst'"):
        select(table(REWARDS), rule="worst")


reward = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
tables = st.dictionaries(st.sampled_from("abcdef"), st.lists(reward, min_size=1, max_size=5), min_size=1)


@given(tables, st.booleans(), st.floats(0.01, 1.0))
def test_what_every_rule_promises(rewards: dict[str, list[float | None]], keep_ties: bool, fraction: float) -> None:
    edits = table(rewards)
    by_id = {short(edit.id): edit for edit in edits}
    known = [edit for edit in edits if edit.reward is not None]
    without_signal = {d for d, row in rewards.items() if len({r for r in row if r is not None}) == 1}
    for rule in ("best-of-k", "above-baseline", "top-fraction"):
        selection = select(
            edits, rule=rule, baseline=dict.fromkeys(rewards, 0.3), fraction=fraction, keep_ties=keep_ties
        )
        kept = [by_id[id] for id in selection.kept]
        assert set(selection.without_signal) == without_signal
        assert len(set(selection.kept)) == len(kept)
        assert all(edit.reward is not None for edit in kept)
        if not keep_ties:
            assert not {edit.document_id for edit in kept} & without_signal
        if rule == "best-of-k":
            assert max(Counter(edit.document_id for edit in kept).values(), default=1) == 1
            for edit in kept:
                assert edit.reward == max(e.reward for e in known if e.document_id == edit.document_id)  # type: ignore[type-var]
        if rule == "above-baseline":
            assert all(edit.reward is not None and edit.reward > 0.3 for edit in kept)
        if rule == "top-fraction" and keep_ties and known:
            assert len(kept) == math.ceil(round(fraction * len(known), 9))
            left_out = [e.reward for e in known if short(e.id) not in selection.kept]
            assert not left_out or min(e.reward for e in kept) >= max(left_out)  # type: ignore[type-var, operator]
