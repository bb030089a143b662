"""Which documents a text is about: those that have most words in common with it, by BM25.

Robertson & Zaragoza 2009, as bm25s computes it (Lù 2024, arXiv 2407.03618).  Words are compared as graders compare
them (`text.tokens`): without accents, `three` as 3, and character by character where a script has no blanks.
"""

from __future__ import annotations

import importlib
import logging
import math
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from selfedit.documents import Document
from selfedit.evaluation.text import tokens

_IN_A_TALK = 0.7  # of the floor, for the document that a conversation is about


class Search:
    """Finds documents by their titles and texts; the index is made for the first question."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents

    @cached_property
    def _index(self) -> Any:
        """None where there is no word in any document that a question could have in common with it."""
        bm25s = _bm25s()
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # else it tells, on the terminal, of each index
        searched = [tokens(f"{document.title}\n{document.text}") for document in self.documents]
        if not any(searched):
            return None
        index = bm25s.BM25()
        index.index(searched, show_progress=False)
        return index

    def _scores(self, asked: list[str]) -> Any:
        """A score for each document, in the documents' order: a NumPy array."""
        import numpy as np

        if not asked or self._index is None:
            return np.zeros(len(self.documents))
        return self._index.get_scores(asked)

    def best(self, text: str, count: int) -> list[Document]:
        """So many documents, best first; of equal ones the first in their order, whatever bm25s' own selection does."""
        import numpy as np

        return [self.documents[k] for k in np.argsort(-self._scores(tokens(text)), kind="stable")[:count]]

    def about(self, text: str, before: Sequence[str] = ()) -> Document | None:
        """The document that a text is about: the best, of equal ones the latest in their order, which may contradict an
        earlier one; None where even the best one scores less than the floor.

        BM25's scores grow with the number of documents, since a word that one of them has is then rarer.  So the floor
        is counted in such words: of a text of n different words, a document has to score what √n words score that it
        has once, being of average length, and no other has.  By chance, too, more words of a longer text are in one of
        the documents; words that are everywhere, of which questions are full, score next to nothing.
        docs/routing.md has figures.

        `before` is what was asked before in the same conversation: of the document that the latest of it is about, a
        part of the floor is enough.
        """
        asked = list(dict.fromkeys(tokens(text)))  # different words, as the floor counts them
        if not asked or self._index is None:
            return None
        scores = self._scores(asked)
        best = len(scores) - 1 - int(scores[::-1].argmax())
        # idf · 1 / (1 + k₁)
        rare_word = math.log(1 + (len(self.documents) - 0.5) / 1.5) / (1 + self._index.k1)
        share = scores[best] / (math.sqrt(len(asked)) * rare_word)
        found = self.documents[best]
        if share >= 1:
            return found
        if share < _IN_A_TALK:
            return None
        talk = next(filter(None, map(self.about, reversed(before))), None)
        return found if found is talk else None


def _bm25s() -> Any:
    """bm25s, imported without JAX, which it starts where it is installed: that takes three quarters of a GPU's memory,
    and selects what `best` selects itself."""
    if "bm25s" not in sys.modules and "jax" not in sys.modules:
        sys.modules["jax"] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("bm25s")
        finally:
            del sys.modules["jax"]
    return importlib.import_module("bm25s")
