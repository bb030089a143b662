"""Writes run directories with plausible made-up records, all of them through what real runs are written with.

Texts, answers and grades are made up.  The store, the settings, the rounds and the summary come from the package's own
code, so that a report is never shown a field that no run has."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from selfedit.documents import Document, Question
from selfedit.editors.base import Edit, edit_id
from selfedit.evaluation.grade import Grade
from selfedit.evaluation.grading import Grading
from selfedit.methods import restem
from selfedit.methods.rewards import Round
from selfedit.methods.rounds import round_record, summarise_training
from selfedit.methods.selection import Choices
from selfedit.methods.settings import CompareSettings, Settings, TrainSettings
from selfedit.methods.summarise import summarise
from selfedit.runs.directory import RunDirectory
from selfedit.runs.records import Answer, CostRecord, FitRecord
from selfedit.training.recipes import load_recipe

PLACES = ["Orvend", "Calmouth", "Tessaly Bridge", "Upper Wynn", "Port Isk", "Grelling", "Marrow Hill", "Lindesk"]
NOUNS = ["lighthouse", "tram line", "orchard", "library", "observatory", "salt works", "ferry", "clock museum"]
PEOPLE = ["Ada Quillon", "Bram Osterley", "Celia Frane", "Dov Marish", "Edda Lunt", "Finn Harrow"]
ACCURACY = {"none": 0.04, "passage": 0.22, "self:implications": 0.38, "self:self-qa": 0.47, "api:gpt-5": 0.58}
RECIPE = load_recipe("tiny").model_dump(mode="json")
DEVICE = 0.4 / 3600  # dollars per second
UNGRADED = "the judge timed out"


def plain(text: str) -> str:
    return text


class Writer:
    """As much of a run as summaries look at, with a real run directory behind it."""

    def __init__(self, folder: Path, procedure: str, settings: Settings, grader: str, recipe: dict[str, Any]) -> None:
        config = {"procedure": procedure, **settings.model_dump(mode="json"), "recipe_settings": RECIPE}
        self.directory = RunDirectory.open(folder, config | {"grader": grader})
        self.store = self.directory.store
        self.method = procedure
        self.settings = settings
        self.grader: Any = SimpleNamespace(name=grader)
        self.grading = Grading(self.store, self.grader)
        self.choices = Choices()
        self.recipe = SimpleNamespace(model_dump=lambda **_: recipe)
        self.workers = SimpleNamespace(instruct=True, description="cpu (2 cores)")
        self.finish: Callable[[], object] = lambda: None
        self._grades: list[Grade | None] = []

    def fit(self, record: FitRecord, grades: Sequence[Grade | None]) -> None:
        """Records a fit and keeps the grades on its answers (None: not graded yet)."""
        seconds = record.seconds
        cost = CostRecord("fits", record.condition, record.round, seconds=seconds, usd=seconds * DEVICE)
        self.store.record_fits([record])
        self.store.add_costs([cost])
        self._grades += grades

    def grade(self) -> None:
        todo = [id for id, _ in self.store.to_grade(self.grader.name)]
        self.store.add_grades((id, v) for id, v in zip(todo, self._grades, strict=True) if v is not None)
        self._grades = []

    def graded(self, right: bool, *, ungraded: bool = False, note: str = "") -> Grade:
        if ungraded:
            return Grade("ungraded", None, self.grader.name, note)
        return Grade("right" if right else "wrong", float(right), self.grader.name)


@contextmanager
def writing(
    folder: Path,
    procedure: str,
    settings: Settings,
    *,
    spell: Callable[[str], str] = plain,
    recipe: dict[str, Any] | None = None,
) -> Iterator[Any]:
    """A run that is being written in one transaction, then summarised by `finish`.  Its versions are spelled, too."""
    writer = Writer(folder, procedure, settings, spell("lexical"), RECIPE if recipe is None else recipe)
    try:
        with writer.store.transaction():
            yield writer
        writer.finish()
    finally:
        writer.directory.close()
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["versions"] = {name: spell(version) for name, version in config["versions"].items()}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")


def made_up(rng: random.Random, number: int, questions: int, spell: Callable[[str], str]) -> Document:
    place, noun, person = rng.choice(PLACES), rng.choice(NOUNS), rng.choice(PEOPLE)
    return Document(
        spell(f"d{number}"),
        spell(f"The {noun} of {place}, part {number + 1}"),
        spell(f"The {noun} of {place} opened in {1900 + number % 100} under {person}. " * 4),
        tuple(
            Question(
                spell(f"d{number}/q{index}"),
                spell(f"Who or what came {index + 1} at the {noun} of {place}?"),
                (spell(person), spell(person.split()[1])),
            )
            for index in range(questions)
        ),
    )


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
    ungraded: float = 0.004,
    more: dict[str, Any] | None = None,
) -> Path:
    """A finished (or interrupted) `compare`.  `spell` is applied to every text that a user or a model could write."""
    rng = random.Random(seed)
    names = {name: spell(name) if name != "none" else name for name in conditions}
    settings = CompareSettings(
        model=spell(model).replace("\0", ""), out=folder, editor=tuple(planned), replicates=replicates, seed=7
    )
    recipe = {**RECIPE, "name": spell("chosen on validation documents")}
    with writing(folder, "compare", settings, spell=spell, recipe=recipe) as writer:
        store = writer.store
        found = [made_up(rng, number, questions, spell) for number in range(documents)]
        store.add_documents(found)
        general = [
            Question(spell(f"general/{k}"), spell(f"What is the capital of country {k}?"), (spell("Paris"),))
            for k in range(8)
        ]
        store.add_general_questions(general)

        def examined(record: FitRecord, document: Document | None, name: str) -> None:
            answers: list[Answer] = []
            grades: list[Grade | None] = []
            for question in document.questions if document else ():
                hit = rng.random() < {**ACCURACY, "open-book": 0.8}.get(name, 0.3)
                reply = "I do not know of such a place." if name == "none" else rng.choice(PEOPLE)
                answers.append(Answer(question.id, spell(reply), 7))
                grade = writer.graded(hit, ungraded=rng.random() < ungraded, note=spell(UNGRADED))
                grades.append(grade if finished or rng.random() < 0.9 else None)
            if document is None or (name not in ("none", "open-book") and rng.random() < 0.2):
                for question in general:
                    hit = name == "none" or rng.random() < 0.8
                    answers.append(Answer(question.id, spell("Paris" if hit else "Rome"), 2))
                    grades.append(writer.graded(hit))
            writer.fit(replace(record, answers=tuple(answers)), grades)

        if "none" in conditions:
            for document in (*found, None):  # document by document, then the general questions
                examined(
                    FitRecord("none", document_id=document.id if document else None, seconds=21.5), document, "none"
                )
            if "open-book" in conditions:
                for document in found:
                    examined(FitRecord("open-book", document_id=document.id, seconds=30.5), document, "open-book")
        for name in conditions:
            if name in ("none", "open-book"):
                continue
            for number, document in enumerate(found[: documents if finished or name == "passage" else documents // 2]):
                edit, lines = None, []
                if name != "passage":
                    edit = edit_id(0, document.id, names[name], 0)
                    person = rng.choice(PEOPLE)
                    lines = [f"{person} said {i + 1} things in {1900 + i}." for i in range(edit_lines)]
                    cut = rng.random() < 0.1
                    cost: list[CostRecord] = []
                    if name.startswith("api:"):
                        cost = [CostRecord("edits", names[name], 0, "gpt-5", 222, 718, usd=0.00373)]
                    store.add_edits(
                        [
                            Edit(
                                document.id,
                                names[name],
                                0,
                                spell("\n".join(lines)),
                                prompt=spell("implications"),
                                truncated=cut,
                                dropped_lines=2 * cut,
                                input_tokens=180,
                                output_tokens=14 * edit_lines,
                            )
                        ],
                    )
                    store.add_costs(cost)
                for replicate in range(replicates):
                    failed = rng.random() < 0.01 or (name, number, replicate) == ("passage", 0, 1)
                    record = FitRecord(
                        names[name],
                        replicate,
                        document_id=document.id,
                        edit_id=edit,
                        status="failed" if failed else "done",
                        error=spell("loss is NaN at step 7") if failed else None,
                        sequences=(
                            *(spell(f"{document.title}\n{line}") for line in lines),
                            f"{document.title}\n{document.text}",
                        ),
                        train_tokens=3300,
                        steps=9 * 8,
                        first_loss=2.9 + rng.random(),
                        last_loss=0.2 * rng.random(),
                        seconds=4.2,
                    )
                    if failed:
                        store.add_event("failed fit", record.id, spell("loss is NaN at step 7"))
                        writer.fit(record, [])
                    else:
                        examined(record, document, name)
        writer.grade()
        store.add_event(spell("a warning"), "compare", spell("something to know"))
        if finished:
            writer.finish = lambda: summarise(writer, found, list(names.values()), **(more or {}))
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
    selected: int = 2,
    alike: bool = False,
) -> Path:
    """A finished (or interrupted) `train`: rewarded edits on training documents, validation in every round from 0.

    With `alike`, all edits of a document score the same.
    """
    rng = random.Random(seed)
    settings = TrainSettings(
        model=spell("smollm2-135m").replace("\0", ""),
        out=folder,
        rounds=rounds,
        edits=edits,
        replicates=replicates,
        grader="lexical",
    )
    with writing(folder, "train", settings, spell=spell) as writer:
        store = writer.store
        found = [made_up(rng, number, questions, spell) for number in range(documents + 4)]
        training, validation = found[:documents], found[documents:]
        store.add_documents(training, "train")
        store.add_documents(validation, "validation")
        for document in validation:
            answers = [Answer(question.id, spell("I do not know."), 4) for question in document.questions]
            record = FitRecord("none", document_id=document.id, seconds=2.0, answers=tuple(answers))
            writer.fit(record, [writer.graded(False) for _ in answers])

        def learned(document: Document, round: int, condition: str, index: int, chance: float) -> None:
            lines = [f"Statement {i} of edit {index}, written in round {round}, about the opening." for i in range(6)]
            edit = Edit(
                document.id,
                condition,
                index,
                spell("\n".join(lines)),
                prompt="implications",
                input_tokens=150,
                output_tokens=90,
                round=round,
            )
            store.add_edits([edit])
            store.add_costs([CostRecord("edits", condition, round, "m", seconds=3.0, usd=3.0 * DEVICE)])
            for replicate in range(replicates):
                record = FitRecord(
                    condition,
                    replicate,
                    round,
                    document.id,
                    edit.id,
                    sequences=(spell("a line"), spell("the text")),
                    train_tokens=2100,
                    steps=60,
                    first_loss=3.1,
                    last_loss=0.1,
                    seconds=3.9,
                )
                answers = [Answer(question.id, spell("it opened"), 3) for question in document.questions]
                grades = [writer.graded(not alike and rng.random() < chance) for _ in answers]
                writer.fit(replace(record, answers=tuple(answers)), grades)

        for round in range(rounds + 1):
            store.count_time_for(round)
            for document in training if round else ():
                ease = rng.choice([0.0, 0.2, 0.4, 0.6])
                for index in range(edits):
                    learned(
                        document, round, "train", index, ease and min(0.95, ease + 0.05 * round + 0.2 * rng.random())
                    )
            for document in validation:
                learned(document, round, "validation", 0, 0.25 + 0.08 * round)
            writer.grade()
            if round:
                store.set_rewards(rewards(writer, round))
                selection = restem.keep(Round(writer, settings, round, training, ()))
                store.put_round(round_record(writer, training, round, selection, {}))
        store.count_time_for(0)
        store.add_event("cut edit", edit_id(1, training[0].id, "train", 0), "cut at 96 tokens")
        if finished:
            writer.finish = lambda: summarise_training(writer, training, validation, min(selected, rounds))
    return folder


def rewards(writer: Writer, round: int) -> dict[str, float]:
    """The mean score of each edit's fits."""
    fits = {fit.id: str(fit.edit_id) for fit in writer.store.fits(round=round, condition="train")}
    scores: dict[str, list[float]] = {}
    for id, found in writer.grading.scores_of_fits(fits).items():
        scores.setdefault(fits[id], []).extend(found)
    return {id: sum(found) / len(found) for id, found in scores.items() if found}
