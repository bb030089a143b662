"""From what a writer wrote to an edit: list marks, repetitions, and texts that were cut off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfedit.editors.cleaning import clean


@pytest.mark.parametrize(
    ("raw", "text", "dropped"),
    [
        ("Ada made it.\nIt is new.", "Ada made it.\nIt is new.", 0),
        ("1. Ada made it.\n2) It is new.\n(3) Bo has it.", "Ada made it.\nIt is new.\nBo has it.", 0),
        (
            "- Ada made it.\n* It is new.\n• Bo has it.\n– Cy saw it.",
            "Ada made it.\nIt is new.\nBo has it.\nCy saw it.",
            0,
        ),
        ("  1.  Ada made it.  \r\n\tIt is new.", "Ada made it.\nIt is new.", 0),
        ("Ada made it.\n\n\nIt is new.\n", "Ada made it.\nIt is new.", 2),
        ("Ada made it.\nADA made it\n3. Ada made it.", "Ada made it.", 2),
        ("1. Ada made it.\n2.\n-", "Ada made it.", 2),
        ("- 1. Ada made it.\n* * It is new.\n- -", "Ada made it.\nIt is new.", 1),
        (
            "In 1918 it ended.\n1918: it ended.\n3.5 metres is long.",
            "In 1918 it ended.\n1918: it ended.\n3.5 metres is long.",
            0,
        ),
        ("   \n \n", "", 0),
        ("", "", 0),
    ],
)
def test_lines(raw: str, text: str, dropped: int) -> None:
    assert clean(raw, cut_off=False) == (text, dropped)


@pytest.mark.parametrize(
    ("raw", "text", "dropped"),
    [
        ("Ada made it.\nIt is ne", "Ada made it.", 1),
        ("Ada made it.\nIt is new.", "Ada made it.", 1),  # nothing says that the last line is whole
        ("Ada made it.\nIt is new.\n", "Ada made it.\nIt is new.", 0),  # the line's end says so
        ("Ada made it. It is ne", "Ada made it.", 0),
        ("Who? Ada! It is ne", "Who? Ada!", 0),
        ('He said "go." Then', 'He said "go."', 0),
        ("It cost 3.5 mill", "", 1),  # a decimal point ends no sentence
        ("It is old. It cost 3.", "It is old.", 0),
        ("It is new. Bo has it.", "It is new. Bo has it.", 0),
        ("Ada made i", "", 1),
        ("", "", 0),
    ],
)
def test_texts_that_were_cut_off(raw: str, text: str, dropped: int) -> None:
    assert clean(raw, cut_off=True) == (text, dropped)


def test_different_questions_may_have_the_same_answer() -> None:
    raw = "Question: Is it new?\nAnswer: Yes\nQuestion: Is it red?\nAnswer: Yes"
    assert clean(raw, cut_off=False) == (raw, 0)


def test_a_repeated_question_goes_with_its_answer() -> None:
    raw = "Question: Is it new?\nAnswer: Yes\n\nQuestion: Is it new?\n\nAnswer: No\nQuestion: Is it red?\nAnswer: Yes"
    expected = "Question: Is it new?\nAnswer: Yes\nQuestion: Is it red?\nAnswer: Yes"
    assert clean(raw, cut_off=False) == (expected, 4)


@given(st.text(alphabet="ab1.?- \n:QA", max_size=80), st.booleans())
def test_what_is_left_is_clean(raw: str, cut_off: bool) -> None:
    text, dropped = clean(raw, cut_off=cut_off)
    lines = text.splitlines()
    assert all(line and line == line.strip() for line in lines)
    statements = [line.casefold().rstrip(".") for line in lines if not line.casefold().startswith("a")]
    assert len(statements) == len(set(statements))
    assert len(lines) + dropped == len(raw.strip().splitlines())
    assert clean(text, cut_off=False) == (text, 0)
    assert all(line in raw for line in lines)
