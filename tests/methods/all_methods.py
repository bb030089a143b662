"""Every method, with its settings, by the name of its command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfedit.methods.compare import compare
from selfedit.methods.continual import continual
from selfedit.methods.learn import learn
from selfedit.methods.restem import train
from selfedit.methods.settings import CompareSettings, ContinualSettings, LearnSettings, SweepSettings, TrainSettings
from selfedit.methods.sweep import sweep

METHODS: dict[str, tuple[Callable[..., Any], type[Any]]] = {
    "compare": (compare, CompareSettings),
    "sweep": (sweep, SweepSettings),
    "learn": (learn, LearnSettings),
    "train": (train, TrainSettings),
    "continual": (continual, ContinualSettings),
}
