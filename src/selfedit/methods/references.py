"""Reference lines of a comparison: what a user would do instead of teaching the model, which is asked as it is, with
passages in its prompt.

`open-book` shows the question's own document: what could be reached if learning were perfect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfedit.documents import Document, Question
from selfedit.editors.spec import EditorSpec
from selfedit.methods.run import Run

Passages = Callable[[Document, Question], Sequence[Document]]  # what is shown with a question about a document


def open_book(spec: EditorSpec, documents: Sequence[Document]) -> Passages:
    """The document that is asked about."""
    return lambda document, question: (document,)


# Every reference line, by the first word of what `--editor` says: made from that and all documents of the comparison.
REFERENCES: dict[str, Callable[[EditorSpec, Sequence[Document]], Passages]] = {"open-book": open_book}


def check_references(run: Run, documents: Sequence[Document], specs: Sequence[EditorSpec]) -> None:
    """Errors: UserError for passages that the model cannot read at once."""
    for spec in specs:
        if spec.kind in REFERENCES:
            passages = REFERENCES[spec.kind](spec, documents)
            for document in documents:
                for question in document.questions:
                    run.exam.request(document, question, passages(document, question))
