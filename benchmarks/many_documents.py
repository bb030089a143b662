"""Many documents: in one adapter, or in an adapter each, to which questions are routed.

Run: python -m benchmarks.many_documents DOCUMENTS.jsonl [--model M] [--device D] [--counts 10,40,150]
         [--way joint] [--way joint:steps=2] [--way per-document] [--editor E] [--out runs/many]

Each way is `selfedit learn` on the same documents, drawn with the seed.  A way may change settings of the recipe.  Of
`steps`, which count per document, fewer put more documents into each step (8: one, 2: four), for the same tokens.

Right and its change are over all questions, closed book.  Lost is the share of all general questions that the model
knew; with an adapter each they are routed too.  Seconds are device time of fits with their exams.  A run that was
stopped goes on; results.jsonl and results.md have each row.

With --routing alone, no model: where the documents' questions and the built-in general ones are sent, asked under their
topic as in an exam, without it as a user asks, and so in a chat: a document's question after the one before it, general
ones after a question about a document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import yaml

from selfedit.cli.progress import make_progress
from selfedit.documents import Document, load_documents
from selfedit.evaluation.general import GENERAL_TITLE, general_questions
from selfedit.evaluation.search import Search
from selfedit.execution.pool import InProcess
from selfedit.execution.worker import ModelSource
from selfedit.methods.learn import learn
from selfedit.methods.settings import LearnSettings, make_settings
from selfedit.models import BUNDLED

GENERAL = 500  # more than there are: all
COLUMNS = {
    "documents": "documents",
    "way": "way",
    "questions": "questions",
    "before": "right before, %",
    "after": "right after, %",
    "ci95": "95 % interval",
    "open_book": "open book, %",
    "lost": "general lost, %",
    "lost_ci95": "95 % interval",
    "general": "of",
    "routed_right": "routed right, %",
    "routed_to_none": "to none, %",
    "general_to_adapters": "general to adapters",
    "steps": "steps",
    "train_tokens": "training tokens",
    "seconds": "seconds",
}


def routing(documents: Sequence[Document]) -> list[dict[str, Any]]:
    search = Search(documents)
    own = [(document, question.question) for document in documents for question in document.questions]
    general = [question.question for question in general_questions()]
    after = cycle(question for _, question in own)
    chat = [(d, q.question, [before.question]) for d in documents for before, q in pairwise(d.questions)]
    # What is asked about each document, and of none, with what was asked before it.
    ways: dict[str, tuple[list[tuple[Document, str, list[str]]], list[tuple[str, list[str]]]]] = {
        "under its topic": (
            [(document, f"{document.title}\n{question}", []) for document, question in own],
            [(f"{GENERAL_TITLE}\n{question}", []) for question in general],
        ),
        "alone": ([(document, question, []) for document, question in own], [(question, []) for question in general]),
        "alone, in a chat": (chat, [(question, [before]) for question, before in zip(general, after, strict=False)]),
    }
    rows = []
    for way, (about, others) in ways.items():
        sent = [(search.about(question, before), document) for document, question, before in about]
        right = sum(found is document for found, document in sent) / len(sent)
        none = sum(found is None for found, _ in sent) / len(sent)
        rows.append(
            {
                "documents": len(documents),
                "asked": way,
                "questions": len(sent),
                "own document, %": _percent(right),
                "another, %": _percent(1 - right - none),
                "none, %": _percent(none),
                "general questions to a document, %": _percent(
                    sum(search.about(question, before) is not None for question, before in others) / len(others)
                ),
            }
        )
    return rows


def measure(settings: LearnSettings, way: str, pool: InProcess) -> dict[str, Any]:
    progress = make_progress()
    try:
        found = learn(settings, pool=pool, progress=progress)
    finally:
        progress.close()
    summary = found.summary
    if summary is None:
        raise SystemExit(f"{settings.documents[0]}: no questions, so there is nothing to compare")
    by_name = {condition.name: condition for condition in summary.conditions}
    before, direct, *others = summary.conditions
    after = others[0] if found.recites else direct
    lost = next((entry for entry in summary.forgetting if entry.condition == after.name), None)
    routing, opened = summary.routing, by_name.get("open-book")
    return {
        "documents": summary.documents,
        "way": way,
        "questions": summary.questions,
        "before": _percent(before.accuracy),
        "after": _percent(after.accuracy),
        "ci95": after.ci95 and [_percent(bound) for bound in after.ci95],
        "open_book": opened and _percent(opened.accuracy),
        "lost": lost and _percent(lost.lost),
        "lost_ci95": lost and lost.ci95 and [_percent(bound) for bound in lost.ci95],
        "general": lost and lost.asked,
        "routed_right": routing and _percent(routing.right / routing.asked),
        "routed_to_none": routing and _percent(routing.none / routing.asked),
        "general_to_adapters": routing and routing.general_to_adapters,
        "steps": found.steps,
        "train_tokens": found.train_tokens,
        "seconds": round(direct.seconds, 1),
        "device": summary.device,
        "model": summary.model,
        "editor": after.name,
        "recipe": summary.recipe,
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def table(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> str:
    def shown(value: Any) -> str:
        if value is None:
            return "–"
        if isinstance(value, list):
            return f"{value[0]} – {value[1]}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[shown(row[name]) for name in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--counts", default="10,40,150")
    parser.add_argument(
        "--way", action="append", help="joint, per-document or recite, and recipe settings: joint:steps=2"
    )
    parser.add_argument("--editor", default="auto")
    parser.add_argument("--max-answer-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/many"))
    parser.add_argument("--routing", action="store_true", help="where questions are sent, without any model")
    given = parser.parse_args()
    counts = [int(count) for count in given.counts.split(",")]
    if given.routing:
        drawn = (load_documents([str(given.documents)], limit=count, seed=given.seed) for count in counts)
        found = [row for documents in drawn for row in routing(documents)]
        print(table(found, {name: name for name in found[0]}))
        return
    pool = InProcess(ModelSource(given.model, given.device, given.dtype))
    given.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for count in counts:
        for way in given.way or ["joint", "per-document"]:
            adapters, _, changes = way.partition(":")
            settings = make_settings(
                LearnSettings,
                {
                    "documents": (str(given.documents),),
                    "limit": count,
                    "adapters": adapters,
                    "set": {k: yaml.safe_load(v) for k, _, v in (c.partition("=") for c in changes.split(",") if c)},
                    "model": given.model,
                    "device": given.device,
                    "dtype": given.dtype,
                    "editor": given.editor,
                    "max_answer_tokens": given.max_answer_tokens,
                    "general_questions": GENERAL,
                    "general_texts": 0,
                    "references": way == "joint",
                    "seed": given.seed,
                    "out": given.out / f"{count}-{way.replace(':', '-').replace('=', '')}",
                },
            )
            rows.append(measure(settings, way, pool))
            (given.out / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (given.out / "results.md").write_text(table(rows, COLUMNS))
            print(table(rows, COLUMNS), flush=True)


if __name__ == "__main__":
    main()
