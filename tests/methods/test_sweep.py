"""Sweeps: bad recipes are dropped on training documents, one is chosen on validation documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
from counting_pool import CountingPool
from making import Make

from overlap_grader import overlap_grader  # noqa: F401
from selfedit.errors import UserError
from selfedit.evaluation.statistics import DocumentScore
from selfedit.execution.tasks import CompletionTask, FitTask, Task, TaskResult
from selfedit.methods.compare import compare
from selfedit.methods.frontier import Candidate, Trial, better_half, choose, list_candidates, parse_grid, reason
from selfedit.methods.settings import CompareSettings, SweepSettings, make_settings
from selfedit.methods.sweep import sweep
from selfedit.methods.trials import row
from selfedit.runs.store import Store
from selfedit.training.recipes import RECIPES, load_recipe
from selfedit.yaml_file import read_yaml
from summary_fields import undeclared


def test_a_grid_has_every_combination() -> None:
    assert parse_grid(["learning_rate=1e-3,2e-3", "cutting=lines,whole"]) == [
        {"learning_rate": 1e-3, "cutting": "lines"},
        {"learning_rate": 1e-3, "cutting": "whole"},
        {"learning_rate": 2e-3, "cutting": "lines"},
        {"learning_rate": 2e-3, "cutting": "whole"},
    ]
    assert parse_grid(["rank=4,8", "document_copies=1,0"])[-1] == {"rank": 8, "document_copies": 0}
    assert parse_grid(["targets=[up_proj, down_proj],all-linear"]) == [
        {"targets": ["up_proj", "down_proj"]},
        {"targets": "all-linear"},
    ]
    for wrong in ("rank", "rank=", "=4", "rank=[4"):
        with pytest.raises(UserError, match=r"--grid .*: write NAME=A,B,C"):
            parse_grid([wrong])


def test_recipes_are_those_named_with_every_combination(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("rank: 2\n")
    found = list_candidates(
        SweepSettings(recipe="seal", recipes=(str(mine),), grid=("epochs=1,2",), set={"batch_size": 3})
    )
    assert [one.number for one in found] == [1, 2, 3, 4]
    assert [one.settings for one in found] == [
        {"recipe": name, "epochs": epochs} for name in ("seal", str(mine)) for epochs in (1, 2)
    ]
    assert found[0].recipe == RECIPES["seal"].with_settings({"batch_size": 3, "epochs": 1})
    assert [one.recipe.rank for one in found] == [32, 32, 2, 2]
    with pytest.raises(UserError, match="a sweep tries at least 2 recipes: add --recipes NAME, or --grid NAME=A,B,C"):
        list_candidates(SweepSettings())
    with pytest.raises(UserError, match=r"two of the recipes to try are one and the same .*epochs.*; leave one out"):
        list_candidates(SweepSettings(grid=("epochs=1,1",)))
    mine.write_text("{}\n")
    with pytest.raises(UserError, match="two of the recipes to try are one and the same"):
        list_candidates(SweepSettings(recipe="default", recipes=(str(mine),)))
    with pytest.raises(UserError, match="ranks = 4: Extra inputs"):
        list_candidates(SweepSettings(grid=("ranks=4,8",)))


def trial(number: int, right: list[int], lost: float | None, tokens: float = 100.0, failed: int = 0) -> Trial:
    """`right` of ten answers of each document."""
    scores = {f"d{k}": DocumentScore(float(score), 10) for k, score in enumerate(right)}
    general = {} if lost is None else {"f": DocumentScore(100 * (1 - lost), 100)}
    return Trial(Candidate(number, {"rank": number}, RECIPES["seal"]), scores, general, tokens, failed)


def chosen(*trials: Trial) -> int:
    return choose(trials, 0.05).number


def test_the_interval_of_what_was_lost_is_around_it() -> None:
    found = row(trial(1, [5] * 8, 0.1), True, True)
    assert found.lost_ci95 is not None
    assert 0 <= found.lost_ci95[0] < 0.1 < found.lost_ci95[1] <= 1


def test_the_rule() -> None:
    low, middle, high = [1, 2, 1, 0, 2, 1, 1, 2], [5, 6, 4, 5, 6, 5, 4, 5], [9, 8, 9, 9, 8, 9, 9, 8]
    # Most learned, of those that lose no more than they may.
    assert chosen(trial(1, middle, 0.02), trial(2, high, 0.05), trial(3, low, 0.0)) == 2
    assert chosen(trial(1, middle, 0.02), trial(2, high, 0.06), trial(3, low, 0.0)) == 1
    # What learned less by more than noise is not taken for being cheap; what is within noise is.
    assert chosen(trial(1, middle, 0.02, tokens=1), trial(2, high, 0.02, tokens=900)) == 2
    assert chosen(trial(1, [*high[:7], 7], 0.02, tokens=800), trial(2, high, 0.02, tokens=900)) == 1
    assert chosen(trial(1, [*high[:7], 7], 0.09, tokens=800), trial(2, high, 0.02, tokens=900)) == 2
    # Where all lose more, the least harm.
    assert chosen(trial(1, high, 0.3), trial(2, low, 0.2), trial(3, middle, 0.25)) == 2
    # Nothing known before: nothing to lose.
    assert chosen(trial(1, low, None), trial(2, high, None)) == 2
    # A recipe under which a fit failed is out.
    assert chosen(trial(1, low, 0.0), trial(2, high, 0.0, failed=1)) == 1
    # Alike in everything: the first.
    assert chosen(trial(1, high, 0.0), trial(2, high, 0.0)) == 1


def test_the_better_half_goes_on() -> None:
    trials = [
        trial(1, [1] * 8, 0.0),
        trial(2, [9] * 8, 0.4),
        trial(3, [6] * 8, 0.05),
        trial(4, [9] * 8, 0.2),
        trial(5, [9] * 8, 0.0, failed=1),
    ]
    assert [one.number for one in better_half(trials, 0.05)] == [3, 1, 4]
    assert [one.number for one in better_half(trials[:4], 0.05)] == [3, 1]
    # What failed does not go on, however many are wanted.
    assert [one.number for one in better_half([*trials[4:], trials[4], trials[0]], 0.05)] == [1]


def test_the_reason_is_told() -> None:
    cheap, best, bad = trial(1, [9] * 7 + [8], 0.02, 800), trial(2, [9] * 8, 0.0, 900), trial(3, [9] * 8, 0.5)
    said = reason([cheap, best, bad], cheap, 0.05)
    assert said.startswith(
        "Recipe 1: 88.8% right, of the general questions 2.0% lost, 800 training tokens per document. Recipe 2, with"
        " 90.0% right for 900 tokens, is within noise.\nThe rule: most learned among the recipes that lose at most 5%"
    )
    assert "It was chosen on these documents, so what it came to on them is a little too good" in said
    assert "within noise.\n" not in reason([best, bad], best, 0.05)
    assert "All lose more: it loses least." in reason([bad], bad, 0.05)
    assert "It has learned nothing that is larger than noise." in reason([best], best, 0.05, cheap.scores)
    assert "learned nothing" not in reason([best], best, 0.05, trial(4, [1] * 8, None).scores)
    worse = trial(5, [1] * 8, 0.0)
    assert "learned nothing" in reason([worse], worse, 0.05, best.scores)
    assert "lose at most 2.5% of the general questions" in reason([best], best, 0.025)


@pytest.fixture
def settings(quick: dict[str, Any], documents: Callable[[int], str], chat_model: str) -> SweepSettings:
    """Six recipes, two of which blow every fit up; two documents for training, six for validation."""
    return SweepSettings(
        **quick
        | {
            "model": chat_model,
            "documents": (documents(8),),
            "validation_share": 0.75,
            "editor": ("passage", "self"),
            "grid": ("learning_rate=1e30,1e-2,1e-4", "epochs=2,4"),
            "general_questions": 1,
            "general_texts": 2,
            "grader": "overlap",
            "task_size": 4,
        }
    )


def test_bad_recipes_are_dropped_and_one_is_chosen_on_validation_documents(
    settings: SweepSettings, chat_model: str, quick: dict[str, Any], tmp_path: Path
) -> None:
    pool = CountingPool(chat_model)
    summary = sweep(settings, pool=pool)
    assert list(undeclared(summary)) == []
    assert [row.number for row in summary.sweep] == [1, 2, 3, 4, 5, 6]
    assert [row.settings["learning_rate"] for row in summary.sweep] == [1e30, 1e30, 1e-2, 1e-2, 1e-4, 1e-4]
    # Failed recipes lost: they are out, named, and nothing more is spent on them.
    assert [row.failed_fits for row in summary.sweep] == [4, 4, 0, 0, 0, 0]
    assert [row.number for row in summary.sweep if row.validated] != []
    assert {row.documents for row in summary.sweep if row.validated} == {6}
    left = [row.number for row in summary.sweep if row.validated]
    assert len(left) == 3
    assert not {1, 2} & set(left)
    (best,) = [row for row in summary.sweep if row.chosen]
    assert best.validated
    assert summary.choice.startswith(f"Recipe {best.number}: ")
    assert summary.documents == 6
    conditions = [c.name for c in summary.conditions]
    assert conditions[0] == "none"
    assert sorted(conditions[1:]) == sorted(f"{e} [{k}]" for k in left for e in settings.editor)
    assert summary.most_lost == 0.05
    assert [row.divergence is None for row in summary.sweep] == [True, True, False, False, False, False]
    of_best = [c for c in summary.conditions if c.name.endswith(f"[{best.number}]")]
    assert sum(c.train_tokens for c in of_best) == best.train_tokens * 12

    with Store(settings.out / "run.sqlite", readonly=True) as store:
        training, validation = ({d.id for d in store.documents(split)} for split in ("train", "validation"))
        assert (len(training), len(validation)) == (2, 6)
        by_condition = {
            name: {fit.document_id for fit in store.fits(condition=name)}
            for name in {f.condition for f in store.fits()}
        }
        for number in range(1, 7):
            assert by_condition[f"self [{number}] rung 1"] == training
        assert by_condition["none"] == {*validation, None}
        # Edits are written once per document; every recipe learned from the same ones.
        assert Counter(edit.document_id for edit in store.edits()) == dict.fromkeys(training | validation, 1)
        learned = [{f.edit_id for f in store.fits(condition=f"self [{k}]")} for k in left]
        assert learned[0] == learned[1] == learned[2]
        out = [event.message for event in store.events("recipe is out")]
        assert out[0] == "recipe 1 (learning_rate=1e+30, epochs=2) is out: 4 fits failed"
        assert len(out) == 2
    assert len(pool.fits) == 6 * 2 * 2 + 3 * 6 * 2

    # The recipe that was written is the one, and compare takes it.
    file = settings.out / "recipe.yaml"
    recipe = load_recipe(str(file))
    assert recipe.model_dump(mode="json") == summary.recipe | {"name": "recipe"}
    assert recipe.learning_rate == best.settings["learning_rate"]
    compared = compare(
        CompareSettings(
            **quick
            | {"model": chat_model, "documents": settings.documents, "limit": 1, "recipe": str(file)}
            | {"set": {}, "editor": ("passage",), "out": tmp_path / "compared"}
        )
    )
    assert compared.recipe == recipe.model_dump(mode="json")

    again = CountingPool(chat_model)
    assert sweep(settings, pool=again) == summary
    assert again.tasks == []


class Stopping(CountingPool):
    """Breaks down before the task of this number."""

    left = 0

    def run(self, tasks: Iterable[Task]) -> Generator[TaskResult]:
        for task in tasks:
            if not self.left:
                raise RuntimeError("stopped")
            self.left -= 1
            yield from super().run([task])


def test_a_sweep_goes_on_where_it_stopped(settings: SweepSettings, chat_model: str, tmp_path: Path) -> None:
    whole = CountingPool(chat_model)
    expected = sweep(settings.model_copy(update={"out": tmp_path / "whole"}), pool=whole)
    done: list[Task] = []
    for stop in (3, 9, 13):
        part = Stopping(chat_model)
        part.left = stop - len(done)
        with pytest.raises(RuntimeError, match="stopped"):
            sweep(settings, pool=part)
        done += part.tasks
        assert len(done) == stop
    rest = CountingPool(chat_model)
    assert sweep(settings, pool=rest).sweep == expected.sweep
    assert [task.id for task in [*done, *rest.tasks]] == [task.id for task in whole.tasks]


def test_all_recipes_learn_the_same_edits_of_a_document(make: Make, chat_model: str) -> None:
    more = {"edits": 2, "regime": "document", "max_missing_edits": 0.1, "task_size": 1}
    chosen = make(SweepSettings, 6, editor=("self",), grid=("epochs=1,2",), **more)
    stopped = Stopping(chat_model)
    stopped.left = 12 + 1 + 2
    stopped.gives_up = lambda task: task.id == "edits/0/self/7"
    with pytest.raises(RuntimeError, match="stopped"):
        sweep(chosen, pool=stopped)
    assert len(stopped.fits) == 2
    sweep(chosen, pool=(pool := CountingPool(chat_model)))
    assert len(pool.fits) == 2 * 6 - 2
    assert not [task.id for task in pool.tasks if task.id.startswith("edits/")]
    with Store(chosen.out / "run.sqlite", readonly=True) as store:
        assert len(store.edits(writer="self")) == 11


def test_few_recipes_are_tried_on_all_documents(settings: SweepSettings, chat_model: str) -> None:
    few = settings.model_copy(update={"editor": ("passage", "open-book"), "grid": ("epochs=1,2",)})
    pool = CountingPool(chat_model)
    summary = sweep(few, pool=pool)
    assert summary.documents == 8
    assert [c.name for c in summary.conditions] == ["none", "passage [1]", "passage [2]", "open-book"]
    assert len(pool.fits) == 2 * 8
    assert not any(isinstance(task, CompletionTask) and task.id.startswith("edits") for task in pool.tasks)
    # Alike shapes share a bank, whatever the recipe.
    shared = [{id.split("|")[1] for id in task.ids} for task in pool.tasks if isinstance(task, FitTask)]
    assert any(len(names) == 2 for names in shared)


def test_the_example_is_a_sweep() -> None:
    given = read_yaml(Path(__file__).parents[2] / "examples" / "sweep.yaml", "the example")
    found = list_candidates(make_settings(SweepSettings, given))
    assert len({one.recipe.model_dump_json() for one in found}) == 8


def test_where_nothing_is_left(settings: SweepSettings) -> None:
    with pytest.raises(UserError, match="no recipe is left: under each some fits failed; try lower learning rates"):
        sweep(settings.model_copy(update={"editor": ("passage",), "grid": ("learning_rate=1e30,2e30",)}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"editor": ("none",)}, "--editor none: there is nothing to learn from"),
        ({"editor": ("magic",)}, "there is no kind of editor called 'magic'"),
        ({"validation_share": 0.2}, "at least 6 validation documents .* and there are 2; give more, with --validation"),
        ({"grid": ()}, "a sweep tries at least 2 recipes"),
    ],
)
def test_what_cannot_be_swept_is_refused(settings: SweepSettings, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        sweep(settings.model_copy(update=changes))
    assert "\n" not in str(caught.value)
    assert not (settings.out / "config.yaml").exists()
