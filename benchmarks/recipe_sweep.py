"""The small sweep that chose the default recipe for the bundled model.

    python -m benchmarks.recipe_sweep --split train --documents 8 [--only NAME ...]

Learns news items of the built-in corpus (train or validation items, never test) from the corpus's own edits and from
the passage alone, under each recipe of the grid below, one adapter an item; prints and appends, recipe by recipe, how
many exam questions the lexical grader finds right, and how many of the general questions that the model knew before it
still answers."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path

import torch

from benchmarks import processor
from selfedit.documents import Document, Question, load_documents
from selfedit.engine import AdapterBank, DecodeRequest, FitJob, decode, fit
from selfedit.evaluation.general import GENERAL_TITLE, general_questions
from selfedit.evaluation.grade import GradeItem
from selfedit.evaluation.lexical import LexicalGrader
from selfedit.models import Model, load_model
from selfedit.prompts import Prompts
from selfedit.runs.seeds import derive_seed
from selfedit.training.recipes import SEAL, Recipe
from selfedit.training.tokens import tokenize, training_sequences

RESULTS = Path(__file__).parent / "results" / "recipe-sweep.jsonl"
GENERAL = 20  # general questions that each adapter is asked
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
    known = known_general(model)
    for name in arguments.only or GRID:
        for source in arguments.sources:
            row = {
                "recipe": name,
                "split": arguments.split,
                "source": source,
                **measure(model, documents, known, GRID[name], source),
                "device": f"{processor()}, {torch.get_num_threads()} threads",
                "date": datetime.date.today().isoformat(),
            }
            print(json.dumps(row), flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")


def measure(
    model: Model, documents: list[Document], known: list[Question], recipe: Recipe, source: str
) -> dict[str, object]:
    """Trains one adapter a document, examines it, and asks it some of the general questions that the model knew
    before."""
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
    kept = known[:: max(1, len(known) // GENERAL)][:GENERAL]
    asked = [
        (adapter, title, question)
        for adapter, document in enumerate(documents)
        for title, question in [*((document.title, q) for q in document.questions), *((GENERAL_TITLE, q) for q in kept)]
    ]
    with AdapterBank(model.hf, recipe.lora(), len(jobs)) as bank:
        results = fit(bank, jobs)
        right = graded(model, asked, bank)
    own = [r for r, (_, title, _) in zip(right, asked, strict=True) if title != GENERAL_TITLE]
    general = [r for r, (_, title, _) in zip(right, asked, strict=True) if title == GENERAL_TITLE]
    losses = [result.last_loss for result in results if result.last_loss is not None]
    return {
        "right": sum(own),
        "questions": len(own),
        "general_kept": sum(general),
        "general_asked": len(general),
        "train_tokens": sum(result.tokens for result in results),
        "last_loss": round(sum(losses) / len(losses), 3),
        "seconds": round(time.perf_counter() - started, 1),
    }


def known_general(model: Model) -> list[Question]:
    """The general questions that the model answers rightly without an adapter."""
    questions = general_questions()
    right = graded(model, [(None, GENERAL_TITLE, question) for question in questions])
    return [question for question, r in zip(questions, right, strict=True) if r]


def graded(model: Model, asked: list[tuple[int | None, str, Question]], bank: AdapterBank | None = None) -> list[bool]:
    """Whether each adapter's answer to a question, asked under a title, is right."""
    prompts, tokenizer = Prompts(), model.tokenizer
    requests = [
        DecodeRequest(
            tuple(tokenizer.prompt_ids(prompts.exam(instruct=model.instruct, title=title, question=question.question))),
            32,
            tokenizer.stop_ids,
            adapter=adapter,
        )
        for adapter, title, question in asked
    ]
    answers = [tokenizer.decode(completion.ids) for completion in decode(model.hf, requests, bank=bank)]
    items = [
        GradeItem(question.question, question.answers, answer)
        for (_, _, question), answer in zip(asked, answers, strict=True)
    ]
    return [grade.value == "right" for grade in LexicalGrader().grade(items)]


if __name__ == "__main__":
    main()
