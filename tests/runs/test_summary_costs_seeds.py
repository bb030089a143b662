"""The summary's schema, the ledger's sums, and seeds that depend on nothing but their parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfedit.editors.prices import BudgetReached, load_prices
from selfedit.errors import UserError
from selfedit.execution.tasks import TaskResult
from selfedit.runs.costs import Spent, cost_by_condition
from selfedit.runs.directory import RunDirectory
from selfedit.runs.ledger import Ledger
from selfedit.runs.records import CostRecord
from selfedit.runs.seeds import derive_seed
from selfedit.runs.store import Store
from selfedit.runs.summary import Summary, read_summary, write_summary

CONDITION = {
    "name": "passage",
    "accuracy": 0.335,
    "ci95": [0.3, 0.4],
    "correct": 30,
    "graded": 90,
    "ungraded": 1,
    "train_tokens": 1000,
    "edit_tokens": 0,
    "seconds": 12.5,
    "cost_usd": None,
}
COMPARE = {
    "schema": 1,
    "procedure": "compare",
    "model": "smollm2-135m",
    "instruct": True,
    "documents": 10,
    "questions": 30,
    "recipe": {"rank": 16},
    "conditions": [CONDITION, {**CONDITION, "name": "self", "cost_usd": 0.88}],
}
ROUND = {"round": 1, "train_reward": 0.3, "validation_accuracy": 0.4, "kept_edits": 8, "seconds": 60.0}
TRAIN = {**COMPARE, "procedure": "train", "rounds": [ROUND, {**ROUND, "round": 2}], "selected_round": 1}


@pytest.mark.parametrize("summary", [COMPARE, TRAIN, {**COMPARE, "grader": "estimate", "of_the_future": {"x": 1}}])
def test_a_summary_round_trips_with_exactly_its_keys(tmp_path: Path, summary: dict) -> None:
    path = tmp_path / "summary.json"
    checked = Summary.model_validate(summary)
    write_summary(path, checked)
    assert json.loads(path.read_text()) == summary
    assert read_summary(path) == checked
    assert list(json.loads(path.read_text()))[: len(COMPARE)] == list(COMPARE)


def change(key: str, value: object) -> dict:
    return {**TRAIN, "conditions": [{**CONDITION, key: value}]}


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({**TRAIN, "schema": 2}, "schema: Input should be 1"),
        ({key: value for key, value in TRAIN.items() if key != "model"}, "model: is missing"),
        (change("accuracy", 33.5), r"conditions\[0\]\.accuracy: Input should be less than or equal to 1"),
        (change("accuracy", float("nan")), r"conditions\[0\]\.accuracy"),
        (change("correct", 91), r"conditions\[0\]: .*91 correct answers of 90"),
        (change("ci95", [0.4, 0.3]), r"conditions\[0\]: .*ci95"),
        (change("cost_usd", -1), r"conditions\[0\]\.cost_usd"),
        ({**TRAIN, "conditions": [CONDITION, CONDITION]}, "two conditions have one name"),
        ({**TRAIN, "selected_round": 3}, "selected_round 3 is not among the rounds"),
    ],
)
def test_a_wrong_summary_is_refused_in_one_line(tmp_path: Path, summary: dict, message: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary))
    with pytest.raises(UserError, match=rf"summary\.json: not a summary of schema 1: {message}") as caught:
        read_summary(path)
    assert "\n" not in str(caught.value)


def test_missing_and_corrupt_summaries_get_one_line(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with pytest.raises(UserError, match=r"summary\.json: no such file; the run is not finished"):
        read_summary(path)
    path.write_text('{\n "schema": 1,\n "proc')
    with pytest.raises(UserError, match=r"summary\.json: not valid JSON at line 3"):
        read_summary(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="not a summary"):
        read_summary(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_summary(path)


def test_a_run_writes_and_reads_its_summary(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", {}) as run:
        with pytest.raises(UserError, match="not finished"):
            run.read_summary()
        run.write_summary(Summary.model_validate(COMPARE))
    with RunDirectory.read(tmp_path / "run") as run:
        assert run.read_summary().to_json() == COMPARE


def test_the_ledger_adds_up_and_an_unknown_price_is_not_zero(store: Store) -> None:
    # The published figures: an hour on two L40S at 0.88 dollars a round.
    hour, unknown = (
        Ledger(store, load_prices(), model="m", usd_per_hour=price, budget=None).time(what, condition, seconds, 1)
        for what, condition, seconds, price in (("fits", "self", 3600, 0.88), ("answers", "api:gpt-5", 10, None))
    )
    assert hour.usd == pytest.approx(0.88)
    api = CostRecord("edits", "api:gpt-5", 0, "gpt-5", 44_496, 143_673, usd=0.746)
    store.add_costs([hour, api])
    store.add_costs([hour, unknown])

    by_condition = cost_by_condition(store.costs())
    assert list(by_condition) == ["self", "api:gpt-5"]
    assert by_condition["self"] == Spent(seconds=7200.0, known_usd=pytest.approx(1.76))
    assert by_condition["self"].usd == pytest.approx(1.76)
    assert Spent.of(store.costs()).known_usd == pytest.approx(1.76 + 0.746)
    # Device time without an hourly price is left out of the money; an API call without one makes the sum unknown.
    assert by_condition["api:gpt-5"] == Spent(44_496, 143_673, 10.0, 0.746)
    assert by_condition["api:gpt-5"].usd == pytest.approx(0.746)
    assert Spent.of([unknown]).usd is None
    nameless = CostRecord("edits", "api:other", 0, "other", 1, 1)
    assert Spent.of([api, nameless]).usd is None
    assert Spent.of([]).usd is None


parts = st.lists(st.text() | st.integers(), max_size=4)


@given(parts, parts)
def test_seeds_differ_exactly_where_their_parts_do(one: list, other: list) -> None:
    assert 0 <= derive_seed(*one) < 2**63
    # repr tells 1 from "1" and ("ab", "c") from ("a", "bc").
    assert (derive_seed(*one) == derive_seed(*other)) == (repr(one) == repr(other))


def test_seeds_are_the_same_on_every_machine_and_day() -> None:
    assert derive_seed() == 0x4F53CDA18C2BAA0C >> 1  # sha256 of "[]", first eight bytes
    assert derive_seed(0, "fit", "d1", 2) == derive_seed(0, "fit", "d1", 2)
    with pytest.raises(TypeError):
        derive_seed(1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        derive_seed(True)


def test_work_stops_before_what_could_pass_the_budget_judged_by_the_dearest_before_it(store: Store) -> None:
    ledger = Ledger(store, load_prices(), model="m", usd_per_hour=1.0, budget=10.0)
    hours = [1, 4, 2, 2, 1]  # when 9 are spent, a second that takes 4 would pass 10
    results = (TaskResult(str(k), hour * 3600.0) for k, hour in enumerate(hours))
    done = []
    with pytest.raises(BudgetReached, match="the next task"):  # noqa: PT012
        for result in ledger.within_budget(results):
            ledger.time("fits", "self", result.seconds)
            done.append(result.task_id)
    assert done == ["0", "1", "2"]
    assert next(results, None) is None, "closed"
