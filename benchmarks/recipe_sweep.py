"""The small sweep that chose the default recipe for the bundled model.

    python -m benchmarks.recipe_sweep --split train --documents 8 [--only NAME ...]

Learns news items of the built-in corpus (train or validation items, never test) from the corpus's own edits and from the passage
alone, under each recipe of the grid below, one adapter an item; prints and appends, recipe by recipe, the share of exam
questions that the lexical grader finds right.  All recipes with one LoRA shape train in one bank.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from pathlib import Path

import torch

from selfedit.documents import Document, load_documents
from selfedit.engine import AdapterBank, DecodeRequest, FitJob, decode, fit
from selfedit.exam.lexical import LexicalGrader
from selfedit.exam.verdict import GradeItem
from selfedit.models import Model, load_model
from selfedit.procedures.training_data import tokenize, training_sequences
from selfedit.prompts import Prompts
from selfedit.recipes import SEAL, Recipe
from selfedit.runs.seeds import derive_seed

RESULTS = Path(__file__).parent / "results" / "recipe-sweep.jsonl"
_TEXT = Recipe(rank=16, alpha=32, form="text")
_CHAT = Recipe(rank=16, alpha=32, form="chat")
GRID = {
    "text-r16-lr5e-4-e8": _TEXT.model_copy(update={"learning_rate": 5e-4}),
    "text-r16-lr1e-3-e5": _TEXT.model_copy(update={"epochs": 5}),
    "text-r16-lr1e-3-e8": _TEXT,
    "text-r16-lr1e-3-e12": _TEXT.model_copy(update={"epochs": 12}),
    "text-r16-lr2e-3-e5": _TEXT.model_copy(update={"learning_rate": 2e-3, "epochs": 5}),
    "chat-r16-lr5e-4-e8": _CHAT.model_copy(update={"learning_rate": 5e-4}),
    "chat-r16-lr1e-3-e5": _CHAT.model_copy(update={"epochs": 5}),
    "chat-r16-lr1e-3-e8": _CHAT,
    "chat-r16-lr2e-3-e5": _CHAT.model_copy(update={"learning_rate": 2e-3, "epochs": 5}),
    "chat-r16-lr2e-3-e4": _CHAT.model_copy(update={"learning_rate": 2e-3, "epochs": 4}),
    "chat-r16-lr1e-3-e8-b3": _CHAT.model_copy(update={"batch_size": 3}),
    "chat-r16-lr2e-3-e8-b3": _CHAT.model_copy(update={"learning_rate": 2e-3, "batch_size": 3}),
    "chat-r4-lr1e-3-e8": _CHAT.model_copy(update={"rank": 4, "alpha": 8}),
    "chat-mlp-r16-lr1e-3-e8": _CHAT.model_copy(update={"targets": ("gate_proj", "up_proj", "down_proj")}),
    "chat-r16-lr1e-3-e8-whole": _CHAT.model_copy(update={"cutting": "whole"}),
    "chat-qv-r32-lr1e-3-e8": _CHAT.model_copy(update={"rank": 32, "alpha": 64, "targets": ("q_proj", "v_proj")}),
    "seal": SEAL,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("train", "validation"), default="train")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--only", nargs="*", choices=list(GRID))
    parser.add_argument("--sources", nargs="*", default=["editor"], choices=["editor", "passage"])
    arguments = parser.parse_args()
    model = load_model()
    documents = load_documents(f"news:{arguments.split}")[: arguments.documents]
    for name in arguments.only or GRID:
        for source in arguments.sources:
            row = {
                "recipe": name,
                "split": arguments.split,
                "source": source,
                **measure(model, documents, GRID[name], source),
                "device": f"{platform.machine()}, {torch.get_num_threads()} threads",
                "date": datetime.date.today().isoformat(),
            }
            print(json.dumps(row), flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")


def measure(model: Model, documents: list[Document], recipe: Recipe, source: str) -> dict[str, object]:
    """Trains one adapter a document and examines it."""
    started = time.perf_counter()
    prompts, tokenizer = Prompts(), model.tokenizer
    jobs = [
        FitJob(
            tuple(
                tokenize(sequence, recipe, tokenizer, prompts)
                for sequence in training_sequences(
                    document,
                    document.edits["editor"][0] if source == "editor" else None,
                    recipe,
                    tokenizer,
                    model.context_length,
                )
            ),
            recipe.settings(),
            derive_seed("sweep", document.id),
        )
        for document in documents
    ]
    items: list[tuple[Document, int]] = [(d, q) for d in documents for q in range(len(d.questions))]
    with AdapterBank(model.hf, recipe.lora(), len(jobs)) as bank:
        results = fit(bank, jobs)
        requests = [
            DecodeRequest(
                tuple(
                    tokenizer.prompt_ids(
                        prompts.exam(
                            instruct=model.instruct, title=document.title, question=document.questions[q].question
                        )
                    )
                ),
                32,
                tokenizer.stop_ids,
                adapter=documents.index(document),
            )
            for document, q in items
        ]
        answers = [tokenizer.decode(completion.ids) for completion in decode(model.hf, requests, bank=bank)]
    verdicts = LexicalGrader().grade(
        [
            GradeItem(document.questions[q].question, document.questions[q].answers, answer)
            for (document, q), answer in zip(items, answers, strict=True)
        ]
    )
    losses = [result.last_loss for result in results if result.last_loss is not None]
    return {
        "right": sum(verdict.value == "right" for verdict in verdicts),
        "questions": len(verdicts),
        "train_tokens": sum(result.tokens for result in results),
        "last_loss": round(sum(losses) / len(losses), 3),
        "seconds": round(time.perf_counter() - started, 1),
    }


if __name__ == "__main__":
    main()
