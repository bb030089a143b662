"""Prices: the published figures come out, the file can be edited, and mistakes in it are named."""

from pathlib import Path

import pytest

from selfedit.editors.prices import BUILT_IN, Budget, BudgetReached, estimate_tokens, load_prices
from selfedit.errors import UserError


def test_published_cost_of_gpt_5_edits_by_batch() -> None:
    price = load_prices().model("gpt-5")
    assert price.cost(44_496, 143_673, batch=True) == pytest.approx(0.746, abs=5e-4)
    assert price.cost(44_496, 143_673) == pytest.approx(1.49235)


def test_every_built_in_price_is_dated_and_sourced() -> None:
    for price in load_prices().models.values():
        assert price.date[:2] == "20"
        assert price.source


def test_a_dated_snapshot_costs_what_its_model_costs() -> None:
    prices = load_prices()
    assert prices.model("gpt-4.1-2025-04-14") == prices.model("gpt-4.1")
    assert prices.model("gpt-4.1").cost(1_000_000, 0) == 2.0


def test_an_unknown_model_is_named_with_the_file_and_the_remedy() -> None:
    with pytest.raises(UserError) as caught:
        load_prices().model("nonesuch-7")
    message = str(caught.value)
    assert "nonesuch-7" in message
    assert str(BUILT_IN) in message
    assert "under 'models'" in message
    assert "\n" not in message


def test_a_price_file_is_laid_over_the_built_in_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("models:\n  gpt-5: {input: 2, output: 20}\n  7: {input: 0, output: 0, date: 2025-01-01}\n")
    prices = load_prices(file)
    assert prices.model("gpt-5").cost(1_000_000, 1_000_000) == 22.0
    assert prices.model("gpt-5").cost(1_000_000, 0, batch=True) == 2.0  # no batch_factor: a batch costs the same
    assert prices.model("7").cost(10**9, 10**9) == 0.0
    assert prices.model("7").date == "2025-01-01"
    assert prices.model("gpt-4.1").cost(1_000_000, 0) == 2.0
    with pytest.raises(UserError, match=r"mine\.yaml"):
        prices.model("nonesuch")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("models: [", "not YAML"),
        ("- a\n", "must be an object"),
        ("", "must be an object"),
        ("model: {}\n", "model: Extra inputs are not permitted"),
        ("models: [a]\n", "models: Input should be a valid dictionary"),
        ("models:\n  a: 3\n", "models.a: must be an object"),
        ("models:\n  a: {input: 1}\n", "models.a.output: is missing"),
        ("models:\n  a: {input: 1, output: 1, batch_facto: 0.5}\n", "models.a.batch_facto: Extra inputs are not"),
        ("models:\n  a: {input: cheap, output: 1}\n", "models.a.input: Input should be a valid number"),
        ("models:\n  a: {input: -1, output: 1}\n", "models.a.input: Input should be greater than or equal to 0"),
        ("models:\n  a: {input: .nan, output: 1}\n", "models.a.input"),
        ("models:\n  a: {input: .inf, output: 1}\n", "models.a.input: Input should be a finite number"),
        ("models:\n  a: {input: true, output: 1}\n", "models.a.input: Input should be a valid number"),
    ],
)
def test_a_mistake_in_a_price_file_is_named(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        load_prices(file)
    assert reason in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_price_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the price file .*nothing\.yaml: No such file"):
        load_prices(tmp_path / "nothing.yaml")


def test_a_budget_counts_what_is_spent_and_what_is_held() -> None:
    budget = Budget(1.0)
    budget.spend(0.5)
    budget.hold("a", 0.3)
    assert not budget.would_exceed(0.2)
    assert budget.would_exceed(0.21)
    budget.release("a")
    budget.release("never held")
    budget.spend(0.1)
    assert budget.held == 0.0
    assert budget.spent == pytest.approx(0.6)
    assert not budget.would_exceed(0.4)
    error = budget.reached("the next call", 0.5)
    assert isinstance(error, BudgetReached)
    assert "budget of 1.00 USD" in str(error)


def test_no_limit_refuses_nothing() -> None:
    assert not Budget().would_exceed(1e9)
    assert Budget(0).would_exceed(0.01)


def test_estimated_tokens_round_up() -> None:
    assert [estimate_tokens("x" * n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
