"""Step B end to end on a tiny model: rounds, rewards, selection, validation, and what is said when something is
missing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from counting_pool import CountingPool, blow_up
from making import Make
from peft import PeftConfig

from overlap_grader import overlap_grader  # noqa: F401
from selfedit.editors.cleaning import about, clean
from selfedit.engine import DecodeRequest, decode, merge_adapter
from selfedit.errors import UserError
from selfedit.evaluation.statistics import DocumentScore
from selfedit.execution.tasks import Task
from selfedit.methods.compare import compare
from selfedit.methods.plan import plan
from selfedit.methods.restem import train
from selfedit.methods.rounds import select_round, worth_it
from selfedit.methods.settings import CompareSettings, TrainSettings
from selfedit.methods.tracking import open_tracker
from selfedit.models import load_model
from selfedit.prompts import Prompts
from selfedit.reports import format, table, watching
from selfedit.reports.findings import model_row
from selfedit.reports.records import read_run
from selfedit.runs.records import CostRecord
from selfedit.runs.seeds import derive_seed
from selfedit.runs.store import Store
from selfedit.runs.summary import RoundSummary, Summary
from summary_fields import undeclared
from tiny_world import SMALL, rows, write_rows


@pytest.fixture(scope="module")
def trained(chat_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSettings, Summary]:
    folder = tmp_path_factory.mktemp("train")
    settings = TrainSettings(
        model=chat_model,
        documents=(str(write_rows(folder / "documents.jsonl", rows(6))),),
        validation_share=0.34,
        rounds=2,
        edits=3,
        replicates=2,
        outer_set={"rank": 4, "learning_rate": 3e-3},
        grader="overlap",
        **{**SMALL, "out": folder / "run"},
    )
    return settings, train(settings)


def opened(settings: TrainSettings | CompareSettings) -> Store:
    return Store(settings.out / "run.sqlite", readonly=True)


def with_policy(settings: TrainSettings, folder: Path, documents: list[dict[str, Any]], **more: Any) -> CompareSettings:
    """A comparison, on these documents, that takes the policy of a run of `train`."""
    file = write_rows(folder / "test.jsonl", documents)
    given = {"model": settings.model, "documents": (str(file),), "editor": ("none",), "policy": settings.out}
    return CompareSettings(**{**SMALL, "out": folder / "run", **given, **more})


def test_rewards_are_means_over_replicates_and_the_best_edit_of_each_document_is_kept(
    trained: tuple[TrainSettings, Summary],
) -> None:
    settings, summary = trained
    with opened(settings) as store:
        training = {d.id for d in store.documents("train")}
        assert len(training) == 4
        for number in (1, 2):
            edits = store.edits(round=number, writer="train")
            assert {e.document_id for e in edits} == training
            assert len(edits) == 12
            for edit in edits:
                scores = [a.score for a in store.scored_answers("overlap", round=number) if a.edit_id == edit.id]
                assert len(scores) == 4  # two questions, two replicates
                assert edit.reward == pytest.approx(sum(scores) / 4)
            for document in training:
                group = [e for e in edits if e.document_id == document and e.text]
                kept = [e for e in group if e.kept]
                assert len(kept) == 1
                assert kept[0].reward == max(e.reward for e in group)
        assert summary.rounds is not None
        for round in summary.rounds:
            rewards = [e.reward for e in store.edits(round=round.round, writer="train")]
            assert round.train_reward == pytest.approx(sum(rewards) / len(rewards))
            assert round.kept_edits == 4


def test_validation_documents_are_apart_and_every_round_is_examined_on_them(
    trained: tuple[TrainSettings, Summary],
) -> None:
    settings, summary = trained
    with opened(settings) as store:
        validation = {d.id for d in store.documents("validation")}
        assert len(validation) == 2
        assert not validation & {e.document_id for e in store.edits(writer="train")}
        for number in (0, 1, 2):
            assert {e.document_id for e in store.edits(round=number, writer="validation")} == validation
            assert len(store.fits(round=number, condition="validation")) == 4
        scores = [a.score for a in store.scored_answers("overlap", round=2, condition="validation")]
    assert summary.rounds is not None
    assert summary.rounds[1].validation_accuracy == pytest.approx(sum(scores) / len(scores))
    assert summary.selected_round in (0, 1, 2)
    assert [r.round for r in summary.rounds] == [1, 2]


def test_each_round_leaves_a_small_checkpoint_that_names_its_model(trained: tuple[TrainSettings, Summary]) -> None:
    settings, _ = trained
    for number in (1, 2):
        folder = settings.out / "checkpoints" / f"round-{number:02d}"
        assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        config = PeftConfig.from_pretrained(str(folder))
        assert (config.r, config.base_model_name_or_path) == (4, settings.model)


def test_later_rounds_are_written_by_a_changed_policy(trained: tuple[TrainSettings, Summary]) -> None:
    """The edits of round 2 are what the base model with both deltas merged writes."""
    settings, _ = trained
    model = load_model(settings.model, device="cpu", dtype="float32")
    with opened(settings) as store:
        stored = store.edits(round=2, writer="validation")
        asked = {d.id: d for d in store.documents("validation")}
    for number in (1, 2):
        merge_adapter(model.hf, settings.out / "checkpoints" / f"round-{number:02d}")
    for edit in stored:
        document = asked[edit.document_id]
        text = Prompts().edit("implications", instruct=True, title=document.title, text=document.text)
        request = DecodeRequest(
            tuple(model.tokenizer.prompt_ids(text)),
            settings.max_edit_tokens,
            model.tokenizer.stop_ids,
            temperature=1.0,
            top_p=0.95,
            seed=derive_seed(0, "edit", 2, document.id, "validation", 0),
        )
        (completion,) = decode(model.hf, [request])
        assert len(completion.ids) == edit.output_tokens
        written, _ = clean(
            model.tokenizer.decode(completion.ids), cut_off=len(completion.ids) == settings.max_edit_tokens
        )
        written, _ = about(written, f"{document.title}\n{document.text}")
        assert edit.text.splitlines()[:1] == written.splitlines()[:1]


def test_the_paragraph_says_what_the_figures_say(trained: tuple[TrainSettings, Summary]) -> None:
    _, summary = trained
    text = summary.worth_it
    assert "On 2 validation documents the untrained model's accuracy is" in text
    assert "within noise" in text
    assert f"Round {summary.selected_round} is selected" in text or "so round 0 is selected" in text


def test_a_round_s_device_time_is_its_own_and_that_of_step_a_the_validation_s(
    trained: tuple[TrainSettings, Summary],
) -> None:
    settings, summary = trained
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        costs = store.costs()
    for round in summary.rounds:
        spent = sum(line.seconds for line in costs if line.round == round.round)
        assert round.device_seconds == pytest.approx(spent)
        assert spent > 0
    dollars = [
        CostRecord("fits", condition, round, seconds=60.0, usd=1.0)
        for condition, round in (("none", 0), ("validation", 0), ("train", 1), ("validation", 1), ("train", 2))
    ]
    run = rounds_with({0: uniform(0.3), 1: uniform(0.7)})
    run.store.costs = lambda: dollars
    said = "Step A took 1.0 device minutes and 1.00 US dollars; Step B 3.0 device minutes and 3.00 US dollars."
    assert said in worth_it(run, list(uniform(0.3)), 1)


def test_readers_know_every_field_of_the_summary(trained: tuple[TrainSettings, Summary]) -> None:
    settings, summary = trained
    assert list(undeclared(summary)) == []
    assert summary.seconds is not None
    run = read_run(settings.out)
    assert run.summary == summary
    assert f" · {format.seconds(summary.seconds)}" in table.facts(run)
    rounds = [round.seconds for round in summary.rounds]
    assert all(seconds is not None and seconds > 0 for seconds in rounds)
    assert sum(seconds or 0.0 for seconds in rounds) < summary.seconds


def test_a_round_s_seconds_are_those_of_all_attempts(
    small_train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task takes 10 seconds; an interrupted run loses the time of the task under way, and no other."""
    now = 0.0
    monkeypatch.setattr("selfedit.runs.database.time", SimpleNamespace(monotonic=lambda: now))

    class Stop(Exception):
        pass

    def attempt(settings: TrainSettings, stop_after: int | None = None) -> tuple[Summary | None, int]:
        pool = CountingPool(settings.model)

        def work(task: Task) -> Task:
            nonlocal now
            if len(pool.tasks) == stop_after:
                raise Stop
            now += 10
            return task

        pool.alter = work
        try:
            return train(settings, pool=pool), len(pool.tasks)
        except Stop:
            return None, len(pool.tasks)

    whole, tasks = attempt(TrainSettings(**{**small_train, "rounds": 1, "task_size": 2}))
    settings = TrainSettings(**{**small_train, "rounds": 1, "task_size": 2, "out": small_train["out"].with_name("cut")})
    for _ in range(3):
        assert attempt(settings, stop_after=tasks // 3)[0] is None
        now += 1000  # between two attempts
    cut, _ = attempt(settings)
    assert whole is not None
    assert cut is not None
    assert cut.rounds[0].seconds == whole.rounds[0].seconds
    assert cut.seconds == whole.seconds == 10 * tasks


def test_a_finished_run_does_nothing_again(trained: tuple[TrainSettings, Summary]) -> None:
    settings, summary = trained
    before = (settings.out / "summary.json").read_bytes()
    pool = CountingPool(settings.model)
    assert train(settings, pool=pool) == summary
    assert pool.tasks == []
    assert (settings.out / "summary.json").read_bytes() == before


def pretend_selected(monkeypatch: pytest.MonkeyPatch, summary: Summary, round: int) -> None:
    monkeypatch.setattr(
        "selfedit.methods.policies.RunDirectory.read_summary",
        lambda _: summary.model_copy(update={"selected_round": round}),
    )


def test_the_selected_policy_becomes_a_condition_of_compare(
    trained: tuple[TrainSettings, Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, summary = trained
    pretend_selected(monkeypatch, summary, 2)
    pool = CountingPool(settings.model)
    compared = compare(with_policy(settings, tmp_path, rows(8)[6:], editor=("none", "self")), pool=pool)
    assert [c.name for c in compared.conditions] == ["none", "self", "trained:implications"]
    assert {task.policy for task in pool.tasks} == {(), ("round-01", "round-02")}
    assert compared.differences is not None
    assert {(d.a, d.b) for d in compared.differences} >= {("self", "trained:implications")}


def test_a_policy_is_another_rounds_only_where_asked_and_seen_documents_are_told(
    trained: tuple[TrainSettings, Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, summary = trained
    pretend_selected(monkeypatch, summary, 0)
    asked = with_policy(settings, tmp_path, [rows(8)[0], rows(8)[7]])
    pool = CountingPool(settings.model)
    with pytest.raises(UserError, match=r"it selected round 0, the untrained model itself.*--policy-round N"):
        compare(asked, pool=pool)
    with pytest.raises(UserError, match=r"--policy-round 3: .* has 2 rounds"):
        compare(asked.model_copy(update={"policy_round": 3, "out": tmp_path / "third"}), pool=pool)
    with pytest.raises(UserError, match=r"--policy-round: of which run"):
        compare(asked.model_copy(update={"policy": None, "policy_round": 1, "out": tmp_path / "none"}), pool=pool)
    assert pool.tasks == []
    first = asked.model_copy(update={"policy_round": 1, "out": tmp_path / "first"})
    compare(first, pool=pool)
    assert {task.policy for task in pool.tasks} == {(), ("round-01",)}
    with Store(first.out / "run.sqlite", readonly=True) as store:
        (told,) = store.events("policy not selected")
        assert "the policy is round 1's" in told.message
        (told,) = store.events("documents seen in training")
        assert "1 of 2 documents have titles" in told.message


def test_each_rounds_policy_is_a_condition_if_asked(
    trained: tuple[TrainSettings, Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, summary = trained
    asked = with_policy(settings, tmp_path, rows(8)[7:], policy_round="all")
    pretend_selected(monkeypatch, summary, 2)
    pool = CountingPool(settings.model)
    compared = compare(asked, pool=pool)
    names = [condition.name for condition in compared.conditions]
    assert names == ["none", "trained:implications round 1", "trained:implications round 2 (selected)"]
    assert {task.policy for task in pool.tasks} == {(), ("round-01",), ("round-01", "round-02")}
    row = model_row("run", compared)
    assert row.trained is not None
    assert row.trained.name == names[2]
    # The untrained model may be the selected one; then no round is.
    pretend_selected(monkeypatch, summary, 0)
    again = compare(asked.model_copy(update={"out": tmp_path / "none"}), pool=pool)
    assert [condition.name for condition in again.conditions][1:] == [
        "trained:implications round 1",
        "trained:implications round 2",
    ]
    # What was selected on test documents says so wherever it is named.
    pretend_selected(monkeypatch, summary.model_copy(update={"selected_on": "test"}), 2)
    marked = asked.model_copy(update={"policy_round": None, "out": tmp_path / "marked"})
    assert [condition.name for condition in compare(marked, pool=pool).conditions][1:] == [
        "trained:implications (selected on test documents)"
    ]


def test_a_policy_of_another_model_is_refused(trained: tuple[TrainSettings, Summary], tmp_path: Path) -> None:
    settings, _ = trained
    other = shutil.copytree(settings.model, tmp_path / "other")
    with pytest.raises(
        UserError, match=r"its checkpoints belong to model .*tiny-chat, not .*other; give the same --model"
    ):
        compare(with_policy(settings, tmp_path, rows(1), model=str(other)))


def test_a_policy_must_be_a_finished_run_of_train(make: Make) -> None:
    first = make(CompareSettings, 1, editor=("none",))
    compare(first)
    again = first.model_copy(update={"policy": first.out, "out": first.out.with_name("again")})
    with pytest.raises(UserError, match=r"run: a run of compare, not of train"):
        compare(again)


@pytest.mark.parametrize("rule", ["above-baseline", "top-fraction"])
def test_other_rules_of_selection(small_train: dict[str, Any], rule: str) -> None:
    # So many edits that of each round some beat the model as it is, however a processor rounds.
    settings = TrainSettings(**{**small_train, "edits": 6}, grader="overlap", select=rule, top_fraction=0.5)
    summary = train(settings)
    assert summary.rounds is not None
    with opened(settings) as store:
        for round in summary.rounds:
            edits = [e for e in store.edits(round=round.round, writer="train") if e.text]
            kept = [e for e in edits if e.kept]
            assert len(kept) == round.kept_edits
            if rule == "top-fraction":
                assert len(kept) == -(-len(edits) // 2)
                assert min(e.reward for e in kept) >= max(e.reward for e in edits if not e.kept)
                continue
            condition, number = ("none", 0) if round.round == 1 else ("baseline", 2)
            baseline: dict[str, list[float]] = {}
            for a in store.scored_answers("overlap", condition=condition, round=number):
                baseline.setdefault(str(a.document_id), []).append(float(a.score or 0))
            for edit in edits:
                scores = baseline[edit.document_id]
                assert edit.kept == (edit.reward > sum(scores) / len(scores))


def test_edits_are_held_against_the_passage_alone(small_train: dict[str, Any]) -> None:
    settings = TrainSettings(
        **{**small_train, "set": {**small_train["set"], "document_copies": 0}},
        grader="overlap",
        select="above-baseline",
        baseline="passage",
    )
    planned = plan(train, settings)

    def stop(task: Task) -> Task:
        if task.id.startswith("round 2 passages alone"):
            raise KeyboardInterrupt
        return task

    pool = CountingPool(settings.model)
    pool.alter = stop
    with pytest.raises(KeyboardInterrupt):
        train(settings, pool=pool)
    pool.alter, pool.tasks = lambda task: task, pool.tasks[:-1]
    summary = train(settings, pool=pool)
    assert len([id for id in pool.fits if "|passage|" in id]) == 2 * 4
    assert len(pool.fits) == len(set(pool.fits)) == planned.fits - settings.rounds
    with opened(settings) as store:
        assert sum(fit.train_tokens for fit in store.fits()) < planned.train_tokens
    assert summary.rounds is not None
    with opened(settings) as store:
        spent = {(cost.what, cost.round) for cost in store.costs() if cost.condition == "passage"}
        for round in summary.rounds:
            alone: dict[str, list[float]] = {}
            for a in store.scored_answers("overlap", condition="passage", round=round.round):
                alone.setdefault(str(a.document_id), []).append(float(a.score or 0))
            edits = [e for e in store.edits(round=round.round, writer="train") if e.text]
            for edit in edits:
                assert edit.kept == (edit.reward > sum(alone[edit.document_id]) / len(alone[edit.document_id]))
            assert round.above_passage == len({e.document_id for e in edits if e.kept}) > 0
            assert round.passage_alone is not None
            assert round.passage_alone.documents == 4
            assert round.passage_alone.accuracy == pytest.approx(sum(map(sum, alone.values())) / 8)
    assert spent == {("fits", 1), ("fits", 2)}
    (note,) = [note for note in table.rounds(summary.rounds[1:], None).notes if "passage" in note]
    assert note.startswith("Round 2: the passage alone earns ")
    assert f"of {summary.rounds[1].above_passage} of 4 documents an edit earned more, and was kept." in note
    assert watching.planned_fits(read_run(settings.out)) == len(pool.fits)


def test_only_one_rule_has_a_baseline(small_train: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"--baseline passage: only --select above-baseline .* --select best-of-k"):
        train(TrainSettings(**small_train, baseline="passage"))


def test_where_no_edit_is_kept_the_run_says_so(small_train: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "selfedit.methods.restem.baseline_of", lambda *_: dict.fromkeys(("d0", "d1", "d2", "d3", "d4", "d5"), 1.0)
    )
    with pytest.raises(UserError, match=r"round 1: no edit was kept by --select above-baseline.*sample more edits"):
        train(TrainSettings(**small_train, select="above-baseline"))


def test_one_edit_a_document_leaves_nothing_to_select(small_train: dict[str, Any]) -> None:
    settings = TrainSettings(**{**small_train, "edits": 1, "rounds": 1})
    summary = train(settings)
    assert summary.rounds is not None
    with opened(settings) as store:
        (event,) = store.events("nothing to select")
        assert "--edits 1 with best-of-k" in event.message
        kept = [e for e in store.edits(writer="train") if e.kept]
        assert len(kept) == sum(bool(e.text) for e in store.edits(writer="train"))


def test_without_validation_the_last_round_is_taken_and_that_is_said(small_train: dict[str, Any]) -> None:
    settings = TrainSettings(**{**small_train, "validation_share": 0, "rounds": 1})
    summary = train(settings)
    assert summary.selected_round == 1
    assert summary.rounds is not None
    assert summary.rounds[0].validation_accuracy is None
    assert list(undeclared(summary)) == []
    with opened(settings) as store:
        assert store.documents("validation") == []
        (event,) = store.events("no validation")
    assert "--validation-share 0" in event.message
    assert "nothing can be said about whether training the editor helped" in summary.worth_it


def test_validation_documents_of_ones_own(small_train: dict[str, Any], tmp_path: Path) -> None:
    own = rows(8)[6:]
    file = write_rows(tmp_path / "validation.jsonl", own)
    settings = TrainSettings(**{**small_train, "rounds": 1}, validation=(str(file),))
    train(settings)
    with opened(settings) as store:
        assert [d.id for d in store.documents("validation")] == ["d6", "d7"]
        assert len(store.documents("train")) == 6

    own[1]["title"] = "ADA and the KITE"
    file = write_rows(tmp_path / "validation.jsonl", own)
    with pytest.raises(UserError, match="--validation: title 'ADA and the KITE' is among the training documents too"):
        train(TrainSettings(**{**small_train, "out": tmp_path / "other"}, validation=(str(file),)))


def test_fewer_documents_than_the_split_needs(small_train: dict[str, Any], documents: Callable[[int], str]) -> None:
    with pytest.raises(UserError, match="1 documents have 1 titles, too few for the 2 splits training, validation"):
        train(TrainSettings(**{**small_train, "documents": (documents(1),)}))


def test_a_reward_needs_a_fit_that_succeeded(small_train: dict[str, Any]) -> None:
    """All fits of one document turn NaN: its edits have no reward and none is kept; the others go on."""
    settings = TrainSettings(**{**small_train, "rounds": 1, "validation_share": 0})
    pool = CountingPool(settings.model)

    pool.alter = blow_up("1|d2|")
    summary = train(settings, pool=pool)
    with opened(settings) as store:
        by_document: dict[str, list[Any]] = {}
        for edit in store.edits(round=1):
            by_document.setdefault(edit.document_id, []).append(edit)
        assert [e.reward for e in by_document.pop("d2")] == [None, None]
        assert all(e.reward is not None for group in by_document.values() for e in group)
        assert not any(e.kept for e in store.edits(round=1, document_id="d2"))
    assert summary.events is not None
    assert summary.events["failed fit"] == 2


def rounds_with(scores: dict[int, dict[str, DocumentScore]]) -> Any:
    """As much of a run as choosing a round looks at."""
    return SimpleNamespace(
        store=SimpleNamespace(rounds=lambda: [RoundSummary(round=k) for k in scores if k], costs=list),
        grading=SimpleNamespace(
            scores=lambda condition, *, round=None: scores.get(round, {}) if condition == "validation" else scores[0]
        ),
    )


def uniform(accuracy: float) -> dict[str, DocumentScore]:
    return {f"d{k}": DocumentScore(10 * accuracy, 10) for k in range(8)}


def few(accuracy: float) -> dict[str, DocumentScore]:
    return dict(list(uniform(accuracy).items())[:5])


def noisy(mean: float, swing: float) -> dict[str, DocumentScore]:
    return {f"d{k}": DocumentScore(10 * (mean + (swing if k % 2 else -swing)), 10) for k in range(8)}


@pytest.mark.parametrize(
    ("scores", "selected"),
    [
        ({0: uniform(0.3), 1: uniform(0.5), 2: uniform(0.5)}, 1),  # equals: the earlier one
        ({0: uniform(0.1), 1: uniform(0.5), 2: uniform(0.9)}, 2),  # a sure gain each time
        ({0: few(0.1), 1: few(0.9)}, 0),  # five documents show nothing, whatever they gain
        ({0: uniform(0.3), 1: uniform(0.5), 2: uniform(0.4)}, 1),  # the last one is worse
        ({0: uniform(0.5), 1: uniform(0.4), 2: uniform(0.3)}, 0),  # training does harm
        ({0: uniform(0.0), 1: noisy(0.5, 0.3), 2: noisy(0.52, -0.3)}, 1),  # two points within noise
        ({0: noisy(0.5, 0.3), 1: noisy(0.52, -0.3)}, 0),  # nothing but noise: the untrained model
        ({0: uniform(0.3), 1: {}, 2: uniform(0.6)}, 2),  # a round without scores is passed over
    ],
)
def test_the_earlier_round_wins_within_noise(scores: dict[int, dict[str, DocumentScore]], selected: int) -> None:
    documents: Any = ["some validation documents"]
    assert select_round(rounds_with(scores), documents) == selected


def test_without_validation_documents_the_last_round_is_selected() -> None:
    assert select_round(rounds_with({0: {}, 1: {}, 2: {}}), []) == 2


@pytest.mark.parametrize(
    ("scores", "selected", "says"),
    [
        ({0: uniform(0.3), 1: uniform(0.7)}, 1, "Round 1 is selected. Its gain is larger than noise"),
        ({0: uniform(0.5), 1: uniform(0.4)}, 0, "do not recommend training the editor"),
    ],
)
def test_the_recommendation_follows_from_the_intervals(
    scores: dict[int, dict[str, DocumentScore]], selected: int, says: str
) -> None:
    text = worth_it(rounds_with(scores), list(scores[0]), selected)
    assert says in text
    assert ("by a further +40.0 points (" in text) == (selected == 1)
    assert "fewer than 6" not in text


def test_the_paragraph_says_on_how_many_documents_a_difference_is_and_whose_they_are() -> None:
    scores = {0: uniform(0.3), 1: dict(list(uniform(0.7).items())[:7])}
    text = worth_it(rounds_with(scores), [*scores[0], "not graded"], 1, "test")
    assert text.startswith("On 8 test documents the untrained model's accuracy is 30.0% before")
    assert re.search(r"by a further \+40\.0 points \([^)]*, on 7 of them\)\.", text)
    assert text.count("of them") == 1
    one = dict(list(uniform(0.3).items())[:1])
    alone = worth_it(rounds_with({0: one, 1: one}), list(one), 1)
    assert alone.startswith("On 1 validation document the")
    assert text.endswith("confirm it on new documents with `selfedit compare --policy`.")


def test_few_validation_documents_are_said_to_show_nothing() -> None:
    text = worth_it(rounds_with({0: few(0.1), 1: few(0.9)}), list(few(0.1)), 0)
    assert "With fewer than 6 validation documents nothing can be larger than noise" in text
    assert "do not recommend training the editor" in text


def test_the_paragraph_stands_where_nothing_was_graded() -> None:
    text = worth_it(rounds_with({0: {}, 1: uniform(0.5)}), ["d0"], 1)
    assert "nothing can be said about whether training the editor helped" in text


def test_a_tracker_that_is_not_installed_is_missed_before_any_work(
    small_train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfedit.methods.tracking.find_spec", lambda name: None)
    pool = CountingPool(small_train["model"])
    with pytest.raises(UserError, match=r"--track wandb: wandb is not installed; run `pip install"):
        train(TrainSettings(**small_train, track="wandb"), pool=pool)
    assert pool.tasks == []


def test_a_tracker_is_finished_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.tracking import TensorBoardTracker

    finished: list[str] = []
    monkeypatch.setattr(TensorBoardTracker, "finish", lambda tracker: finished.append(tracker.run_name))
    with pytest.raises(KeyboardInterrupt), open_tracker("tensorboard", tmp_path / "run", {}):
        raise KeyboardInterrupt
    assert finished == ["run"]


def test_metrics_of_each_round_go_to_tensorboards_files(small_train: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = TrainSettings(**small_train, track="tensorboard")
    summary = train(settings)
    logged: dict[str, dict[int, float]] = {}
    for file in (settings.out / "track").rglob("events*"):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            logged.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    assert summary.rounds is not None
    for name in ("train_reward", "validation_accuracy", "kept_edits"):
        assert logged[name] == pytest.approx({round.round: getattr(round, name) for round in summary.rounds})
    assert len(logged["train_reward"]) == 2
