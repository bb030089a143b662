"""A fit's steps shared among workers, without workers: who is asked, and what becomes of those that help.

(`test_ray_results` shares a fit among workers of Ray's.)"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from selfedit.engine import FitJob, FitSettings, LoraSpec, TokenSequence
from selfedit.engine.passes import Part
from selfedit.execution import sharing
from selfedit.execution.actor import WorkerActor
from selfedit.execution.sharing import Sharing
from selfedit.execution.tasks import Fit, FitTask

pytestmark = pytest.mark.usefixtures("one_thread")


def test_who_is_told_before_a_task_begins_is_known_to_it() -> None:
    """A worker may still be helping with another's task when it gets its own, and is told meanwhile who is idle."""
    actor: Any = WorkerActor.__new__(WorkerActor)
    actor.deltas, actor.helpers, actor.log = {}, {}, logging.getLogger("test")
    seen: list[Any] = []

    def run(task: Any, on_tokens: Any) -> Any:
        seen.append(actor.helpers)
        return SimpleNamespace(seconds=0.0)

    actor.worker, actor.written = SimpleNamespace(run=run), 0
    actor.tokens({1: "idle"})
    for _ in range(2):
        assert "result" in actor.run(SimpleNamespace(id="task"), {}, (1.0, 0))
    assert seen == [{1: "idle"}, {}], "and no later task"


def long_task(steps: int, dropout: float = 0.0) -> FitTask:
    """Steps of 5 passes (of 1,024 tokens at the most)."""
    numbers = random.Random(0)
    sequences = tuple(
        TokenSequence(tuple(numbers.randrange(5, 60) for _ in range(numbers.randrange(520, 640)))) for _ in range(5)
    )
    job = FitJob(sequences, FitSettings(epochs=steps, batch_size=5), seed=3)
    return FitTask("editor", (), LoraSpec(rank=8, dropout=dropout), (Fit("outer", job, keep=True),), memory=2**30)


class FakeActor:
    """Answers a part with its number; `does` says what befalls the others."""

    def __init__(self, does: Callable[[int], None] = lambda k: None) -> None:
        self.asked: list[int] = []
        self.does = does
        self.help = SimpleNamespace(remote=lambda task, deltas, part, parameters: lambda: self._answer(part.places[0]))

    def _answer(self, k: int) -> Any:
        import numpy as np

        self.asked.append(k)
        self.does(k)
        return float(k), np.full(3, k, dtype=np.float32)


def raising(error: Exception) -> Callable[[int], None]:
    def does(_: int) -> None:
        raise error

    return does


def test_what_helpers_do_not_deliver_is_computed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    import torch

    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", lambda answer: answer())
    monkeypatch.setattr(sharing, "SLOW_SECONDS", 0.2)
    over = threading.Event()
    task_error = ray.exceptions.RayTaskError("help", "a trace", ValueError("no room"))
    actors = {
        1: FakeActor(lambda _: time.sleep(0.05)),
        2: FakeActor(raising(task_error)),
        3: FakeActor(raising(ray.exceptions.RayActorError())),
        4: FakeActor(lambda _: over.wait(30) and None),  # hangs
    }
    task = long_task(steps=1)
    share = Sharing(task, task.fits[0].job, lambda: actors, {})
    mine: list[int] = []

    def own(part: Part) -> tuple[Any, Any]:
        time.sleep(0.05)
        mine.append(part.places[0])
        return torch.tensor([float(part.places[0])]), torch.full((3,), float(part.places[0]))

    parts = [Part(0, (k,), 10, False) for k in range(9)]
    for _ in range(2):
        found = [(loss.item(), gradient.tolist()) for loss, gradient in share(torch.zeros(3), parts, own)]
        assert found == [(k, [k] * 3) for k in range(9)]
    # A helper that raised is not asked again, nor one that still hangs; one whose process was lost has another.
    assert [len(actors[k].asked) for k in (2, 3, 4)] == [1, 2, 1]
    assert set(actors[1].asked) | set(mine) == set(range(9))
    over.set()

    # A bug here is not taken for a helper's misfortune.
    actors = {1: FakeActor(raising(AttributeError("a bug")))}
    with pytest.raises(AttributeError, match="a bug"):
        list(share(torch.zeros(3), parts, own))
    # Nobody has time: all is done here.
    actors = {}
    mine.clear()
    assert len(list(share(torch.zeros(3), parts, own))) == len(mine) == 9
