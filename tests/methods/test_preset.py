"""`--preset seal`: what it sets, what goes before it, and what its settings do to a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from all_methods import METHODS

from selfedit.cli.flags import Parser, add_settings, read_settings
from selfedit.documents import Document
from selfedit.errors import UserError
from selfedit.evaluation.exam import Exam
from selfedit.methods.compare import compare
from selfedit.methods.plan import plan
from selfedit.methods.restem import train
from selfedit.methods.settings import (
    CompareSettings,
    ContinualSettings,
    LearnSettings,
    Settings,
    TrainSettings,
    make_settings,
)
from selfedit.models import load_tokenizer
from selfedit.presets import NAMES, read_preset
from selfedit.prompts import Prompts
from selfedit.reports.console import plain_text
from selfedit.reports.records import read_run
from selfedit.reports.table import summary_view
from selfedit.runs.directory import RunDirectory
from selfedit.runs.store import Store
from selfedit.training.jobs import Jobs
from selfedit.training.recipes import load_recipe
from tiny_world import rows, write_rows

KINDS = {name: kind for name, (_, kind) in METHODS.items()}


def command_line(kind: type[Settings], *words: str) -> Settings:
    parser = Parser()
    add_settings(parser, kind)
    return read_settings(kind, parser.parse_args(words))


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_names_settings_and_recipes_that_there_are(name: str) -> None:
    parts = dict(read_preset(name))
    for recipe in parts.pop("recipes"):
        assert load_recipe(recipe).name == recipe
    for key in parts.pop("every command"):
        assert key in Settings.model_fields or key == "edit_prompt"
    for command, values in parts.items():
        assert set(values) <= set(KINDS[command.split()[0]].model_fields), command
    for kind in KINDS.values():
        settings = kind(preset=name)
        assert load_recipe(settings.recipe).name in read_preset(name)["recipes"]


def test_what_is_given_goes_before_a_preset(tmp_path: Path) -> None:
    published = command_line(TrainSettings, "--preset", "seal")
    assert isinstance(published, TrainSettings)
    assert (published.edits, published.replicates, published.documents_per_round, published.ties) == (5, 3, 50, "first")
    assert (published.outer_recipe, published.recipe, published.grader) == ("seal-outer", "seal", "judge:gpt-4.1")
    assert (published.max_edit_tokens, published.temperature, published.top_p) == (8192, 1.0, 0.95)
    assert not published.clean
    assert published.whole_answers
    config = tmp_path / "mine.yaml"
    config.write_text("preset: seal\nedits: 2\nties: shorter\n")
    mine = command_line(TrainSettings, "--config", str(config), "--ties", "first", "--clean")
    assert isinstance(mine, TrainSettings)
    assert (mine.edits, mine.ties, mine.clean, mine.replicates) == (2, "first", True, 3)
    assert CompareSettings(preset="seal").recipe == "seal"
    joint = CompareSettings(preset="seal", regime="joint")
    assert (joint.recipe, joint.edits) == ("seal-joint", 5)
    assert CompareSettings(preset="seal", regime="joint", edits=1).edits == 1
    assert ContinualSettings(preset="seal").retain == ("none",)
    assert ContinualSettings(preset="seal", retain=("kl",)).retain == ("kl",)
    assert LearnSettings(preset="seal").adapters == "joint"
    with pytest.raises(UserError, match="--preset 'seel': Input should be 'seal'"):
        make_settings(CompareSettings, {"preset": "seel"})


RAW = "Sure, here it is:\n1. Bo made a lamp.\n\n2. Bo made a lamp.\n3. It cost 4"


def test_edits_are_learned_as_they_were_written(
    quick: dict[str, Any], chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {**rows(2)[1], "edits": {"me": [f"\n{RAW} "]}}
    quick["set"] = {name: value for name, value in quick["set"].items() if name != "cutting"}  # the preset's
    settings = CompareSettings(
        **quick,
        preset="seal",
        model=chat_model,
        documents=(str(write_rows(tmp_path / "one.jsonl", [row])),),
        editor=(f"replay:{tmp_path / 'one.jsonl'}",),
        grader="lexical",
    )
    compare(settings)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        (edit,) = store.edits()
        assert (edit.text, edit.dropped_lines, edit.truncated) == (RAW, 0, False)
        (fit,) = store.fits(condition=edit.writer)
        title = f"{row['title']}\n"
        lines = ("1. Bo made a lamp.", "2. Bo made a lamp.", "3. It cost 4", str(row["text"]))
        assert fit.sequences == tuple(title + line for line in lines)
        (told,) = store.events("prompts of our own")
    assert "`selfedit import-seal`" in told.message
    assert RunDirectory.read(settings.out).config["preset"] == "seal"


@pytest.mark.parametrize("chat", [True, False])
def test_padding_is_learned_where_it_is_asked_for(chat: bool, chat_model: str, base_model: str) -> None:
    tokenizer = load_tokenizer(chat_model if chat else base_model)
    jobs, (row,) = Jobs(tokenizer, 1024, Prompts()), rows(1)
    document = Document(row["id"], row["title"], row["text"])
    recipe = load_recipe("seal")
    for form in ("text", "auto"):
        plain, padded = (
            jobs.job([document], [RAW], recipe.with_settings({"form": form, "pad_to": size}), seed=0)[0].sequences
            for size in (None, 100)
        )
        assert len(plain) == len(padded) == 4
        for one, other in zip(plain, padded, strict=True):
            missing = 100 - len(one.ids)
            assert other.ids == (*one.ids, *[tokenizer.hf.eos_token_id] * missing)
            assert (other.prompt_length, other.labelled) == (one.prompt_length, one.labelled + missing)
    with pytest.raises(UserError, match="--set pad_to=2048: the model reads 1,024 tokens at the most"):
        jobs.job([document], [RAW], recipe.with_settings({"pad_to": 2048}), seed=0)


def test_all_that_a_base_model_wrote_is_its_answer_up_to_a_bound(base_model: str) -> None:
    tokenizer = load_tokenizer(base_model)
    ids = tokenizer.encode(" Oslo\nQuestion: Who?")
    for whole, answer in ((False, "Oslo"), (True, "Oslo\nQuestion: Who?")):
        assert Exam(tokenizer, 1024, Prompts(), max_tokens=64, whole=whole).answer(ids) == answer
    assert Exam(tokenizer, 1024, Prompts(), max_tokens=1, whole=True).answer(ids) == "Oslo\nQuestion: Who?"[:16]


def test_the_mean_of_documents_is_shown_where_it_is_another_figure(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, tmp_path: Path
) -> None:
    short, long = rows(2)
    short["questions"] = short["questions"][:1]
    gold = {question["answers"][0] for question in short["questions"]}
    settings = CompareSettings(
        **quick,
        model=chat_model,
        documents=(str(write_rows(tmp_path / "two.jsonl", [short, long])),),
        editor=("none",),
    )
    compare(settings)
    with Store(settings.out / "run.sqlite") as store, store.transaction():
        store._execute("UPDATE answers SET text = 'nothing'")
        store._execute("DELETE FROM grades")
        for (id,) in store._rows(
            "SELECT a.id FROM answers a JOIN questions q ON q.id = a.question_id WHERE q.document_id = 'd0'"
        ):
            store._execute("UPDATE answers SET text = ? WHERE id = ?", (gold.pop(), id))
    (none,) = compare(settings).conditions
    assert none.accuracy == pytest.approx(1 / 3)
    assert none.document_mean == pytest.approx(1 / 2)
    shown = plain_text(summary_view(read_run(settings.out)))
    assert "mean of documents: each" in shown
    assert "50.0" in shown


@pytest.fixture
def fresh(small_train: dict[str, Any], tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        **{
            **small_train,
            "documents": (str(write_rows(tmp_path / "six.jsonl", rows(6))),),
            "validation": (str(write_rows(tmp_path / "test.jsonl", rows(8)[6:])),),
            "documents_per_round": 2,
            "select_on": "test",
            "edits": 1,
        }
    )


def test_rounds_train_on_fresh_documents_and_a_selection_on_test_documents_is_marked(fresh: TrainSettings) -> None:
    planned = plan(train, fresh)
    summary = train(fresh)
    with Store(fresh.out / "run.sqlite", readonly=True) as store:
        stored = {document.id for document in store.documents("train")}
        first, second = ({e.document_id for e in store.edits(round=n, writer="train")} for n in (1, 2))
        assert {len(first), len(second)} == {2}
        assert first | second == stored
        assert not first & second
        assert len(store.fits(condition="train")) == 4
        assert planned.fits == 4 + 2 + 3 * 2  # of edits, of the editor, of validation documents
        (told,) = store.events("selected on test documents")
    assert "the 2 documents of --validation decide" in told.message
    assert summary.selected_on == json.loads((fresh.out / "summary.json").read_text())["selected_on"] == "test"
    shown = " ".join(plain_text(summary_view(read_run(fresh.out))).split())
    if summary.selected_round:
        assert "* selected on the test documents (--select-on test)" in shown


def test_too_few_documents_for_fresh_rounds_are_refused(fresh: TrainSettings) -> None:
    with pytest.raises(UserError, match="--documents-per-round 4: 2 rounds need 8 training documents, and there are 6"):
        train(fresh.model_copy(update={"documents_per_round": 4}))
    with pytest.raises(UserError, match="--select-on test: on which documents"):
        train(fresh.model_copy(update={"validation": ()}))
    assert not (fresh.out / "config.yaml").exists()
