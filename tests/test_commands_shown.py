"""The commands that README and docs show: all are parsed, and those that need no network and no second machine are run
on a tiny model, each page's in a folder of its own."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest

from selfedit.cli.commands import COMMANDS
from selfedit.cli.flags import Parser, read_settings
from selfedit.cli.main import main
from selfedit.methods import settings as classes
from selfedit.methods.reproduce import read_plan
from tiny_world import FEW_WORDS, rows, write_rows

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = {
    name: getattr(classes, f"{name.capitalize()}Settings")
    for name in ("compare", "sweep", "learn", "train", "continual")
}
# Of commands of pip, pytest, mkdocs and of servers that docs/serving.md mentions.
OTHERS = {"--no-deps", "--enable-lora", "--lora-modules", "--chat-template", "--max-loras", "--lora", "--jinja"}


def fenced(page: Path, *kinds: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for kind, block in found if kind in kinds]


def blocks(page: Path) -> list[str]:
    """The lines of a page's shell blocks, continued lines joined, without comments."""
    lines = [line for block in fenced(page, "", "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"(^|\s+)# .*", "", line).strip() for line in lines]


def spans(page: Path) -> list[str]:
    """What stands between single back ticks in a page's text."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def words_of(command: str) -> list[str]:
    """The command's words without variables before it and without dots that stand for more words."""
    words = [word for word in shlex.split(command) if word != "..."]
    while words and re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    return words


def parser_of(command: str) -> Parser:
    parser = Parser(prog=command)
    COMMANDS[command].add_flags(parser)
    parser.add_argument("--json", action="store_true")
    return parser


def flags_of(command: str) -> set[str]:
    return set(parser_of(command)._option_string_actions)


def programs() -> dict[str, str]:
    """The source of what is called as `python -m NAME`, by name."""
    files = [*ROOT.glob("benchmarks/*.py"), ROOT / "src/selfedit/engine/selftest.py"]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removeprefix("src.") for file in files]
    return {name: file.read_text(encoding="utf-8") for name, file in zip(names, files, strict=True)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    found = blocks(page)
    for command in [*found, *spans(page)]:
        words = words_of(command) if re.match(r"(\w+=\S* )*(selfedit|python -m|make) ", command) else []
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[:1] == ["selfedit"] and words[1] in COMMANDS:
            assert flags <= flags_of(words[1]), f"{page.name}: {command}"
            if command in found:
                arguments = parser_of(words[1]).parse_args(words[2:])
                if words[1] in SETTINGS:
                    if isinstance(arguments.model, list):
                        (arguments.model,) = arguments.model
                    read_settings(SETTINGS[words[1]], arguments)
        elif words[:1] == ["selfedit"]:
            assert words[1].isupper(), f"{page.name}: {command}"
        elif words[:2] == ["python", "-m"] and words[2] != "pytest":
            assert all(f'"{flag}"' in programs()[words[2]] for flag in flags), f"{page.name}: {command}"
        elif words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= targets, f"{page.name}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_are_there(page: Path) -> None:
    """A flag that a page mentions in its text is one of a command, or of a benchmark."""
    known = {flag for name in COMMANDS for flag in flags_of(name)} | OTHERS
    for source in [*programs().values(), (ROOT / "tests/conftest.py").read_text(encoding="utf-8")]:
        known.update(re.findall(r'"(--[a-z-]+)"', source))
    mentioned = {flag for span in spans(page) for flag in re.findall(r"(?<!\S)(--[a-z][a-z-]*)", span)}
    assert mentioned <= known, f"{page.name}: {sorted(mentioned - known)}"


# What these pages' commands need is here; others need an API, a cluster, llama.cpp, or hours.
RUN = ("README.md", *(f"docs/{name}.md" for name in "quick-start your-folder compare step-b routing serving".split()))
NOT_HERE = re.compile(r"api:|--gguf|--config|squad|\.\.\.|selfedit (serve|doctor|watch)")
API = re.compile(r"--editor api:\S+|--api-batch")  # left out of a comparison, which has other editors


def runnable(page: Path) -> list[list[str]]:
    lines = [API.sub("", line) for line in blocks(page)]
    return [words_of(line)[1:] for line in lines if line.startswith("selfedit ") and not NOT_HERE.search(line)]


@pytest.mark.parametrize("name", RUN)
def test_commands_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat_model: str) -> None:
    import torch

    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # of a chat
    make_files()
    commands = runnable(ROOT / name)
    if name == "docs/serving.md":  # has an older run beside its own
        learned = runnable(ROOT / "docs/your-folder.md")[0]
        commands = [[*learned[:-1], "runs/older"], *commands]
    for words in commands:
        if words[0] in SETTINGS:
            words = [
                chat_model if before == "--model" else word for before, word in zip(["", *words], words, strict=False)
            ]
            words += [] if {"--model", "--add"} & set(words) else ["--model", chat_model]
            words += ["--policy-round", "1"] if "--policy" in words else []  # not one that two epochs happen to prefer
            words += [*FEW_WORDS, *(["--edits", "1", "--replicates", "1"] if "--replicates" in words else [])]
        assert main(words) == 0, words
    if name == "docs/serving.md":
        for code in fenced(ROOT / name, "python"):
            exec(compile(code, name, "exec"), {})


def test_the_plan_of_a_reproduction_is_understood(tmp_path: Path) -> None:
    (text,) = fenced(ROOT / "docs/reproduce.md", "yaml")
    file = tmp_path / "plan.yaml"
    file.write_text(text, encoding="utf-8")
    plan = read_plan(file)
    assert plan.external == "api:gpt-5"
    for student in plan.models:
        assert plan.training(student, tmp_path).rounds == 2
        assert plan.comparison(student, tmp_path, plan.external, tmp_path).editor == ("none", "self", "api:gpt-5")


def make_files() -> None:
    """The files and folders that the pages name, in the current folder."""
    for name in ("exam", "train", "test", "notes"):
        some = [{**row, "id": f"{row['id']}-{k}", "title": f"{row['title']} {k}"} for k in range(3) for row in rows(6)]
        for row in some:
            row["edits"] = {"gpt-4.1": row["edits"]["expert"]}
        write_rows(Path(f"{name}.jsonl"), some if name == "train" else some[:6])
    Path("bridge.txt").write_text("Oda Brix had the piers of the bridge rebuilt in basalt.\n", encoding="utf-8")
    Path("handbook.md").write_text("# Travel\n\nAda signs off travel expenses.\n", encoding="utf-8")
    for folder in ("notes", "new", "handbook", "news"):
        Path(folder).mkdir()
        Path(folder, "page.md").write_text(f"# {folder}\n\nBea keeps the {folder}.\n", encoding="utf-8")
