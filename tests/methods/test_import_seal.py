"""`import-seal` on a small stand-in for a clone of the released code: files of our own, in its layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from benchmarks import check_seal

from selfedit.cli.main import main
from selfedit.documents import load_documents, load_edits
from selfedit.errors import UserError
from selfedit.evaluation.grade import GradeItem
from selfedit.evaluation.judge import judge_messages
from selfedit.methods.import_seal import import_seal
from selfedit.prompts import Prompts

PROMPTS = "src/data_generation/make_squad_data.py"
WRITING = """
import nowhere_installed

MAKE_SQUAD_DATA_TEMPLATE_INSTRUCT = (
    "<|im_start|>system\\nSay what follows. <|im_end|>\\n"
    "<|im_start|>user\\n{title}\\n{context}<|im_end|>\\n<|im_start|>assistant\\n"
)
MAKE_SQUAD_DATA_TEMPLATES_BASE: dict[str, str] = {
    "implications": "What follows?\\n\\n{title}\\n{context}\\n\\nThis:\\n",
    "self-qa": "Ask.\\n{title}\\n{context}\\n\\nQuestion 1: ",
}
"""
ASKING = '''
from nowhere_installed import Something

SQUAD_ANSWER_TEMPLATE_BASE = "Be brief.\\nQuestion: {question}\\nAnswer:\\n"
SQUAD_ANSWER_TEMPLATE_QWEN_INSTRUCT = "<|im_start|>system\\nBe brief.<|im_end|>\\n<|im_start|>user\\n{question}<|im_end|>\\n"
SQUAD_GRADE_TEMPLATE = "Is it right?\\n{question} | {gold} | {pred}"
MAX_TRAIN_SEQS_PER_COMPLETION = 2


def build_train_sequences(edit: Something, context, title, *, split_newlines: bool = False):
    """A stand-in that knows lines alone."""
    texts = [line for line in edit.splitlines() if line] if split_newlines else [edit]
    return [f"{title}\\n{text}" for text in [*texts[:MAX_TRAIN_SEQS_PER_COMPLETION], context]]


print("not to be run")
'''  # noqa: E501


def article(name: str, **more: Any) -> dict[str, Any]:
    return {
        "title": name,
        "context": f"{name} made a kite.",
        "questions": [{"question": "Who?", "answer": name}, {"question": "What?", "answer": "a kite"}],
        **more,
    }


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    home = tmp_path / "SEAL" / "general-knowledge"
    written = article(
        "Bo", completions=["1. A\n2. B\n3. C", " ", "D"], prompt="What follows?\n\nBo\nBo made a kite.\n\nThis:\n"
    )
    scores = [{"text": text, "stats": {"adapter_mean": mean}} for text, mean in (("x", 0.2), ("y", 0.4), ("z", 0.4))]
    files = {
        "data/squad_train.json": [article("Ada"), article("Cy"), article("Ada")],
        "data/squad_val.json": [article("Bo")],
        "data/synthetic_data/eval/base_val.json": [written],
        "data/synthetic_data/train/iter0.json": [article("Ada", completions=["E"])],
        "data/synthetic_data/notes.json": {"of": "no edits"},
        "results/query_server/run.json": {"articles": [{"completions": scores}]},
    }  # fmt: skip
    texts = {name: json.dumps(content) for name, content in files.items()}
    texts |= {PROMPTS: WRITING, "src/utils.py": ASKING}
    for name, text in texts.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    return tmp_path / "SEAL"


def test_all_of_it_becomes_ours(clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "seal"
    assert main(["import-seal", str(clone), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for line in ("train.jsonl: 2 documents", "edits/eval/base_val.jsonl: 2 edits", "--set most_texts=2"):
        assert line in said
    assert "notes.json: no edits in it" in said
    assert "not to be run" not in said
    train, val = (load_documents(str(out / f"{name}.jsonl"), require_questions=True) for name in ("train", "val"))
    assert [document.title for document in train] == ["Ada", "Cy"]
    (bo,) = val
    assert (bo.text, bo.questions[1].answers) == ("Bo made a kite.", ("a kite",))
    # A writer's edits belong to the same documents; an empty one is none.
    edits = load_edits(out / "edits" / "eval" / "base_val.jsonl")
    assert edits == {bo.id: ["1. A\n2. B\n3. C", "D"]}
    assert edits.writer == "base_val"
    prompts, asked = Prompts(out / "prompts.yaml"), {"title": "Bo", "text": "It is."}
    assert prompts.edit("implications", instruct=False, **asked) == "What follows?\n\nBo\nIt is.\n\nThis:\n"
    assert prompts.edit("implications", instruct=True, **asked) == "Say what follows.\n\nBo\nIt is."
    assert prompts.edit("self-qa", instruct=False, **asked).endswith("\n\nQuestion 1: ")
    exam = {"title": "Bo", "question": "Who?"}
    assert prompts.exam(instruct=False, **exam) == "Be brief.\nQuestion: Topic: Bo\nWho?\nAnswer:\n"
    assert prompts.exam(instruct=True, **exam) == "Be brief.\n\nTopic: Bo\nWho?"
    (judged,) = judge_messages(GradeItem("Who?", ("Bo", "Bob"), "Bo!"), prompts)  # and no message of the system's
    assert judged == {"role": "user", "content": 'Is it right?\n"Who?" | "Bo" or "Bob" | "Bo!"'}
    # Prompts that the clone does not have stay ours.
    assert prompts.edit("rewrite", instruct=True, **asked) == Prompts().edit("rewrite", instruct=True, **asked)


def test_what_is_no_whole_clone_is_one_line(clone: Path, tmp_path: Path) -> None:
    home, out = clone / "general-knowledge", tmp_path / "seal"

    def refused(says: str, folder: Path = clone) -> None:
        with pytest.raises(UserError, match=says) as raised:
            import_seal(folder, out)
        assert "\n" not in str(raised.value)
        assert not out.exists()

    refused("elsewhere: not a clone of SEAL's released code .no such folder", tmp_path / "elsewhere")
    (tmp_path / "other" / "data").mkdir(parents=True)
    refused("other/data/squad_train.json: missing; the clone is not whole", tmp_path / "other")
    refused("tmp.*: not a clone of SEAL's released code .no folder general-knowledge", home / "src")
    for name, text, says in (
        ("src/utils.py", "SQUAD_ANSWER_TEMPLATE_BASE = 3", "utils.py: no SQUAD_ANSWER_TEMPLATE_QWEN_INSTRUCT in it"),
        ("src/utils.py", "if:", "utils.py: not Python code"),
        (PROMPTS, WRITING.replace("{context}", "{page}"), "a field that none here has"),
        (PROMPTS, WRITING.replace("Ask.", "{{% raw"), "prompts.yaml: edit self-qa"),
        ("data/squad_val.json", "{", "squad_val.json: not valid JSON"),
        ("data/squad_val.json", "[]", "val.jsonl: nothing to write"),
        ("data/squad_val.json", '[{"title": "x"}]', "squad_val.json, article 1: no title, context and questions"),
        ("data/squad_val.json", '[{"title": "x", "context": 3, "questions": []}]', "article 1: text: "),
        ("data/squad_val.json", None, "squad_val.json: missing"),
    ):  # fmt: skip
        before = (home / name).read_text()
        (home / name).unlink() if text is None else (home / name).write_text(text)
        refused(says)
        (home / name).write_text(before)
    shutil.rmtree(home / "data" / "synthetic_data")
    refused("synthetic_data: no edits in it")


def test_a_folder_that_is_not_empty_is_left_alone(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "seal").mkdir()
    (tmp_path / "seal" / "mine").write_text("x")
    with pytest.raises(UserError, match="seal: not empty; name a new folder with --out"):
        import_seal(clone, tmp_path / "seal")
    # The folder itself may be named, too.
    assert import_seal(clone / "general-knowledge", tmp_path / "new").documents == {"train.jsonl": 2, "val.jsonl": 1}


def test_a_clone_is_compared_with_this_package(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clone / "general-knowledge" / "data" / "synthetic_data" / "notes.json").unlink()
    assert check_seal.main([str(clone)]) == 0
    said = capsys.readouterr().out
    for line in ("(seal): 3 of 3 equal", "(seal-whole): 3 of 3 equal", "prompts: 1 of 1 equal", "edits: 1 of 1 equal"):
        assert line in said
    # An announcing line is cut by the rule, which the stand-in's does not know.
    file = clone / "general-knowledge" / "data" / "synthetic_data" / "train" / "iter0.json"
    file.write_text(json.dumps([article("Ada", completions=["Sure:\n1. A"], prompt="Another one.")]))
    assert check_seal.main([str(clone)]) == 1
    said = capsys.readouterr().out
    assert "(seal): 2 of 3 equal" in said
    assert "prompts: 1 of 2 equal" in said
