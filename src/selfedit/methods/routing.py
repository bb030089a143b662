"""For each question the document that it is about, whose adapter answers it.

Which document that is, a search by words says (`evaluation.search`), by what the model is asked: topic and question.
It needs no adapter, so each adapter's exam is known before it is trained: it is asked what is routed to it, together
with the adapters that share its bank.  A question that no document matches is answered by the model as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfedit.documents import Document
from selfedit.evaluation.exam import asked_title
from selfedit.evaluation.search import Search
from selfedit.methods.learnings import Asked
from selfedit.methods.run import Run
from selfedit.runs.summary import RoutingSummary

Route = tuple[str | None, Asked]
"""The document whose adapter answers (None: the model as it is), and what it is asked."""


def find_routes(
    run: Run, documents: Sequence[Document], learned: Sequence[Document], asked: Sequence[Asked]
) -> list[Route]:
    """The document of each question, among these, by topic and question; `learned` are those that the run learns."""
    search, found = Search(documents), []
    for about, question in asked:
        to = search.about(f"{asked_title(about)}\n{question.question}")
        to = to if about is None else run.choices.route(to, learned)
        found.append((to.id if to else None, (about, question)))
    return found


def routing_summary(routes: Sequence[Route]) -> RoutingSummary:
    """How often the right document was found."""
    own = [(chosen, about.id) for chosen, (about, _) in routes if about is not None]
    general = [chosen for chosen, (about, _) in routes if about is None]
    return RoutingSummary(
        asked=len(own),
        right=sum(chosen == id for chosen, id in own),
        none=sum(chosen is None for chosen, _ in own),
        general=len(general),
        general_to_adapters=sum(chosen is not None for chosen in general),
    )
