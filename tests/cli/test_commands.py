"""The commands, each once from words to files and printed results."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from safetensors.numpy import load_file, save_file

from api_server import reply
from selfedit.cli.commands import COMMANDS
from selfedit.errors import UserError
from selfedit.methods.ask import Asker
from selfedit.methods.settings import TrainSettings
from selfedit.prompts import Prompts
from selfedit.reports import plots, report
from selfedit.runs.directory import RunDirectory
from selfedit.runs.store import Store
from tiny_world import FEW_WORDS, rows, write_rows

Run = Callable[..., Any]


LIGHT = [
    "--help",
    "--version",
    "compare --help",
    "train --help",
    "cost --model gpt-5 --input-tokens 5",
    "watch nowhere",
    "reproduce nowhere.yaml",
    "cost --model gpt-99 --input-tokens 5",
    "bake",
    "report nowhere",
    "grade nowhere.jsonl",
    "ask nowhere Why?",
    "ask . Why?",
    "export nowhere out",
    "learn",
    "learn nowhere.txt",
    "learn nowhere.txt --editor none",
    "compare --model ./nowhere --limit 1",
    "compare --edits 0",
    "compare --speed fast",
    "compare --config nowhere.yaml",
    "compare --editor magic",
    "compare --editor self:poem --documents nowhere.jsonl",
    "compare --documents nowhere.jsonl",
    "compare --documents news:sports",
    "compare --grader guess",
    "compare --recipe soup",
    "compare --set ranks=4",
    "compare --prompt-file nowhere.yaml",
    "compare --prices nowhere.yaml",
    "sweep --grid rank",
    "sweep --limit 3",
    "sweep --grid rank=2,4 --editor none",
    "compare --policy-round 2",
    "compare --editor replay:nowhere.jsonl --limit 1",
    "train --outer-set ranks=4",
    "train --documents nowhere.jsonl",
    "continual --editor none",
]


def heavy_after(commands: list[list[str]], folder: Path) -> dict[str, list[str]]:
    """Runs commands one after another in a fresh process; those after which a heavy library was there, and which."""
    program = (
        "import contextlib, io, json, sys\n"
        "from selfedit.cli.main import main\n"
        "found = {}\n"
        f"for words in {commands!r}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main(words)\n"
        "    heavy = {'torch', 'transformers', 'peft', 'openai', 'ray', 'scipy', 'huggingface_hub'} & "
        "set(sys.modules)\n"
        "    if heavy:\n"
        "        found[' '.join(words)] = sorted(heavy)\n"
        "        break\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_what_needs_no_model_imports_nothing_heavy(tmp_path: Path) -> None:
    assert heavy_after([line.split() for line in LIGHT], tmp_path) == {}


def test_help_names_every_command_and_setting(capsys: pytest.CaptureFixture[str], run: Run) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert [command for command in COMMANDS if command not in text] == []
    with pytest.raises(SystemExit):
        run("train", "--help")
    text = capsys.readouterr().out
    flags = ["--" + name.replace("_", "-") for name in TrainSettings.model_fields]
    assert [flag for flag in (*flags, "--json", "--plan") if flag not in text] == []


def test_no_command_shows_the_help_and_version_the_version(run: Run) -> None:
    assert "COMMAND" in run().out
    assert run("--version").out.startswith("selfedit ")


# cost


def test_published_costs(run: Run) -> None:
    """The reproduction's figures: GPT-5's edits by batch, and ten rounds at 0.88 dollars."""
    result = run(*"cost --model gpt-5 --input-tokens 44496 --output-tokens 143673 --batch --json".split())
    assert result.code == 0
    assert json.loads(result.out)["cost_usd"] == pytest.approx(0.746, abs=0.0005)
    result = run(*"cost --device-seconds 36000 --usd-per-hour 0.88 --json".split())
    assert json.loads(result.out)["cost_usd"] == pytest.approx(8.80)
    assert run(*"cost --device-seconds 36000 --usd-per-hour 0.88".split()).out == "8.8000 USD\n"


# compare and report


def test_compare_prints_a_table_and_writes_chart_and_report(
    run: Run, compare_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(*compare_words, "--editor", "none", "--editor", "passage")
    assert result.code == 0
    for words in ("none", "passage", "95", "report:", "chart:"):
        assert words in result.out
    for name in ("summary.json", "report.html", "chart.png", "chart.svg", "run.sqlite", "config.yaml"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert "exam (none)" in result.err
    assert "fits: 2 adapters" in result.err

    chart = (tmp_path / "run" / "chart.svg").read_bytes()
    read, drawn = Mock(wraps=report.read_run), Mock(wraps=plots.charts)
    monkeypatch.setattr(report, "read_run", read)
    monkeypatch.setattr(plots, "charts", drawn)
    again = run(*compare_words, "--editor", "none", "--editor", "passage", "--json")
    assert again.code == 0
    assert run("report", tmp_path / "run").code == 0
    assert (read.call_count, drawn.call_count) == (2, 2), "once a command"
    assert (tmp_path / "run" / "chart.svg").read_bytes() == chart
    assert json.loads(again.out) == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "fits: " not in again.err


def test_a_flag_wins_over_the_configuration_file(run: Run, compare_words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    file.write_text("editor: [passage]\nreplicates: 2\nset: {rank: 2, epochs: 1}\n")
    result = run(*compare_words, "--config", file, "--replicates", "3", "--json")
    (_, passage) = json.loads(result.out)["conditions"]
    assert (passage["name"], passage["graded"]) == ("passage", 12)
    # --set on the command line takes the place of the file's.
    assert json.loads(result.out)["recipe"]["rank"] == 4


def test_a_changed_setting_is_refused_in_one_line(
    run: Run, compare_words: list[str], mistake: Callable[..., str]
) -> None:
    assert run(*compare_words, "--editor", "none").code == 0
    line = mistake(*compare_words, "--editor", "none", "--seed", "7")
    assert "this run began with seed = 0, now it is 7; put it back to resume, or name another directory" in line


def test_several_models_in_one_table(
    run: Run, chat_model: str, base_model: str, documents: Callable[[int], Path], tmp_path: Path
) -> None:
    words = ["compare", "--model", chat_model, "--model", base_model, "--documents", documents(2), *FEW_WORDS]
    result = run(*words, "--editor", "none", "--editor", "passage", "--out", tmp_path / "both", "--json")
    assert result.code == 0
    assert [summary["instruct"] for summary in json.loads(result.out)] == [True, False]
    assert (tmp_path / "both" / "comparison.html").exists()
    assert (tmp_path / "both" / "comparison.png").exists()
    assert "tiny-base" in result.err

    again = run(
        "report", tmp_path / "both" / "tiny-chat", tmp_path / "both" / "tiny-base", "--out", tmp_path / "page.html"
    )
    assert again.code == 0
    assert "tiny-chat" in (tmp_path / "page.html").read_text()


def test_models_of_one_name_have_runs_of_their_own(
    run: Run, chat_model: str, documents: Callable[[int], Path], tmp_path: Path
) -> None:
    models = [shutil.copytree(chat_model, tmp_path / owner / "tiny") for owner in ("a", "b")]
    words = ["compare", "--documents", documents(1), *FEW_WORDS, "--editor", "none", "--out", tmp_path / "both"]
    words += [word for model in models for word in ("--model", model)]
    assert run(*words).code == 0
    runs = sorted(path.parent for path in (tmp_path / "both").glob("*/config.yaml"))
    assert [yaml.safe_load((path / "config.yaml").read_text())["model"] for path in runs] != [str(models[0])] * 2
    assert len({path.name for path in runs}) == 2
    assert (tmp_path / "both").stat().st_mode & 0o077 == 0
    # The same command resumes both.
    assert "exam (none)" not in run(*words).err


def test_one_word_in_a_file_of_settings_needs_no_list(
    run: Run, run_words: list[str], documents: Callable[[int], Path], tmp_path: Path
) -> None:
    file = tmp_path / "compare.yaml"
    file.write_text(f"documents: {documents(1)}\neditor: none\n")
    result = run("compare", *run_words, "--config", file, "--json")
    assert json.loads(result.out)["documents"] == 1


def test_the_report_of_an_unfinished_run_says_what_is_missing(
    run: Run, compare_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise UserError("the lights went out")

    with monkeypatch.context() as patched:
        patched.setattr("selfedit.methods.compare.inner_loop", stop)
        assert run(*compare_words, "--editor", "none", "--editor", "passage").code == 2
    result = run("report", tmp_path / "run")
    assert result.code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    for told in (result.out, page):
        assert "passage: 2 of 2 documents lack fits." in told
    # And the same command goes on.
    assert run(*compare_words, "--editor", "none", "--editor", "passage").code == 0


def test_a_plan_counts_and_does_nothing(run: Run, compare_words: list[str], tmp_path: Path) -> None:
    command = [*compare_words, "--editor", "passage", "--editor", "self", "--edits", 2, "--replicates", 3, "--plan"]
    result = run(*command, "--json")
    plan = json.loads(result.out)
    assert (plan["documents"], plan["questions"], plan["fits"]) == (2, 4, 2 * 3 + 2 * 2 * 3)
    assert plan["train_tokens"] > 0
    assert not (tmp_path / "run").exists()
    assert "to see 3 points" in run(*command).out


def test_a_budget_stops_before_it_is_passed(
    run: Run, compare_words: list[str], mistake: Callable[..., str], server: Any, tmp_path: Path
) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("models:\n  writer: {input: 100, output: 1000, date: 2026-01-01}\n")
    command = [*compare_words, "--editor", "api:writer", "--api-base", server.url, "--prices", prices]
    server.reply = lambda body: reply("The kite was dear.")
    line = mistake(*command, "--budget", "0.000001", after_loading=True)
    assert "stopped before passing the budget" in line
    assert server.completions == []
    result = run(*command, "--budget", "10", "--json")
    (_, written) = json.loads(result.out)["conditions"]
    # Two calls of 10 input and 5 output tokens; device time has no price.
    assert len(server.completions) == 2
    assert written["cost_usd"] == pytest.approx(2 * (10 * 100 + 5 * 1000) / 1e6)
    result = run(*command, "--budget", "10", "--usd-per-hour", "0", "--out", tmp_path / "priced", "--json")
    assert json.loads(result.out)["conditions"][1]["cost_usd"] == pytest.approx(2 * (10 * 100 + 5 * 1000) / 1e6)


# learn, ask, export, train, continual


@pytest.fixture(scope="module")
def learned(chat_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from selfedit.cli.main import main

    folder = tmp_path_factory.mktemp("learned")
    file = write_rows(folder / "documents.jsonl", rows(2))
    words = ["learn", str(file), "--model", chat_model, "--editor", "passage", "--out", str(folder / "run"), *FEW_WORDS]
    assert main(words) == 0
    return folder / "run"


@pytest.mark.parametrize("order", ["{run} --compare {asked}", "--compare {run} {asked}", "{run} {asked} --compare"])
def test_a_question_may_stand_behind_a_flag(run: Run, learned: Path, order: str) -> None:
    words = [word.format(run=learned, asked="Where did Ada make the kite?") for word in order.split()]
    result = run("ask", *words, "--max-tokens", "4", "--device", "cpu", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["question"] == "Where did Ada make the kite?"
    assert {"adapter", "base"} <= found.keys()


def test_learn_reports_and_says_how_to_ask(
    run: Run, run_words: list[str], documents: Callable[[int], Path], tmp_path: Path
) -> None:
    note = tmp_path / "note.md"
    note.write_text("# The horn\n\nHal made a horn in Bath.")
    words = ["learn", documents(1), note, "--editor", "passage", *run_words]
    result = run(*words)
    assert result.code == 0
    assert "learned: 2 documents" in result.out
    assert f"selfedit ask {tmp_path / 'run'}" in result.out
    found = json.loads(run(*words, "--json").out)
    assert Path(found["adapter"]).joinpath("adapter_model.safetensors").exists()
    assert found["summary"]["questions"] == 2


def test_a_folder_is_learned_without_what_cannot_be_read_and_says_so_once(
    run: Run, run_words: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "horn.md").write_text("# The horn\n\nHal made a horn in Bath.")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "links.txt").symlink_to("/etc/passwd")
    words = ["learn", folder, "--editor", "passage", *run_words]
    result = run(*words, "--strict")
    assert result.code == 2
    assert "latin.txt, line 1: not UTF-8" in result.err or "links.txt: a link" in result.err
    result = run(*words)
    assert result.code == 0
    assert "learned: 1 document" in result.out
    assert [line for line in result.err.splitlines() if "left out" in line or "passed over" in line] == [
        f"left out: {folder}/links.txt: a link that leads out of the folder; --follow-links reads it",
        f"left out: {folder}/latin.txt, line 1: not UTF-8 text; save the file as UTF-8",
    ]


def test_learn_without_out_names_its_directory_by_settings_and_content(
    run: Run, chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    note = tmp_path / "my note.md"
    note.write_text("# The horn\n\nHal made a horn in Bath.")
    words = ["learn", note, "--model", chat_model, "--editor", "passage", *FEW_WORDS, "--json"]

    def adapter(*more: object) -> Path:
        result = run(*words, *more)
        assert result.code == 0
        return Path(json.loads(result.out)["adapter"])

    first = adapter()
    assert first.parts[:1] == ("runs",)
    assert first.parts[1].startswith("learn-my-note-")
    assert adapter() == adapter("--device", "cpu") == first
    assert adapter("--set", "epochs=1", "--set", "rank=2") != first
    note.write_text("# The horn\n\nHal made a horn in Nice.")
    assert adapter() != first
    assert len(list((tmp_path / "runs").iterdir())) == 3
    # A folder with its runs in it, by what is read there.
    words[1] = "."
    first = adapter()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").touch()
    (tmp_path / "photo.jpg").touch()
    assert adapter() == first


def test_a_run_is_its_owners_alone_and_an_export_is_not(run: Run, learned: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert run("report", learned).code == 0
        assert run("report", learned, "--out", tmp_path / "page.html").code == 0
        assert "1 adapter(s) merged" in run("export", learned, tmp_path / "model", "--dtype", "float32").out
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert [path for path in [learned, *learned.rglob("*")] if path.stat().st_mode & 0o077] == []
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o755


def test_an_answer_longer_than_the_model_reads(learned: Path, mistake: Callable[..., str]) -> None:
    line = mistake("ask", learned, "Why?", "--device", "cpu", "--max-tokens", 100_000, after_loading=True)
    assert "--max-tokens 100000: the model reads 1024 tokens at once" in line


def test_a_run_whose_name_is_not_utf8_has_its_report(
    run: Run, run_words: list[str], documents: Callable[[int], Path], tmp_path: Path
) -> None:
    out = tmp_path / os.fsdecode(b"caf\xe9")
    result = run("learn", documents(1), "--editor", "passage", "--json", *run_words, "--out", out)
    assert result.code == 0
    assert (out / "report.html").exists()
    assert result.out.isascii()
    assert json.loads(result.out)["adapter"] == str(out / "adapters" / "learned")


def test_ask_answers_with_and_without_the_adapter(run: Run, learned: Path) -> None:
    words = ["ask", learned, "Where did Ada make the kite?", "--device", "cpu", "--dtype", "float32", "--max-tokens", 6]
    found = json.loads(run(*words, "--base", "--json").out)
    assert found["question"] == "Where did Ada make the kite?"
    assert run(*words).out.strip() == found["adapter"].strip()
    assert run(*words, "--base").out == f"learned: {found['adapter']}\nbase:    {found['base']}\n"
    by_folder = run("ask", learned / "adapters" / "learned", *words[2:])
    assert by_folder.out.strip() == found["adapter"].strip()


def test_a_chat_goes_on_until_an_empty_line(run: Run, learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["ask", learned, "--device", "cpu", "--dtype", "float32", "--max-tokens", 6]
    monkeypatch.setattr("sys.stdin", io.StringIO("Where did Ada make the kite?\nAnd the lamp?\n\nnever asked\n"))
    result = run(*words, "--json")
    messages = json.loads(result.out)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert [m["content"] for m in messages[::2]] == ["Where did Ada make the kite?", "And the lamp?"]
    monkeypatch.setattr("sys.stdin", io.StringIO("Where did Ada make the kite?"))  # and until the input ends
    assert run(*words, "--base").out.startswith(f"learned: {messages[1]['content']}\nbase:    ")


def test_several_adapters_are_asked_by_name_and_answer_side_by_side(
    run: Run, learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(learned / "adapters" / "learned", tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: -value for name, value in weights.items()}, other / "adapter_model.safetensors")
    common = ["--device", "cpu", "--dtype", "float32", "--max-tokens", 6]
    asked = "Where did Ada make the kite?"
    alone = [json.loads(run("ask", folder, asked, "--base", "--json", *common).out) for folder in (learned, other)]
    found = json.loads(run("ask", learned, asked, "--with", f"mirror={other}", "--compare", "--json", *common).out)
    answers = [alone[0]["adapter"], alone[1]["adapter"], alone[0]["base"]]
    assert [found["adapter"], found["mirror"], found["base"]] == answers
    assert len(set(answers)) > 1
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{asked}\n/mirror\n/new\n{asked}\n/nobody\n/base\n/new\n{asked}\n"))
    chat = run("ask", learned, "--with", f"mirror={other}", *common)
    assert chat.out.splitlines() == answers
    assert "no adapter nobody: /new, /learned, /mirror, /base" in chat.err


def test_adapters_that_do_not_go_together_are_asked_alone(
    learned: Path, tmp_path: Path, mistake: Callable[..., str]
) -> None:
    other = shutil.copytree(learned / "adapters" / "learned", tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    common = ["Why?", "--device", "cpu"]
    assert "the name is taken" in mistake("ask", learned, *common, "--with", f"base={other}")
    assert "--with other: write NAME=PATH" in mistake("ask", learned, *common, "--with", "other")
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 3}))
    line = mistake("ask", learned, *common, "--with", f"other={other}", after_loading=True)
    assert f"{other}: of another shape (rank, layers, scale) than" in line
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "other/model"}))
    assert "other: an adapter of other/model, not of" in mistake("ask", learned, *common, "--with", f"other={other}")


def test_an_answer_is_shown_as_it_comes(learned: Path) -> None:
    row = rows(1)[0]
    told = Prompts().edit("implications", instruct=True, title=row["title"], text=row["text"])
    pieces: list[str] = []
    with Asker(learned, device="cpu", dtype="float32", max_tokens=12) as asker:
        answer = asker.answer([{"role": "user", "content": told}], base=True, on_text=pieces.append)
    assert "".join(pieces) == answer
    assert len([piece for piece in pieces if piece]) > 2


def test_train_prints_rounds_and_a_recommendation(
    run: Run, run_words: list[str], documents: Callable[[int], Path], tmp_path: Path
) -> None:
    words = ["train", "--documents", documents(5), *run_words]
    words += ["--rounds", 1, "--edits", 2, "--replicates", 1, "--validation-share", 0.4, "--outer-set", "rank=2"]
    result = run(*words)
    assert result.code == 0
    assert "On 2 validation documents the untrained model's accuracy is" in " ".join(result.out.split())
    for name in ("report.html", "checkpoints/round-01/adapter_model.safetensors", "validation.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    data = json.loads(run(*words, "--json").out)
    assert data["procedure"] == "train"
    assert len(data["rounds"]) == 1
    plan = json.loads(run(*words, "--plan", "--json").out)
    assert plan["fits"] > 0


def test_continual_prints_its_steps(
    run: Run, run_words: list[str], documents: Callable[[int], Path], tmp_path: Path
) -> None:
    result = run("continual", "--documents", documents(2), "--editor", "passage", *run_words, "--json")
    assert [step["document"] for step in json.loads(result.out)["steps"]] == ["d0", "d1"]
    assert (tmp_path / "run" / "report.html").exists()


def test_a_finished_run_runs_again_without_its_model(
    run: Run, chat_model: str, documents: Callable[[int], Path], learned: Path, tmp_path: Path
) -> None:
    """The same command on a finished run, and its report, load nothing heavy and write the same."""
    shared = ["--model", chat_model, *FEW_WORDS]
    small = ["--rounds", "1", "--edits", "1", "--replicates", "1", "--validation-share", "0.4", "--outer-set", "rank=2"]
    commands = [
        ["compare", "--documents", str(documents(2)), "--editor", "passage", "--editor", "self", *shared],
        ["sweep", "--documents", str(documents(6)), "--grid", "epochs=1,2", *shared],
        ["train", "--documents", str(documents(5)), *small, *shared],
        # (Documents are searched by bm25s, which loads scipy.)
        ["continual", "--documents", str(documents(2)), "--editor", "passage", "--retain", "none", *shared],
        ["learn", str(documents(2)), "--editor", "self", *shared],
    ]
    commands = [[*command, "--out", str(tmp_path / command[0])] for command in commands]
    again = [*commands, ["report", str(tmp_path / "compare"), "--out", str(tmp_path / "page.html")]]
    for command in commands:
        assert run(*command).code == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.???*") if path.suffix in (".json", ".png", ".html")}
    assert len(files) > 4 + 4
    assert heavy_after(again, tmp_path) == {}
    assert {path: path.read_bytes() for path in files} == files
    # What has changed is drawn and summarised anew.
    changed = ["--usd-per-hour", "2", "--max-ungraded", "1"]
    summary = tmp_path / "compare" / "summary.json"
    summary.unlink()
    assert run(*commands[0], *changed).code == 0
    assert summary.read_bytes() == files[summary]


# grade


LABELLED = [
    {"title": "t", "question": "Where?", "gold": "Oslo", "answer": "in Oslo", "correct": True},
    {"title": "t", "question": "Who?", "gold": "Ada", "answer": "Bo", "correct": False},
    {"title": "t", "question": "How many?", "gold": "3", "answer": "300", "correct": False},
    {"title": "t", "question": "What?", "gold": "a kite", "answer": "a flying toy", "correct": True},
]


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # where a judge's replies are kept
    return write_rows(tmp_path / "answers.jsonl", LABELLED)


def test_grade_writes_each_row_with_its_grade(run: Run, answers: Path, tmp_path: Path) -> None:
    result = run("grade", answers, "--grader", "lexical")
    graded = [json.loads(line) for line in result.out.splitlines()]
    assert [row["value"] for row in graded] == ["right", "wrong", "wrong", "wrong"]
    assert [row["answer"] for row in graded] == [row["answer"] for row in LABELLED]
    assert "4 answers: 1 right, 3 wrong, 0 ungraded; accuracy 25.0% (95 % interval over 1 document " in result.err
    result = run("grade", answers, "--grader", "lexical", "--json", "--out", tmp_path / "graded.jsonl")
    expected: dict[str, Any] = {"n": 4, "right": 1, "wrong": 3, "ungraded": 0, "accuracy": 0.25}
    assert json.loads(result.out) == expected | {"ci95": [0.0, 1.0]}, "one title: they are of one document"
    untitled = write_rows(tmp_path / "untitled.jsonl", [{**row, "title": ""} for row in LABELLED])
    low, high = json.loads(run("grade", untitled, "--json").out)["ci95"]
    assert 0 <= low < 0.25 < high < 1
    assert len((tmp_path / "graded.jsonl").read_text().splitlines()) == 4
    assert run("grade", answers, "--out", answers).code == 0
    assert run("grade", "check", answers).code == 0, "its labels are still there"


def test_grade_check_compares_with_labels(run: Run, answers: Path) -> None:
    found = json.loads(run("grade", "check", answers, "--grader", "lexical", "--json").out)
    assert found["n"] == 4
    assert found["agreement"] == 0.75
    assert found["bias"] == pytest.approx(-0.25)
    assert found["kappa"] == pytest.approx(0.5)
    assert found["kappa_ci95"] is None
    text = run("grade", "check", answers, "--grader", "lexical").out
    for words in ("agreement: 75.0%", "kappa:     0.500 (no interval", "bias:      -25.00 points", "labelled right"):
        assert words in text
    assert run("grade", "check", answers).code == 0


def test_grade_by_a_judge(run: Run, answers: Path, server: Any) -> None:
    server.reply = lambda body: reply(json.dumps({"verdict": "yes" if "flying toy" in str(body) else "no"}))
    result = run("grade", answers, "--grader", "judge:marker", "--api-base", server.url, "--json")
    assert json.loads(result.out)["right"] == 1


def test_a_judges_replies_are_kept_as_they_come(
    run: Run, answers: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reply of four cannot be read; then Ctrl-C comes while the last is kept."""
    kept, keep = [], Store.put

    def interrupted(store: Store, key: str, *words: Any) -> None:
        kept.append(key)
        if len(kept) == 4:
            raise KeyboardInterrupt
        keep(store, key, *words)

    monkeypatch.setattr(Store, "put", interrupted)
    server.reply = lambda body: reply("perhaps" if "flying toy" in str(body) else json.dumps({"verdict": "no"}))
    words = ["grade", answers, "--grader", "judge:marker", "--api-base", server.url, "--json"]
    result = run(*words)
    assert (result.code, result.err) == (130, "selfedit: interrupted; the same command goes on from here\n")
    assert len(server.completions) == 4
    found = json.loads(run(*words).out)
    assert (found["wrong"], found["ungraded"]) == (3, 1)
    assert len(server.completions) == 5, "only what could not be read is asked again"
    assert (answers.parent / "runs" / "grade").stat().st_mode & 0o777 == 0o700, "the answers are in it"


def test_a_judge_that_spends_its_tokens_on_reasoning_says_what_helps(run: Run, answers: Path, server: Any) -> None:
    def think(body: dict[str, Any]) -> dict[str, Any]:
        answer = reply(json.dumps({"verdict": "no"}))
        if "reasoning_effort" not in body:
            answer["choices"][0] |= {"message": {"content": ""}, "finish_reason": "length"}
        return answer

    server.reply = think
    words = ["grade", answers, "--grader", "judge:thinker", "--api-base", server.url]
    row = json.loads(run(*words).out.splitlines()[0])
    assert row["value"] == "ungraded"
    assert "went to reasoning: --judge-reasoning-effort low leaves some" in row["note"]
    result = run(*words, "--judge-reasoning-effort", "low", "--json")
    assert json.loads(result.out)["wrong"] == 4


def test_grade_by_a_model_that_is_loaded_here(
    run: Run, answers: Path, chat_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfedit.evaluation.judge.parse_reply", lambda reply: True)
    result = run("grade", answers, "--grader", f"judge:model:{chat_model}", "--json")
    assert json.loads(result.out)["right"] == 4
    result = run("grade", answers, "--grader", "judge:local")
    assert result.code == 2
    assert "here name one: judge:model:NAME" in result.err


# How a command ends


def test_a_terminal_need_not_speak_utf_8(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", {}).close()
    command = [sys.executable, "-m", "selfedit", "report", str(tmp_path / "run")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("run ? 0 documents, 0 questions")
    # What is asked in a chat may be in another encoding.
    program = "import sys; sys.argv[1:] = ['--version']; import selfedit.cli.main as c; c.main(); print(ascii(input()))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=b"caf\xe9\n",
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.stdout.splitlines()[1:] == [rb"'caf\ufffd'"], done.stderr


def test_interrupted(run: Run, compare_words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("selfedit.methods.compare.compare", interrupt)
    result = run(*compare_words)
    assert (result.code, result.err) == (130, "selfedit: interrupted; the same command goes on from here\n")


def test_a_bug_keeps_its_traceback(run: Run, compare_words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("selfedit.methods.compare.compare", fail)
    with pytest.raises(ZeroDivisionError):
        run(*compare_words)


def test_the_doctor_says_what_is_here(run: Run) -> None:
    shown = run("doctor", "--json")
    found = json.loads(shown.out)
    assert found["versions"]["torch"] == version("torch")
    (cpu,) = (device for device in found["devices"] if device["name"].startswith("cpu"))
    assert {"fused AdamW", "fused attention", "double precision"} <= cpu["paths"].keys()
    assert "smollm2-135m" in found["models"]
    assert "no RAY_ADDRESS" in found["ray"] or os.environ["RAY_ADDRESS"]
    assert len(shown.err.splitlines()) <= 24
