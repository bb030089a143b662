"""Loading models and tokenizers, prompting chat and base models, and the mistakes one can make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from selfedit.errors import UserError
from selfedit.models import Tokenizer, load_model, load_tokenizer
from tiny_world import ASSISTANT, END, USER


def text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.hf.decode(ids))


def test_a_model_is_loaded_frozen_in_evaluation_mode_under_its_name(chat_model: str) -> None:
    model = load_model(chat_model, device="cpu", dtype="float32")
    assert model.name == chat_model
    assert model.hf.config._name_or_path == chat_model
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert model.hf.dtype == torch.float32
    assert model.context_length == 1024
    assert load_model(chat_model, device="cpu", dtype="bfloat16").hf.dtype == torch.bfloat16


def test_instruct_is_decided_by_the_chat_template_and_can_be_overridden(chat_model: str, base_model: str) -> None:
    assert load_tokenizer(chat_model).instruct
    assert not load_tokenizer(base_model).instruct
    assert not load_tokenizer(chat_model, instruct=False).instruct
    with pytest.raises(UserError, match="has no chat template: leave out --instruct, or name a chat model"):
        load_tokenizer(base_model, instruct=True)


def test_chat_models_are_prompted_through_their_template(chat_model: str) -> None:
    tokenizer = load_tokenizer(chat_model)
    assert text(tokenizer, tokenizer.prompt_ids("Who?")) == f"{USER}Who?{END}{ASSISTANT}"
    assert text(tokenizer, tokenizer.prompt_ids("Who?", system="Be brief.")) == (
        f"<|system|>Be brief.{END}{USER}Who?{END}{ASSISTANT}"
    )
    messages = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ada."},
        {"role": "user", "content": "Where?"},
    ]
    assert text(tokenizer, tokenizer.chat_ids(messages)) == (
        f"{USER}Who?{END}{ASSISTANT}Ada.{END}{USER}Where?{END}{ASSISTANT}"
    )


def test_base_models_are_prompted_in_plain_text(base_model: str) -> None:
    tokenizer = load_tokenizer(base_model)
    assert text(tokenizer, tokenizer.prompt_ids("Who?")) == "Who?"
    assert text(tokenizer, tokenizer.prompt_ids("Who?", system="Be brief.")) == "Be brief.\n\nWho?"
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    assert text(tokenizer, tokenizer.chat_ids(messages)) == "Who?\nAda.\n"


def test_texts_and_answers_end_as_the_model_ends_them(chat_model: str) -> None:
    tokenizer = load_tokenizer(chat_model)
    end = tokenizer.hf.eos_token_id
    assert tokenizer.stop_ids == (end,)
    assert tokenizer.text_ids("Ada.") == [*tokenizer.encode("Ada."), end]
    assert tokenizer.completion_ids("Ada.") == [*tokenizer.encode("Ada."), end]
    assert tokenizer.decode(tokenizer.completion_ids("Ada.")) == "Ada."


def test_the_generation_configs_end_tokens_stop_too(chat_model: str, tmp_path: Path) -> None:
    folder = shutil.copytree(chat_model, tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [0, 7]}))
    assert load_tokenizer(str(folder)).stop_ids == (0, 7)
    path.unlink()
    assert load_tokenizer(str(folder)).stop_ids == (0,)


DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|system|>You are kind.<|end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}{{ '<|assistant|>' }}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + DEFAULT_SYSTEM
THINKING = (
    DEFAULT_SYSTEM + "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}"
)


def test_a_templates_own_system_message_is_left_empty(chat_model: str) -> None:
    tokenizer = load_tokenizer(chat_model)
    tokenizer.hf.chat_template = DEFAULT_SYSTEM
    assert text(tokenizer, tokenizer.prompt_ids("Who?")) == f"<|system|>{END}{USER}Who?{END}{ASSISTANT}"
    assert "Be brief." in text(tokenizer, tokenizer.prompt_ids("Who?", system="Be brief."))


def test_a_template_that_takes_no_system_message_keeps_its_own(chat_model: str) -> None:
    tokenizer = load_tokenizer(chat_model)
    tokenizer.hf.chat_template = NO_SYSTEM
    assert text(tokenizer, tokenizer.prompt_ids("Who?")) == f"<|system|>You are kind.{END}{USER}Who?{END}{ASSISTANT}"


def test_thinking_is_switched_off_where_the_template_offers_it(chat_model: str) -> None:
    tokenizer = load_tokenizer(chat_model)
    tokenizer.hf.chat_template = THINKING
    assert text(tokenizer, tokenizer.prompt_ids("Who?")).endswith("<think></think>")


def test_a_begin_token_heads_texts_where_the_tokenizer_puts_one(base_model: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(base_model)
    assert tokenizer.hf.bos_token_id is None
    tokenizer.hf.bos_token = USER
    start = tokenizer.hf.bos_token_id
    assert tokenizer.text_ids("Ada.")[0] != start  # it has one, and does not put it there
    tokenizer.hf.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{USER} $A", special_tokens=[(USER, start)]
    )
    for ids in (
        tokenizer.text_ids("Ada."),
        tokenizer.prompt_ids("Ada."),
        tokenizer.chat_ids([{"role": "user", "content": "Ada."}]),
    ):
        assert ids[0] == start
        assert start not in ids[1:]
    assert start not in tokenizer.encode("Ada.")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "no/such/model"}, "model no/such/model: not a local folder with a causal language model"),
        ({"dtype": "int4"}, "--dtype int4: not known; use auto, float32 or bfloat16"),
        ({"device": "warp"}, "--device warp: not usable here"),
    ],
)
def test_mistakes_are_one_line(chat_model: str, change: dict[str, str], says: str) -> None:
    settings = {"name": chat_model, "device": "cpu", "dtype": "float32", **change}
    with pytest.raises(UserError, match=says) as raised:
        load_model(settings["name"], device=settings["device"], dtype=settings["dtype"])
    assert "\n" not in str(raised.value)


def test_a_folder_with_a_tokenizer_but_no_weights(chat_model: str, tmp_path: Path) -> None:
    folder = shutil.copytree(chat_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model .*model: not a local folder with a causal language model"):
        load_model(str(folder), device="cpu")
