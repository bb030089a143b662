"""GGUF files for llama.cpp and Ollama, by llama.cpp's own converters, with the `Modelfile` that Ollama reads.

The converters are scripts of llama.cpp's repository; no package of PyPI has them.  They are found on PATH, or in the
clone that the environment variable LLAMA_CPP names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfedit.errors import UserError

if TYPE_CHECKING:
    from selfedit.models import Tokenizer

WHERE = "LLAMA_CPP"
MODEL, ADAPTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
GgufType = Literal["auto", "f32", "f16", "bf16", "q8_0"]


def find_converter(name: str) -> Path:
    """llama.cpp's script of this name.  Errors: UserError where it is not installed."""
    clone = os.environ.get(WHERE)
    found = shutil.which(name) if clone is None else os.path.join(clone, name)
    if found is None or not Path(found).is_file():
        raise UserError(
            f"--gguf: llama.cpp's {name} is not {'on PATH' if clone is None else f'in {clone}'}; clone llama.cpp and"
            f" set {WHERE} to its folder"
        )
    return Path(found).resolve()


def convert(folder: Path, out: Path, kind: GgufType, base: Path | None = None) -> None:
    """Writes the model in `folder` (Hugging Face's format, with its tokenizer), or the adapter in it (PEFT's format) of
    the model in `base`, as the GGUF file `out`."""
    name, of = (MODEL, []) if base is None else (ADAPTER, ["--base", str(base)])
    command = [sys.executable, str(find_converter(name)), str(folder), *of, "--outfile", str(out), "--outtype", kind]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode:
        said = result.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"--gguf: llama.cpp's {name} failed: {said[-1]}")


def modelfile(model: str, tokenizer: Tokenizer, adapter: str | None = None) -> str:
    """Ollama's `Modelfile` for these files beside it: greedy answers, and prompts as in training."""
    lines = [f"FROM ./{model}", *([] if adapter is None else [f"ADAPTER ./{adapter}"]), "PARAMETER temperature 0"]
    lines += [f"PARAMETER stop {_quoted(str(tokenizer.hf.decode([id])))}" for id in tokenizer.stop_ids]
    return "\n".join([*lines, f'TEMPLATE """{_template(tokenizer)}"""', ""])


def _template(tokenizer: Tokenizer) -> str:
    """One turn as the chat template writes it, in Ollama's own form, without a beginning-of-text token that llama.cpp
    puts before it, as the tokenizer does.

    Ollama goes through a conversation turn by turn with it, so a template that begins every conversation with words of
    its own has them in each turn."""
    if not tokenizer.instruct:
        return "{{ .Prompt }}"
    asked, told = "\ufdd0", "\ufdd1"  # in no text
    hf = tokenizer.hf
    begin = hf.bos_token if hf.bos_token and hf("x")["input_ids"][:1] == [hf.bos_token_id] else ""

    def render(*messages: tuple[str, str], go_on: bool = True) -> str:
        some = [{"role": role, "content": content} for role, content in messages]
        text = str(hf.apply_chat_template(some, tokenize=False, add_generation_prompt=go_on))
        return text.removeprefix(begin)

    before, _, behind = render(("user", asked)).partition(asked)
    _, _, end = render(("user", asked), ("assistant", told), go_on=False).partition(told)
    return f"{before}{{{{ .Prompt }}}}{behind}{{{{ .Response }}}}{end.rstrip()}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
