"""What each adapter is asked and measured on: its own documents, what the model knew before, and other documents.

A *leak* is an answer about another document that is wrong and that an answer about the adapter's own document would be
right: the adapter says what it learned where it was not asked for.  An adapter that learned several documents leaks
where it answers a question about one of them with what another says; one to which a question about another document
was routed, where it answers with what its own says.  Leaks are found by the lexical rule, whatever grades the exam, and
an untrained model has some by chance; so they are counted in its answers too.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfedit.documents import Document, Question
from selfedit.engine.jobs import Completion, DecodeRequest, TokenSequence
from selfedit.evaluation.exam import asked_title
from selfedit.evaluation.lexical import accepts
from selfedit.execution.tasks import Reading, Recital
from selfedit.grouping import grouped
from selfedit.methods.by_heart import ByHeart
from selfedit.methods.examining import answers, exam_questions, known_general, open_book_answers
from selfedit.methods.general_texts import measured_texts
from selfedit.methods.learnings import Asked, Learning, asked_about
from selfedit.methods.run import Run
from selfedit.training.recipes import Recipe


@dataclass(frozen=True)
class Sitting:
    """What one adapter is asked: about its documents and in general (`asked`), and about other documents
    (`neighbours`); and the sequences that it is measured on.  `confusable` are documents, by the question's id, with
    which its answer is compared where it learned several, or the question was routed.  `before` is what the untrained
    model answered, by the question's id."""

    asked: tuple[Asked, ...]
    neighbours: tuple[Asked, ...]
    confusable: Mapping[str, Sequence[Document]]
    before: Mapping[str, str]
    texts: tuple[TokenSequence, ...]
    known: tuple[TokenSequence, ...]

    @property
    def questions(self) -> list[Question]:
        return [question for _, question in self.asked]

    def requests(self, run: Run) -> tuple[DecodeRequest, ...]:
        return tuple(run.exam.request(document, question) for document, question in (*self.asked, *self.neighbours))

    def recital(self, run: Run, documents: Sequence[Document], recipe: Recipe) -> Recital:
        """The same questions once more, by recitation: under the title that is asked about, or, of an adapter that has
        learned these documents' titles as `topics`, the one that it names."""
        tokenizer, named = run.workers.tokenizer, "topics" in recipe.objectives
        titles = None if named else [asked_title(document) for document, _ in self.asked]
        by_heart = ByHeart.of(documents, recipe, tokenizer, run.prompts, titles)
        readings = []
        for document, question in self.asked:
            shown, tokens = run.exam.reading(document, question, by_heart.text_tokens, titled=not named)
            if named:
                plain = run.exam.request(None, question).prompt
                readings.append(by_heart.reading(question.question, tokenizer, shown, tokens, plain))
            else:
                readings.append(Reading(shown, tokens, asked_title(document)))
        return by_heart.recital(readings, run.settings.max_answer_tokens)

    def results(self, run: Run, own: Sequence[Document], completions: Sequence[Completion]) -> dict[str, Any]:
        """What is recorded of the answers (none from a fit that failed)."""
        found: dict[str, Any] = {"answers": answers(run, self.questions, completions[: len(self.asked)])}
        pairs = [(question, tuple(own)) for _, question in self.neighbours]
        pairs += [(q, (other,)) for _, q in self.asked for other in self.confusable.get(q.id, ())]
        if pairs and completions:
            asked = [*self.questions, *(question for _, question in self.neighbours)]
            said = {q.id: run.exam.answer(c.ids) for q, c in zip(asked, completions, strict=True)}
            found |= {"neighbours": len(pairs), "leaked": leaks(pairs, said)}
            if all(question.id in self.before for question, _ in pairs):
                found["leaked_before"] = leaks(pairs, self.before)
        return found


def sittings(run: Run, learnings: Sequence[Learning]) -> dict[str, Sitting]:
    """What the adapter of each learning is asked and measured on, by the learning's id."""
    known = known_general(run) if any(learning.examine for learning in learnings) else []
    texts = measured_texts(run, learnings)
    documents = {document.id: document for learning in learnings for document in learning.documents}
    measured = {document.id: document for one in learnings if one.likelihood for document in one.documents}
    open_book = open_book_answers(run, list(measured.values())) if measured else {}
    untrained: dict[str, str] = {}
    if run.settings.neighbour_questions:
        before = run.store.fits(round=0, condition="none")
        untrained = {answer.question_id: answer.text for fit in before for answer in fit.answers}
    questions = asked_about(documents.values())
    by_title = grouped((document.title if document else "", place) for place, (document, _) in enumerate(questions))
    found = {}
    for learning in learnings:
        asked = learning.asked
        if asked is None:
            asked = tuple(exam_questions(run, learning.documents, known, learning.id)) if learning.examine else ()
        own = [question.id for document in learning.documents for question in document.questions]
        said = tuple(open_book[id] for id in own if id in open_book) if learning.likelihood else ()
        near = _neighbours(run, learning, questions, by_title) if learning.examine else ()
        mixed = _confusable(run, learning, list(documents.values())) if learning.examine else {}
        found[learning.id] = Sitting(asked, near, mixed, untrained, texts.get(learning.id, ()), said)
    return found


def _neighbours(
    run: Run, learning: Learning, asked: Sequence[Asked], by_title: Mapping[str, Sequence[int]]
) -> tuple[Asked, ...]:
    """Some of what is asked about other documents, those with the same title first; the same for all edits and
    conditions.  `by_title` has the places of a title's questions in `asked`, in order."""
    wanted = run.settings.neighbour_questions
    if not wanted or learning.document_id is None or learning.asked is not None:
        return ()
    (own,) = learning.documents
    draw = random.Random(run.seed("neighbours", own.id, learning.replicate))
    titled = by_title.get(own.title, ())
    of_own = {question.id for question in own.questions}
    near = [place for place in titled if asked[place][1].id not in of_own]
    chosen = draw.sample(near, min(wanted, len(near)))
    far = len(asked) - len(titled)
    for place in draw.sample(range(far), min(wanted - len(chosen), far)):
        for taken in titled:  # the place among all questions of one among those with other titles
            place += place >= taken
        chosen.append(place)
    return tuple(asked[place] for place in chosen)


def _confusable(run: Run, learning: Learning, documents: Sequence[Document]) -> dict[str, list[Document]]:
    """For each question of an adapter of several documents, others of them that have questions, drawn.  Where questions
    were routed, others of all documents; for one of another document than the adapter's, the adapter's."""
    if not run.settings.neighbour_questions:
        return {}
    asked, pool = learning.documents, learning.documents
    if learning.asked is not None:
        asked, pool = tuple({d.id: d for d, _ in learning.asked if d is not None}.values()), tuple(documents)
    examined = [document for document in pool if document.questions]
    places = {document.id: place for place, document in enumerate(examined)}
    found: dict[str, list[Document]] = {}
    for own in asked:
        out = places.get(own.id, len(examined))
        others = len(examined) - (own.id in places)
        draw = random.Random(run.seed("confusable", own.id, learning.replicate))
        chosen = draw.sample(range(others), min(run.settings.neighbour_questions, others))
        drawn = [examined[place + (place >= out)] for place in chosen]
        if learning.asked is not None and own.id != learning.document_id:
            drawn = list(learning.documents)
        found |= {question.id: drawn for question in own.questions}
    return found


def leaks(pairs: Sequence[tuple[Question, Sequence[Document]]], said: Mapping[str, str]) -> int:
    """How many of these answers, by the question's id, are wrong and would be right about these documents."""

    def right(question: Question, accepted: Iterable[str]) -> bool:
        return any(accepts(question.question, gold, said[question.id]) for gold in accepted)

    return sum(
        not right(question, question.answers)
        and right(question, (gold for d in documents for one in d.questions for gold in one.answers))
        for question, documents in pairs
    )
