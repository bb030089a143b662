"""Reads a user's own clone of the released code of Zweiger et al. 2025 (arXiv 2506.10943): its documents, edits and
prompts become files as this package reads them.  Its code is read for its texts, and not run."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from selfedit.documents import Document
from selfedit.documents.rows import document_from_row, document_to_row
from selfedit.errors import UserError
from selfedit.json_file import read_json
from selfedit.prompts import Prompts
from selfedit.runs.files import directory_atomically

HOMES = ("general-knowledge", "knowledge-incorporation")  # in its later and its earlier versions
DOCUMENTS = {"train": "data/squad_train.json", "val": "data/squad_val.json"}
EDITS = "data/synthetic_data"
WRITING, ASKING = "src/data_generation/make_squad_data.py", "src/utils.py"

_JUDGED = {"question": "{{ question }}", "gold": "{{ gold }}", "pred": "{{ answer }}"}
_FIELDS = {"title": "{{ title }}", "context": "{{ text }}", "question": "Topic: {{ title }}\n{{ question }}"}
_TURN = re.compile(r"<\|im_start\|>(?:system|user)\n(.*?)<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True)
class Imported:
    """`documents` and `edits` are counts by file; `most_texts` is the recipe's setting of that name in this clone, and
    `left_out` are files that hold no edits."""

    folder: Path
    documents: dict[str, int]
    edits: dict[str, int]
    prompts: tuple[str, ...]
    most_texts: int | None
    left_out: tuple[str, ...]


def import_seal(clone: Path, out: Path) -> Imported:
    """Writes `train.jsonl`, `val.jsonl`, `edits/.../NAME.jsonl` (documents with the edits of one writer, NAME) and
    `prompts.yaml` to the new folder `out`.

    Errors: UserError for a folder that is no such clone, or lacks something.
    """
    home = find_home(clone)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: not empty; name a new folder with --out")
    written: dict[str, int] = {}
    edits: dict[str, int] = {}
    left_out = []
    prompts = seal_prompts(home)
    with directory_atomically(out) as scratch:
        for name, place in DOCUMENTS.items():
            written[f"{name}.jsonl"] = len(_write(scratch / f"{name}.jsonl", _documents(home / place, "")))
        files = sorted((home / EDITS).rglob("*.json"))
        if not files:
            raise UserError(f"{home / EDITS}: no edits in it (.json files); the clone is not whole")
        for file in files:
            found = [document for document in _documents(file, file.stem) if document.edits]
            name = f"edits/{file.relative_to(home / EDITS).with_suffix('.jsonl')}"
            if found:
                _write(scratch / name, found)
                edits[name] = sum(len(texts) for document in found for texts in document.edits.values())
            else:
                left_out.append(str(file))
        text = yaml.safe_dump(prompts, sort_keys=False, allow_unicode=True, width=10_000)
        (scratch / "prompts.yaml").write_text(f"# The prompts of {clone}.\n{text}", encoding="utf-8")
        Prompts(scratch / "prompts.yaml")
    most = constants(home / ASKING).get("MAX_TRAIN_SEQS_PER_COMPLETION")
    return Imported(out, written, edits, tuple(prompts["edit"]), most, tuple(left_out))


def find_home(clone: Path) -> Path:
    """The folder of a clone that this is about.  Errors: UserError."""
    homes = [folder for folder in (*(clone / name for name in HOMES), clone) if (folder / "data").is_dir()]
    if not homes:
        what = f"no folder {HOMES[0]} with data in it" if clone.is_dir() else "no such folder"
        raise UserError(f"{clone}: not a clone of SEAL's released code ({what}); give the folder that git made")
    for place in (*DOCUMENTS.values(), WRITING, ASKING):
        if not (homes[0] / place).is_file():
            raise UserError(f"{homes[0] / place}: missing; the clone is not whole, or of another version")
    return homes[0]


def _documents(file: Path, writer: str) -> Iterator[Document]:
    """The documents of a file of the clone, with the edits that are in it; a passage that is there twice once."""
    articles = read_json(file, "the clone is of another version")
    if not isinstance(articles, list):
        articles = []
    seen = set()
    for number, article in enumerate(articles, 1):
        where = f"{file}, article {number}"
        if not isinstance(article, dict) or not {"title", "context", "questions"} <= article.keys():
            raise UserError(f"{where}: no title, context and questions; the clone is of another version")
        asked = [one for one in article["questions"] or () if isinstance(one, dict)]
        texts = article.get("completions") or []
        row = {
            "id": hashlib.sha256(f"{article['title']}\n{article['context']}".encode()).hexdigest()[:12],
            "title": article["title"],
            "text": article["context"],
            "questions": [{"question": one.get("question"), "answers": [one.get("answer")]} for one in asked],
            "edits": {writer: [text for text in texts if str(text).strip()]} if texts else {},
        }
        if row["id"] not in seen:
            seen.add(row["id"])
            yield document_from_row(row, where)


def _write(file: Path, documents: Any) -> list[Document]:
    found = list(documents)
    if not found:
        raise UserError(f"{file.name}: nothing to write; the clone is not whole, or of another version")
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(document_to_row(document), ensure_ascii=False) + "\n" for document in found)
    file.write_text("".join(lines), encoding="utf-8")
    return found


def seal_prompts(home: Path) -> dict[str, Any]:
    """The prompts for edits, the exam and a judge, in the form of `prompts.yaml`.  Errors: UserError."""
    writing, asking = constants(home / WRITING), constants(home / ASKING)

    def get(found: Mapping[str, Any], place: str, name: str, kind: type) -> Any:
        if not isinstance(found.get(name), kind):
            raise UserError(f"{home / place}: no {name} in it; the clone is of another version")
        return found[name]

    base = get(writing, WRITING, "MAKE_SQUAD_DATA_TEMPLATES_BASE", dict)
    chat = get(writing, WRITING, "MAKE_SQUAD_DATA_TEMPLATE_INSTRUCT", str)
    edit: dict[str, dict[str, str]] = {name: {"base": _template(text)} for name, text in base.items()}
    edit.setdefault("implications", {})["chat"] = _message(chat)
    # A judge is told all in one message, without one of the system's.
    judged = asking.get("SQUAD_GRADE_TEMPLATE")
    judge = {"judge": {"system": "", "chat": _template(judged, _JUDGED)}} if isinstance(judged, str) else {}
    return {
        **judge,
        "edit": edit,
        "exam": {
            "chat": _message(get(asking, ASKING, "SQUAD_ANSWER_TEMPLATE_QWEN_INSTRUCT", str)),
            "base": _template(get(asking, ASKING, "SQUAD_ANSWER_TEMPLATE_BASE", str)),
        },
    }


def constants(file: Path) -> dict[str, Any]:
    """The values that a Python file's names have, where they are written out in it."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError, RecursionError):
        raise UserError(f"{file}: not Python code that can be read; the clone is of another version") from None
    found = {}
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and node.value is not None:
            try:
                found[target.id] = ast.literal_eval(node.value)
            except (ValueError, TypeError, RecursionError):
                continue
    return found


def _template(text: str, fields: Mapping[str, str] = _FIELDS) -> str:
    try:
        parts = [(literal, field) for literal, field, _, _ in Formatter().parse(text)]
        return "".join(literal + (fields[field] if field else "") for literal, field in parts)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"a prompt of the clone has a field that none here has ({error}): another version") from None


def _message(text: str) -> str:
    """The one user's message that a prompt of system and user's messages becomes."""
    return _template("\n\n".join(turn.strip() for turn in _TURN.findall(text)) or text)
