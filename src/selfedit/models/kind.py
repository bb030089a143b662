"""Whether a model is to be prompted through its chat template or in plain text.

That there is a template decides nothing: base models come with one too (all of Qwen2.5 do).  A publisher says it in the
name, and a model that was taught to take turns stops at the token that ends a turn in its template.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from selfedit.models.bundled import MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHAT = frozenset("instruct instruction chat it sft dpo rlhf assistant".split())
_BASE = frozenset("base pt pretrained".split())
# A base model stops at these too, so they say nothing where a template ends turns with them.
_TEXT_ENDS = frozenset(("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>"))
_REPLY = "\ufdd0"  # in no template


def is_chat_model(name: str, hf: PreTrainedTokenizerBase, stop_ids: tuple[int, ...]) -> tuple[bool, str]:
    """Whether it is a chat model, and where name and configuration leave that open, a line that says so (else "").

    A hub's name goes before the configuration, which publishers get wrong; a folder's name is its user's, and goes
    after it."""
    if hf.chat_template is None:
        return False, ""
    if name in MODELS:
        return MODELS[name].instruct, ""
    by_name, by_config = _by_name(name), _by_config(hf, stop_ids)
    said = [by_config, by_name] if Path(name).is_dir() else [by_name, by_config]
    chat = next((one for one in said if one is not None), True)
    if by_name is None and by_config is None:
        doubt = "neither its name nor its configuration says whether it is a chat model"
    elif by_name is not None and by_config is not None and by_name != by_config:
        doubt = f"its name says {_words(by_name)}, its configuration {_words(by_config)}"
    else:
        return chat, ""
    return chat, f"model {name}: {doubt}; it is prompted as a {_words(chat)} (--instruct or --no-instruct decides)"


def _words(chat: bool) -> str:
    return "chat model" if chat else "base model"


def _by_name(name: str) -> bool | None:
    words = set(re.split(r"[^a-z0-9]+", Path(name).name.lower()))
    return True if words & _CHAT else False if words & _BASE else None


def _by_config(hf: PreTrainedTokenizerBase, stop_ids: tuple[int, ...]) -> bool | None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _REPLY}]
    try:
        after = str(hf.apply_chat_template(turns, tokenize=False)).partition(_REPLY)[2]
    except Exception:  # a template is the model's code; what is wrong with it is said when it is used
        return None
    if not after.strip():
        return None
    ends = {token for token in hf.convert_ids_to_tokens(list(stop_ids)) if token in after}
    return None if ends and ends <= _TEXT_ENDS else bool(ends)
