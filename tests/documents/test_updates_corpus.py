"""The built-in pairs of documents of which the later one contradicts the earlier: their shape."""

import pytest
from test_news_corpus import contains, tokens

from selfedit.documents import load_documents
from selfedit.errors import UserError
from selfedit.evaluation.lexical import accepts
from selfedit.methods.updates import replaced_by, superseded

BEFORE, AFTER = load_documents("updates:before"), load_documents("updates:after")


def test_each_later_document_changes_one_fact_of_an_earlier_one():
    assert len(BEFORE) == len(AFTER) >= 8
    assert load_documents("updates") == [*BEFORE, *AFTER]
    assert [document.title for document in BEFORE] == [document.title for document in AFTER]
    changed = superseded([*BEFORE, *AFTER])
    replaced = replaced_by(changed, BEFORE)
    for old, new in zip(BEFORE, AFTER, strict=True):
        assert [question.id in changed for question in old.questions] == [True, False, False], old.id
        assert [question.id in replaced for question in new.questions] == [True, False], new.id
        first, second = old.questions[0], new.questions[0]
        for gold in first.answers:
            assert not contains(tokens(new.text), tokens(gold)), "the later text does not say what was"
            assert not any(accepts(second.question, other, gold) for other in second.answers)


@pytest.mark.parametrize("document", [*BEFORE, *AFTER], ids=lambda document: document.id)
def test_answers_are_in_the_text_and_not_in_title_or_question(document):
    assert 35 <= len(document.text.split()) <= 100
    for question in document.questions:
        assert contains(tokens(document.text), tokens(question.answers[0])), question
        for answer in question.answers:
            assert not contains(tokens(document.title), tokens(answer)), question
            assert not contains(tokens(question.question), tokens(answer)), question


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match=r"updates:never: .*before, after"):
        load_documents("updates:never")
