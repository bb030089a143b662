"""Small tokenizers built as those of the model families are, with their control tokens and their chat templates."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen 2.5, without its tools.
QWEN2 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# Qwen 3: an earlier reply's thinking is taken out of its content.
QWEN3 = """{%- if tools %}
    {{- 'Answer within <tool_call></tool_call>.' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
# Llama 3.2, without its tools: the day is in the system message, contents are trimmed.
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
# Gemma 3: the system message becomes the beginning of the user's, roles have to alternate, contents are trimmed.
GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {{- message['content'] | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""
# Llama 2 and the first Mistral: no system role, and a space before the reply.
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# Zephyr: Llama's words, another form.
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

_QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_THINK = ["<tool_call>", "</tool_call>", "<think>", "</think>"]  # no special tokens, the tokenizer says

# kind of tokenizer, special tokens, further added tokens, begin, end, what else ends an answer, template
_FAMILIES: dict[str, tuple[str, list[str], list[str], str | None, str, list[str], str]] = {
    "smollm2": ("gpt2", _QWEN, [], "<|im_start|>", "<|im_end|>", [], CHATML),
    "qwen2": ("qwen", _QWEN, [], None, "<|im_end|>", ["<|endoftext|>"], QWEN2),
    "qwen3": ("qwen", _QWEN, _THINK, None, "<|im_end|>", ["<|endoftext|>"], QWEN3),
    "llama3": ("llama3", _LLAMA, [], "<|begin_of_text|>", "<|eot_id|>", ["<|end_of_text|>"], LLAMA3),
    "gemma3": (
        "gemma",
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        ["\n\n", "\n\n\n", "▁▁", "<table>"],
        "<bos>",
        "<eos>",
        ["<end_of_turn>"],
        GEMMA3,
    ),
    "llama2": ("llama2", ["<unk>", "<s>", "</s>"], [], "<s>", "</s>", [], LLAMA2),
    "zephyr": ("metaspace", ["<unk>", "<s>", "</s>"], [], "<s>", "</s>", [], ZEPHYR),
}
FAMILIES = tuple(_FAMILIES)

_TEXTS = [
    "Ada made a kite in Oslo. It cost 3 coins.\nQuestion: Who made the kite?\nAnswer: Ada",
    "What follows from the passage: system user assistant model im_start im_end eot_id <|im_end|> </think> "
    "[INST] table",
    "Here is a passage.\n\nTitle: The kite\n\nList what follows from this passage, one statement per line.\n",
]


@cache
def backend(family: str) -> str:
    """The family's tokenizer, as `tokenizer.json` has it."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    kind, special, added, begin, _, _, _ = _FAMILIES[family]
    byte_level = kind in ("gpt2", "qwen", "llama3")
    found = Tokenizer(models.BPE(byte_fallback=not byte_level, unk_token=None if byte_level else "<unk>"))
    words = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    if kind == "gpt2":
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif byte_level:
        if kind == "qwen":
            found.normalizer = normalizers.NFC()
        found.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    elif kind == "gemma":
        found.normalizer = normalizers.Replace(" ", "▁")
        found.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif kind == "llama2":
        found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        found.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    if byte_level:
        found.decoder = decoders.ByteLevel()
    else:
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        found.decoder = decoders.Sequence(steps if kind == "gemma" else [*steps, decoders.Strip(" ", 1, 0)])
    bytes_ = [] if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*special, *bytes_],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [],
        show_progress=False,
        max_token_length=12,
    )
    # What is trained on has no line breaks within a word, as SentencePiece has none.
    found.train_from_iterator(_TEXTS if byte_level else [word for t in _TEXTS for word in t.split("\n")], trainer)
    state = json.loads(found.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    found = Tokenizer.from_str(json.dumps(state))
    found.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    if begin is not None and family != "smollm2":
        found.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, found.token_to_id(begin))]
        )
    return str(found.to_str())


def tokenizer(family: str, *, chat: bool = True, template: str | None = None) -> Any:
    """selfedit's tokenizer of the family; `template` instead of the family's own."""
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    from selfedit.models import Tokenizer

    _, _, _, begin, end, further, own = _FAMILIES[family]
    hf = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(backend(family)), bos_token=begin, eos_token=end)
    if chat:
        hf.chat_template = template or own
    return Tokenizer(hf, chat, tuple(hf.convert_tokens_to_ids([end, *further])))


def control_tokens(family: str) -> list[str]:
    """What must not come out of a text."""
    return [*_FAMILIES[family][1], *(_THINK if family == "qwen3" else [])]
