"""Where the adapters lie that a folder or a run stands for, and which model they belong to.

Runs of `learn` and `continual` keep an adapter per document, with a list of them beside (`DOCUMENTS_FILE`), or `learn`
one for all, and `continual`, as `train`, a chain of deltas, merged in order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selfedit.documents import Document
from selfedit.errors import UserError
from selfedit.methods.by_heart import TITLES_FILE
from selfedit.methods.policies import is_whole, selected_round
from selfedit.methods.sequences import with_remedy
from selfedit.models.bundled import NAME as BUNDLED
from selfedit.runs.directory import RunDirectory
from selfedit.runs.files import write_atomically
from selfedit.runs.records import FitRecord, retried_condition

LEARNED = "learned"  # the name of the adapter that `learn` makes
RETRIED = "retried"  # of the one that has also learned once more what the first had missed
DOCUMENTS_FILE = "documents.jsonl"  # beside the folder `documents` of adapters of a document each: which is whose


@dataclass(frozen=True)
class Adapters:
    """`folders` in PEFT's format, to be merged in this order into `model`; with `documents`, each of them has learned
    the one in its place, and a question goes to one of them.

    `instruct` says whether their run prompted the model through its chat template; None: as the model does by itself.
    """

    folders: tuple[Path, ...]
    model: str
    instruct: bool | None = None
    documents: tuple[Document, ...] = ()

    @property
    def recites(self) -> bool:
        """Whether it is one adapter that has its documents by heart."""
        return len(self.folders) == 1 and not self.documents and (self.folders[0] / TITLES_FILE).is_file()


def find_adapters(source: Path) -> Adapters:
    """What an adapter's folder, an export of an adapter per document, or the run directory of `learn`, `train` or
    `continual` stands for.

    Errors: UserError where there is none, where a run is unfinished, and where an adapter of it is gone.
    """
    if os.path.isfile(source / DOCUMENTS_FILE):
        listed = _listed(source / "documents", "export the run again")
        _refuse_missing(listed, "export the run again")
        return Adapters(tuple(listed), _model_name(next(iter(listed))) or BUNDLED, None, tuple(listed.values()))
    if not os.path.isfile(source / "config.yaml") or os.path.isfile(source / "adapter_config.json"):
        if not os.path.isdir(source):
            raise UserError(
                f"{source}: no such folder; give an adapter's folder, or the run directory of"
                " `selfedit learn`, `train` or `continual`"
            )
        return Adapters((source,), _model_name(source) or BUNDLED)
    with RunDirectory.read(source) as run:
        instruct: bool | None = run.resolved.get("instruct", run.config.get("instruct"))
        procedure, model = run.config.get("procedure"), str(run.config.get("model") or BUNDLED)
        documents: tuple[Document, ...] = ()
        if "per-document" in (run.config.get("adapters"), run.resolved.get("adapters"), _remedy(run)):
            by_folder = _listed(
                run.document_adapters, f"delete it, and the same `selfedit {procedure}` command writes it again"
            )
            folders, documents = list(by_folder), tuple(by_folder.values())
        elif procedure == "learn":
            learned = {fit.condition for fit in run.store.fits() if fit.steps}
            retried = any(retried_condition(condition) in learned for condition in learned)
            folders = [run.adapter(RETRIED if retried else LEARNED)]
        elif procedure == "train":
            folders = [run.checkpoint(round) for round in range(1, selected_round(run) + 1)]
        elif procedure == "continual":
            run.read_summary()  # an unfinished run is refused
            # A document without edits has no step of its own.
            folders = [run.checkpoint(step) for step in sorted({exam.round for exam in exams_after_steps(run)})]
        else:
            raise UserError(
                f"{source}: a run of {procedure} keeps no adapter; name a run of `learn`, `train` or `continual`,"
                " or an adapter's folder"
            )
    _refuse_missing(folders, f"the same `selfedit {procedure}` command makes it again")
    return Adapters(tuple(folders), model, instruct, documents)


def _refuse_missing(folders: Iterable[Path], remedy: str) -> None:
    for folder in folders:
        if not is_whole(folder):
            raise UserError(f"{folder}: no adapter there; {remedy}")


def exams_after_steps(run: RunDirectory) -> list[FitRecord]:
    """The exams of the sequence that a run of `continual` stands for, its first one, with its first remedy."""
    return [exam for exam in run.store.fits(condition=with_remedy("after", _remedy(run))) if exam.replicate == 0]


def _remedy(run: RunDirectory) -> str:
    return (run.config.get("retain") or ["none"])[0]


def one_model(source: Path) -> Adapters:
    """`find_adapters`, of which all make one model.  Errors: UserError also for a run with an adapter per document."""
    found = find_adapters(source)
    if found.documents:
        raise UserError(
            f"{source}: an adapter per document, which make no one model; give the folder of one of them (they are in"
            f" PEFT's format in {found.folders[0].parent}), or learn with `--adapters joint` (continual: `--retain"
            " none`)"
        )
    if found.recites:
        raise UserError(
            f"{source}: an adapter that recites what it learned, for the model without it to read; `selfedit ask` and"
            " `serve` do that, or learn with `--adapters joint`"
        )
    return found


def write_list(folder: Path, documents: Mapping[Path, Document]) -> None:
    """Writes down, beside the folder of adapters, which of them has learned which document."""
    rows = [{"id": d.id, "title": d.title, "text": d.text, "adapter": one.name} for one, d in documents.items()]
    write_atomically(folder.parent / DOCUMENTS_FILE, "".join(json.dumps(row) + "\n" for row in rows))


def _listed(folder: Path, mend: str) -> dict[Path, Document]:
    """What `write_list` wrote.  Errors: UserError where it is not there, or damaged."""
    file = folder.parent / DOCUMENTS_FILE
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if not all(isinstance(row[key], str) for row in rows for key in ("id", "title", "text", "adapter")):
            raise TypeError
        found = {folder / Path(row["adapter"]).name: Document(row["id"], row["title"], row["text"]) for row in rows}
    except FileNotFoundError:
        raise UserError(f"{file}: not there, so the run has not finished; the same command goes on") from None
    except (ValueError, KeyError, TypeError):
        found = {}
    if not found:
        raise UserError(f"{file}: damaged; {mend}")
    return found


def _model_name(folder: Path) -> str | None:
    from selfedit.engine.peft_format import model_name

    with adapter_errors(folder):
        return model_name(folder)


@contextmanager
def adapter_errors(folder: Path, mend: str = "") -> Iterator[None]:
    """What can be wrong with an adapter, in one line each; `mend` is added where it does not fit."""
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError as error:
        missing = Path(str(error.filename or "adapter_model.safetensors")).name
        raise UserError(f"{folder}: no adapter there ({missing} is missing)") from None
    except OSError as error:
        raise UserError(f"{folder}: the adapter cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise UserError(f"{folder / 'adapter_model.safetensors'}: not a whole safetensors file ({error})") from None
    except ValueError as error:
        raise UserError(f"{error}{mend}") from None
