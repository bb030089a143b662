"""A fit that is alone in its task and may take hours: its state is saved on the way, and it is examined on the way.

Neither changes what it becomes: the engine promises the same last bit (tests/engine/test_state.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from selfedit.engine import UnderWay
from selfedit.engine.jobs import Completion, UnusableStateError
from selfedit.engine.state import read_notes
from selfedit.errors import UserError
from selfedit.execution.tasks import Checkpoint, Fit, Look
from selfedit.runs.files import write_atomically

# Answers the questions of a look, with the adapter as it is.
Ask = Callable[[UnderWay], Sequence[Completion]]


class LongFit:
    """Called after each step.  `start` is a state to go on from, or None; `seconds_before` is what went into it."""

    def __init__(self, fit: Fit, checkpoint: Checkpoint | None, ask: Ask) -> None:
        self._looks_at = set(fit.looks_at)
        self._checkpoint = checkpoint
        self._ask = ask
        self._began = self._saved = time.monotonic()
        self.notes: list[str] = []
        self.looks: list[Look] = []
        self.seconds_before = 0.0
        self.start = self._found()

    def __call__(self, under_way: UnderWay) -> None:
        (done,) = under_way.done
        if done in self._looks_at:
            self.looks.append(Look(done, tuple(self._ask(under_way))))
        if self._checkpoint is not None and time.monotonic() - self._saved >= self._checkpoint.seconds:
            self._save(under_way, self._checkpoint)
            self._saved = time.monotonic()

    def begin_anew(self, error: UnusableStateError) -> None:
        """The state that was found is none of this fit's."""
        self.notes.append(f"the fit begins anew: {error}")
        self.looks, self.seconds_before, self.start = [], 0.0, None

    def _found(self) -> Path | None:
        if self._checkpoint is None or not self._checkpoint.file.is_file():
            return None
        try:
            notes = json.loads(read_notes(self._checkpoint.file))
            self.seconds_before = float(notes["seconds"])
            self.looks = [
                Look(int(step), tuple(Completion(tuple(ids), bool(finished)) for ids, finished in found))
                for step, found in notes["looks"]
            ]
        except UnusableStateError as error:
            self.begin_anew(error)
            return None
        except (ValueError, KeyError, TypeError) as error:
            self.begin_anew(UnusableStateError(f"{self._checkpoint.file}: no notes of this version ({error})"))
            return None
        return self._checkpoint.file

    def _save(self, under_way: UnderWay, checkpoint: Checkpoint) -> None:
        seconds = self.seconds_before + time.monotonic() - self._began
        looks = [[look.step, [[c.ids, c.finished] for c in look.completions]] for look in self.looks]
        state = under_way.save(json.dumps({"seconds": seconds, "looks": looks}))
        try:
            write_atomically(checkpoint.file, state)
        except (OSError, UserError) as error:
            # Hours of training are not thrown away because they cannot be saved on the way.
            line = f"no checkpoint could be written ({error}): a fit that is cut off loses what it did since the last"
            if line not in self.notes:
                self.notes.append(line)
