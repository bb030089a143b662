"""Loading models and tokenizers, prompting chat and base models, and the mistakes one can make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from selfedit.errors import UserError
from selfedit.models import Tokenizer, load_model, load_tokenizer, parameter_count
from selfedit.models.kind import is_chat_model
from selfedit.models.loading import usable_device
from tiny_world import ASSISTANT, END, TEMPLATE, USER


def text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.hf.decode(ids))


def test_a_model_is_loaded_frozen_in_evaluation_mode_under_its_name(chat_model: str) -> None:
    model = load_model(chat_model, device="cpu", dtype="float32")
    assert model.name == chat_model
    assert model.hf.config.name_or_path == chat_model
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert model.hf.dtype == torch.float32
    assert model.context_length == 1024
    assert load_model(chat_model, device="cpu", dtype="bfloat16").hf.dtype == torch.bfloat16


def test_parameters_are_counted_without_loading_a_model(chat_model: str, tmp_path: Path) -> None:
    expected = load_model(chat_model, device="cpu", dtype="float32").hf.num_parameters()
    assert parameter_count(chat_model) == expected
    # From the configuration alone, where there are no weights.
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(Path(chat_model) / "config.json", bare)
    assert parameter_count(str(bare)) == expected
    (bare / "model.safetensors").write_bytes((Path(chat_model) / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match="bare holds a damaged file"):
        parameter_count(str(bare))


def test_instruct_is_decided_by_the_chat_template_and_can_be_overridden(chat_model: str, base_model: str) -> None:
    assert load_tokenizer(chat_model).instruct
    assert not load_tokenizer(base_model).instruct
    assert not load_tokenizer(chat_model, instruct=False).instruct
    with pytest.raises(UserError, match="has no chat template: leave out --instruct, or name a chat model"):
        load_tokenizer(base_model, instruct=True)


TOLD = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]


def test_chat_models_are_prompted_through_their_template(chat_model: str) -> None:
    tokenizer = load_tokenizer(chat_model)
    assert text(tokenizer, tokenizer.prompt_ids("Who?")) == f"{USER}Who?{END}{ASSISTANT}"
    assert text(tokenizer, tokenizer.chat_ids(TOLD)) == (f"<|system|>Be brief.{END}{USER}Who?{END}{ASSISTANT}")
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
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    assert text(tokenizer, tokenizer.chat_ids(messages)) == "Who?\nAda.\n"


def test_texts_and_answers_end_as_the_model_ends_them(chat_model: str) -> None:
    tokenizer = load_tokenizer(chat_model)
    end = tokenizer.hf.eos_token_id
    assert tokenizer.stop_ids == (end,)
    assert tokenizer.text_ids("Ada.") == [*tokenizer.encode("Ada."), end]
    prompt = tokenizer.prompt_ids("Who?")
    assert tokenizer.example("Who?", "Ada.") == ([*prompt, *tokenizer.encode("Ada."), end], len(prompt))
    assert tokenizer.example("Who?", "Ada.", ended=False)[0] == [*prompt, *tokenizer.encode("Ada.")]
    assert tokenizer.example("Who?", "", ended=False)[0] == [*prompt, end]  # something has to be learned


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


def with_template(model: str, template: str, folder: Path) -> Tokenizer:
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(template)
    return load_tokenizer(str(folder))


def test_a_templates_own_system_message_is_left_empty(chat_model: str, tmp_path: Path) -> None:
    tokenizer = with_template(chat_model, DEFAULT_SYSTEM, tmp_path / "model")
    assert text(tokenizer, tokenizer.prompt_ids("Who?")) == f"<|system|>{END}{USER}Who?{END}{ASSISTANT}"
    assert "Be brief." in text(tokenizer, tokenizer.chat_ids(TOLD))


def test_a_template_that_takes_no_system_message_keeps_its_own(chat_model: str, tmp_path: Path) -> None:
    tokenizer = with_template(chat_model, NO_SYSTEM, tmp_path / "model")
    assert text(tokenizer, tokenizer.prompt_ids("Who?")) == f"<|system|>You are kind.{END}{USER}Who?{END}{ASSISTANT}"


def test_thinking_is_switched_off_where_the_template_offers_it(chat_model: str, tmp_path: Path) -> None:
    tokenizer = with_template(chat_model, THINKING, tmp_path / "model")
    assert text(tokenizer, tokenizer.prompt_ids("Who?")).endswith("<think></think>")


DATED = "{{ strftime_now('%A, %d %B %Y, %H:%M') }}{{ messages[0]['content'] }}"
LLAMA_DATE = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{ date_string }}{{ messages[-1]['content'] }}"
)


def test_prompts_are_the_same_on_every_day(chat_model: str, tmp_path: Path) -> None:
    tokenizer = with_template(chat_model, DATED, tmp_path / "dated")
    assert text(tokenizer, tokenizer.prompt_ids("Who?")) == "Friday, 26 July 2024, 12:00Who?"
    tokenizer = with_template(chat_model, LLAMA_DATE, tmp_path / "llama")
    assert text(tokenizer, tokenizer.prompt_ids("Who?")) == "26 Jul 2024Who?"


@pytest.mark.parametrize("template", [DEFAULT_SYSTEM, NO_SYSTEM, THINKING, DATED, LLAMA_DATE])
def test_the_pinned_template_is_what_others_prompt_with(chat_model: str, tmp_path: Path, template: str) -> None:
    tokenizer = with_template(chat_model, template, tmp_path / "model")
    tokenizer.hf.save_pretrained(tmp_path / "saved")
    plain = AutoTokenizer.from_pretrained(tmp_path / "saved")
    messages = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ada."},
        {"role": "user", "content": "?"},
    ]
    ids = plain.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.chat_ids(messages)
    # Loaded again, it is pinned once.
    assert load_tokenizer(str(tmp_path / "saved")).hf.chat_template == tokenizer.hf.chat_template


@pytest.mark.parametrize(
    "lead", ["", "\n", "  \n", "text ", "  {% if true %}x{% endif %}\n", "{# c #}\n", "{%- if true %}\n x{% endif %}"]
)
def test_pins_add_nothing_to_what_a_template_writes(chat_model: str, tmp_path: Path, lead: str) -> None:
    template = lead + THINKING.replace("You are kind.", "") + "{{ strftime_now('') }}{{ date_string }}"
    tokenizer = with_template(chat_model, template, tmp_path / "model")
    unpinned = AutoTokenizer.from_pretrained(chat_model)
    messages = [{"role": "user", "content": "Who?"}]
    assert tokenizer.prompt_ids("Who?") == unpinned.apply_chat_template(
        messages,
        chat_template=template,
        add_generation_prompt=True,
        enable_thinking=False,
        date_string="26 Jul 2024",
        return_dict=False,
    )


@pytest.mark.parametrize(
    "template",
    ["{% if %}", "{{ nothing.at.all }}", "{{ raise_exception('never') }}", "{{ messages[0]['content'] + 1 }}"],
)
def test_a_template_that_fails_is_one_line(chat_model: str, tmp_path: Path, template: str) -> None:
    with pytest.raises(
        UserError, match=r"model .*model: its chat template takes no messages of user, or fails"
    ) as raised:
        with_template(chat_model, template, tmp_path / "model")
    assert "\n" not in str(raised.value)
    assert not load_tokenizer(str(tmp_path / "model"), instruct=False).instruct


# As some models for pictures have it: contents are lists of parts.
PARTS = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] | default('') }}{% endfor %}{% endfor %}"


def test_a_template_that_leaves_out_the_text_is_one_line(chat_model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its chat template leaves out what a user says; .*--no-instruct") as raised:
        with_template(chat_model, PARTS, tmp_path / "model")
    assert "\n" not in str(raised.value)


def test_a_model_whose_templates_have_names_and_no_default_is_refused(chat_model: str, tmp_path: Path) -> None:
    folder = shutil.copytree(chat_model, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text(DEFAULT_SYSTEM)
    with pytest.raises(UserError, match=r"model .*model: ") as raised:
        load_tokenizer(str(folder))
    assert "\n" not in str(raised.value)


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
    tokenizer = Tokenizer(tokenizer.hf, False, tokenizer.stop_ids)
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


def test_a_device_that_fails_without_words_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(UserError, match=r"--device cpu: not usable here \(AssertionError\)"):
        usable_device("cpu")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_half_its_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def with_another_shape(folder: Path) -> None:
    configured(folder, intermediate_size=47)


def quantised(folder: Path) -> None:
    configured(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def with_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def without_a_layers_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "layers.0.mlp" not in name}
    save_file(kept, path, metadata={"format": "pt"})


def configured(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_weights, r"cannot be loaded as a causal language model \(.*no file named"),
        (with_half_its_weights, "cannot be loaded as a causal language model .*deserializing"),
        (with_another_shape, "cannot be loaded as a causal language model "),
        (quantised, "cannot be loaded as a causal language model .*GPTQ"),
        (with_a_damaged_tokenizer, "cannot be loaded as a causal language model "),
        (
            without_a_layers_weights,
            r"its files lack weights of a causal language model \(model\.layers\.0\.mlp\.down_proj\.weight, ",
        ),
    ],
)
def test_a_models_damaged_or_missing_files_are_one_line(
    chat_model: str, tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    folder = shutil.copytree(chat_model, tmp_path / "model")
    spoil(folder)
    with pytest.raises(UserError, match=rf"^model {folder}: {says}") as raised:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(raised.value)


TEXT_END = TEMPLATE.replace("<|end|>", "</s>")


@pytest.mark.parametrize(
    ("template", "stops", "name", "chat", "doubt"),
    [
        # Qwen2.5's base models: a template whose turns do not end as the model stops.
        (TEMPLATE, (1,), "Qwen/Qwen2.5-3B", False, ""),
        (TEMPLATE, (0, 1), "Qwen/Qwen2.5-3B-Instruct", True, ""),
        (TEMPLATE, (0, 1), "Qwen/Qwen3-0.6B", True, ""),
        (TEMPLATE, (1,), "Qwen/Qwen3-0.6B-Base", False, ""),
        (None, (1,), "meta-llama/Llama-3.2-1B", False, ""),
        # The publisher's word goes before a configuration that lacks a stop token, and is doubted.
        (
            TEMPLATE,
            (1,),
            "meta-llama/Meta-Llama-3-8B-Instruct",
            True,
            "its name says chat model, its configuration base",
        ),
        (TEMPLATE, (0,), "someone/model-base", False, "its name says base model, its configuration chat model"),
        # A turn that ends as any text does says nothing.
        (TEXT_END, (2,), "mistralai/Mistral-7B-Instruct-v0.3", True, ""),
        (TEXT_END, (2,), "HuggingFaceH4/zephyr-7b-beta", True, "neither its name nor its configuration"),
        ("{{ raise_exception('no') }}", (0,), "google/gemma-3-1b-it", True, ""),
        ("{{ raise_exception('no') }}", (0,), "someone/model", True, "neither its name nor its configuration"),
    ],
)
def test_a_template_does_not_make_a_chat_model(
    chat_model: str, template: str | None, stops: tuple[int, ...], name: str, chat: bool, doubt: str
) -> None:
    hf = AutoTokenizer.from_pretrained(chat_model)
    hf.add_special_tokens({"additional_special_tokens": ["</s>"]})
    hf.chat_template = template
    ids = tuple(hf.convert_tokens_to_ids(("<|end|>", "<|user|>", "</s>")[stop]) for stop in stops)
    found, said = is_chat_model(name, hf, ids)
    assert found is chat
    assert doubt in said
    assert bool(said) is bool(doubt)
    assert not said or (said.startswith(f"model {name}: ") and said.endswith("(--instruct or --no-instruct decides)"))


def test_a_folders_name_is_its_users(chat_model: str, tmp_path: Path) -> None:
    folder = shutil.copytree(chat_model, tmp_path / "my-base")
    found = load_tokenizer(str(folder))
    assert found.instruct
    assert "its name says base model, its configuration chat model; it is prompted as a chat" in found.doubt
    for asked in (True, False):
        said = load_tokenizer(str(folder), instruct=asked)
        assert (said.instruct, said.doubt) == (asked, "")
