"""A user's mistakes: exit code 2 and one line that names what is wrong and what to do, never a traceback."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfedit.runs.directory import RunDirectory
from tiny_world import rows, write_rows

Mistake = Callable[..., str]


def without(words: list[str], flag: str) -> list[str]:
    """The command without a flag and its value."""
    at = words.index(flag)
    return words[:at] + words[at + 2 :]


# Documents


def broken(line: str, number: int, **changes: Any) -> str:
    """Three document rows of which one is changed, as a file's text; `line` takes the place of the row where given."""
    some = rows(3)
    some[number].update(changes)
    lines = [json.dumps({k: v for k, v in row.items() if v != "REMOVE"}) for row in some]
    if line:
        lines[number] = line
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (broken('{"id": "d1", "title":', 1), ["line 2", "JSON"]),
        (broken('["d1"]', 1), ["row 2", "must be an object"]),
        (broken("", 2, title="REMOVE"), ["row 3", "title: is missing"]),
        (broken("", 2, text="  "), ["row 3", "text: is empty"]),
        (broken("", 1, id="d0"), ["row 2", 'id "d0" is taken by', "unique"]),
        (broken("", 1, questions=[]), ["row 2", "no questions, which an exam needs"]),
        (broken("", 1, questions=[{"question": "Why?", "answers": []}]), ["row 2", "questions[0].answers: "]),
        (broken("", 1, questions=[{"answers": ["x"]}]), ["row 2", "questions[0].question: is missing"]),
        ("", ["the file is empty; it should hold one JSON object per line"]),
    ],
)
def test_documents(compare_words: list[str], mistake: Mistake, tmp_path: Path, content: str, says: list[str]) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(content)
    line = mistake(*without(compare_words, "--documents"), "--documents", file)
    assert "mine.jsonl" in line
    for words in says:
        assert words in line


def test_files_that_are_not_there(compare_words: list[str], mistake: Mistake, tmp_path: Path) -> None:
    command = without(compare_words, "--documents")
    assert "nowhere.jsonl: no such file" in mistake(*command, "--documents", tmp_path / "nowhere.jsonl")
    assert "news:sports: no such split is built in" in mistake(*command, "--documents", "news:sports")
    assert "no documents given" in mistake("learn", "--out", tmp_path / "run")
    # None of these has left a run behind that would hold the user to it.
    assert not (tmp_path / "run" / "config.yaml").exists()


# Model


def test_an_unknown_model(compare_words: list[str], mistake: Mistake, tmp_path: Path) -> None:
    line = mistake(*without(compare_words, "--model"), "--model", tmp_path / "no-model", after_loading=True)
    assert "no-model: not a local folder with a causal language model" in line


def test_a_folder_without_a_model(compare_words: list[str], mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = mistake(*without(compare_words, "--model"), "--model", tmp_path / "empty", after_loading=True)
    assert "empty: not a local folder with a causal language model" in line


def test_a_device_that_is_not_there(compare_words: list[str], mistake: Mistake) -> None:
    assert "--device warp: not usable here" in mistake(*compare_words, "--device", "warp", after_loading=True)


def test_a_chat_prompt_for_a_base_model(
    compare_words: list[str], base_model: str, mistake: Mistake, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("edit:\n  mine:\n    chat: 'Notes on {{ title }}: {{ text }}'\n")
    command = [*without(compare_words, "--model"), "--model", base_model, "--prompt-file", str(prompts)]
    line = mistake(*command, "--editor", "self:mine", after_loading=True)
    assert "edit prompt 'mine' has no text for base models; add `base:` to it in" in line
    line = mistake("train", *command[1:], "--edit-prompt", "mine", after_loading=True)
    assert "edit prompt 'mine' has no text for base models" in line
    line = mistake(*command, "--instruct", after_loading=True)
    assert "has no chat template: leave out --instruct" in line


# Editors, prompts, graders


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--editor", "magic"], "there is no kind of editor called 'magic'; the forms are none, open-book"),
        (["--editor", "passage:x"], "'passage' takes nothing after it"),
        (["--editor", "self", "--editor", "self"], "the condition 'self' is already there"),
        (["--editor", "self:rewrite,poem", "--edits", "2"], "no edit prompt 'poem'; there are implications"),
        (
            ["--editor", "self:rewrite,self-qa"],
            "edit prompts rewrite,self-qa: each edit is written from one of them; give",
        ),
        (["--editor", "self:poem"], "no edit prompt 'poem'; there are implications"),
        (["--editor", "model:qwen:poem:x"], "model qwen:poem: not a local folder"),
        (["--editor", "model:smollm9"], "model smollm9: no local folder, not bundled (smollm2-135m, "),
        (["--editor", "replay:"], "the file after 'replay:' is missing"),
        (["--editor", "replay:nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--editor", "api:gpt-4.1"], "no API key for model 'gpt-4.1'"),
        (["--grader", "guess"], "--grader guess: unknown grader; choose lexical or judge:MODEL"),
        (["--grader", "judge"], "no model named; write judge:MODEL"),
        (["--grader", "judge:model:"], "no model named; write judge:MODEL"),
        (["--grader", "judge:model:smollm9"], "model smollm9: no local folder, not bundled (smollm2-135m, "),
        (["--grader", "judge:gpt-4.1"], "no API key for model 'gpt-4.1'"),
        (["--policy", "nowhere"], "nowhere: no such directory; give the directory that --out named"),
    ],
)
def test_editors_and_graders(
    compare_words: list[str], mistake: Mistake, monkeypatch: pytest.MonkeyPatch, flags: list[str], says: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert says in mistake(*compare_words, *flags, after_loading=True)


def test_replay_files_that_do_not_fit(compare_words: list[str], mistake: Mistake, tmp_path: Path) -> None:
    some = rows(2)
    del some[1]["edits"]
    file = write_rows(tmp_path / "notes.jsonl", some)
    line = mistake(*compare_words, "--editor", f"replay:{file}")
    assert 'notes.jsonl: no edit by "expert" for document "d1"; add rows for it or leave the document out' in line
    line = mistake(*compare_words, "--editor", f"replay:{file}#nobody")
    assert 'no edits by "nobody"; writers are expert' in line
    file = write_rows(tmp_path / "notes.jsonl", rows(2))
    line = mistake(*compare_words, "--editor", f"replay:{file}", "--edits", 3)
    assert "document d0 has 2 edits; --edits asks for 3" in line


def test_a_server_that_cannot_be_reached(compare_words: list[str], mistake: Mistake) -> None:
    command = [*compare_words, "--editor", "api:writer", "--api-base", "http://127.0.0.1:9/v1"]
    line = mistake(*command, after_loading=True)
    assert "cannot reach the server at http://127.0.0.1:9/v1" in line


def test_a_budget_without_a_price(compare_words: list[str], mistake: Mistake, server: Any) -> None:
    command = [*compare_words, "--editor", "api:writer", "--api-base", server.url, "--budget", "1"]
    assert "no price for model 'writer'" in mistake(*command, after_loading=True)
    assert server.completions == []


# Settings


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--edits", "0"], "--edits '0': Input should be greater than or equal to 1"),
        (["--edits", "many"], "--edits 'many': Input should be a valid integer"),
        (["--limit", "0"], "--limit '0'"),
        (["--temperature", "-1"], "--temperature '-1'"),
        (["--temperature", "inf"], "--temperature 'inf': Input should be a finite number"),
        (["--out", "x" * 300], "not a name that this file system can hold; give another one"),
        (["--regime", "both"], "--regime: invalid choice: 'both'"),
        (["--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["--recipe", "soup"], "--recipe soup: not known; use default, tiny"),
        (["--recipe", "soup.yaml"], "--recipe soup.yaml: No such file"),
        (["--set", "rank"], "--set rank: write NAME=VALUE"),
        (["--set", "rank=-1"], "rank = -1: Input should be greater than or equal to 1"),
        (["--set", "ranks=4"], "ranks = 4: Extra inputs are not permitted; settings are name, rank"),
        (["--prompt-file", "nowhere.yaml"], "--prompt-file nowhere.yaml: No such file"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: No such file"),
        (["--prices", "nowhere.yaml"], "nowhere.yaml"),
        (["--speed", "fast"], "unrecognized arguments: --speed fast"),
    ],
)
def test_settings(compare_words: list[str], mistake: Mistake, flags: list[str], says: str) -> None:
    assert says in mistake(*compare_words, *flags)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("--config", "edits: [1", "--config {file}: not YAML"),
        ("--config", "- edits", "a mapping of settings is expected"),
        ("--config", "edit: 3", "no such setting 'edit'; settings are"),
        ("--config", "budget: .inf", "--budget inf: Input should be a finite number"),
        ("--config", 'prompt_file: "a\\0b"', "the operating system takes no name with a null character"),
        ("--config", "edits: 0", "--edits 0: Input should be greater"),
        ("--config", "3: edits", "--3 3: Keys should be strings"),
        ("--recipe", "rank: [", "--recipe {file}: not YAML"),
        ("--recipe", "rank: big", "--recipe {file}: rank = 'big': Input should be a valid integer"),
        ("--recipe", "ranks: 3", "--recipe {file}: ranks = 3"),
        ("--recipe", "16: rank", "--recipe {file}: 16 = 16: Keys should be strings"),
        ("--prompt-file", "edit: [", "--prompt-file {file}: not YAML"),
        ("--prompt-file", "edits: {}", "--prompt-file {file}: no such entry 'edits'"),
        ("--prompt-file", "edit:\n  mine: text", "--prompt-file {file}: edit mine: expected texts under chat and base"),
        ("--prompt-file", "edit:\n- mine", "--prompt-file {file}: edit: expected prompts by name"),
        ("--prices", "models: [", "the price file {file}: not YAML"),
    ],
)
def test_files_of_settings(
    compare_words: list[str], mistake: Mistake, tmp_path: Path, name: str, content: str, says: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    assert says.format(file=file) in mistake(*compare_words, name, file)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"


@pytest.mark.parametrize("name", ["--config", "--recipe", "--prices"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("note: caf\u00e9".encode("latin-1"), "not UTF-8 text (at byte 9); save it as UTF-8"),
        (b"\x89PNG\r\n", "not UTF-8 text (at byte 0)"),
        (BOMB.encode(), "aliases (*name) are not read here; write the value out"),
        (b"[" * 50_000 + b"]" * 50_000, "not YAML that can be read (nested too deeply)"),
        (b"a: 2026-13-45", "not YAML (month must be in 1..12)"),
        (b"a: " + b"9" * 5000, "not YAML (Exceeds the limit"),
        (b"a: \x00", "not YAML"),
        (b"{1: 2}: 3", "not YAML"),
    ],
)
def test_files_of_settings_that_are_weapons(
    compare_words: list[str], mistake: Mistake, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    line = mistake(*compare_words, name, file)
    assert str(file) in line
    assert says in line


@pytest.mark.parametrize(
    "value", ["2026-13-45", "9" * 5000, "[" * 1000 + "]" * 1000, "*a", "!!python/object:os.system x"]
)
def test_values_that_are_weapons(compare_words: list[str], mistake: Mistake, value: str) -> None:
    assert "rank = " in mistake(*compare_words, "--set", f"rank={value}")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "a sweep tries at least 2 recipes: add --recipes NAME, or --grid NAME=A,B,C"),
        (["--grid", "rank"], "--grid rank: write NAME=A,B,C"),
        (["--grid", "rank=2026-13-45,4"], "--grid rank=2026-13-45,4: write NAME=A,B,C"),
        (["--grid", "rank=" + "[" * 1000], "write NAME=A,B,C"),
        (["--grid", "rank=big,4"], "rank = 'big': Input should be a valid integer"),
        (["--grid", "rank=4,4"], "one and the same"),
        (["--recipes", "soup"], "--recipe soup: not known; use default, tiny"),
        (["--recipes", "seal", "--editor", "none"], "--editor none: there is nothing to learn from"),
        (["--recipes", "seal", "--validation-share", "1"], "--validation-share '1': Input should be less than 1"),
        (["--recipes", "seal"], "at least 6 validation documents (on fewer no difference is larger than noise)"),
    ],
)
def test_sweeps(compare_words: list[str], mistake: Mistake, flags: list[str], says: str) -> None:
    assert says in mistake("sweep", *compare_words[1:], *flags)


def test_a_model_given_twice(compare_words: list[str], mistake: Mistake, chat_model: str) -> None:
    assert f"--model {chat_model}: given twice" in mistake(*compare_words, "--model", chat_model)


def test_a_tracker_that_is_not_installed(
    compare_words: list[str], mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfedit.methods.tracking.find_spec", lambda name: None)
    extra = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for tracker in ("tensorboard", "wandb", "trackio"):
        line = mistake("train", *compare_words[1:], "--track", tracker)
        assert f"--track {tracker}: {tracker} is not installed; run `pip install 'selfedit[track]'`" in line
        assert tracker in extra["optional-dependencies"]["track"]


def test_a_template_that_asks_for_what_is_not_there(compare_words: list[str], mistake: Mistake, tmp_path: Path) -> None:
    file = tmp_path / "prompts.yaml"
    for template, says in (
        ("{{ author }}", "line 1: no field 'author'; fields here are title, text"),
        ("{{ title", "line 1: unexpected end of template"),
    ):
        file.write_text(json.dumps({"edit": {"mine": {"chat": template}}}))
        line = mistake(*compare_words, "--prompt-file", file, "--editor", "self:mine")
        assert f"--prompt-file {file}: edit mine (chat), {says}" in line


def test_targets_that_the_model_does_not_have(compare_words: list[str], mistake: Mistake) -> None:
    line = mistake(*compare_words, "--editor", "passage", "--set", "targets=[query]", after_loading=True)
    assert "no layer matches the targets ('query',)" in line


# Runs


def test_directories_that_are_no_runs(mistake: Mistake, compare_words: list[str], tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_text("")
    assert "holiday: not the directory of a run" in mistake("report", tmp_path / "holiday")
    assert "nowhere: " in mistake("report", tmp_path / "nowhere")
    RunDirectory.open(tmp_path / "run", {}).close()
    for out in (tmp_path, Path()):
        assert "is a folder; name a file" in mistake("report", tmp_path / "run", "--out", out)
    assert "not empty and not a run" in mistake(*without(compare_words, "--out"), "--out", tmp_path / "holiday")
    (tmp_path / "file").write_text("")
    assert "is a file; name a directory" in mistake(*without(compare_words, "--out"), "--out", tmp_path / "file")


def test_train_with_too_few_documents(
    compare_words: list[str], mistake: Mistake, documents: Callable[[int], Path]
) -> None:
    command = [*without(compare_words, "--documents"), "--documents", documents(1)]
    assert "1 documents have 1 titles, too few" in mistake("train", *command[1:], after_loading=True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bake"], "invalid choice: 'bake'"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["ask"], "the following arguments are required: adapter"),
        (["ask", "nowhere", "Why?"], "nowhere: no such folder; give an adapter's folder"),
        (["ask", "nowhere", "--max-tokens", "0"], "--max-tokens 0: an answer has at least 1 token"),
        (["ask", "nowhere", "--with", "new=x"], "--with new=x: write NAME=PATH, with a name of its own"),
        (["export", "nowhere", "out"], "nowhere: no such folder"),
        (["grade", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["grade", "check", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["grade", "check", "nowhere.jsonl", "--out", "a"], "--out: `grade check` writes no rows"),
        (["grade", "a", "b", "c"], "give one file: `selfedit grade FILE`"),
        (["cost"], "nothing to price: give --model with tokens"),
        (["cost", "--model", "gpt-99", "--input-tokens", "5"], "gpt-99"),
        (["cost", "--model", "gpt-5", "--input-tokens", "-5"], "cannot be negative"),
        (["cost", "--model", "gpt-5", "--input-tokens", "five"], "invalid int value: 'five'"),
        (["cost", "--device-seconds", "60"], "--device-seconds needs --usd-per-hour"),
        (["cost", "--device-seconds", "60", "--usd-per-hour", "-1"], "cannot be negative"),
        (["watch", "nowhere", "--every", "inf"], "--every inf: give seconds, more than 0 and at most a day"),
    ],
)
def test_other_commands(mistake: Mistake, words: list[str], says: str) -> None:
    assert says in mistake(*words)


def test_grading_without_a_key_or_a_server(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "answers.jsonl"
    file.write_text('{"title": "t", "question": "Who?", "gold": "Ada", "answer": "Bo"}\n')
    assert "no API key for model 'gpt-4.1'" in mistake("grade", file, "--grader", "judge:gpt-4.1")
    assert not (tmp_path / "runs").exists()
    command = ["grade", file, "--grader", "judge:m", "--api-base", "http://127.0.0.1:9/v1"]
    assert "http://127.0.0.1:9/v1" in mistake(*command, after_loading=True)
    file.write_text('{"title": "t", "question": "Who?", "gold": "Ada"}\n')
    assert "row 1" in mistake("grade", file)
    assert "answer" in mistake("grade", file)


def test_grading_into_a_file_that_cannot_be_written_asks_no_judge(
    mistake: Mistake, tmp_path: Path, server: Any
) -> None:
    file = write_rows(tmp_path / "answers.jsonl", [{"question": "Who?", "gold": "Ada", "answer": "Bo"}])
    words = ["grade", file, "--grader", "judge:m", "--api-base", server.url, "--out"]
    assert "x.jsonl: its directory is not there" in mistake(*words, tmp_path / "missing" / "x.jsonl")
    assert "is a folder; name a file" in mistake(*words, tmp_path)
    assert not server.completions


# Ids and titles that are weapons


@pytest.mark.parametrize(
    "name", ["x" * 10_000, "\x1b[2J\x1b]0;owned\x07red", "a\nselfedit: b", "\u202egnp.exe", "\x9b31m"]
)
def test_an_id_cannot_flood_or_steer_the_terminal(
    compare_words: list[str], mistake: Mistake, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(broken("", 0, id=name) + json.dumps(dict(rows(1)[0], id=name)))
    line = mistake(*without(compare_words, "--documents"), "--documents", file)
    assert "mine.jsonl, row 4: id" in line
    assert line.endswith("row 1; ids must be unique")
    assert len(line) < 1100
    assert line.isprintable()
