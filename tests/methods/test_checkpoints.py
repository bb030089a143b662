"""A long fit is saved on the way: a run that ends goes on from there, and comes to the last bit to what a whole one
does.  (`test_resume` kills it.)"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from selfedit.execution import long_fit
from selfedit.methods.continual import continual
from selfedit.methods.inner_loop import thinned
from selfedit.methods.learn import learn
from selfedit.methods.settings import ContinualSettings, LearnSettings
from selfedit.progress import Progress
from selfedit.reports import build_report
from selfedit.runs.files import disk_errors
from selfedit.runs.store import Store
from tiny_world import SMALL, rows, write_rows

ALWAYS = 1e-9  # minutes: a checkpoint after every step


class Stop(BaseException):
    """Ctrl-C."""


class Stopper(Progress):
    """That interrupts after so many calls; `amounts` are what it was told of the last phase."""

    def __init__(self, after: int = -1) -> None:
        self.left = after
        self.amounts: list[float] = []

    def begin(self, phase: str, total: float | None) -> None:
        self.amounts = []

    def advance(self, amount: float) -> None:
        self.amounts.append(amount)
        if self.amounts and self.left == len(self.amounts):
            raise Stop


@pytest.fixture(scope="module")
def whole(chat_model: str, tmp_path_factory: pytest.TempPathFactory) -> LearnSettings:
    """One fit of 16 steps with dropout and an exam, saved after each."""
    folder = tmp_path_factory.mktemp("checkpoints")
    more = {"editor": "passage", "references": False, "checkpoint_minutes": ALWAYS, "out": folder / "whole"}
    documents = (str(write_rows(folder / "documents.jsonl", rows(4))),)
    learned = {**SMALL["set"], "dropout": 0.1}
    return LearnSettings(**{**SMALL, "model": chat_model, "documents": documents, "set": learned, **more})


@pytest.fixture
def settings(whole: LearnSettings, tmp_path: Path) -> LearnSettings:
    return whole.model_copy(update={"out": tmp_path / "run"})


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def left_over(out: Path) -> list[str]:
    return sorted(file.name for file in out.rglob("*") if "unfinished" in file.name)


def events(out: Path, kind: str) -> list[str]:
    with Store(out / "run.sqlite", readonly=True) as store:
        return [event.message for event in store.events(kind)]


def interrupted(settings: LearnSettings, *, after: int) -> Path:
    """A run that was stopped while its fit was under way; the state that it left."""
    with pytest.raises(Stop):
        learn(settings, progress=Stopper(after))
    (file,) = (settings.out / "unfinished").iterdir()
    assert [path.stat().st_mode & 0o077 for path in (file, file.parent)] == [0, 0]
    return file


@pytest.fixture(scope="module")
def expected(whole: LearnSettings) -> dict[str, bytes]:
    return files(learn(whole).adapter)


def test_a_resumed_fit_goes_on_where_it_was(settings: LearnSettings, expected: dict[str, bytes]) -> None:
    interrupted(settings, after=10)
    progress = Stopper()
    learn(settings, progress=progress)
    # Nine steps at once, as they were; the tenth was taken, but not saved.
    assert progress.amounts[0] == sum(progress.amounts[:1]) > 5 * progress.amounts[1]
    assert files(settings.out / "adapters" / "learned") == expected


def test_a_run_that_ends_before_a_fit_s_state_is_removed_leaves_none_behind(
    settings: LearnSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit is committed, so its task is not done again; the state goes all the same."""

    def stop(file: Path, *, missing_ok: bool = False) -> None:
        assert file.parent.name == "unfinished"
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(Stop):
            learn(settings)
    assert left_over(settings.out)
    learn(settings)
    assert left_over(settings.out) == []


def test_without_checkpoints_a_fit_begins_anew(settings: LearnSettings, expected: dict[str, bytes]) -> None:
    never = settings.model_copy(update={"checkpoint_minutes": 0})
    with pytest.raises(Stop):
        learn(never, progress=Stopper(after=10))
    assert not (settings.out / "unfinished").exists()
    learn(never)
    assert files(settings.out / "adapters" / "learned") == expected


@pytest.mark.parametrize("harm", ["cut short", "empty", "noise", "of another fit", "other notes"])
def test_a_state_that_cannot_be_used_is_named_and_the_fit_begins_anew(
    settings: LearnSettings, expected: dict[str, bytes], harm: str, tmp_path: Path
) -> None:
    file = interrupted(settings, after=10)
    whole = file.read_bytes()
    if harm == "of another fit":
        other = settings.model_copy(update={"out": tmp_path / "other", "seed": 1})
        file.write_bytes(interrupted(other, after=5).read_bytes())
    elif harm == "other notes":
        file.write_bytes(whole.replace(b'\\"looks\\"', b'\\"locks\\"'))
    else:
        file.write_bytes({"cut short": whole[:-1], "empty": b"", "noise": random.Random(0).randbytes(999)}[harm])
    learn(settings)
    assert files(settings.out / "adapters" / "learned") == expected
    (note,) = events(settings.out, "checkpoint")
    assert note.startswith(f"the fit begins anew: {file}: ")
    assert left_over(settings.out) == []


def test_a_disk_that_takes_no_checkpoint_does_not_end_the_fit(
    settings: LearnSettings, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: bytes) -> None:
        with disk_errors(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(long_fit, "write_atomically", full)
    learn(settings)
    assert files(settings.out / "adapters" / "learned") == expected
    (told,) = events(settings.out, "checkpoint")
    assert told.startswith("no checkpoint could be written (")
    assert told.endswith("): a fit that is cut off loses what it did since the last")
    assert "the disk is full" in told


def test_each_step_of_continual_is_saved_too(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    common = {"model": chat_model, "documents": (documents(2),), "editor": "passage", "checkpoint_minutes": ALWAYS}
    common["retain"] = ("none",)
    whole = ContinualSettings(**common, **{**quick, "out": quick["out"].with_name("whole")})
    continual(whole)
    settings = ContinualSettings(**common, **quick)
    with pytest.raises(Stop):
        continual(settings, progress=Stopper(after=3))
    with pytest.raises(Stop):
        continual(settings, progress=Stopper(after=3))
    continual(settings)
    for step in ("round-01", "round-02"):
        assert files(settings.out / "checkpoints" / step) == files(whole.out / "checkpoints" / step)
    assert left_over(settings.out) == []


def test_a_fit_is_examined_on_the_way(settings: LearnSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, float]]] = []

    def log(values: dict[str, float], step: int) -> None:
        logged.append((step, values))

    monkeypatch.setattr("selfedit.methods.tracking.open_tracker", lambda *_: nullcontext(log))
    learned = learn(settings)
    assert learned.summary is not None
    assert [(look.step, look.steps) for look in learned.summary.on_the_way] == [(4, 16), (8, 16), (12, 16)]
    assert [condition.name for condition in learned.summary.conditions] == ["none", "passage"]
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        for look in learned.summary.on_the_way:
            answers = store.scored_answers("lexical", condition=f"passage after {look.step} of 16 steps")
            assert len(answers) == 8
            assert look.accuracy == pytest.approx(sum(a.score or 0.0 for a in answers) / 8)
        curve = store.curves()["0||passage|0"]
        (fit,) = store.fits(condition="passage")
    assert [step for step, _ in curve] == list(range(1, 17))
    assert sum(loss for _, loss in curve[-4:]) / 4 == pytest.approx(fit.last_loss)
    assert [step for step, values in logged if "loss" in values] == list(range(1, 17))
    assert [step for step, values in logged if "accuracy" in values] == [4, 8, 12, 16]
    assert [step for step, _ in logged] == sorted({step for step, _ in logged})
    assert learn(settings).summary == learned.summary
    page = build_report([settings.out]).read_text()
    assert re.search(r'aria-label="Loss of passage: \d\.\d\d at step 1, \d\.\d\d at step 16"', page)
    chart = page[page.index("<b>Loss</b> of passage") : page.index("<b>Exams on the way</b>")]
    assert max(path.count("L") for path in re.findall(r' d="([^"]*)"', chart)) == 15  # from the first step to the last
    assert "<b>Exams on the way</b>: accuracy in % after so many training steps of 16" in page
    chart = page[page.index("Accuracy by training step") :]
    assert re.findall(r"<text[^>]*>(\d+)</text>", chart)[:3] == ["4", "8", "12"]


def test_a_fit_without_an_exam_shows_its_losses(quick: dict[str, Any], chat_model: str, tmp_path: Path) -> None:
    (tmp_path / "kite.txt").write_text("Ada made a kite in Oslo.")
    settings = LearnSettings(model=chat_model, documents=(str(tmp_path / "kite.txt"),), editor="passage", **quick)
    assert learn(settings).summary is None
    assert 'aria-label="Loss of passage: ' in build_report([settings.out]).read_text()


def test_the_exams_on_the_way_change_nothing(
    settings: LearnSettings, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfedit.methods.joint.LOOKS", 0)
    learned = learn(settings)
    assert learned.summary is not None
    assert learned.summary.on_the_way == ()
    assert files(learned.adapter) == expected


def test_a_long_curve_is_thinned_to_means_over_equal_stretches_of_steps() -> None:
    assert thinned([]) == []
    assert thinned([3.0, 1.0]) == [(1, 3.0), (2, 1.0)]
    points = thinned([float(step) for step in range(1, 1003)])
    assert len(points) == 167
    assert points[:2] == [(6, 3.5), (12, 9.5)]
    assert points[-1] == (1002, 999.5)
    assert thinned([1.0] * 401)[-1] == (401, 1.0), "the last stretch is shorter"
