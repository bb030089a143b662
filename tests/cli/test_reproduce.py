"""`selfedit reproduce`: the runs of a plan, resumed, planned, and their table."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from api_server import reply
from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.methods import reproduce as reproducing
from selfedit.methods.reproduce import Reproduction
from selfedit.reports.records import read_run
from selfedit.reports.watching import planned_fits
from selfedit.runs.costs import Spent
from selfedit.runs.directory import RunDirectory
from selfedit.runs.lock import RunLock
from selfedit.runs.summary import RoundSummary
from selfedit.training.recipes import load_recipe
from serving import needs_serving
from tiny_world import SMALL, rows, write_rows

Run = Callable[..., Any]

SHIPPED = Path(__file__).parents[2] / "examples" / "reproduce"
NOTE = "{} made a thing.\nIt cost 3 coins."


@pytest.fixture
def plan(chat_model: str, base_model: str, server: Any, tmp_path: Path) -> dict[str, Any]:
    """Two models; three documents to train on, two to validate, three for the test; an external editor with a price."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("models:\n  writer: {input: 100, output: 1000, date: 2026-01-01}\n")
    server.reply = lambda body: reply(NOTE.format(body["messages"][-1]["content"].split()[-1]))
    return {
        "settings": {**SMALL, "prices": str(prices), "usd_per_hour": 3, "api_base": server.url},
        "train": {
            "documents": str(write_rows(tmp_path / "train.jsonl", rows(5))),
            "validation_share": 0.4,
            "rounds": 1,
            "edits": 2,
            "replicates": 1,
            "outer_set": {"rank": 2},
        },
        "compare": {"documents": str(write_rows(tmp_path / "test.jsonl", rows(8)[5:]))},
        "external": "api:writer",
        "models": [chat_model, {"model": base_model, "name": "Base", "settings": {"instruct": False}}],
    }


@pytest.fixture
def words(tmp_path: Path) -> Callable[[dict[str, Any]], list[str]]:
    def write(plan: dict[str, Any]) -> list[str]:
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
        return ["reproduce", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out")]

    return write


def test_a_plan_is_run_and_its_table_has_every_editor(
    run: Run, plan: dict[str, Any], words: Callable[..., list[str]], server: Any, tmp_path: Path
) -> None:
    out, command = tmp_path / "out", words(plan)
    planned = json.loads(run(*command, "--plan", "--json").out)
    assert not out.exists()
    assert not server.completions
    # A server that dies in the middle stops it in one line, and the same command goes on.
    server.refuse = lambda body: {"error": {"message": "out of order"}} if server.completions[1:] else None
    stopped = run(*command)
    assert stopped.code == 2
    assert "Traceback" not in stopped.err
    assert "out of order" in stopped.err
    server.refuse = lambda body: None
    server.completions.clear()
    result = run(*command, "--json")
    assert result.code == 0
    assert result.err.count("round 1 rewards") == 1, "the first model's editor is not trained again"
    assert len(server.completions) == 2
    # The external editor is asked once about each document, whatever the number of models.
    assert yaml.safe_load((out / "Base" / "compare" / "config.yaml").read_text())["editor"] == [
        "none",
        "self",
        f"replay:{out / 'api-writer.jsonl'}",
    ]
    found = json.loads(result.out)
    assert found == json.loads((out / "reproduction.json").read_text())
    mine = [row for row in found["rows"] if not row["reported"]]
    assert [(row["model"], row["instruct"]) for row in mine] == [("tiny-chat", True), ("Base", False)]
    for row in mine:
        for part in ("none", "untrained", "trained", "external"):
            assert row[part]["graded"] == 6, part
        assert len(row["improvement"]["ci95"]) == 2
        gain = row["trained"]["accuracy"] - row["untrained"]["accuracy"]
        assert row["improvement"]["difference"] == pytest.approx(gain, abs=0.2)  # of documents, and of answers
        assert row["external_usd"] == pytest.approx(3 * (10 * 100 + 5 * 1000) / 1e6)
        assert row["trained_usd"] > 0
    assert {row["reported"] for row in found["rows"]} == {"", "paper", "reproduction"}
    for name in ("reproduction.html", "reproduction.png", "reproduction.svg"):
        assert (out / name).stat().st_size > 0
        assert (out / name).stat().st_mode & 0o077 == 0
    page = (out / "reproduction.html").read_text()
    for text in (page, result.err):
        for told in ("Base", "[paper]", "trained", "arXiv 2506.10943", "39.7"):
            assert told in text

    # The plan was the most that it could take.
    assert set(planned["runs"]) == {
        f"{model}/{kind}" for model in ("tiny-chat", "Base") for kind in ("train", "compare")
    }
    for name, most in planned["runs"].items():
        with RunDirectory.read(out / name) as done:
            fits = [fit for fit in done.store.fits() if fit.sequences]
            assert sum(fit.train_tokens for fit in fits) <= most["train_tokens"]
            assert len(fits) + len(done.store.rounds()) == most["fits"]  # and one of the editor per round
            assert planned_fits(read_run(out / name)) == len(fits)
            spent = [line for line in done.store.costs() if not line.seconds]
            assert (Spent.of(spent).usd or 0.0) <= most["cost_usd"]
    assert planned["total"]["fits"] == sum(most["fits"] for most in planned["runs"].values())
    first = planned["runs"]["tiny-chat/compare"]
    assert 3 * (10 * 100 + 5 * 1000) / 1e6 <= first["edits_usd"] == first["cost_usd"]
    assert (planned["runs"]["tiny-chat/compare"]["calls"], planned["runs"]["Base/compare"]["calls"]) == (3, 0)

    # The same command does nothing again.
    files = {path: path.read_bytes() for path in out.rglob("*.*") if path.suffix in (".json", ".html", ".png", ".svg")}
    again = run(*command, "--json")
    assert json.loads(again.out) == found
    assert "exam (none)" not in again.err
    assert {path: path.read_bytes() for path in files} == files
    assert len(server.completions) == 2


@pytest.mark.parametrize(("selected", "compared"), [(0, 2), (1, None)])
def test_the_selected_round_is_compared_or_the_last_where_it_is_the_untrained_editor(
    selected: int, compared: int | None, plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(method: Callable[..., Any], settings: Any) -> None:
        done.append(settings)
        with RunDirectory.open(settings.out, {"procedure": method.__name__}) as run:
            for number in (1, 2):
                run.store.put_round(RoundSummary(round=number))

    done: list[Any] = []
    monkeypatch.setattr(reproducing, "selected_round", lambda run: selected)
    reproduction = Reproduction.model_validate({**plan, "external": None})
    reproducing.reproduce(reproduction, tmp_path, perform)
    trained, compares, _, last = done
    assert (trained.out, compares.policy) == (tmp_path / "tiny-chat" / "train",) * 2
    assert (compares.policy_round, last.policy_round) == (compared, compared)
    assert (compares.editor, last.instruct) == (("none", "self"), False)


def test_what_was_written_is_replayed_and_not_the_first_models_answers(plan: dict[str, Any], tmp_path: Path) -> None:
    def perform(method: Callable[..., Any], settings: Any) -> None:
        with RunDirectory.open(settings.out, {"procedure": method.__name__}) as run:
            run.store.put_round(RoundSummary(round=1))
            run.store.add_documents([Document("d", "Ada", "Ada made a kite.")])
            run.store.add_edits([Edit("d", "api:writer, as written", 0, "Question: Who?\nAnswer: Ada")])
            run.store.add_edits([Edit("d", "api:writer", 0, "Question: Who?\nAnswer: the first model's")])

    more = {"models": plan["models"][:1], "compare": {**plan["compare"], "policy_round": 1}}
    reproducing.reproduce(Reproduction.model_validate(plan | more), tmp_path, perform)
    (row,) = map(json.loads, (tmp_path / "api-writer.jsonl").read_text().splitlines())
    assert row == {"id": "d", "text": "Question: Who?\nAnswer: Ada"}


def test_the_published_plan_is_bounded_and_shown_beside_what_others_paid(
    run: Run, words: Callable[[dict[str, Any]], list[str]], base_model: str, tmp_path: Path
) -> None:
    plan = yaml.safe_load((SHIPPED / "published.yaml").read_text())
    assert plan["models"][0]["model"] == "Qwen/Qwen2.5-3B"
    assert (len(plan["models"]), plan["train"]["rounds"], plan["train"]["documents_per_round"]) == (5, 10, 50)
    # Tiny models and a few documents stand in for those of the hub and of a clone.
    del plan["settings"]["prompt_file"]
    plan["models"] = [{**plan["models"][0], "model": base_model}]
    few = {"rounds": 1, "documents_per_round": 2, "limit": None, "validation_share": 0.34}
    plan["train"] |= {"documents": str(write_rows(tmp_path / "train.jsonl", rows(3))), **few}
    plan["compare"] |= {"documents": str(write_rows(tmp_path / "test.jsonl", rows(5)[3:])), "limit": None}
    result = run(*words(plan), "--plan", "--json")
    train, compare = json.loads(result.out)["runs"].values()
    assert (
        train["fits"] == 2 * 5 * 3 + 1 + 2 * 1 * 3
    )  # K = 5, S = 3; the editor's own; before and after, on one document
    assert compare["fits"] == 2 * 4  # the passage, and edits by the model, the external editor and the policy
    assert train["edits_usd"] == 0
    # Two edits by batch, each of 8,192 tokens and as many of reasoning.
    assert 2 * 16384 * 10 / 1e6 / 2 < compare["edits_usd"] < 2 * 0.1
    for told in ("8.80 for ten", "0.746", "TFLOPS", "of it for edits"):
        assert told in result.err


@needs_serving
def test_a_served_model_is_the_external_editor(
    plan: dict[str, Any], words: Callable[..., list[str]], chat_model: str, free_port: Callable[[], int], tmp_path: Path
) -> None:
    name, port = Path(chat_model).name, free_port()
    prices = tmp_path / "prices.yaml"
    prices.write_text(f"models:\n  {name}: {{input: 100, output: 1000, date: 2026-01-01}}\n")
    served = {"external": f"api:{name}", "settings": {**plan["settings"], "api_base": f"http://127.0.0.1:{port}/v1"}}
    _, file, *more = words({**plan, **served, "models": plan["models"][:1], "reported": False})
    environment = {"PLAN": file, "SERVED": chat_model, "PORT": str(port), "PYTHON": sys.executable}
    result = subprocess.run(
        ["sh", str(SHIPPED / "laptop.sh"), *more, "--json"],
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    (row,) = json.loads(result.stdout)["rows"]
    assert row["external"]["graded"] == 6
    assert row["external_usd"] > 0
    with RunDirectory.read(tmp_path / "out" / name / "compare") as done:
        edits = done.store.edits(writer=f"api:{name}")
        assert len(edits) == 3
        assert any(edit.text for edit in edits)
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", port), 1):
        pass  # the script has stopped the server


def test_the_plans_for_a_laptop_name_settings_and_prices_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SHIPPED.parent.parent)
    for name in ("laptop.yaml", "laptop-seal.yaml"):
        plan = reproducing.read_plan(SHIPPED / name)
        reproducing.check(plan, tmp_path)
        for student in plan.models:
            load_recipe(plan.training(student, tmp_path).recipe)
    assert plan.training(student, tmp_path).recipe == "seal"


def test_mistakes_are_one_line_before_anything_is_done(
    plan: dict[str, Any],
    words: Callable[..., list[str]],
    mistake: Callable[..., str],
    chat_model: str,
    tmp_path: Path,
) -> None:
    def said(*flags: str, **changes: Any) -> str:
        line = mistake(*words({**plan, **changes}), *flags)
        assert not (tmp_path / "out").exists()
        return line

    nowhere = str(tmp_path / "nowhere.jsonl")
    assert "is named twice; leave one out, or give it a `name` of its own" in said(models=[chat_model, chat_model])
    assert "no price for model 'poet'" in said(external="api:poet")
    assert "no price for model 'marker'" in said(settings={**plan["settings"], "grader": "judge:marker"})
    last = {"model": chat_model, "name": "b", "compare": {"documents": nowhere}}
    assert "nowhere.jsonl: no such file" in said(models=[chat_model, last])
    assert "no such file" in said(external=f"replay:{nowhere}")
    assert "--policy-round 2: " in said(compare={**plan["compare"], "policy_round": 2})
    models = [str(tmp_path / "a"), chat_model, str(tmp_path / "b")]
    both = said(models=models, compare={"documents": nowhere})
    assert "a: not a local folder" in both
    assert both.endswith(f"; nor are these at hand: {models[2]}")
    assert both == said("--plan", models=models)
    unread = {**plan["settings"], "prompt_file": str(tmp_path / "seal.yaml")}
    assert "seal.yaml: No such file" in said(settings=unread, models=models)
    assert "no such setting 'round'" in said(train={"round": 2})
    assert "--rounds 0" in said(train={"rounds": 0})
    assert "models: " in said(models=[])
    assert "edits: Extra inputs are not permitted" in said(edits=3)
    assert "there is no kind of editor called 'magic'" in said(external="magic")
    own = {k: v for k, v in plan["settings"].items() if k != "api_base"}
    assert "no API key for model 'writer'" in said(settings=own)
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "list.yaml: " in mistake("reproduce", tmp_path / "list.yaml")
    assert "No such file" in mistake("reproduce", tmp_path / "none.yaml")


def test_one_directory_is_one_plans(
    run: Run, plan: dict[str, Any], words: Callable[..., list[str]], mistake: Callable[..., str], tmp_path: Path
) -> None:
    plan |= {"models": plan["models"][:1], "external": None, "reported": False}
    assert run(*words(plan)).code == 0
    other = {**plan, "models": [{"model": plan["models"][0], "name": "other"}]}
    assert "holds runs of another plan (tiny-chat is no model of this one)" in mistake(*words(other))
    changed = {**plan, "compare": {**plan["compare"], "edits": 2}}
    assert "this run began with edits = 1, now it is 2" in mistake(*words(changed), after_loading=True)
    lock = RunLock(tmp_path / "out" / "lock")
    try:
        assert "in use by process" in mistake(*words(plan))
    finally:
        lock.release()
