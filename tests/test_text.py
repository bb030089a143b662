"""Other people's text made fit to print."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from selfedit.text import one_line, printable


@given(st.text(st.characters()), st.integers(20, 100))
@example("\x1b[31mred\x1b[0m", 20)
@example("\ud83d", 20)
@example("\u202egnp.exe", 20)
@example("a\u2028b\x85c", 20)
@example("x" * 1000, 21)
def test_one_line_is_one_short_line_that_steers_nothing(text, longest):
    line = one_line(text, longest)
    assert len(line) <= longest
    assert len(line.splitlines()) <= 1
    assert not {unicodedata.category(character) for character in line} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    line.encode("utf-8")


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]), max_size=100))
def test_what_is_fit_to_print_stays_as_it_is(text):
    assert one_line(text) == printable(text) == text


def test_lines_of_an_answer_stay():
    assert printable("one\n\ttwo\x1b[2Jthree") == "one\n\ttwo[2Jthree"
    assert one_line("one\r\n\ttwo") == "one   two"


@pytest.mark.parametrize("length", [1001, 10_000_000])
def test_of_a_long_line_the_beginning_and_the_end_are_kept(length):
    line = one_line("where: " + "x" * length + " is taken; do this")
    assert line.startswith("where: xxx")
    assert " … " in line
    assert line.endswith("xxx is taken; do this")
