"""Long documents in parts with their headings, and documents that say the same twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from selfedit.documents import Document, Question, document_parts, without_repeats

MANUAL = """The harbour opens at six.

# Ferries

The ferry leaves at nine.

## Prices

A ticket costs twelve crowns.

## Dogs

Dogs travel free of charge.

```
# not a heading
```

# Cranes

The crane lifts forty tonnes.
"""


def cut(text: str, size: int) -> list[tuple[str, str]]:
    return [(part.title, part.text) for part in document_parts(Document("m", "Manual", text), size)]


def test_a_document_is_cut_before_headings_and_titles_say_what_parts_are_about():
    assert cut(MANUAL, 90) == [
        ("Manual", "The harbour opens at six.\n\n# Ferries\n\nThe ferry leaves at nine."),
        ("Manual / Ferries / Prices", "## Prices\n\nA ticket costs twelve crowns."),
        ("Manual / Ferries / Dogs", "## Dogs\n\nDogs travel free of charge.\n\n```\n# not a heading\n```"),
        ("Manual / Cranes", "# Cranes\n\nThe crane lifts forty tonnes."),
    ]


def test_sections_share_a_part_below_the_headings_that_they_share_and_not_with_the_next_chapter():
    chapters = MANUAL.replace("# Ferries", "# Ferries\n\n" + "They sail all year. " * 4)
    titles = [title for title, _ in cut(chapters, 130)]
    assert titles == ["Manual", "Manual / Ferries", "Manual / Ferries", "Manual / Cranes"]


def test_a_part_below_a_heading_keeps_it_where_the_section_itself_is_cut():
    parts = cut("# A\n\n" + "word " * 50 + "\n\n## B\n\nmore.", 100)
    assert [title for title, _ in parts] == ["Manual / A", "Manual / A", "Manual / A", "Manual / A / B"]


def test_parts_are_numbered_and_a_document_that_fits_or_has_questions_stays_whole():
    document = Document("m.md", "Manual", MANUAL)
    assert [part.id for part in document_parts(document, 90)] == ["m.md#1", "m.md#2", "m.md#3", "m.md#4"]
    assert document_parts(document, len(MANUAL)) == [document]
    asked = Document("m.md", "Manual", MANUAL, (Question("q", "When does it open?", ("six",)),))
    assert document_parts(asked, 90) == [asked]


def test_text_without_spaces_is_measured_and_cut():
    text = "港口六点开门。渡轮九点离开。" * 30
    parts = document_parts(Document("c", "港口", text), 120, length=lambda text: len(text.encode()))
    assert "".join(part.text for part in parts) == text
    assert all(len(part.text.encode()) <= 120 and part.text.endswith("。") for part in parts)


@given(
    st.lists(
        st.sampled_from(["# A", "## B", "### C", "one two three.", "four five " * 20, "", "```", "العبارة تغادر."])
    ),
    st.integers(20, 300),
)
def test_nothing_is_lost_and_no_part_is_too_long(lines: list[str], size: int):
    text = "\n".join(lines).strip()
    parts = document_parts(Document("d", "D", text), size)
    assert "".join("".join(part.text for part in parts).split()) == "".join(text.split())
    assert len(parts) == 1 or all(0 < len(part.text) <= size for part in parts)


def test_a_text_that_is_there_already_is_named_and_left_out():
    question = (Question("q", "?", ("a",)),)
    documents = [
        Document("a", "A", "The sea\nis grey."),
        Document("b", "B", "the  sea is grey."),
        Document("c", "C", "The sea is blue."),
        Document("d", "D", "The sea is grey.", question),
    ]
    kept, lines = without_repeats(documents)
    assert [document.id for document in kept] == ["a", "c", "d"]
    assert lines == ["b: has the text of a, which is learned once"]
