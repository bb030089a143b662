"""Splits by title, and long texts cut into parts."""

import re
from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from selfedit.documents import Document, part_spans, sentences, split_by_title
from selfedit.documents.splitting import _reach
from selfedit.errors import UserError


def documents_of(*sizes: int) -> list[Document]:
    """Title number t has sizes[t] documents."""
    return [Document(f"{t}-{n}", f"Title {t}", "Text.") for t, size in enumerate(sizes) for n in range(size)]


def titles(documents) -> set[str]:
    return {document.title for document in documents}


sizes_lists = st.lists(st.integers(1, 6), min_size=3, max_size=20)


@given(sizes_lists, st.integers(0, 1000))
def test_shares_use_every_document_and_share_no_title(sizes, seed):
    documents = documents_of(*sizes)
    split = split_by_title(documents, {"train": 0.5, "validation": 0.25, "test": 0.25}, seed=seed)
    assert sorted(d.id for part in split.values() for d in part) == sorted(d.id for d in documents)
    assert sum(len(titles(part)) for part in split.values()) == len(sizes)
    assert all(split.values())


@given(st.permutations(documents_of(3, 1, 2, 5, 1, 1)), st.integers(0, 5))
def test_a_split_depends_on_the_seed_and_not_on_order(documents, seed):
    sizes = {"train": 0.7, "test": 0.3}
    split = split_by_title(documents, sizes, seed=seed)
    expected = split_by_title(documents_of(3, 1, 2, 5, 1, 1), sizes, seed=seed)
    assert {name: {d.id for d in part} for name, part in split.items()} == {
        name: {d.id for d in part} for name, part in expected.items()
    }
    assert all([d for d in documents if d in part] == part for part in split.values())


def test_seeds_differ():
    documents = documents_of(*[1] * 30)
    splits = {tuple(d.id for d in split_by_title(documents, {"a": 0.3, "b": 0.7}, seed=s)["a"]) for s in range(5)}
    assert len(splits) == 5


def test_shares_are_met_closely():
    split = split_by_title(documents_of(*[2] * 100), {"train": 0.8, "validation": 0.1, "test": 0.1})
    assert {name: len(part) for name, part in split.items()} == {"train": 160, "validation": 20, "test": 20}


@pytest.mark.parametrize("seed", range(12))
def test_a_title_with_most_of_the_documents_goes_where_most_are_to_be(seed):
    split = split_by_title(documents_of(100, 1, 1, 1, 1, 1), {"train": 0.8, "validation": 0.2}, seed=seed)
    assert len(split["train"]) >= 100


def test_titles_that_differ_in_case_and_spaces_are_one():
    documents = [Document("a", "Grey Sea", "x"), Document("b", "grey  sea", "y"), Document("c", "Hill", "z")]
    split = split_by_title(documents, {"train": 0.6, "test": 0.4})
    assert ["a", "b"] in [[d.id for d in part] for part in split.values()]


def test_fewer_titles_than_splits_are_refused():
    with pytest.raises(UserError, match=r"9 documents have 1 titles"):
        split_by_title(documents_of(9), {"train": 0.5, "test": 0.5})


def words(text: str) -> int:
    """A token counter that counts otherwise than characters do: words, and a token more per punctuation mark."""
    return len(re.findall(r"\w+|[^\w\s]", text))


prose = st.lists(
    st.sampled_from(
        [
            "wind{}",
            "harbour{}",
            "B{}.",
            "Really{}?",
            "{}abcdefghijklmnopqrstuvwxyz",
            "\n",
            "\n\n",
            "é漢{}。",
            "end{}.",
            "   ",
        ]
    ),
    max_size=60,
).map(lambda items: " ".join(item.format(n) for n, item in enumerate(items)))
anything = st.text(
    st.one_of(st.characters(), st.sampled_from(" \t\r\n\x0b\x1f\x85\u2028\u3000.?!。\"'\u200b\u202e\u0301"))
)
sizes_and_overlaps = st.integers(1, 80).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


def split_text(text: str, size: int, **how) -> list[str]:
    return [text[begin:end].strip() for begin, end in part_spans(text, size, **how)]


def uneven(text: str) -> int:
    """As merges of tokens do, a longer string may have fewer tokens."""
    return len(text.replace("nd", "").replace("ar", "").replace(". ", ""))


@given(prose | anything, sizes_and_overlaps, st.sampled_from([len, words, uneven]))
@example(" ".join(f"wind{n}" for n in range(12)), (5, 0), len)
@example(" ".join(f"wind{n}" for n in range(12)), (5, 1), len)
def test_parts_fit_lose_nothing_and_each_has_something_new(text, size_and_overlap, length):
    size, overlap = size_and_overlap
    spans = list(part_spans(text, size, overlap=overlap, length=length))
    covered = 0
    for begin, end in spans:
        part = text[begin:end].strip()
        assert part
        assert length(part) <= size
        assert not text[covered:begin].strip(), "something between two parts is lost"
        assert text[covered:end].strip(), "nothing new"
        assert length(text[begin:covered].strip()) <= overlap
        covered = end
    assert not text[covered:].strip()


@given(prose, st.integers(3, 30))
def test_without_overlap_the_parts_are_the_text(text, size):
    parts = split_text(text, size, length=words)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(words(part) <= size for part in parts)


def test_a_text_that_fits_stays_whole():
    assert split_text("  One.\n\nTwo. ", 20) == ["One.\n\nTwo."]
    assert split_text(" \n", 20) == []


def test_cuts_fall_at_paragraphs_then_sentences_then_words():
    assert split_text("One two.\nThree.\n\nFour. Five six.", 24) == ["One two.\nThree.", "Four. Five six."]
    assert split_text("One two three. Four five six seven.", 24) == ["One two three.", "Four five six seven."]
    assert split_text("one two three four five", 14) == ["one two three", "four five"]
    assert split_text("abcdefghij", 4) == ["abcd", "efgh", "ij"]


def test_an_overlap_begins_with_a_sentence_where_one_fits():
    text = "First one here. Second one here. Third one here. Fourth one here."
    assert split_text(text, 34, overlap=18) == [
        "First one here. Second one here.",
        "Second one here. Third one here.",
        "Third one here. Fourth one here.",
    ]
    assert split_text("one two three four five six", 14, overlap=5) == ["one two three", "three four", "four five six"]


@given(st.lists(st.integers(-1, 9), min_size=1, max_size=400), st.integers(1, 300), st.integers(1, 500), st.data())
def test_the_furthest_end_that_fits_is_found_in_few_steps(steps, limit, guess, data):
    """`steps` are what each character adds to a text's length; some take away, as merges of tokens do."""
    lengths = list(accumulate(steps, lambda length, step: max(0, length + step), initial=0))
    stop = len(steps)
    begin = data.draw(st.integers(0, stop - 1))
    measured = []

    def measure(end):
        measured.append(end)
        return lengths[end] - lengths[begin]

    end = _reach(measure, limit, begin, stop, guess)
    assert end == begin or measure(end) <= limit
    assert end == stop or measure(end + 1) > limit
    assert len(measured) < 30


def test_a_long_text_is_not_measured_whole():
    measured = []

    def length(text):
        measured.append(len(text))
        return words(text)

    text = "The wind turned at noon and the boats came home. " * 2000
    parts = split_text(text, 100, overlap=20, length=length)
    assert len(parts) > 200
    assert sum(measured) < 12 * len(text)
    assert max(measured) < len(text) / 20


def test_much_white_space_is_not_measured_again_and_again():
    measured = []

    def length(text):
        measured.append(len(text))
        return len(text)

    text = "One." + " " * 100_000 + "Two." + "\n" * 100_000 + "Three."
    assert split_text(text, 5, length=length) == ["One.", "Two.", "Three", "."]
    assert len(measured) < 200


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (5, 5), (5, -1)])
def test_sizes_out_of_range_are_refused(size, overlap):
    with pytest.raises(ValueError, match="overlap must be"):
        split_text("text", size, overlap=overlap)


def test_a_character_longer_than_a_part_is_refused():
    with pytest.raises(ValueError, match="a single character"):
        split_text("abc", 2, length=lambda text: 3 * len(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ada made it. It is\nnew! (Is it?) Yes", ["Ada made it.", "It is new!", "(Is it?)", "Yes"]),
        ("# Kites\n\nNo. 3 cost 3.50 coins.\n \nTwo.", ["# Kites", "No.", "3 cost 3.50 coins.", "Two."]),
        ("凧は新しい。青い！", ["凧は新しい。", "青い！"]),
        (" \n\n", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected
