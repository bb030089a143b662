"""The inner loop of self-editing on one document: the model writes K edits of it, and each gets its reward.

    python examples/inner_loop.py [MODEL]

An edit's reward is the share of questions about the document that the model answers rightly once an adapter was trained
on the edit, without the document in its context.  Takes a few minutes on two cores with the bundled model.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from selfedit import CompareSettings, Document, EditorSpec, Run, inner_loop, load_documents, one_each, write_edits


def rewards(document: Document, count: int, **settings: Any) -> list[tuple[str, float | None]]:
    """(text, reward) of `count` edits; None where no answer could be graded.  `settings` are those of `compare`."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = CompareSettings(out=Path(folder) / "run", general_questions=0, general_texts=0, **settings)
        with Run("compare", chosen) as run:
            run.store.add_documents([document])
            # K edits, sampled from the model.
            edits = write_edits(run, [document], EditorSpec("self"), count=count, prompt="implications")
            # An adapter for each, trained side by side; each answers the document's questions; the answers are graded.
            learnings = one_each("self", [document], edits)
            scores = inner_loop(run, learnings)
    found = [scores[learning.id] for learning in learnings]
    return [(edit.text, sum(some) / len(some) if some else None) for edit, some in zip(edits, found, strict=True)]


def main() -> None:
    (document,) = load_documents("news:test", limit=1)
    settings = {"model": sys.argv[1]} if len(sys.argv) > 1 else {}
    print(f"{document.title}: {len(document.questions)} questions\n")
    for text, reward in rewards(document, count=4, **settings):
        print(f"reward {'unknown' if reward is None else format(reward, '.2f')}\n{text}\n")


if __name__ == "__main__":
    main()
