"""Which reward tells edits apart: the exam's accuracy, or how probable the model's right open-book answers have become?

    python -m benchmarks.reward_reliability [--model NAME] [--device cuda] [--documents FILE] [--limit N] [--edits K]
        [--replicates S] [--out DIR]

Writes K edits of each document, fits S adapters per edit and takes both rewards from every fit.  Prints, with 95 %
intervals over documents, all within documents (edits of one document are what a reward has to tell apart):

- the rank correlation of the two rewards over a document's edits, each the mean of its S fits;
- for each reward, the correlation between two seeds: the share of a single fit's variance that belongs to the edit (an
  intraclass correlation, from the mean squares between and within edits);
- for each, the correlation of one fit's reward with the accuracy of the same edit's other fits: a reward is worth what
  it says of accuracy;
- how many replicates name the better of two edits in 80 and in 90 of 100 pairs, if edits and seeds vary normally.

The run in DIR is resumed by the same command.  `--record FILE` writes the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import processor
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.evaluation.statistics import bootstrap, mean_interval, spearman
from selfedit.methods.edits import write_edits
from selfedit.methods.examining import examine_untrained
from selfedit.methods.inner_loop import inner_loop
from selfedit.methods.inputs import load
from selfedit.methods.learnings import one_each
from selfedit.methods.run import Parts, Run
from selfedit.methods.settings import CompareSettings, make_settings

Floats = NDArray[np.float64]
# A figure and its 95 % interval.
Figure = tuple[float, float, float]


def rewards_of(settings: CompareSettings, parts: Parts) -> tuple[Floats, Floats]:
    """(accuracy, mean log-likelihood) [documents, edits, replicates], of the documents of which every fit has both."""
    with Run("compare", settings, **parts) as run:
        documents = load(run, settings.documents, limit=settings.limit)
        run.store.add_documents(documents)
        examine_untrained(run, documents)
        spec = EditorSpec.parse(settings.editor[0])
        edits = write_edits(run, documents, spec, count=settings.edits, prompt=settings.edit_prompt)
        learnings = one_each(spec.name, documents, edits, settings.replicates, likelihood=True)
        scores = inner_loop(run, learnings)
        likelihood = {fit.id: fit.answer_loss for fit in run.store.fits(condition=spec.name)}
    by_document: dict[str | None, list[tuple[float, float]]] = {}
    for learning in learnings:
        loss, graded = likelihood.get(learning.id), scores[learning.id]
        if loss is not None and graded:
            pair = math.fsum(graded) / len(graded), -loss
            by_document.setdefault(learning.document_id, []).append(pair)
    whole = [pairs for pairs in by_document.values() if len(pairs) == settings.edits * settings.replicates]
    if not whole:
        raise UserError("no document has a question that is answered rightly open book, and fits that are all graded")
    both = np.array(whole, dtype=np.float64).reshape(len(whole), settings.edits, settings.replicates, 2)
    return both[..., 0], both[..., 1]


def between_seeds(rewards_DES: Floats) -> Figure:
    """The share of one fit's variance, within documents, that belongs to its edit: what two seeds' rewards correlate
    by."""
    documents, edits, seeds = rewards_DES.shape
    means_DE = rewards_DES.mean(2)
    between_D = seeds * ((means_DE - means_DE.mean(1, keepdims=True)) ** 2).sum(1) / (edits - 1)
    within_D = ((rewards_DES - means_DE[..., None]) ** 2).sum((1, 2)) / (edits * (seeds - 1))

    def share(index: NDArray[np.int64]) -> Floats:
        between, within = between_D[index].mean(-1), within_D[index].mean(-1)
        edit = np.maximum(0.0, between - within) / seeds
        return edit / np.maximum(edit + within, 1e-300)

    return _figure(documents, share)


def predicts(rewards_DES: Floats, accuracy_DES: Floats) -> Figure:
    """The correlation, within documents, of one fit's reward with the mean accuracy of the same edit's other fits."""
    documents, _, seeds = rewards_DES.shape
    products = np.zeros((3, documents))
    for seed in range(seeds):
        x = rewards_DES[:, :, seed]
        y = np.delete(accuracy_DES, seed, 2).mean(2)
        x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
        products += np.array([(x * y).sum(1), (x * x).sum(1), (y * y).sum(1)])

    def correlation(index: NDArray[np.int64]) -> Floats:
        xy, xx, yy = (product[index].sum(-1) for product in products)
        return xy / np.maximum(np.sqrt(xx * yy), 1e-300)

    return _figure(documents, correlation)


def replicates_needed(correlation: float, share: float) -> int | None:
    """How many fits per edit name the better of two edits in this share of pairs; None if no number does.

    With edits and seeds that vary normally, the mean of S fits orders two edits rightly with probability
    1/2 + atan(sqrt(S r / (1 - r))) / pi."""
    if correlation <= 0:
        return None
    return max(1, math.ceil(math.tan(math.pi * (share - 0.5)) ** 2 * (1 - correlation) / correlation))


def figures(accuracy_DES: Floats, likelihood_DES: Floats) -> dict[str, Any]:
    """Everything that is printed."""
    ranks = {
        str(k): [found]
        for k, (a, b) in enumerate(zip(accuracy_DES.mean(2), likelihood_DES.mean(2), strict=True))
        if (found := spearman(a.tolist(), b.tolist())) is not None
    }
    rank = mean_interval(ranks) if ranks else None
    found: dict[str, Any] = {
        "documents": len(accuracy_DES),
        "documents_whose_edits_differ_in_accuracy": len(ranks),
        "rank_correlation": rank and rank[0],
        "rank_correlation_ci95": rank and rank[1],
    }
    for name, rewards in (("accuracy", accuracy_DES), ("likelihood", likelihood_DES)):
        seeds, low, high = between_seeds(rewards)
        other = predicts(rewards, accuracy_DES)
        found[name] = {
            "mean": float(rewards.mean()),
            "between_seeds": seeds,
            "between_seeds_ci95": [low, high],
            "predicts_accuracy": other[0],
            "predicts_accuracy_ci95": list(other[1:]),
            "replicates_for_80": replicates_needed(seeds, 0.8),
            "replicates_for_90": replicates_needed(seeds, 0.9),
        }
    return found


def _figure(documents: int, statistic: Callable[[NDArray[np.int64]], Floats]) -> Figure:
    (value,) = statistic(np.arange(documents)[None])
    low, high = np.quantile(bootstrap(documents, statistic, resamples=2000), [0.025, 0.975])
    return float(value), float(low), float(high)


def _print(found: dict[str, Any]) -> None:
    rank, interval = found["rank_correlation"], found["rank_correlation_ci95"]
    shown = (
        "none" if rank is None else f"{rank:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
    )
    print(f"{found['documents']} documents; edits differ in accuracy in "
          f"{found['documents_whose_edits_differ_in_accuracy']}")  # fmt: skip
    print(f"rank correlation of the two rewards over a document's edits: {shown}")
    print(f"{'reward':12} {'between seeds':>22} {'with others accuracy':>22} {'fits for 80 %':>14} {'for 90 %':>9}")
    for name in ("accuracy", "likelihood"):
        one = found[name]
        columns = [
            f"{one[key]:.2f} ({one[key + '_ci95'][0]:.2f} to {one[key + '_ci95'][1]:.2f})"
            for key in ("between_seeds", "predicts_accuracy")
        ]
        needed = [str(one[f"replicates_for_{share}"] or "-") for share in (80, 90)]
        print(f"{name:12} {columns[0]:>22} {columns[1]:>22} {needed[0]:>14} {needed[1]:>9}")


def main(words: Sequence[str] | None = None, **parts: Any) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--device", help="cpu, cuda, ...; if left out, an accelerator where there is one")
    parser.add_argument("--documents", action="append")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--editor", default="self", help="self[:PROMPT], replay:FILE[#WRITER], model:NAME, api:MODEL")
    parser.add_argument("--edits", type=int, default=4)
    parser.add_argument("--replicates", type=int, default=3)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the recipe")
    parser.add_argument("--max-edit-tokens", type=int, default=256)
    parser.add_argument("--max-answer-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/reward-reliability"))
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args(words)
    if asked.edits < 2 or asked.replicates < 2:
        parser.error("two edits and two replicates are the least that can be compared")
    import yaml

    given = vars(asked) | {
        "documents": tuple(asked.documents or ("news:train",)),
        "editor": (asked.editor,),
        "set": {name: yaml.safe_load(value) for name, _, value in (one.partition("=") for one in asked.set)},
    }
    settings = make_settings(
        CompareSettings,
        {k: v for k, v in given.items() if k != "record"}
        | {"general_questions": 0, "general_texts": 0, "neighbour_questions": 0},
    )
    began = time.time()
    found = figures(*rewards_of(settings, Parts(**parts)))
    found |= {
        "model": settings.model,
        "editor": asked.editor,
        "edits": asked.edits,
        "replicates": asked.replicates,
        "recipe": {"name": asked.recipe, **given["set"]},
        "device": asked.device,
        "seconds": round(time.time() - began),
        "processor": processor(),
        "date": time.strftime("%Y-%m-%d"),
    }
    _print(found)
    if asked.record:
        asked.record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
