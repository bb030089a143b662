"""What computing a fit's common prefix once per step would save: tokens of fits on real edits, counted.

    python -m benchmarks.prefixes [--model NAME]

All sequences of a fit on one document begin alike (chat template and title).  Within a step they could share the
computation of that prefix; between two steps the adapter changes.  Counts training tokens of one fit per document of
the built-in corpus, on the written edits that come with it (or on its text cut into sentences, one per line), and how
many of them a step computes again that have the beginning that all of its sequences share."""

from __future__ import annotations

import argparse

from selfedit.documents import load_documents
from selfedit.engine.jobs import FitJob
from selfedit.models import load_tokenizer
from selfedit.prompts import Prompts
from selfedit.training.jobs import Jobs
from selfedit.training.recipes import load_recipe


def shared(job: FitJob) -> int:
    """Tokens that would not be computed again: of each step, its sequences' common beginning (without their last token,
    which has no hidden state of use to others) for all but one of them."""
    saved = 0
    for step in job.order():
        ids = [job.sequences[k].ids for k in step]
        common = next(
            (k for k, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1), min(map(len, ids))
        )
        saved += (len(ids) - 1) * min(common, min(map(len, ids)) - 1)
    return saved


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefixes", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    options = parser.parse_args()
    jobs = Jobs(load_tokenizer(options.model), 32768, Prompts())
    documents = load_documents(["news"], seed=0)
    for name in ("default", "tiny", "seal"):
        recipe, fits, tokens, saved, sequences, steps = load_recipe(name), 0, 0, 0, 0, 0
        for document in documents:
            edits = [edit for some in document.edits.values() for edit in some] or [document.text.replace(". ", ".\n")]
            for edit in edits:
                job, _ = jobs.job([document], [edit], recipe, seed=fits)
                fits += 1
                tokens += job.tokens
                saved += shared(job)
                steps += job.steps
                sequences += sum(job.uses().values())
        print(
            f"{name}: {fits} fits of {tokens / fits:.0f} tokens, {sequences / steps:.1f} sequences per step;"
            f" {saved / tokens:.1%} of the tokens are prefixes that a step computes again"
        )


if __name__ == "__main__":
    main()
