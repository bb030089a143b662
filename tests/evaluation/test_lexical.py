"""The lexical rule and the normalised tokens it works on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfedit.evaluation.grade import GradeItem
from selfedit.evaluation.lexical import LexicalGrader, accepts
from selfedit.evaluation.text import contains, first_answer, is_number, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Café!", "cafe"),
        ("1,200 men", "1200 men"),
        ("twenty-one", "21"),
        ("Twenty first", "21st"),
        ("the eleventh Doctor", "11th doctor"),
        ("Luther's Bible", "luther bible"),
        ("the U.S. army", "us army"),
        ("$170.4 billion", "170.4 billion"),
        ("same-sex", "same sex"),
        ("07 May", "7 may"),
        ("scóil", "scoil"),
        ("Diyarbakır", "diyarbakir"),
        ("A", "a"),
        ("...", ""),
        ("東京", "東 京"),
    ],
)
def test_normalised_tokens(text: str, expected: str) -> None:
    assert " ".join(tokens(text)) == expected


@given(st.text())
def test_no_token_is_blank_and_capitals_do_not_matter(text: str) -> None:
    assert all(w == w.strip() and w for w in tokens(text))
    assert tokens(text.upper().lower()) == tokens(text.lower())


@given(st.integers(0, 10**12))
def test_thousands_separators_do_not_matter(number: int) -> None:
    assert tokens(f"{number:,}") == tokens(str(number)) == [str(number)]
    assert is_number(str(number))


def test_what_follows_the_answer_is_not_read() -> None:
    assert first_answer("Answer: Otrar\n\nQ: Passage: something else") == "Otrar"
    assert first_answer("Otrar\nYou are an AI assistant that helps") == "Otrar"
    assert first_answer("The answer is: Otrar") == "Otrar"
    assert first_answer("Otrar\nand Bukhara") == "Otrar\nand Bukhara"


RIGHT = [
    ("Which town?", "Otrar", "The town was Otrar."),
    ("When was he born?", "10 November 1483", "He was born on November 10, 1483."),
    ("How many teams?", "two", "2"),
    ("How many studies?", "fifty", "There have been over 50 studies."),
    ("Who did Emma marry?", "King Ethelred II", "Emma married Ethelred II, King of England."),
    ("Which name?", "the Eleventh Doctor", "The 11th Doctor"),
    ("Which type of unions?", "same-sex unions", "Same-sex union."),
    # 60 % of the gold answer's words (3 of 5), and an F1 of a half, are enough;
    ("Which crops?", "rye oats barley hemp flax", "rye oats barley wheat rice maize beans peas hops vines"),
    ("Which crops?", "rye oats", "rye wheat"),
]
WRONG = [
    # 4 of 7, and an F1 of two fifths, are not.
    ("Which crops?", "rye oats barley hemp flax figs teas", "rye oats barley hemp wheat rice maize beans peas hops"),
    ("Which crops?", "rye oats", "rye wheat maize"),
    ("Which town?", "Otrar", "The town was Karakorum."),
    ("Which town?", "Otrar", ""),
    ("Which town?", "Otrar", " \n"),
    ("Which town?", "Otrar", "..."),
    ("When did it end?", "1981", "It ended in 1975."),
    ("When was it built?", "May 1852", "In May 1853"),
    ("Which town?", "Otrar", "I do not know.\nQuestion: which town is it?\nOtrar"),
    ("Where is the Sunny Club?", "Sunny Hill", "The Sunny Club is in Fresno."),
]


@pytest.mark.parametrize(("question", "gold", "answer"), RIGHT)
def test_accepted(question: str, gold: str, answer: str) -> None:
    assert accepts(question, gold, answer)


@pytest.mark.parametrize(("question", "gold", "answer"), WRONG)
def test_refused(question: str, gold: str, answer: str) -> None:
    assert not accepts(question, gold, answer)


def test_any_accepted_answer_will_do_and_credit_is_one_or_zero() -> None:
    items = [
        GradeItem("Capital?", ("Washington, D.C.", "Washington"), "It is Washington"),
        GradeItem("Capital?", ("Paris",), "Rome"),
    ]
    right, wrong = LexicalGrader().grade(items)
    assert (right.value, right.score, right.grader) == ("right", 1.0, "lexical")
    assert (wrong.value, wrong.score) == ("wrong", 0.0)
    assert LexicalGrader().grade([]) == []


@given(st.text(), st.text().filter(lambda t: tokens(t) != []))
def test_the_gold_answer_itself_is_right(question: str, gold: str) -> None:
    plain = " ".join(tokens(gold))
    # Some normalised texts read as a lead-in ("answer: ...") or normalise further; what counts is what the grader
    # reads.
    if tokens(first_answer(plain)) == tokens(gold):
        assert accepts(question, gold, plain)


@given(st.text(), st.text(), st.text())
def test_any_three_texts_get_a_verdict(question: str, gold: str, answer: str) -> None:
    grade = LexicalGrader().grade([GradeItem(question, (gold,), answer)])[0]
    assert grade.value in ("right", "wrong")
    if not tokens(answer):
        assert grade.value == "wrong"


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3), max_size=3))
def test_contains_is_a_run_of_tokens(hay: list[int], needle: list[int]) -> None:
    haystack, wanted = [str(i) for i in hay], [str(i) for i in needle]
    expected = bool(wanted) and f",{','.join(wanted)}," in f",{','.join(haystack)},"
    assert contains(haystack, wanted) == expected
