"""The calibrated grader: the probability that a careful judge would accept an answer, offline.

Knows the features of an answer and a file of numbers: boosted regression trees, a logistic regression, and the line
that makes their mean a probability.  How the numbers were learned is benchmarks/train_calibrated_grader.py's business;
how far they can be trusted is in docs/grading.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfedit.evaluation.features import NAMES, features
from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.evaluation.text import tokens

FORMAT = 1


@dataclass(frozen=True)
class CalibratedModel:
    """The numbers.  Trees are padded to one width: T trees of at most W nodes, F features.

    A leaf is its own child, so that walking on changes nothing; `value_T_W` holds log odds at the leaves and 0
    elsewhere."""

    feature_T_W: NDArray[np.int64]
    threshold_T_W: NDArray[np.float64]
    left_T_W: NDArray[np.int64]
    right_T_W: NDArray[np.int64]
    value_T_W: NDArray[np.float64]
    depth: int
    baseline: float
    mean_F: NDArray[np.float64]
    scale_F: NDArray[np.float64]
    weight_F: NDArray[np.float64]
    intercept: float
    slope: float
    offset: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CalibratedModel:
        """From the form that the training script writes.  Raises ValueError if it was made for other features."""
        if data["format"] != FORMAT or tuple(data["features"]) != NAMES:
            raise ValueError("the calibrated grader's numbers were made for other features; train it again")
        trees, width = data["trees"], max(len(tree["feature"]) for tree in data["trees"])

        def padded(name: str, dtype: type) -> NDArray[Any]:
            rows: NDArray[Any] = np.zeros((len(trees), width), dtype=dtype)
            for row, tree in zip(rows, trees, strict=True):
                row[: len(tree[name])] = tree[name]
            return rows

        linear, calibration = data["linear"], data["calibration"]
        return cls(
            feature_T_W=padded("feature", np.int64),
            threshold_T_W=padded("threshold", np.float64),
            left_T_W=padded("left", np.int64),
            right_T_W=padded("right", np.int64),
            value_T_W=padded("value", np.float64),
            depth=max(tree["depth"] for tree in trees),
            baseline=data["baseline"],
            mean_F=np.asarray(linear["mean"]),
            scale_F=np.asarray(linear["scale"]),
            weight_F=np.asarray(linear["weight"]),
            intercept=linear["intercept"],
            slope=calibration["slope"],
            offset=calibration["offset"],
        )

    def tree_log_odds(self, features_B_F: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log odds [B] by the boosted trees."""
        # The trees were grown on float32 features; the same rounding keeps every answer on its side of a threshold.
        rounded_B_F = features_B_F.astype(np.float32).astype(np.float64)
        trees = np.arange(len(self.feature_T_W))[None, :]
        rows = np.arange(len(rounded_B_F))[:, None]
        node_B_T = np.zeros((len(rounded_B_F), len(self.feature_T_W)), dtype=np.int64)
        for _ in range(self.depth):
            goes_left = rounded_B_F[rows, self.feature_T_W[trees, node_B_T]] <= self.threshold_T_W[trees, node_B_T]
            node_B_T = np.where(goes_left, self.left_T_W[trees, node_B_T], self.right_T_W[trees, node_B_T])
        return self.baseline + _row_sums(self.value_T_W[trees, node_B_T])

    def linear_log_odds(self, features_B_F: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log odds [B] by the logistic regression."""
        return _row_sums((features_B_F - self.mean_F) / self.scale_F * self.weight_F) + self.intercept

    def probability(self, features_B_F: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated probability [B] that a judge accepts."""
        mean = (self.tree_log_odds(features_B_F) + self.linear_log_odds(features_B_F)) / 2
        return 1 / (1 + np.exp(-np.clip(self.slope * mean + self.offset, -30, 30)))


def _row_sums(values_B_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums [B] whose last bit does not depend on B, as a matrix product's or that of another memory order would."""
    return np.asarray(np.ascontiguousarray(values_B_N).sum(axis=1))


@cache
def shipped_model() -> CalibratedModel:
    """The model that comes with the package."""
    text = files("selfedit.evaluation").joinpath("calibrated_model.json").read_text(encoding="utf-8")
    return CalibratedModel.from_json(json.loads(text))


class CalibratedGrader:
    """Credit is the probability that a careful judge would accept the answer; `right` from 0.5 on.

    With several accepted answers the most favourable counts.  An answer without any word is wrong, with score 0.  The
    mean score of many answers estimates the share that a judge would accept with less bias than counting grades does.
    """

    name = "calibrated"

    def __init__(self, model: CalibratedModel | None = None) -> None:
        self._model = model

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        model = self._model or shipped_model()
        rows: list[list[float]] = []
        owners: list[int] = []
        for index, item in enumerate(items):
            if tokens(item.answer):
                for gold in item.gold:
                    rows.append(list(features(item.question, gold, item.answer).values()))
                    owners.append(index)
        score = np.zeros(len(items))
        if rows:
            np.maximum.at(score, owners, model.probability(np.asarray(rows)))
        return [Grade("right" if c >= 0.5 else "wrong", float(c), self.name) for c in score]
