"""Trains the calibrated grader and says how far it can be trusted.  Needs scikit-learn 1.9
(`pip install scikit-learn`).

    python benchmarks/train_calibrated_grader.py VERDICTS.jsonl [--write src/selfedit/evaluation/calibrated_model.json]

VERDICTS.jsonl has rows {"title", "question", "gold", "answer", "correct"}: answers to SQuAD questions and whether
GPT-4.1 accepted them, published with "Self-Adapting Language Models" (Zweiger et al. 2025, MIT licence; questions from
SQuAD v1.1, Rajpurkar et al. 2016, CC BY-SA 4.0).  Only the numbers learned from them are written, no row.

Held-out figures come from an outer cross-validation by question (all answers to a question are on one side), and a
second one by article.  Inside each outer training part an inner cross-validation, grouped the same way, chooses the
trees' settings and fits the calibration; the held-out part is only predicted.  The written model repeats the inner
procedure on all rows: the held-out figures are those of models trained on four fifths of the rows each."""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from selfedit.evaluation.calibrated import FORMAT, CalibratedModel
from selfedit.evaluation.check import GradedRow, read_graded_rows
from selfedit.evaluation.features import NAMES, features
from selfedit.evaluation.lexical import accepts
from selfedit.evaluation.statistics import cohen_kappa, kappa_interval
from selfedit.evaluation.text import tokens

Floats = NDArray[np.float64]

OUTER_FOLDS, INNER_FOLDS = 5, 4

# What the inner cross-validation chooses from, by log loss: (learning rate, number of trees, leaves of a tree).
SETTINGS = ((0.05, 120, 8), (0.05, 200, 8), (0.03, 250, 12))


def folds_of(groups: NDArray[Any], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold [B] of each row: groups are shuffled and dealt out, and stay whole."""
    names, inverse = np.unique(groups, return_inverse=True)
    return np.random.default_rng(seed).permutation(len(names))[inverse] % folds


@dataclass(frozen=True)
class Fitted:
    """Trees and logistic regression, not yet calibrated."""

    trees: GradientBoostingClassifier
    scaler: StandardScaler
    linear: LogisticRegression

    def log_odds(self, x: Floats) -> Floats:
        return (self.trees.decision_function(x) + self.linear.decision_function(self.scaler.transform(x))) / 2


def fit(x: Floats, y: NDArray[np.int64], setting: tuple[float, int, int]) -> Fitted:
    rate, count, leaves = setting
    trees = GradientBoostingClassifier(
        learning_rate=rate,
        n_estimators=count,
        max_leaf_nodes=leaves,
        max_depth=None,
        min_samples_leaf=20,
        subsample=0.7,
        max_features=0.3,
        random_state=0,
    ).fit(x, y)
    scaler = StandardScaler().fit(x)
    linear = LogisticRegression(C=0.05, max_iter=2000).fit(scaler.transform(x), y)
    return Fitted(trees, scaler, linear)


def log_loss(y: NDArray[np.int64], p: Floats) -> float:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def sigmoid(z: Floats) -> Floats:
    return 1 / (1 + np.exp(-z))


def choose_and_fit(
    x: Floats, y: NDArray[np.int64], groups: NDArray[Any], seed: int
) -> tuple[Fitted, float, float, tuple[float, int, int]]:
    """The best setting by inner cross-validation, Platt's slope and offset from its held-out log odds, and the final
    fit."""
    inner = folds_of(groups, INNER_FOLDS, seed)
    best: tuple[float, float, float, tuple[float, int, int]] | None = None
    for setting in SETTINGS:
        held_out = np.zeros(len(y))
        for fold in range(INNER_FOLDS):
            held_out[inner == fold] = fit(x[inner != fold], y[inner != fold], setting).log_odds(x[inner == fold])
        platt = LogisticRegression(C=1e6).fit(held_out[:, None], y)
        slope, offset = float(platt.coef_[0, 0]), float(platt.intercept_[0])
        loss = log_loss(y, sigmoid(slope * held_out + offset))
        if best is None or loss < best[0]:
            best = (loss, slope, offset, setting)
    assert best is not None
    _, slope, offset, setting = best
    return fit(x, y, setting), slope, offset, setting


def held_out_probabilities(x: Floats, y: NDArray[np.int64], groups: NDArray[Any], seed: int) -> Floats:
    """For each row, the probability by a model that has seen no row of its group, neither in fitting nor in
    choosing."""
    outer = folds_of(groups, OUTER_FOLDS, seed)
    p = np.zeros(len(y))
    for fold in range(OUTER_FOLDS):
        seen = outer != fold
        model, slope, offset, setting = choose_and_fit(x[seen], y[seen], groups[seen], seed + 1)
        p[~seen] = sigmoid(slope * model.log_odds(x[~seen]) + offset)
        kappa = cohen_kappa(y[~seen].astype(bool).tolist(), (p[~seen] >= 0.5).tolist())
        print(f"  fold {fold}: {int(seen.sum())} rows to train on, setting {setting}, held-out kappa {kappa:.3f}")
    return p


def random_subset_bias(p: Floats, y: NDArray[np.int64], questions: NDArray[Any], size: int) -> dict[str, float]:
    """Bias of mean accuracy, in points, on 2,000 subsets of at least `size` rows made of whole questions."""
    rng = np.random.default_rng(0)
    names, inverse = np.unique(questions, return_inverse=True)
    members = [np.flatnonzero(inverse == k) for k in range(len(names))]
    biases = []
    for _ in range(2000):
        rows: list[int] = []
        for k in rng.permutation(len(names)):
            rows.extend(members[k])
            if len(rows) >= size:
                break
        biases.append(100 * float(np.mean(p[rows] - y[rows])))
    absolute = np.abs(biases)
    return {
        "mean": float(absolute.mean()),
        "share_under_1": float((absolute < 1).mean()),
        "p95": float(np.quantile(absolute, 0.95)),
        "max": float(absolute.max()),
    }


def subsets(rows: list[GradedRow]) -> dict[str, NDArray[np.bool_]]:
    """Named subsets with at least 200 rows."""
    words = np.asarray([len(tokens(row.answer)) for row in rows])
    gold = np.asarray([len(tokens(row.gold[0])) for row in rows])
    titles = np.asarray([row.title for row in rows])
    named = {
        "answers of 1-3 words": (words > 0) & (words <= 3),
        "answers of 4-12 words": (words > 3) & (words <= 12),
        "answers of 13-25 words": (words > 12) & (words <= 25),
        "answers of over 25 words": words > 25,
        "gold of 1 word": gold == 1,
        "gold of 2-3 words": (gold >= 2) & (gold <= 3),
        "gold of over 3 words": gold > 3,
        **{f"article: {title}": titles == title for title in np.unique(titles)},
    }
    return {name: mask for name, mask in named.items() if mask.sum() >= 200}


def report(name: str, p: Floats, rows: list[GradedRow], y: NDArray[np.int64], *, detailed: bool) -> None:
    labels, said = y.astype(bool).tolist(), (p >= 0.5).tolist()
    questions = np.asarray([f"{row.title}\n{row.question}" for row in rows])
    kappa = kappa_interval(labels, said, questions.tolist())
    print(
        f"{name}: kappa {kappa.mean:.3f} [{kappa.lo:.3f}, {kappa.hi:.3f}], agreement {np.mean(said == y):.3f}, "
        f"bias {100 * np.mean(p - y):+.2f} points by score, {100 * np.mean(np.asarray(said) - y):+.2f} by grade, "
        f"log loss {log_loss(y, p):.3f}"
    )
    if not detailed:
        return
    for size in (200, 500, 1000):
        bias = random_subset_bias(p, y, questions, size)
        print(
            f"  random subsets of {size}: |bias| mean {bias['mean']:.2f}, under 1 point in "
            f"{bias['share_under_1']:.0%}, "
            f"95th percentile {bias['p95']:.2f}, largest of 2,000 {bias['max']:.2f} points; "
            f"mean {100 * np.sqrt(2 / np.pi * np.mean(p * (1 - p)) / size):.2f} if calibrated and independent"
        )
    for subset, mask in subsets(rows).items():
        bias_points = 100 * float(np.mean(p[mask] - y[mask]))
        print(f"  {subset} ({int(mask.sum())}): accuracy {100 * y[mask].mean():.1f}, bias {bias_points:+.2f} points")


def exported(model: Fitted, slope: float, offset: float) -> dict[str, Any]:
    """The model as plain data, rounded to what changes no grade."""
    rate = model.trees.learning_rate
    trees = []
    for (regressor,) in model.trees.estimators_:
        tree = regressor.tree_
        leaf = tree.children_left < 0
        own = np.arange(tree.node_count)
        trees.append(
            {
                "feature": np.where(leaf, 0, tree.feature).tolist(),
                "threshold": [float(f"{v:.9g}") for v in np.where(leaf, 0.0, tree.threshold)],
                "left": np.where(leaf, own, tree.children_left).tolist(),
                "right": np.where(leaf, own, tree.children_right).tolist(),
                "value": [float(f"{v:.5g}") for v in np.where(leaf, rate * tree.value[:, 0, 0], 0.0)],
                "depth": int(tree.max_depth),
            }
        )
    prior = model.trees.init_.class_prior_[1]
    return {
        "format": FORMAT,
        "features": list(NAMES),
        "baseline": float(np.log(prior / (1 - prior))),
        "linear": {
            "mean": [float(f"{v:.7g}") for v in model.scaler.mean_],
            "scale": [float(f"{v:.7g}") for v in model.scaler.scale_],
            "weight": [float(f"{v:.6g}") for v in model.linear.coef_[0]],
            "intercept": float(model.linear.intercept_[0]),
        },
        "calibration": {"slope": slope, "offset": offset},
        "trees": trees,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("verdicts", type=Path)
    parser.add_argument("--write", type=Path, help="where to write the model trained on all rows")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)

    rows = read_graded_rows(arguments.grades)
    y = np.asarray([bool(row.correct) for row in rows], dtype=np.int64)
    x = np.asarray([list(features(row.question, row.gold[0], row.answer).values()) for row in rows])
    spoken = np.asarray([bool(tokens(row.answer)) for row in rows])
    questions = np.asarray([row.question for row in rows])
    titles = np.asarray([row.title for row in rows])
    print(
        f"{len(rows)} answers to {len(set(questions))} questions, {100 * y.mean():.1f} % accepted; {platform.machine()}"
    )

    rule = np.asarray([float(accepts(row.question, row.gold[0], row.answer)) for row in rows])
    report("lexical rule (nothing learned)", rule, rows, y, detailed=False)
    for name, groups in (("by question", questions), ("by article", titles)):
        # Answers without a word are wrong by rule; they are scored but not learned from.
        p = np.zeros(len(y))
        p[spoken] = held_out_probabilities(x[spoken], y[spoken], groups[spoken], seed=0)
        report(f"calibrated, held out {name}", p, rows, y, detailed=name == "by question")

    if arguments.write:
        model, slope, offset, setting = choose_and_fit(x[spoken], y[spoken], questions[spoken], seed=1)
        data = exported(model, slope, offset)
        reference = sigmoid(slope * model.log_odds(x) + offset)
        difference = float(np.abs(CalibratedModel.from_json(data).probability(x) - reference).max())
        if difference > 1e-4:
            raise SystemExit(f"the written numbers give other probabilities (by {difference:.2g})")
        text = json.dumps(data, separators=(",", ":")).replace('{"feature"', '\n{"feature"') + "\n"
        arguments.write.write_text(text, encoding="utf-8")
        print(
            f"wrote {arguments.write}: {len(text) / 1024:.0f} KB, setting {setting}, numpy differs by {difference:.1e}"
        )


if __name__ == "__main__":
    main()
