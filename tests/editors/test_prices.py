"""Prices: the published figures come out, the file can be edited, and mistakes in it are named."""

from pathlib import Path

import pytest

from selfedit.editors.prices import (
    BUILT_IN,
    Budget,
    BudgetReached,
    device_cost,
    load_prices,
    price,
)
from selfedit.errors import UserError


def test_published_cost_of_gpt_5_edits_by_batch() -> None:
    assert price("gpt-5", 44_496, 143_673, batch=True) == pytest.approx(0.746, abs=5e-4)
    assert price("gpt-5", 44_496, 143_673) == pytest.approx(1.49235)


def test_published_cost_of_ten_rounds() -> None:
    hourly = load_prices().device("L40S").usd_per_hour
    assert device_cost(3600, hourly, devices=2) == pytest.approx(0.88)
    assert 10 * device_cost(3600, hourly, devices=2) == pytest.approx(8.80)


def test_every_built_in_price_is_dated_and_sourced() -> None:
    prices = load_prices()
    for entry in [*prices.models.values(), *prices.devices.values()]:
        assert entry.date[:2] == "20"
        assert entry.source


def test_a_dated_snapshot_costs_what_its_model_costs() -> None:
    assert price("gpt-4.1-2025-04-14", 1_000_000, 0) == price("gpt-4.1", 1_000_000, 0) == 2.0


def test_an_unknown_model_is_named_with_the_file_and_the_mend() -> None:
    with pytest.raises(UserError) as caught:
        price("nonesuch-7", 1, 1)
    message = str(caught.value)
    assert "nonesuch-7" in message
    assert str(BUILT_IN) in message
    assert "under 'models'" in message
    assert "\n" not in message
    with pytest.raises(UserError, match="no price for device 'abacus'"):
        load_prices().device("abacus")


def test_a_price_file_is_laid_over_the_built_in_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "models:\n  gpt-5: {input: 2, output: 20}\n  local: {input: 0, output: 0}\ndevices:\n  H9: {usd_per_hour: 3}\n"
    )
    prices = load_prices(file)
    assert prices.price("gpt-5", 1_000_000, 1_000_000) == 22.0
    assert prices.price("gpt-5", 1_000_000, 0, batch=True) == 2.0  # no batch_factor: a batch costs the same
    assert prices.price("local", 10**9, 10**9) == 0.0
    assert prices.price("gpt-4.1", 1_000_000, 0) == 2.0
    assert prices.device("h9").usd_per_hour == 3.0
    with pytest.raises(UserError, match=r"mine\.yaml"):
        prices.model("nonesuch")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("models: [", "not YAML"),
        ("- a\n", "must have the sections"),
        ("model: {}\n", "must have the sections"),
        ("models: [a]\n", "'models' must map names to prices"),
        ("models:\n  a: 3\n", "'a' under 'models' must be a mapping"),
        ("models:\n  a: {input: 1}\n", "'a' needs 'output' as a number"),
        ("models:\n  a: {input: cheap, output: 1}\n", "'a' needs 'input' as a number, 0 or more, not 'cheap'"),
        ("models:\n  a: {input: -1, output: 1}\n", "'a' needs 'input'"),
        ("models:\n  a: {input: .nan, output: 1}\n", "'a' needs 'input'"),
        ("devices:\n  a: {usd_per_hour: true}\n", "'a' needs 'usd_per_hour'"),
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


def test_no_limit_refuses_nothing_and_a_nonsensical_one_is_refused() -> None:
    assert not Budget().would_exceed(1e9)
    assert Budget(0).would_exceed(0.01)
    for limit in (-1, float("nan")):
        with pytest.raises(UserError, match="must be an amount in US dollars"):
            Budget(limit)


def test_the_price_of_many_calls_by_batch() -> None:
    usd = load_prices().price("gpt-5", 250 * 178, 250 * 575, batch=True)
    assert usd == pytest.approx(250 * (178 * 1.25 + 575 * 10) / 2e6)
