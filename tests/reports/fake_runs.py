"""Writes run directories with plausible made-up records, by executing the store's schema."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import yaml

PLACES = ["Orvend", "Calmouth", "Tessaly Bridge", "Upper Wynn", "Port Isk", "Grelling", "Marrow Hill", "Lindesk"]
NOUNS = ["lighthouse", "tram line", "orchard", "library", "observatory", "salt works", "ferry", "clock museum"]
PEOPLE = ["Ada Quillon", "Bram Osterley", "Celia Frane", "Dov Marish", "Edda Lunt", "Finn Harrow"]
ACCURACY = {"none": 0.04, "passage": 0.22, "self:implications": 0.38, "self:self-qa": 0.47, "api:gpt-5": 0.58}
RECIPE = {"rank": 16, "alpha": 32, "targets": "all-linear", "learning_rate": 0.001, "epochs": 8, "cut": "lines"}


def open_store(folder: Path) -> sqlite3.Connection:
    folder.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(folder / "run.sqlite")
    connection.executescript(resources.files("selfedit.runs").joinpath("schema.sql").read_text(encoding="utf-8"))
    connection.execute("PRAGMA user_version = 1")
    return connection


def insert(connection: sqlite3.Connection, table: str, **row: object) -> int:
    columns, marks = ", ".join(row), ", ".join("?" * len(row))
    cursor = connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(row.values()))
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def plain(text: str) -> str:
    return text


def write_compare(
    folder: Path,
    documents: int = 6,
    conditions: Sequence[str] = tuple(ACCURACY),
    questions: int = 5,
    replicates: int = 2,
    spell: Callable[[str], str] = plain,
    finished: bool = True,
    model: str = "smollm2-135m",
    seed: int = 0,
    edit_lines: int = 8,
    planned: Sequence[str] = (),
) -> Path:
    """A finished (or interrupted) `compare`.  `spell` is applied to every text that a user or a model could write."""
    rng = random.Random(seed)
    names = {name: spell(name) if name != "none" else name for name in conditions}
    grader = spell("calibrated")
    store = open_store(folder)
    for number in range(documents):
        place, noun, person = rng.choice(PLACES), rng.choice(NOUNS), rng.choice(PEOPLE)
        text = f"The {noun} of {place} opened in {1900 + number % 100} under {person}. " * 4
        insert(
            store, "documents", id=spell(f"d{number}"), position=number, split="exam",
            title=spell(f"The {noun} of {place}, part {number + 1}"), text=spell(text),
        )  # fmt: skip
        for index in range(questions):
            insert(
                store, "questions", id=spell(f"d{number}/q{index}"), document_id=spell(f"d{number}"), position=index,
                question=spell(f"Who or what came {index + 1} at the {noun} of {place}?"),
                answers=json.dumps([spell(person), spell(person.split()[1])]),
            )  # fmt: skip
    for index in range(8):
        insert(
            store, "questions", id=spell(f"general/{index}"), document_id=None, position=index,
            question=spell(f"What is the capital of country {index}?"), answers=json.dumps([spell("Paris")]),
        )  # fmt: skip
    outcome = {name: [0, 0, 0] for name in conditions}
    tokens = dict.fromkeys(conditions, 0)
    written = dict.fromkeys(conditions, 0)

    def examine(fit: str, number: int | None, name: str) -> None:
        base = name == "none"
        for document in [] if number is None else [number]:
            for index in range(questions):
                right = rng.random() < ACCURACY.get(name, 0.3)
                value = "ungraded" if rng.random() < 0.004 else "right" if right else "wrong"
                reply = rng.choice(PEOPLE) if not base else "I do not know of such a place."
                answer = insert(
                    store,
                    "answers",
                    fit_id=fit,
                    question_id=spell(f"d{document}/q{index}"),
                    text=spell(reply),
                    tokens=7,
                )
                if finished or rng.random() < 0.9:
                    credit = None if value == "ungraded" else 0.9 if right else 0.1
                    note = spell("the judge timed out") if value == "ungraded" else ""
                    insert(store, "verdicts", answer_id=answer, grader=grader, value=value, credit=credit, note=note)
                    outcome[name][("right", "wrong", "ungraded").index(value)] += 1
        if number is None or (not base and rng.random() < 0.2):
            for index in range(8):
                right = base or rng.random() < 0.8
                answer = insert(
                    store, "answers", fit_id=fit, question_id=spell(f"general/{index}"),
                    text=spell("Paris" if right else "Rome"), tokens=2,
                )  # fmt: skip
                insert(
                    store, "verdicts", answer_id=answer, grader=grader, value="right" if right else "wrong",
                    credit=float(right), note="",
                )  # fmt: skip

    fit_columns = {"round": 0, "status": "done", "error": None}
    if "none" in conditions:
        for number in (*range(documents), None):  # document by document, then the general questions
            fit = f"0|{spell(f'd{number}') if number is not None else ''}|none|0"
            insert(
                store, "fits", id=fit, condition="none", document_id=None if number is None else spell(f"d{number}"),
                edit_id=None, replicate=0, sequences="[]", train_tokens=0, steps=0, first_loss=None, last_loss=None,
                seconds=21.5, **fit_columns,
            )  # fmt: skip
            examine(fit, number, "none")
    for name in conditions:
        if name == "none":
            continue
        for number in range(documents if finished or name == "passage" else documents // 2):
            title, text = store.execute("SELECT title, text FROM documents WHERE position = ?", (number,)).fetchone()
            edit, lines = None, []
            if name != "passage":
                edit = f"0|{spell(f'd{number}')}|{names[name]}|0"
                person = rng.choice(PEOPLE)
                lines = [
                    f"{person} said {i + 1} things about what happened there in {1900 + i}." for i in range(edit_lines)
                ]
                cut = rng.random() < 0.1
                insert(
                    store, "edits", id=edit, round=0, document_id=spell(f"d{number}"), writer=names[name], idx=0,
                    prompt=spell("implications"), text=spell("\n".join(lines)), truncated=cut, dropped_lines=2 * cut,
                    input_tokens=180, output_tokens=14 * edit_lines, kept=None, reward=None,
                )  # fmt: skip
                written[name] += 14 * edit_lines
            for replicate in range(replicates):
                failed = rng.random() < 0.01
                fit = f"{edit or '0|' + spell(f'd{number}') + '|' + names[name]}|{replicate}"
                sequences = [spell(f"{title}\n{line}") for line in lines] + [f"{title}\n{text}"]
                insert(
                    store, "fits", id=fit, condition=names[name], document_id=spell(f"d{number}"), edit_id=edit,
                    replicate=replicate, sequences=json.dumps(sequences), train_tokens=3300, steps=9 * 8,
                    first_loss=2.9 + rng.random(), last_loss=0.2 * rng.random(), seconds=4.2,
                    **(fit_columns | ({"status": "failed", "error": spell("loss is NaN at step 7")} if failed else {})),
                )  # fmt: skip
                tokens[name] += 3300
                if failed:
                    insert(
                        store, "events", kind=spell("failed_fit"), subject=fit, message=spell("loss is NaN at step 7")
                    )
                else:
                    examine(fit, number, name)
            insert(
                store,
                "costs",
                what="fits",
                condition=names[name],
                model=spell(model),
                seconds=4.2 * replicates,
                usd=0.0004,
            )
            if name.startswith("api:"):
                insert(
                    store, "costs", what="edits", condition=names[name], model="gpt-5", input_tokens=222,
                    output_tokens=718, seconds=0.0, usd=0.00373,
                )  # fmt: skip
    store.commit()
    store.close()
    settings = {
        "procedure": "compare", "model": spell(model), "grader": grader, "replicates": replicates, "edits": 1, "seed": 7,
        "editor": list(planned), "recipe": "default",
        "recipe_settings": RECIPE, "versions": {"torch": spell("2.10.0"), "transformers": "5.10.0", "selfedit": "0.1.0"},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    if not finished:
        return folder
    rows = []
    for name in conditions:
        right, wrong, ungraded = outcome[name]
        accuracy = right / max(1, right + wrong)
        rows.append(
            {
                "name": names[name],
                "accuracy": accuracy,
                "ci95": [max(0, accuracy - 0.05), min(1, accuracy + 0.05)],
                "correct": right,
                "graded": right + wrong,
                "ungraded": ungraded,
                "train_tokens": tokens[name],
                "edit_tokens": written[name],
                "seconds": 21.5 if name == "none" else 4.2 * documents * replicates,
                "cost_usd": 0.0373 if name.startswith("api:") else None,
            }
        )
    summary = {
        "schema": 1, "procedure": "compare", "model": spell(model), "instruct": True, "documents": documents,
        "questions": documents * questions, "recipe": {**RECIPE, "note": spell("chosen on validation documents")},
        "conditions": rows, "grader": grader, "device": spell("cpu (2 cores)"), "seconds": 312.5,
        "events": {spell("failed_fit"): 1, "cut_edit": 3},
        "differences": [
            {
                "a": "none", "b": row["name"], "difference": row["accuracy"] - rows[0]["accuracy"],
                "ci95": [row["accuracy"] - rows[0]["accuracy"] - 0.06, row["accuracy"] - rows[0]["accuracy"] + 0.06],
                "larger_than_noise": abs(row["accuracy"] - rows[0]["accuracy"]) > 0.06,
            }
            for row in rows[1:]
        ],
        "forgetting": [
            {"condition": row["name"], "asked": 64, "kept": 58, "lost": 6 / 64, "ci95": [0.04, 0.16]} for row in rows[1:]
        ],
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def write_train(
    folder: Path,
    documents: int = 8,
    edits: int = 4,
    rounds: int = 3,
    replicates: int = 2,
    questions: int = 5,
    spell: Callable[[str], str] = plain,
    finished: bool = True,
    seed: int = 0,
) -> Path:
    """A finished (or interrupted) `train`: rewarded edits on training documents, validation in every round from 0."""
    rng = random.Random(seed)
    store = open_store(folder)
    splits = ["train"] * documents + ["validation"] * 4
    for number, split in enumerate(splits):
        place, noun = rng.choice(PLACES), rng.choice(NOUNS)
        insert(
            store, "documents", id=spell(f"d{number}"), position=number, split=split,
            title=spell(f"The {noun} of {place}, part {number + 1}"), text=spell(f"The {noun} of {place} opened. " * 6),
        )  # fmt: skip
        for index in range(questions):
            insert(
                store, "questions", id=spell(f"d{number}/q{index}"), document_id=spell(f"d{number}"), position=index,
                question=spell(f"What came {index + 1}?"), answers=json.dumps([spell("the opening")]),
            )  # fmt: skip

    def fit(edit: str, document: str, number: int, replicate: int, condition: str, chance: float, index: int) -> float:
        identifier = f"{edit}|{replicate}"
        insert(
            store, "fits", id=identifier, round=number, condition=condition, document_id=document, edit_id=edit,
            replicate=replicate, status="done", error=None, sequences=json.dumps([spell("a line"), spell("the text")]),
            train_tokens=2100, steps=60, first_loss=3.1, last_loss=0.1, seconds=3.9,
        )  # fmt: skip
        right = 0
        for asked in range(questions):
            hit = rng.random() < chance
            right += hit
            answer = insert(
                store,
                "answers",
                fit_id=identifier,
                question_id=spell(f"d{index}/q{asked}"),
                text=spell("it opened"),
                tokens=3,
            )
            insert(
                store, "verdicts", answer_id=answer, grader="lexical", value="right" if hit else "wrong",
                credit=float(hit), note="",
            )  # fmt: skip
        return right / questions

    entries = []
    for number in range(rounds + 1):
        rewards_of: list[list[float]] = []
        for index, split in enumerate(splits):
            if split == "train" and number == 0:
                continue
            ease = rng.choice([0.0, 0.2, 0.4, 0.6])
            document = spell(f"d{index}")
            rewards = []
            for k in range(edits if split == "train" else 1):
                edit = f"{number}|{document}|{split}|{k}"
                lines = [f"Statement {i} of edit {k}, written in round {number}, about the opening." for i in range(6)]
                insert(
                    store, "edits", id=edit, round=number, document_id=document, writer=split, idx=k,
                    prompt="implications", text=spell("\n".join(lines)), truncated=0, dropped_lines=0, input_tokens=150,
                    output_tokens=90, kept=None, reward=None,
                )  # fmt: skip
                chance = ease and min(0.95, ease + 0.05 * number + 0.2 * rng.random())
                rewards.append(
                    sum(fit(edit, document, number, r, split, chance, index) for r in range(replicates)) / replicates
                )
            if split == "train":
                best = max(range(edits), key=lambda k: (rewards[k], -k))
                for k in range(edits):
                    store.execute(
                        "UPDATE edits SET kept = ?, reward = ? WHERE id = ?",
                        (k == best, rewards[k], f"{number}|{document}|{split}|{k}"),
                    )
                rewards_of.append(rewards)
        reward = sum(sum(r) / len(r) for r in rewards_of) / len(rewards_of) if rewards_of else None
        details: dict[str, object] = {"validation_ci95": [0.1 + 0.05 * number, 0.4 + 0.05 * number], "usd": 0.021}
        if reward is not None:
            details["train_reward_ci95"] = [max(0, reward - 0.1), reward + 0.1]
            details["documents_without_signal"] = sum(len(set(r)) == 1 for r in rewards_of)
        if number == 0:
            continue  # the untrained editor was only examined on the validation documents
        entry = {
            "round": number, "train_reward": reward, "validation_accuracy": min(0.45, 0.25 + 0.08 * number),
            "kept_edits": len(rewards_of), "seconds": 260.0 + number,
        }  # fmt: skip
        insert(store, "rounds", **entry, checkpoint=f"checkpoints/round-{number:02d}", details=json.dumps(details))
        insert(
            store, "costs", what="edits", condition="train", model="smollm2-135m",
            input_tokens=150 * documents * edits, output_tokens=90 * documents * edits, seconds=30.0, usd=0.001,
        )  # fmt: skip
        insert(
            store, "costs", what="fits", condition="train", model="smollm2-135m",
            seconds=3.9 * documents * edits * replicates, usd=0.02,
        )  # fmt: skip
        entries.append(entry | details)
    insert(store, "events", kind="cut_edit", subject=f"1|{spell('d1')}|train|0", message="cut at 96 tokens")
    store.commit()
    store.close()
    settings = {
        "procedure": "train",
        "model": "smollm2-135m",
        "rounds": rounds,
        "edits": edits,
        "recipe_settings": RECIPE,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    if finished:
        summary = {
            "schema": 1, "procedure": "train", "model": "smollm2-135m", "instruct": True, "documents": documents,
            "questions": documents * questions, "recipe": RECIPE, "rounds": entries,
            "conditions": [
                {
                    "name": "none", "accuracy": 0.04, "ci95": [0.0, 0.1], "correct": 2, "graded": 40, "ungraded": 0,
                    "train_tokens": 0, "edit_tokens": 0, "seconds": 9.0, "cost_usd": None,
                }
            ],
            "untrained_validation": {"accuracy": 0.25, "ci95": [0.1, 0.4]},
            "selected_round": 2 if rounds >= 2 else 1, "grader": "lexical", "device": "cpu", "seconds": 1040.0,
            "worth_it": spell("Step A gained 24.0 points. Step B added 3.1 points, within noise. Better keep Step A."),
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder
