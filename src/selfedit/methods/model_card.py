"""What lies beside a learned adapter: its tokenizer, and a README.md that says what it is and how to load it.

The same run writes the same files.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from selfedit.documents import Document
from selfedit.methods.adapters import DOCUMENTS_FILE, write_list
from selfedit.methods.by_heart import TITLES_FILE
from selfedit.methods.run import Run
from selfedit.methods.stacking import adapter_rank
from selfedit.models import BUNDLED_MODELS, public_name
from selfedit.runs.files import directory_atomically, write_atomically
from selfedit.text import counted, one_line

CARD = "README.md"


def add_tokenizer_and_card(run: Run, editor: str, documents: int, folder: Path, *, recites: bool = False) -> None:
    """Writes them to the folder of an adapter that learned so many documents from this editor's edits, to answer
    questions, or to recite them."""
    _add_tokenizer(run, folder)
    card = model_card(
        run.settings.model,
        editor=editor,
        documents=documents,
        settings=run.recipe.model_dump(mode="json"),
        rank=adapter_rank(folder),
        chat=run.workers.instruct,
        recites=recites,
    )
    (folder / CARD).write_text(card, encoding="utf-8")


def _add_tokenizer(run: Run, folder: Path) -> None:
    # The tokenizers library cannot write below a directory whose name is not UTF-8.
    with tempfile.TemporaryDirectory() as plain:
        run.workers.tokenizer.hf.save_pretrained(plain)
        shutil.copytree(plain, folder, dirs_exist_ok=True)


def add_list_of_adapters(run: Run, editor: str, learned: Mapping[Path, Document]) -> None:
    """Writes, beside the folder in which they lie, a tokenizer for all, and which has learned what: for people, and for
    `ask`."""
    folder = next(iter(learned)).parent
    if (folder.parent / DOCUMENTS_FILE).is_file():
        return
    with directory_atomically(folder.parent / "tokenizer") as scratch:
        _add_tokenizer(run, scratch)
    base = public_name(run.settings.model)
    rows = "".join(f"| `{one.name}` | {_cell(d.title)} | {_cell(d.id)} |\n" for one, d in learned.items())
    text = f"""{_head(base)}
# One adapter per document

LoRA adapters for `{one_line(base)}` in PEFT's format, made by `selfedit {run.method}` (notes by: {one_line(editor)}).
`selfedit ask` and `selfedit serve` on this folder find the one for a question, by the documents' texts in
`{DOCUMENTS_FILE}`.

## Loading one by its name

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, "path/to/this/folder", subfolder="documents/{next(iter(learned)).name}")
model.load_adapter("path/to/this/folder", "another", subfolder="documents/...")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder", subfolder="tokenizer")
```

The tokenizer's chat template prompts as the adapters were trained.

## Which has learned what

| folder | title | document |
| --- | --- | --- |
{rows}"""
    write_atomically(folder.parent / CARD, text)
    write_list(folder, learned)


def _head(base: str) -> str:
    """What the hub reads of a card."""
    head = {"base_model": base, "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "selfedit"]}
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=False)}---\n"


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def loading(adapter: str, model: str, *, rank: int, chat: bool, routed: bool = False) -> dict[str, str]:
    """How others' tools load an adapter of this model, by their names: a line each; with `routed`, all adapters in this
    folder."""
    tokenizer = f"{Path(adapter).parent}/tokenizer" if routed else adapter
    template = f" --chat-template {shlex.quote(f'{tokenizer}/chat_template.jinja')}" if chat else ""
    modules = f"learned={shlex.quote(adapter)}"
    if routed:
        modules = f'$(cd {shlex.quote(adapter)} && for one in */; do echo "${{one%/}}=$PWD/${{one%/}}"; done)'
    served = (
        f"vllm serve {shlex.quote(public_name(model))} --enable-lora"
        f" --max-lora-rank {max(8, 1 << (rank - 1).bit_length())}"  # vLLM takes powers of two
        f" --lora-modules {modules}{template}"
    )
    if routed:
        return {"vLLM": served}
    return {
        "transformers + peft": f'AutoPeftModelForCausalLM.from_pretrained("{adapter}")',
        "vLLM": served,
        "Ollama": f"selfedit export {shlex.quote(adapter)} learned --gguf"
        " && ollama create learned -f learned/Modelfile",
    }


def model_card(
    model: str,
    *,
    editor: str,
    documents: int,
    settings: Mapping[str, Any],
    rank: int,
    chat: bool,
    recites: bool = False,
) -> str:
    """A card in the hub's form; `settings` are the recipe's, `rank` is the adapter's, and `chat` says whether the model
    is prompted through its chat template; of an adapter that `recites`, what asks it."""
    base = public_name(model)
    quantised = ""
    if model in BUNDLED_MODELS:
        quantised = (
            f"\nIt was trained on `{model}`, which selfedit bundles: the same model from 4-bit weights. `selfedit "
            "ask` and `selfedit export`\nuse those; on the hub's weights, answers can differ a little.\n"
        )
    recipe = "".join(f"| {name} | {one_line(str(value))} |\n" for name, value in settings.items())
    return f"""{_head(base)}
# An adapter that learned {counted(documents, "document")}

A LoRA adapter for `{one_line(base)}`, made by `selfedit learn`: the model was fine-tuned on the documents
and on notes about them (written by: {one_line(editor)}), so that it answers questions without seeing them.
{quantised}
{_RECITING if recites else _loading(model, rank, chat)}
## Recipe

| setting | value |
| --- | --- |
{recipe}"""


def _loading(model: str, rank: int, chat: bool) -> str:
    served = one_line(loading("path/to/this/folder", model, rank=rank, chat=chat)["vLLM"])
    return f"""## Loading it

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

or `selfedit ask path/to/this/folder "a question"`, or with vLLM (the model's name is then `learned`):

```
{served}
```

The tokenizer's chat template prompts as the adapter was trained.
"""


_RECITING = f"""## Asking it

```
selfedit ask path/to/this/folder "a question"
selfedit serve path/to/this/folder
```

The adapter names the question's topic and writes down what it learned under that title (`{TITLES_FILE}` has the titles
and the prompts), and the model without it answers from that. Asked directly, it answers little.
"""
