"""What a server makes of an exported model is what `ask` answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfedit.editors.api import ApiClient, ApiRequest
from selfedit.editors.endpoint import Endpoint
from selfedit.engine import load_adapter
from selfedit.methods.ask import Asker
from selfedit.methods.export import export
from selfedit.methods.learn import learn
from selfedit.methods.settings import LearnSettings
from selfedit.methods.stacking import model_of_earlier
from selfedit.models import load_model
from selfedit.runs.store import Store
from serving import needs_serving, serving
from tiny_world import SMALL, rows, write_rows

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|system|>Question: How many coins did the boat cost?<|end|>' "
    "}}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if enable_thinking is not defined or enable_thinking %}{{ strftime_now('%d %b') }}{% endif %}{% endif %}"
)
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def learned(chat_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `learn` on a model whose template adds a system message and thinks, and whose settings punish
    repetition."""
    folder = tmp_path_factory.mktemp("served")
    model = folder / "model"
    shutil.copytree(chat_model, model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    own = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 1.9, "eos_token_id": 5}
    (model / "generation_config.json").write_text(json.dumps(own))
    file = write_rows(folder / "documents.jsonl", rows(3))
    settings = LearnSettings(
        model=str(model),
        documents=(str(file),),
        editor=f"replay:{file}#expert",
        edits=2,
        **{**SMALL, "out": folder / "run"},
    )
    learn(settings)
    return folder / "run"


def conversations() -> list[list[dict[str, str]]]:
    asked = [question["question"] for row in rows(3) for question in row["questions"]]
    asked += ["Who made the kite?", " Ada and the lamp? ", ""]
    follow_up = [("user", asked[0]), ("assistant", "Oslo"), ("user", asked[1])]
    told = [("system", "Be brief."), ("user", asked[0])]
    return [
        *([{"role": "user", "content": question}] for question in asked),
        *([{"role": role, "content": text} for role, text in turns] for turns in (follow_up, told)),
    ]


@needs_serving
def test_an_exported_model_is_served_as_it_is_asked(
    learned: Path, tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Asker(learned, device="cpu", dtype="float32", max_tokens=MAX_TOKENS) as asker:
        expected = [asker.answer(messages) for messages in conversations()]
    export(learned, tmp_path / "model")
    requests = [ApiRequest(messages, max_tokens=MAX_TOKENS) for messages in conversations()]
    with serving(str(tmp_path / "model"), free_port(), tmp_path) as url:
        results = ApiClient(str(tmp_path / "model"), Endpoint(url), store=Store(None)).complete(requests)
    assert [result.error for result in results] == [None] * len(requests)
    assert [result.text.strip() for result in results] == expected
    assert len(set(expected)) > 3


def prompts_elsewhere(folder: Path) -> list[Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for messages in conversations()
    ]


def test_an_exported_template_prompts_as_training_did(learned: Path, tmp_path: Path) -> None:
    with Asker(learned, device="cpu", dtype="float32") as asker:
        expected = [asker.model.tokenizer.chat_ids(messages) for messages in conversations()]
        unpinned = prompts_elsewhere(Path(asker.model.name))
    export(learned, tmp_path / "model")
    assert prompts_elsewhere(tmp_path / "model") == expected != unpinned
    # And again, from the exported model.
    assert [load_model(str(tmp_path / "model")).tokenizer.chat_ids(m) for m in conversations()] == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_model_is_merged_in_float32_and_then_cast(learned: Path, tmp_path: Path, dtype: str) -> None:
    export(learned, tmp_path / "model", dtype=dtype)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    expected = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": torch.float32}[dtype]
    assert {parameter.dtype for parameter in merged.parameters()} == {expected}
    with Asker(learned, device="cpu", dtype="float32") as asker:
        base = AutoModelForCausalLM.from_pretrained(asker.model.name, dtype=torch.float32)
    spec, state = load_adapter(learned / "adapters" / "learned")
    for name, (a, b) in state.items():
        whole = base.get_submodule(name).weight + spec.scaling * (b @ a)
        # Rounded once: by half a step of bfloat16's at the most.
        bound = whole.abs() * (2**-8 if expected == torch.bfloat16 else 0) + 1e-6
        assert ((merged.get_submodule(name).weight.float() - whole).abs() <= bound).all()


def test_a_run_without_the_chat_template_is_asked_exported_and_added_to_without_it(
    chat_model: str, quick: dict[str, Any], documents: Callable[[int], str], tmp_path: Path
) -> None:
    settings = LearnSettings(model=chat_model, documents=(documents(1),), editor="passage", instruct=False, **quick)
    learn(settings)
    with Asker(settings.out, device="cpu") as asker:
        assert not asker.model.tokenizer.instruct
    export(settings.out, tmp_path / "model")
    assert not load_model(str(tmp_path / "model")).tokenizer.instruct
    more = {"documents": (documents(1),), "add": settings.out}
    assert model_of_earlier(LearnSettings(**more)).instruct is False
    assert model_of_earlier(LearnSettings(**more, instruct=True)).instruct is True
