"""Policies: chains of small deltas on the base model, one per round of Step B, kept as checkpoints in PEFT's format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safetensors import SafetensorError, safe_open

from selfedit.documents import Document, sharing_titles
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.runs.directory import RunDirectory, delta_name
from selfedit.runs.files import directory_atomically

if TYPE_CHECKING:
    from selfedit.methods.run import Run

DELTA_FILES = ("adapter_config.json", "adapter_model.safetensors")


def is_whole(folder: Path) -> bool:
    """Whether a folder holds an adapter's files, none of them cut short."""
    if not all((folder / name).is_file() for name in DELTA_FILES):
        return False
    try:
        with safe_open(folder / DELTA_FILES[1], framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False


def write_adapter(folder: Path, files: Mapping[str, bytes], beside: Callable[[Path], None] | None = None) -> None:
    """Writes an adapter's files, whole or not at all; `beside` adds others to the folder."""
    with directory_atomically(folder) as scratch:
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        if beside is not None:
            beside(scratch)


def missing_adapters(run: Run, kept: Mapping[str, Path]) -> set[str]:
    """Of fits whose adapters are kept (folders by the fit's id), those that are done and whose adapter is gone."""
    lost = {id: folder for id, folder in kept.items() if not is_whole(folder)}
    gone = {fit.id for fit in run.store.fits() if fit.id in lost and fit.status == "done"} if lost else set()
    for id in gone:
        run.warn("adapter made again", f"{lost[id]}: the adapter is gone; it is made again")
    return gone


def read_delta(folder: Path) -> dict[str, bytes]:
    """The files of one delta.  Errors: UserError where one is missing."""
    try:
        return {name: (folder / name).read_bytes() for name in DELTA_FILES}
    except OSError as error:
        raise UserError(
            f"{folder}: not a whole checkpoint ({error.strerror}); the command that made it makes it again"
        ) from None


def publish_chain(run: Run, folder: Path, rounds: range) -> tuple[str, ...]:
    """Makes the deltas of these rounds of a run known to the workers; returns their names."""
    names = []
    for round in rounds:
        name = delta_name(round)
        run.workers.publish(name, read_delta(folder / "checkpoints" / name))
        names.append(name)
    return tuple(names)


def selected_round(trained: RunDirectory) -> int:
    """The round that a run of `train` selected.  Errors: UserError for another method's run, or an unfinished one."""
    if trained.config.get("procedure") != "train":
        method = trained.config.get("procedure")
        raise UserError(f"{trained.path}: a run of {method}, not of train; name a run of `selfedit train`")
    selected = trained.read_summary().selected_round
    if selected is None:
        raise UserError(f"{trained.path}: no round is selected yet; let `selfedit train` finish")
    return selected


def load_policies(
    path: Path, run: Run, documents: Sequence[Document], round: int | Literal["all"] | None = None
) -> list[tuple[EditorSpec, str, tuple[str, ...]]]:
    """The policy that a run of `train` selected, or that of `round`, or each round's, made known to the workers: as an
    editor, its condition, and its deltas in order.  Warns of documents that the policy has seen.

    Errors: UserError for a run of another method, an unfinished one, one of another model, or one without that round;
    and where the untrained model itself was selected."""
    with RunDirectory.read(path) as trained:
        selected = selected_round(trained)
        on_test = trained.read_summary().selected_on == "test"
        config, rounds, seen = trained.config, len(trained.store.rounds()), trained.store.documents()
    if (model := config["model"]) != run.settings.model:
        raise UserError(
            f"{path}: its checkpoints belong to model {model}, not {run.settings.model}; give the same --model"
        )
    if round is None and selected == 0:
        raise UserError(
            f"{path}: it selected round 0, the untrained model itself, so there is no policy to compare;"
            " --policy-round N takes another round's"
        )
    if isinstance(round, int) and round > rounds:
        raise UserError(f"--policy-round {round}: {path} has {rounds} rounds")
    chosen = range(1, rounds + 1) if round == "all" else [round or selected]
    if isinstance(round, int) and round != selected:
        run.warn(
            "policy not selected",
            f"the policy is round {round}'s; on {'test' if on_test else 'validation'} documents, {path} selected round"
            f" {selected}",
        )
    if shared := sharing_titles(documents, seen):
        run.warn(
            "documents seen in training",
            f"{len(shared)} of {len(documents)} documents have titles that the policy was trained or selected on"
            f" (first: {shared[0].id}): their figures say nothing about new documents",
        )
    prompt = str(config["edit_prompt"])
    selection = " (selected on test documents)" if on_test else " (selected)" if round == "all" else ""
    return [
        (
            EditorSpec("self", prompt),
            f"trained:{prompt}" + f" round {number}" * (round == "all") + selection * (number == selected),
            publish_chain(run, path, range(1, number + 1)),
        )
        for number in chosen
    ]
