"""Metrics to TensorBoard, Weights & Biases or trackio, through accelerate's trackers.  Off unless asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit.errors import UserError
from selfedit.grouping import grouped
from selfedit.methods.run import Run
from selfedit.methods.settings import LearnSettings
from selfedit.runs.summary import Summary

_CLASSES = {"tensorboard": "TensorBoardTracker", "wandb": "WandBTracker", "trackio": "TrackioTracker"}


Log = Callable[..., None]  # log(values, step=N)


def check_tracker(name: str | None) -> None:
    """Errors: UserError where a package that the tracker needs is not installed."""
    for package in (name, "accelerate"):
        if name is not None and find_spec(str(package)) is None:
            raise UserError(f"--track {name}: {package} is not installed; run `pip install 'selfedit[track]'`")


@contextmanager
def open_tracker(name: str | None, out: Path, config: Mapping[str, Any]) -> Iterator[Log]:
    """What logs below the run's directory (TensorBoard) or to a service; its tracker is finished whatever happens."""
    if name is None:
        yield lambda values, step: None
        return
    from accelerate import tracking

    kind = getattr(tracking, _CLASSES[name])
    tracker = kind(out.name, logging_dir=out / "track") if name == "tensorboard" else kind(f"selfedit-{out.name}")
    tracker.start()
    plain = {key: value for key, value in config.items() if isinstance(value, int | float | str | bool)}
    tracker.store_init_configuration(plain)
    try:
        yield tracker.log
    finally:
        tracker.finish()


def track_learning(run: Run, condition: str, last: str, summary: Summary | None) -> None:
    """Sends to where --track says, once all is learned, the loss curve, the mean of all adapters' where there are
    several, and the accuracy on the way and at the end, which is that of the condition `last`."""
    assert isinstance(run.settings, LearnSettings)
    curves = run.store.curves()
    losses = grouped(point for fit in run.store.fits(condition=condition) for point in curves.get(fit.id, ()))
    rows = {step: {"loss": fmean(some)} for step, some in losses.items()}
    if summary is not None:
        end = max(losses, default=0)
        ends = [(end, one.accuracy) for one in summary.conditions if one.name == last]
        for step, accuracy in [*((look.step, look.accuracy) for look in summary.on_the_way), *ends]:
            if accuracy is not None:
                rows.setdefault(step, {})["accuracy"] = accuracy
    with open_tracker(run.settings.track, run.settings.out, run.directory.config) as log:
        for step, values in sorted(rows.items()):  # Weights & Biases ignores what comes after a later step
            log(values, step=step)
