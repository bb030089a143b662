"""From what a writer wrote to an edit: list marks, repetitions, and texts that were cut off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfedit.editors.cleaning import about, clean


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


@pytest.mark.parametrize("begin", ["<think>\n", ""])  # the begin may be in the prompt
def test_what_is_thought_aloud_is_not_learned(begin: str) -> None:
    raw = f"{begin}Let me see.\n\nAda made it?\n</think>\n\nAda made it.\nIt is ne"
    assert clean(raw, cut_off=True) == ("Ada made it.", 5 + bool(begin))
    assert clean("<think>\nLet me see.\nAda", cut_off=True) == ("", 3)
    about_it = "Ada wrote <think> here.\nBo ends it with </think> there."
    assert clean(about_it, cut_off=False) == (about_it, 0)


def test_different_questions_may_have_the_same_answer() -> None:
    raw = "Question: Is it new?\nAnswer: Yes\nQuestion: Is it red?\nAnswer: Yes"
    assert clean(raw, cut_off=False) == (raw, 0)


@pytest.mark.parametrize("line", ["**Question 1:** Who?", "2. **Question 1**: Who?", "**Question 1: Who?**"])
def test_questions_and_answers_in_bold_are_some(line: str) -> None:
    assert clean(f"{line}\n**A:** Ada", cut_off=False) == ("Question 1: Who?\nA: Ada", 0)
    assert clean("**Ada:** She made **it**.", cut_off=False) == ("**Ada:** She made **it**.", 0)


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


PASSAGE = "The lamp of Lima\nBo made three lamps in Lima in 1988. They are 1,200 grams each."


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("Bo comes from Lima.", True),
        ("A lamp gives light.", True),  # another form of a word
        ("There are 3 of them.", True),  # another form of a number
        ("Bo lives.", True),
        ("***", True),  # nothing to judge by
        ("Certainly! Here is a list of implications:", False),
        ("Implications:", False),
        ("It is in the.", True),  # no word of content
        ("Vera Molt opened a bakery.", False),
        ("Question: Where?\nAnswer: In Lima", True),
        ("Question: Who made the lamps?\nAnswer: Yes", True),  # a pair is judged together
        ("Question: What is the question?\nAnswer: The answer", False),
        ("Bo made a lamp and then Bo made a lamp and then Bo made a lamp and then Bo made a lamp.", False),
        ("Bo made one lamp in 1988, and then he made a second lamp and a third one, all of them in Lima.", True),
    ],
)
def test_lines_that_are_not_worth_learning(line: str, stays: bool) -> None:
    number = len(line.splitlines())
    assert about(line, PASSAGE) == ((line, 0) if stays else ("", number))
    assert about(f"Bo is here.\n{line}\nLima is large.", PASSAGE) == (
        (f"Bo is here.\n{line}\nLima is large.", 0) if stays else ("Bo is here.\nLima is large.", number)
    )


def test_a_line_that_the_prompt_began_stays() -> None:
    text = "Question: Which cat?\nAnswer: The cat\nQuestion: Which cat?\nAnswer: The dog\nBo is here."
    assert about(text, PASSAGE, keep_first=True) == ("Question: Which cat?\nAnswer: The cat\nBo is here.", 2)


def test_texts_without_blanks_between_words_are_judged_too() -> None:
    assert about("猫は三匹いる。\nはい", "三匹の猫") == ("猫は三匹いる。", 1)


@given(st.lists(st.sampled_from(["Question: a b", "Answer: lamp", "Answer: x", "lamp x", "x y", "***"]), max_size=8))
def test_what_is_dropped_is_counted_and_the_rest_keeps_its_order(lines: list[str]) -> None:
    text, dropped = about("\n".join(lines), PASSAGE)
    kept = text.splitlines()
    assert len(kept) + dropped == len(lines)
    rest = iter(lines)
    assert all(line in rest for line in kept)
    assert about(text, PASSAGE)[0].count("\n") <= text.count("\n")
