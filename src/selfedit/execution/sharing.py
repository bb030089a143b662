"""A long fit's steps, shared among workers: data-parallel training of one adapter.

The worker that has the fit takes its steps.  Each of a step's forward passes has its gradient computed by itself, and
the sums are made in an order of their own (`engine.fit`), so that it does not matter to the last bit who computes what:
workers that have nothing else to do take passes, and this worker does what they leave, or do not deliver.  What a pass
depends on is sent with it, so a lost helper costs the pass that it had.

On Ray workers only; Ray is imported when a step is first shared.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from selfedit.engine.jobs import FitJob
from selfedit.execution.schedule import SLOW, SLOW_SECONDS
from selfedit.execution.tasks import Fit, FitTask

if TYPE_CHECKING:
    from torch import Tensor

    from selfedit.engine.passes import Own, Part

_log = logging.getLogger(__name__)


class Sharing:
    """The engine's `Share` for the one fit of a task.

    `helpers()` are actors with a method `help` that have nothing to do now, by worker's number; `deltas` are what they
    may lack of the policy.
    """

    def __init__(
        self, task: FitTask, job: FitJob, helpers: Callable[[], Mapping[int, Any]], deltas: Mapping[str, list[Any]]
    ) -> None:
        (fit,) = task.fits
        # The parameters carry what the adapter stands on.
        bare = Fit(fit.id, replace(job, below=None), below=fit.below)
        self._task = replace(task, fits=(bare,), checkpoint=None)
        self._helpers = helpers
        self._deltas = {name: deltas[name] for name in task.policy}
        self._sent: list[Any] = []
        self._asked: dict[int, threading.Thread] = {}
        self._useless: set[int] = set()
        self._token_seconds = 0.0

    def __call__(self, parameters_F: Tensor, parts: Sequence[Part], own: Own) -> Iterator[tuple[Tensor, Tensor]]:
        import ray
        import torch

        free = {
            number: actor
            for number, actor in self._helpers().items()
            if number not in self._useless and not (number in self._asked and self._asked[number].is_alive())
        }
        if not free:
            yield from map(own, parts)
            return
        self._sent = self._sent or [ray.put(self._task)]
        parameters = ray.put(parameters_F.cpu().numpy())
        waiting, taken, lock = deque(range(len(parts))), set[int](), threading.Lock()
        answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        found: dict[int, tuple[Tensor, Tensor] | None] = {}

        def take() -> int | None:
            with lock:
                if not waiting:
                    return None
                taken.add(waiting[0])
                return waiting.popleft()

        def ask(number: int, actor: Any) -> None:
            while (k := take()) is not None:
                answer: Any = None
                try:
                    loss, gradient_F = ray.get(actor.help.remote(self._sent, self._deltas, parts[k], parameters))
                    # Copies, which leave room in the object store.
                    answer = tuple(torch.tensor(x).to(parameters_F.device) for x in ([loss], gradient_F))
                except ray.exceptions.RayTaskError as error:
                    _log.warning("worker %d cannot help with %s: %s", number, self._task.id, error)
                    self._useless.add(number)
                except ray.exceptions.RayError as error:
                    _log.warning("worker %d is lost to %s: %s", number, self._task.id, error)
                except Exception as error:
                    answer = error
                answers.put((k, answer))
                if not isinstance(answer, tuple):
                    return

        def compute(k: int) -> tuple[Tensor, Tensor]:
            started = time.monotonic()
            loss, gradient_F = own(parts[k])
            self._token_seconds = (time.monotonic() - started) / parts[k].tokens
            return loss, gradient_F.clone()

        def go_on() -> None:
            """Takes a part, or waits for one that a helper has: not much longer than this worker would need for it."""
            k, answer = take(), None
            if k is None:
                k = min(taken - found.keys())
                with suppress(queue.Empty):
                    patience = max(SLOW_SECONDS, SLOW * self._token_seconds * parts[k].tokens)
                    k, answer = answers.get(timeout=patience)
            if isinstance(answer, Exception):
                raise answer
            if k not in found:
                found[k] = compute(k) if answer is None else answer

        for number, actor in list(free.items())[: len(parts) - 1]:
            self._asked[number] = threading.Thread(target=ask, args=(number, actor), daemon=True)
            self._asked[number].start()
        try:
            for k in range(len(parts)):
                while k not in found:
                    go_on()
                result, found[k] = found[k], None  # so that few are held
                assert result is not None
                yield result
        finally:
            waiting.clear()
