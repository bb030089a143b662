"""Reference lines of a comparison: what a user would do instead of teaching the model, which is asked as it is, with
passages in its prompt.

`open-book` shows the question's own document: what could be reached if learning were perfect.  `retrieval` shows those
documents that a search by words finds: what is done in practice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from selfedit.documents import Document, Question
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.evaluation.search import Search
from selfedit.evaluation.statistics import accuracy_ratio
from selfedit.methods.run import Run
from selfedit.runs.costs import Spent

Passages = Callable[[Document, Question], Sequence[Document]]  # what is shown with a question about a document


def open_book(spec: EditorSpec, documents: Sequence[Document]) -> Passages:
    return lambda document, question: (document,)


def retrieval(spec: EditorSpec, documents: Sequence[Document]) -> Passages:
    """The documents, best first, that a search by the words of topic and question finds."""
    search = Search(documents)
    return lambda document, question: search.best(f"{document.title}\n{question.question}", int(spec.argument))


# Every reference line, by the first word of what `--editor` says: made from that and all documents of the comparison.
REFERENCES: dict[str, Callable[[EditorSpec, Sequence[Document]], Passages]] = {
    "open-book": open_book,
    "retrieval": retrieval,
}


def check_references(run: Run, documents: Sequence[Document], specs: Sequence[EditorSpec]) -> None:
    """Errors: UserError for passages that the model cannot read at once."""
    for spec in specs:
        if spec.kind in REFERENCES:
            passages = REFERENCES[spec.kind](spec, documents)
            for document in documents:
                for question in document.questions:
                    run.exam.request(document, question, passages(document, question))


def references_that_fit(run: Run, documents: Sequence[Document]) -> list[EditorSpec]:
    """Those of the reference lines whose passages the model can read at once; the others are reported."""
    kind, specs = "reference line left out", [EditorSpec.parse(name) for name in REFERENCES]
    left_out = {event.message.partition(":")[0] for event in run.store.events(kind)}
    for spec in specs:
        if spec.name in left_out or run.store.fits(condition=spec.name):
            continue
        try:
            check_references(run, documents, [spec])
        except UserError as error:
            run.warn(kind, f"{spec.name}: {error}")
            left_out.add(spec.name)
    return [spec for spec in specs if spec.name not in left_out]


def beside_references(run: Run, name: str, conditions: Sequence[str]) -> dict[str, Any]:
    """What a summary says of a condition where it is held against reference lines: the share of the open-book accuracy
    that it reached, and what a question costs where there is no adapter."""
    found: dict[str, Any] = {}
    if "open-book" in conditions:
        try:
            share = accuracy_ratio(run.grading.scores("open-book"), run.grading.scores(name))
            found = dict(zip(("of_open_book", "of_open_book_ci95"), share, strict=True))
        except ValueError:  # nothing graded, or nothing right with the book open
            pass
    asking = Spent.of(line for line in run.store.costs() if (line.what, line.condition) == ("answers", name))
    fits = run.store.fits(condition=name)
    if asking.input_tokens and not any(fit.steps for fit in fits):  # adapters answer in the time of their fits
        answered = sum(len(fit.answers) for fit in fits)
        found |= {"question_tokens": asking.input_tokens / answered, "question_seconds": asking.seconds / answered}
    return found
