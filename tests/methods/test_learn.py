"""One adapter for all documents: learned, saved, loaded by others' tools, asked, merged and exported."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from counting_pool import CountingPool
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfedit.engine import DecodeRequest, decode
from selfedit.errors import UserError
from selfedit.methods import inner_loop
from selfedit.methods.ask import Asker
from selfedit.methods.compare import compare
from selfedit.methods.continual import continual
from selfedit.methods.export import export
from selfedit.methods.learn import Learned, learn
from selfedit.methods.restem import train
from selfedit.methods.settings import CompareSettings, ContinualSettings, LearnSettings, TrainSettings
from selfedit.methods.workers import Workers
from selfedit.models import BUNDLED, finding, load_model
from selfedit.models.tokenizer import Tokenizer
from selfedit.progress import Progress
from selfedit.prompts import Prompts
from selfedit.runs.store import Store
from selfedit.training import tokens
from summary_fields import undeclared
from tiny_world import SMALL, rows, write_rows

QUESTION = [{"role": "user", "content": "Where did Ada make the kite?"}]


@pytest.fixture(scope="module")
def learned(chat_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[LearnSettings, Learned]:
    folder = tmp_path_factory.mktemp("learn")
    file = write_rows(folder / "documents.jsonl", rows(3))
    settings = LearnSettings(
        model=chat_model,
        documents=(str(file),),
        editor=f"replay:{file}#expert",
        edits=2,
        **{**SMALL, "out": folder / "run"},
    )
    return settings, learn(settings)


def test_one_adapter_learns_all_documents_and_is_examined_before_and_after(
    learned: tuple[LearnSettings, Learned],
) -> None:
    settings, found = learned
    assert found.documents == 3
    assert found.adapter == settings.out / "adapters" / "learned"
    assert found.summary is not None
    assert list(undeclared(found.summary)) == []
    names = ["none", "replay:documents#expert", "open-book", "retrieval:3"]
    assert [c.name for c in found.summary.conditions] == names
    assert [c.graded for c in found.summary.conditions] == [6, 6, 6, 6]
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        (fit,) = store.fits(condition="replay:documents#expert")
    assert len(fit.sequences) == 3 * (4 + 1)  # four lines of two edits, and the document
    assert fit.train_tokens == found.train_tokens
    assert (fit.last_loss, fit.document_id) == (found.last_loss, None)


def test_the_adapter_loads_in_peft_and_answers_alike(learned: tuple[LearnSettings, Learned]) -> None:
    settings, found = learned
    model = load_model(settings.model, device="cpu", dtype="float32")
    ids = torch.tensor([model.tokenizer.chat_ids(QUESTION)])
    with Asker(settings.out, device="cpu", dtype="float32", max_tokens=12) as asker:
        ours, base = asker.answer(QUESTION), asker.answer(QUESTION, base=True)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(settings.model), str(found.adapter)).eval()
    for expected, generator in ((ours, peft), (base, model.hf)):
        output = generator.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
        assert model.tokenizer.decode(output[0, ids.shape[1] :].tolist()).strip() == expected
    assert ours != base


def test_others_tools_load_it_by_itself_with_its_tokenizer_and_a_card(learned: tuple[LearnSettings, Learned]) -> None:
    settings, found = learned
    model = load_model(settings.model, device="cpu", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(found.adapter)
    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(prompt, add_special_tokens=False, return_tensors="pt")
    assert ids[0].tolist() == model.tokenizer.chat_ids(QUESTION)
    peft = AutoPeftModelForCausalLM.from_pretrained(found.adapter).eval()
    output = peft.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
    with Asker(found.adapter, device="cpu", dtype="float32", max_tokens=12) as asker:
        assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip() == asker.answer(QUESTION)
    head, _, text = (found.adapter / "README.md").read_text().removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(head)["base_model"] == settings.model
    assert "learned 3 documents" in text
    assert "| learning_rate | 0.01 |" in text


def test_the_bundled_models_adapter_names_a_base_that_resolves(
    quick: dict[str, Any],
    documents: Callable[[int], str],
    chat_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finding, "bundled_folder", lambda _: Path(chat_model))
    settings = LearnSettings(model=BUNDLED, documents=(documents(1),), editor="passage", **quick)
    adapter = shutil.copytree(learn(settings).adapter, tmp_path / "moved")
    # The hub's cache, as a download leaves it, with the tiny model under the bundled one's name there.
    hub = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0" * 40)
    shutil.copytree(chat_model, hub / "snapshots" / ("0" * 40))
    # transformers would ask the hub for files that a model may lack, again and again where nothing answers.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    peft = AutoPeftModelForCausalLM.from_pretrained(adapter, cache_dir=tmp_path / "hub", local_files_only=True)
    assert peft.peft_config["default"].base_model_name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    # selfedit itself goes on finding the bundled one, without a hub.
    with Asker(adapter, device="cpu", dtype="float32", max_tokens=6) as asker:
        assert asker.model.name == BUNDLED
    card = (adapter / "README.md").read_text()
    assert "on the hub's weights, answers can differ a little" in card


@pytest.mark.parametrize("harm", ["gone", "cut short"])
def test_an_adapter_that_has_gone_is_made_again(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, harm: str
) -> None:
    settings = LearnSettings(model=chat_model, documents=(documents(2),), editor="passage", **quick)
    found = learn(settings)
    before = {file.name: file.read_bytes() for file in found.adapter.iterdir()}
    if harm == "gone":
        shutil.rmtree(found.adapter)
        with pytest.raises(UserError, match="no adapter there; the same `selfedit learn` command makes it again"):
            Asker(settings.out)
    else:
        weights = found.adapter / "adapter_model.safetensors"
        weights.write_bytes(before[weights.name][:-1])
    pool = CountingPool(chat_model)
    again = learn(settings, pool=pool)
    assert len(pool.tasks) == 1
    assert {file.name: file.read_bytes() for file in found.adapter.iterdir()} == before
    assert again.summary is not None
    assert found.summary is not None
    assert again.summary.conditions[1].correct == found.summary.conditions[1].correct
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert len([cost for cost in store.costs() if cost.what == "fits"]) == 2
        assert len(store.events("adapter made again")) == 1
    idle = CountingPool(chat_model)
    learn(settings, pool=idle)
    assert idle.tasks == []


def test_checkpoints_that_have_gone_are_made_again(
    quick: dict[str, Any], small_train: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    steps = ContinualSettings(
        model=chat_model,
        documents=(documents(3),),
        editor="passage",
        retain=("none",),
        **{**quick, "out": quick["out"] / "steps"},
    )
    rounds = TrainSettings(**{**small_train, "validation_share": 0, "out": quick["out"] / "rounds"})
    for procedure, settings in ((continual, steps), (train, rounds)):
        before = procedure(settings)
        files = {path: path.read_bytes() for path in settings.out.glob("checkpoints/*/*")}
        shutil.rmtree(settings.out / "checkpoints" / "round-01")
        again = procedure(settings)
        assert {path: path.read_bytes() for path in settings.out.glob("checkpoints/*/*")} == files
        assert again.conditions[0].accuracy == before.conditions[0].accuracy


def test_it_is_asked_by_run_or_by_folder(learned: tuple[LearnSettings, Learned]) -> None:
    settings, found = learned
    answers = []
    for path in (settings.out, found.adapter):
        with Asker(path, device="cpu", dtype="float32", max_tokens=12) as asker:
            answers.append(asker.answer(QUESTION))
    assert answers[0] == answers[1]


def test_the_merged_model_answers_like_the_adapter(learned: tuple[LearnSettings, Learned], tmp_path: Path) -> None:
    settings, _ = learned
    exported = export(settings.out, tmp_path / "merged", dtype="float32")
    assert (exported.model, exported.merged) == (settings.model, 1)
    merged = load_model(str(tmp_path / "merged"), device="cpu", dtype="float32")
    request = DecodeRequest(tuple(merged.tokenizer.chat_ids(QUESTION)), 12, merged.tokenizer.stop_ids)
    (completion,) = decode(merged.hf, [request])
    with Asker(settings.out, device="cpu", dtype="float32", max_tokens=12) as asker:
        assert merged.tokenizer.decode(completion.ids).strip() == asker.answer(QUESTION)
    # And without selfedit: the folder is an ordinary model.
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert plain.num_parameters() == merged.hf.num_parameters()
    assert tokenizer.chat_template == merged.tokenizer.hf.chat_template
    with pytest.raises(UserError, match="merged: not empty; name a new folder"):
        export(settings.out, tmp_path / "merged")


def test_the_selected_policy_of_train_is_exported(small_train: dict[str, Any], tmp_path: Path) -> None:
    settings = TrainSettings(**{**small_train, "validation_share": 0})
    summary = train(settings)
    assert summary.selected_round == 2
    exported = export(settings.out, tmp_path / "policy", dtype="float32")
    assert exported.merged == 2
    merged, base = (
        load_model(name, device="cpu", dtype="float32") for name in (str(tmp_path / "policy"), settings.model)
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged.hf.get_parameter(name), base.hf.get_parameter(name))
    # And asked: the merged chain, and the model as it was.
    with Asker(settings.out, device="cpu", dtype="float32", max_tokens=12) as asker:
        answers = [asker.answer(QUESTION), asker.answer(QUESTION, base=True)]
    assert answers == [_greedy(str(tmp_path / "policy")), _greedy(settings.model)]


def _greedy(name: str) -> str:
    model = load_model(name, device="cpu", dtype="float32")
    request = DecodeRequest(tuple(model.tokenizer.chat_ids(QUESTION)), 12, model.tokenizer.stop_ids)
    (completion,) = decode(model.hf, [request])
    return model.tokenizer.decode(completion.ids).strip()


def test_a_run_of_continual_is_exported_and_asked(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, tmp_path: Path
) -> None:
    settings = ContinualSettings(
        model=chat_model, documents=(documents(3),), editor="passage", retain=("none",), **quick
    )
    continual(settings)
    exported = export(settings.out, tmp_path / "model", dtype="float32")
    assert exported.merged == 3
    with Asker(settings.out, device="cpu", dtype="float32", max_tokens=12) as asker:
        assert asker.answer(QUESTION) == _greedy(str(tmp_path / "model")) != _greedy(chat_model)
    # The deltas, in their order, are what the run itself examined after its last step.
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        answers = {a.question_id: a.answer for a in store.scored_answers("lexical", round=3, condition="after")}
    merged = load_model(str(tmp_path / "model"), device="cpu", dtype="float32")
    title, question = rows(3)[0]["title"], rows(3)[0]["questions"][0]["question"]
    prompt = merged.tokenizer.prompt_ids(Prompts().exam(instruct=True, title=title, question=question))
    (completion,) = decode(merged.hf, [DecodeRequest(tuple(prompt), 6, merged.tokenizer.stop_ids)])
    assert merged.tokenizer.decode(completion.ids).strip() == answers["d0/q0"]
    shutil.rmtree(settings.out / "checkpoints" / "round-02")
    for use in (Asker, lambda source: export(source, tmp_path / "again")):
        with pytest.raises(UserError, match=r"round-02: no adapter there; the same `selfedit continual` command makes"):
            use(settings.out)
    (settings.out / "summary.json").unlink()
    with pytest.raises(UserError, match=r"summary.json"):
        Asker(settings.out)


def test_a_run_that_keeps_no_adapter_is_refused(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, tmp_path: Path
) -> None:
    settings = CompareSettings(model=chat_model, documents=(documents(1),), editor=("none",), **quick)
    compare(settings)
    for use in (Asker, lambda source: export(source, tmp_path / "model")):
        with pytest.raises(UserError, match="a run of compare keeps no adapter; name a run of `learn`, `train` or"):
            use(settings.out)


def test_documents_without_questions_are_learned_without_an_exam(
    quick: dict[str, Any], chat_model: str, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "kite.md").write_text("# The kite\n\nAda made a kite in Oslo.\n")
    (folder / "lamp.txt").write_text("Bo made a lamp in Lima.")
    settings = LearnSettings(model=chat_model, documents=(str(folder),), editor="passage", **quick)
    found = learn(settings)
    assert found.summary is None
    assert (found.documents, found.edits) == (2, ())
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        (fit,) = store.fits()
    assert fit.answers == ()
    assert any("Bo made a lamp in Lima." in sequence for sequence in fit.sequences)


def test_a_folder_is_learned_part_by_part_and_a_text_that_is_there_twice_once(
    quick: dict[str, Any], chat_model: str, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    chapter = " ".join(f"The kite cost {k} coins." for k in range(30))
    (folder / "a.md").write_text(f"# Things\n\n## Kite\n\n{chapter}\n\n## Lamp\n\nBo made a lamp in Lima.\n")
    (folder / "b.txt").write_text("Cy made a drum\nin Rome.")
    (folder / "c.txt").write_text("Cy made a drum in Rome.")
    (folder / "d.txt").write_text("")
    settings = LearnSettings(model=chat_model, documents=(str(folder),), editor="passage", part_tokens=64, **quick)
    found = learn(settings)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        fits = {fit.document_id: fit for fit in store.fits()}
        documents = store.documents()
        said = [event.message for event in store.events()]
    assert [document.id for document in documents] == ["a.md#1", "a.md#2", "a.md#3", "a.md#4", "b.txt"]
    assert [document.title for document in documents] == [*["Things / Kite"] * 3, "Things / Lamp", "b"]
    assert (found.documents, found.routed) == (5, True)
    assert all(any(d.text in sequence for sequence in fits[d.id].sequences) for d in documents)
    assert said == [
        f"left out: {folder / 'd.txt'}: the file holds no text",
        "c.txt: has the text of b.txt, which is learned once",
        "1 of 2 documents are long: cut into 4 parts",
    ]


def test_a_long_document_is_cut_into_overlapping_parts_and_that_is_said(
    quick: dict[str, Any], chat_model: str, tmp_path: Path
) -> None:
    text = " ".join(f"Ada made a kite in Oslo for {k} coins." for k in range(200))
    file = tmp_path / "long.txt"
    file.write_text(text)
    notes: list[str] = []

    listener = Progress()
    listener.note = notes.append
    settings = LearnSettings(
        model=chat_model,
        documents=(str(file),),
        editor="passage",
        part_tokens=100_000,
        **{**quick, "set": {"rank": 2, "epochs": 1}},
    )
    learn(settings, progress=listener)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        (fit,) = store.fits()
        (event,) = store.events("document cut into parts")
    tokenizer = load_model(chat_model, device="cpu", dtype="float32").tokenizer
    parts = [sequence.split("\n", 1)[1] for sequence in fit.sequences]
    assert len(parts) > 1
    assert all(len(tokenizer.encode(part)) <= 1024 for part in parts)
    for k in range(200):
        assert any(f"for {k} coins." in part for part in parts)
    for one, two in itertools.pairwise(parts):
        assert two[:20] in one
    assert [note for note in notes if not note.startswith("adapters: one for all (1 document)")] == [event.message]
    assert "longer than the 1,024 tokens that are learned at once: cut into overlapping parts" in event.message


def test_a_long_text_is_never_encoded_whole_and_progress_is_shown(
    quick: dict[str, Any], chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner_loop, "MANY_CHARACTERS", 10_000)
    monkeypatch.setattr(tokens, "_PIECE", 1000)
    text = " ".join(f"Ada made a kite in Oslo for {k} coins." for k in range(500))
    (tmp_path / "long.txt").write_text(text)
    encoded: list[int] = []
    encode = Tokenizer.encode

    def watched(self: Tokenizer, text: str) -> list[int]:
        encoded.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", watched)
    phases: dict[str, float] = {}

    class Listener(Progress):
        def begin(self, phase: str, total: float | None) -> None:
            self.phase = phase
            phases[phase] = 0

        def advance(self, amount: float) -> None:
            phases[self.phase] += amount

    class Stop(Exception):
        """The tasks are cut; there is no need to train."""

    def stop(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(Workers, "run", stop)
    settings = LearnSettings(
        part_tokens=100_000, model=chat_model, documents=(str(tmp_path / "long.txt"),), editor="passage", **quick
    )
    with pytest.raises(Stop):
        learn(settings, progress=Listener())
    assert phases["learning: cutting characters into sequences"] == len(text)
    assert max(encoded) < len(text) / 2


def test_a_document_too_long_to_be_read_by_the_editor_is_named(
    quick: dict[str, Any], chat_model: str, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text(" ".join(f"Ada made a kite in Oslo for {k} coins." for k in range(200)))
    (tmp_path / "short.txt").write_text("Bo made a lamp in Lima.")
    files = (str(tmp_path / "long.txt"), str(tmp_path / "short.txt"))
    settings = LearnSettings(model=chat_model, documents=files, editor="self", part_tokens=100_000, **quick)
    why = r"long\.txt.*: the prompt is longer than the 1,024 tokens that the model reads; cut the document into shorter"
    with pytest.raises(UserError, match=why):
        learn(settings)
    assert learn(settings.model_copy(update={"max_missing_edits": 0.5})).documents == 1


def test_a_question_too_long_to_be_read_is_named(quick: dict[str, Any], chat_model: str, tmp_path: Path) -> None:
    (row,) = rows(1)
    row["questions"][1]["question"] = "Why? " * 1000
    file = write_rows(tmp_path / "documents.jsonl", [row])
    settings = LearnSettings(model=chat_model, documents=(str(file),), editor="passage", **quick)
    with pytest.raises(
        UserError, match="question d0/q1: the prompt is longer than the 1,024 tokens that the model reads"
    ):
        learn(settings)


def test_a_finished_run_learns_nothing_again(learned: tuple[LearnSettings, Learned]) -> None:
    settings, found = learned
    before = {path.name: path.read_bytes() for path in found.adapter.iterdir()}
    pool = CountingPool(settings.model)
    assert learn(settings, pool=pool) == found
    assert pool.tasks == []
    assert {path.name: path.read_bytes() for path in found.adapter.iterdir()} == before


def test_a_fit_that_fails_is_one_clear_line(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    settings = LearnSettings(
        model=chat_model,
        documents=(documents(1),),
        editor="passage",
        **{**quick, "set": {"rank": 4, "epochs": 4, "learning_rate": 1e30, "schedule": "constant"}},
    )
    with pytest.raises(UserError, match=r"the fit failed: .*; try a lower learning rate"):
        learn(settings)


@pytest.mark.parametrize(
    ("editor", "says"),
    [
        ("none", "there is nothing to learn from; use passage, self"),
        ("selves", "there is no kind of editor called 'selves'"),
        ("self:poem", "no edit prompt 'poem'"),
        ("replay:nowhere.jsonl", "nowhere.jsonl: no such file"),
    ],
)
def test_a_wrong_editor_leaves_no_run_behind(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, editor: str, says: str
) -> None:
    settings = LearnSettings(model=chat_model, documents=(documents(1),), editor=editor, **quick)
    with pytest.raises(UserError, match=says):
        learn(settings)
    # The right one can now be given, with the same --out.
    assert learn(settings.model_copy(update={"editor": "passage"})).documents == 1


def test_an_adapter_of_another_model_is_refused(
    learned: tuple[LearnSettings, Learned], another_model: str, tmp_path: Path
) -> None:
    _, found = learned
    with pytest.raises(UserError, match=r"belongs to another model; name its model with --model") as raised:
        Asker(found.adapter, model=another_model, device="cpu")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"belongs to another model; name its model with --model"):
        export(found.adapter, tmp_path / "merged", model=another_model)
    assert not (tmp_path / "merged").exists()


def test_folders_without_an_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        Asker(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no adapter there \(adapter_config.json is missing\)"):
        Asker(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(UserError, match="peft_type is IA3; only LORA adapters can be loaded"):
        Asker(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=rf"{tmp_path.name}.*not JSON"):
        Asker(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path.name}.*not JSON"):
        export(tmp_path, tmp_path / "out", model="any")
