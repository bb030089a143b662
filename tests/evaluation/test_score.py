"""Scores: ungraded answers are counted and never scored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfedit.evaluation.grade import Grade
from selfedit.evaluation.score import Score, score

RIGHT = Grade("right", 1.0, "g")
WRONG = Grade("wrong", 0.0, "g")
UNGRADED = Grade("ungraded", None, "g", "no reply")


def test_ungraded_answers_do_not_lower_the_accuracy() -> None:
    assert score([RIGHT, UNGRADED, WRONG, UNGRADED]) == Score(1, 2, 2, 0.5)
    assert score([UNGRADED]) == Score(0, 0, 1, None)
    assert score([]) == Score(0, 0, 0, None)


def test_accuracy_is_the_mean_score() -> None:
    result = score([Grade("right", 0.7, "c"), Grade("wrong", 0.4, "c")])
    assert result.correct == 1
    assert result.accuracy == pytest.approx(0.55)


def test_a_graded_verdict_without_credit_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no score"):
        score([Grade("right", None, "g")])


@given(st.lists(st.sampled_from([RIGHT, WRONG, UNGRADED])))
def test_counts_add_up(grades: list[Grade]) -> None:
    result = score(iter(grades))
    assert result.answers == len(grades)
    assert result.correct == grades.count(RIGHT)
    if result.graded:
        assert result.accuracy == pytest.approx(result.correct / result.graded)
