"""The calibrated grader: its numbers are walked rightly, its grades sensible, its shipped model as good as
documented."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfedit.evaluation.calibrated import FORMAT, CalibratedGrader, CalibratedModel, shipped_model
from selfedit.evaluation.check import check_grader, read_graded_rows
from selfedit.evaluation.features import NAMES, features, stem
from selfedit.evaluation.grade import GradeItem

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "verdicts-gpt-4.1.jsonl"


def grade(question: str, gold: str | tuple[str, ...], answer: str) -> float:
    golds = (gold,) if isinstance(gold, str) else gold
    (grade,) = CalibratedGrader().grade([GradeItem(question, golds, answer)])
    assert grade.score is not None
    assert grade.value == ("right" if grade.score >= 0.5 else "wrong")
    return grade.score


def small_model(**changes: object) -> dict[str, object]:
    """Two trees: a stump on the first feature, and one of depth two on the second and third; a flat linear part."""
    zeros = [0.0] * len(NAMES)
    stump = {"feature": [0, 0, 0], "threshold": [0.5, 0, 0], "left": [1, 1, 2], "right": [2, 1, 2], "value": [0, -1, 1]}
    deep = {
        "feature": [1, 0, 2, 0, 0],
        "threshold": [0.0, 0, 3.0, 0, 0],
        "left": [1, 1, 3, 3, 4],
        "right": [2, 1, 4, 3, 4],
        "value": [0, 10, 0, 20, 40],
    }
    data: dict[str, object] = {
        "format": FORMAT,
        "features": list(NAMES),
        "baseline": 0.25,
        "trees": [{**stump, "depth": 1}, {**deep, "depth": 2}],
        "linear": {"mean": zeros, "scale": [1.0] * len(NAMES), "weight": [2.0, *zeros[1:]], "intercept": 0.5},
        "calibration": {"slope": 0.1, "offset": -0.2},
    }
    return {**data, **changes}


@pytest.mark.parametrize(
    ("first", "second", "third", "trees"),
    [(0, 0, 0, -1 + 10), (0.5, -1, 9, -1 + 10), (1, 0, 0, 1 + 10), (0, 1, 3, -1 + 20), (1, 1, 3.1, 1 + 40)],
)
def test_trees_are_walked_to_the_right_leaf(first: float, second: float, third: float, trees: float) -> None:
    model = CalibratedModel.from_json(small_model())
    row = np.zeros((1, len(NAMES)))
    row[0, :3] = first, second, third
    assert model.tree_log_odds(row) == pytest.approx([0.25 + trees])
    assert model.linear_log_odds(row) == pytest.approx([0.5 + 2 * first])
    z = 0.1 * (0.25 + trees + 0.5 + 2 * first) / 2 - 0.2
    assert model.probability(row) == pytest.approx([1 / (1 + np.exp(-z))])


def test_numbers_made_for_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match="other features"):
        CalibratedModel.from_json(small_model(features=["a"]))
    with pytest.raises(ValueError, match="other features"):
        CalibratedModel.from_json(small_model(format=0))


def test_the_shipped_numbers_are_sound() -> None:
    model = shipped_model()
    assert model.slope > 0
    assert np.isfinite(model.value_T_W).all()
    assert (model.scale_F > 0).all()
    width = model.feature_T_W.shape[1]
    assert model.left_T_W.max() < width
    assert model.feature_T_W.max() < len(NAMES)


def test_plain_cases() -> None:
    question = "In which town was the treaty signed?"
    assert grade(question, "Otrar", "The treaty was signed in Otrar.") > 0.9
    assert grade(question, "Otrar", "Otrar") > 0.9
    assert grade(question, "Otrar", "The treaty was signed in Samarkand.") < 0.1
    assert grade("When was he born?", "10 November 1483", "He was born on November 10, 1483.") > 0.9
    assert grade("When was it founded?", "1852", "It was founded in 1907.") < 0.1
    assert grade("How many teams did he lead?", "two", "2") > 0.8


@pytest.mark.parametrize("answer", ["", " \n", "...", "\t"])
def test_an_empty_answer_is_wrong(answer: str) -> None:
    assert grade("Which town?", "Otrar", answer) == 0.0


def test_the_most_favourable_accepted_answer_counts() -> None:
    question, answer = "What is the capital?", "It is Washington."
    alone = grade(question, "Washington", answer)
    assert grade(question, ("Paris", "Washington", "Rome"), answer) == alone > grade(question, "Paris", answer)


def test_a_probability_does_not_depend_on_the_batch_to_the_last_bit() -> None:
    rows = np.random.default_rng(0).uniform(0, 1, (200, len(NAMES)))
    model = shipped_model()
    together = model.probability(rows)
    for size in (1, 2, 7):
        parts = [model.probability(rows[start : start + size]) for start in range(0, len(rows), size)]
        assert np.concatenate(parts).tolist() == together.tolist()


def test_order_and_company_change_nothing() -> None:
    items = [GradeItem("Which town?", ("Otrar",), a) for a in ("Otrar", "", "Samarkand", "the town of Otrar")]
    together = [v.score for v in CalibratedGrader().grade(items)]
    assert together == [CalibratedGrader().grade([item])[0].score for item in items]
    assert CalibratedGrader().grade(items[::-1])[0].score == together[-1]
    assert CalibratedGrader().grade([]) == []


@settings(max_examples=150, deadline=None)
@given(st.text(), st.text(min_size=1), st.text())
def test_any_three_texts_get_finite_features_and_a_probability(question: str, gold: str, answer: str) -> None:
    values = features(question, gold, answer)
    assert tuple(values) == NAMES
    assert np.isfinite(list(values.values())).all()
    assert 0 <= grade(question, gold, answer) <= 1


@pytest.mark.parametrize(
    ("one", "other"), [("unions", "union"), ("Mongols", "mongol"), ("founded", "founding"), ("quickly", "quick")]
)
def test_inflections_share_a_stem(one: str, other: str) -> None:
    assert stem(one.lower()) == stem(other)


def test_the_shipped_model_on_gpt_grades() -> None:
    if not DATA.exists():
        pytest.skip("needs ../shared/data/verdicts-gpt-4.1.jsonl beside the checkout: labelled grades, not shipped")
    rows = read_graded_rows(DATA)
    report = check_grader(CalibratedGrader(), rows)
    # The shipped model was trained on these rows: this checks the file and the code that reads it, not how well it
    # generalises (docs/grading.md has the held-out figures).
    assert report.n == len(rows)
    assert report.kappa > 0.78
    assert abs(report.bias) < 0.01
