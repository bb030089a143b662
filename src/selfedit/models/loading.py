"""Loads a causal language model with its tokenizer, by hub name, by folder, or by the bundled model's name.

Knows dtypes, devices and whether a model takes chat messages.  Knows nothing of documents, edits or adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfedit.errors import UserError
from selfedit.models.bundled import NAME, bundled_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Tokenizer:
    """A tokenizer, and the way its model is prompted.

    `instruct` says that prompts go through the chat template; it is decided by the template's presence unless overridden.
    """

    hf: PreTrainedTokenizerBase
    instruct: bool
    stop_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens."""
        return self.hf.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.hf.decode(list(ids), skip_special_tokens=True))

    def text_ids(self, text: str) -> list[int]:
        """A training text as the model saw texts in pretraining: its usual beginning, the text, the end-of-text token."""
        return [*self._beginning(), *self.encode(text), *self._end()]

    def prompt_ids(self, user: str, *, system: str | None = None) -> list[int]:
        """Ids of a prompt: through the chat template (thinking switched off where it can be), or as plain text."""
        if not self.instruct:
            return [*self._beginning(), *self.encode(user if system is None else f"{system}\n\n{user}")]
        messages = [{"role": "user", "content": user}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self._template(messages)

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation that the model is to continue; for a base model, its texts one after another."""
        if not self.instruct:
            return [*self._beginning(), *self.encode("\n".join(message["content"] for message in messages) + "\n")]
        return self._template(list(messages))

    def completion_ids(self, completion: str) -> list[int]:
        """Ids of an answer to a prompt, with the token that ends a turn (or a text, for a base model)."""
        ids = self.encode(completion)
        return [*ids, self.stop_ids[0]] if self.stop_ids else ids

    def _template(self, messages: list[dict[str, str]]) -> list[int]:
        """Renders messages.  A system message that the template would add by itself ("You are ...") is left empty where the
        template allows it: it says nothing about the task and would cost tokens in every training sequence."""
        if messages[0]["role"] != "system" and self._adds_system:
            messages = [{"role": "system", "content": ""}, *messages]
        return self.hf.encode(self._render(messages), add_special_tokens=False)

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(
            self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )

    @cached_property
    def _adds_system(self) -> bool:
        from jinja2 import TemplateError

        user = {"role": "user", "content": "?"}
        try:
            return len(self._render([{"role": "system", "content": ""}, user])) < len(self._render([user]))
        except TemplateError:  # the template takes no system message (Gemma 2)
            return False

    def _beginning(self) -> list[int]:
        # What the tokenizer itself puts before a text (Llama and Gemma: the begin token; SmolLM2 and Qwen: nothing).
        empty = self.hf.encode("", add_special_tokens=True)
        bos = self.hf.bos_token_id
        return [bos] if bos is not None and bos in empty else []

    def _end(self) -> list[int]:
        return [] if self.hf.eos_token_id is None else [self.hf.eos_token_id]


@dataclass
class Model:
    """A causal language model that is ready for use, with its tokenizer.  `name` is what the user called it."""

    name: str
    hf: PreTrainedModel
    tokenizer: Tokenizer

    @property
    def instruct(self) -> bool:
        return self.tokenizer.instruct

    @property
    def context_length(self) -> int:
        """How many tokens the model can read at once."""
        return int(getattr(self.hf.config.get_text_config(), "max_position_embeddings", 0) or 2048)


def local_path(name: str) -> str | Path:
    """Where `from_pretrained` finds a model: the bundled model's converted folder, or the name itself."""
    return bundled_folder() if name == NAME else name


def load_tokenizer(name: str, *, instruct: bool | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """Loads a tokenizer alone (the driver of a cluster needs no weights).  Errors: UserError for an unknown model."""
    from transformers import AutoTokenizer

    hf = _from_pretrained(AutoTokenizer, name, trust_remote_code=trust_remote_code)
    if instruct and hf.chat_template is None:
        raise UserError(f"model {name} has no chat template: leave out --instruct, or name a chat model")
    use_chat = hf.chat_template is not None if instruct is None else instruct
    return Tokenizer(hf, use_chat, _stop_ids(name, hf))


def load_model(
    name: str = NAME,
    *,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    instruct: bool | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Loads a model for inference and for adapters: frozen, in evaluation mode.

    `dtype` is `auto` (float32 on a CPU without fast bfloat16, bfloat16 elsewhere), `float32` or `bfloat16`; `device` is
    the first accelerator, else the CPU.  Errors: UserError for an unknown model, device or dtype.
    """
    import torch
    from transformers import AutoModelForCausalLM

    target = _device(device)
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UserError(f"--dtype {dtype}: not known; use auto, float32 or bfloat16")
    chosen = _best_dtype(target) if dtype == "auto" else getattr(torch, dtype)
    tokenizer = load_tokenizer(name, instruct=instruct, trust_remote_code=trust_remote_code)
    hf = _from_pretrained(AutoModelForCausalLM, name, trust_remote_code=trust_remote_code, dtype=chosen)
    hf.requires_grad_(False)
    # Adapters record the name that the user knows, not a folder of this machine's cache.
    hf.config._name_or_path = name
    return Model(name, hf.to(target).eval(), tokenizer)


def _best_dtype(device: torch.device) -> torch.dtype:
    import torch

    # bfloat16 products on a CPU without instructions for them run at a quarter of float32's rate.
    if device.type == "cpu" and not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return torch.float32
    return torch.bfloat16


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    if device is None or device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not usable here ({str(error).splitlines()[0]})") from None
    return target


def _from_pretrained(auto: Any, name: str, **arguments: Any) -> Any:
    path = local_path(name)
    try:
        return auto.from_pretrained(path, **arguments)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model {name}: not a local folder with a causal language model, and not loadable from the hub ({reason})"
        ) from error


def _stop_ids(name: str, hf: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's end token first, then what the generation config adds."""
    from transformers import GenerationConfig

    ids = [] if hf.eos_token_id is None else [hf.eos_token_id]
    try:
        more = GenerationConfig.from_pretrained(local_path(name)).eos_token_id
    except OSError:  # a model need not have one
        more = None
    for token in more if isinstance(more, list) else [more]:
        if token is not None and token not in ids:
            ids.append(token)
    return tuple(ids)
