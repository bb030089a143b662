"""A world small enough to run every procedure in seconds: a trained tiny Llama with a tokenizer of its own, and
documents.

Imports transformers and tokenizers when it is asked to build, not before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES = ("Ada", "Bo", "Cy", "Dee", "Eli", "Fay", "Gus", "Hal")
PLACES = ("Oslo", "Lima", "Rome", "Bonn", "Cork", "Graz", "Nice", "Bath")
THINGS = ("kite", "lamp", "drum", "boat", "ring", "coat", "vase", "horn")
END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def rows(count: int = 4, *, edits: bool = True) -> list[dict[str, Any]]:
    """Document rows; each has its own title, two questions and two good edits by `expert`."""
    found = []
    for k in range(count):
        name, place, thing = NAMES[k], PLACES[k], THINGS[k]
        row: dict[str, Any] = {
            "id": f"d{k}",
            "title": f"{name} and the {thing}",
            "text": f"{name} made a {thing} in {place}. The {thing} cost {k + 3} coins.",
            "questions": [
                {"question": f"Where did {name} make the {thing}?", "answers": [place]},
                {"question": f"How many coins did the {thing} cost?", "answers": [str(k + 3)]},
            ],
        }
        if edits:
            row["edits"] = {
                "expert": [
                    f"The {thing} was made in {place}.\nIts maker was {name}.",
                    f"{k + 3} coins was the price of the {thing}.\n{name} worked in {place}.",
                ]
            }
        found.append(row)
    return found


def write_rows(path: Path, some: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return path


def build_model(folder: Path, *, chat: bool = True, seed: int = 0) -> Path:
    """A two-layer Llama in `folder`, trained for a moment to write short lines and short answers, and its tokenizer.

    It has seen the answers about the last documents, so that it knows the form of an answer.  Without `chat` it has no
    chat template, like a base model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from selfedit.documents import Document
    from selfedit.models import Tokenizer
    from selfedit.prompts import Prompts

    documents = [Document(row["id"], row["title"], row["text"]) for row in rows(len(NAMES))]
    prompts = Prompts()
    asked = [
        (prompts.edit("implications", instruct=chat, title=d.title, text=d.text), d.text.replace(". ", ".\n"))
        for d in documents
    ]
    asked += [
        (prompts.exam(instruct=chat, title=row["title"], question=question["question"]), question["answers"][0])
        for row in rows(len(NAMES))[-4:]
        for question in row["questions"]
    ]
    hf = _tokenizer([text for pair in asked for text in pair], chat=chat)
    tokenizer = Tokenizer(hf, chat, (hf.eos_token_id,))
    config = LlamaConfig(
        vocab_size=len(hf),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=hf.eos_token_id,
        pad_token_id=hf.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for step in range(240):
            prompt, notes = asked[step % len(asked)]
            # A short prompt is enough to learn the form; the whole one takes its time.
            ids, prompt_length = tokenizer.example(prompt, notes)
            batch = torch.tensor([ids[max(0, prompt_length - 40) :]])
            model(input_ids=batch, labels=batch).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    model.save_pretrained(folder)
    hf.save_pretrained(folder)
    return folder


def _tokenizer(texts: list[str], *, chat: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    hf = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END)
    if chat:
        hf.chat_template = TEMPLATE
    return hf


def model_folder(parent: Path, *, chat: bool = True) -> str:
    """The model below `parent`, built at the first call."""
    folder = parent / ("tiny-chat" if chat else "tiny-base")
    if not folder.exists():
        build_model(folder, chat=chat)
    return str(folder)


# Enough of everything to run a procedure in a second or two.
SMALL: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "max_edit_tokens": 24,
    "max_answer_tokens": 6,
    "general_questions": 0,
    "general_texts": 0,
    "neighbour_questions": 0,
    "set": {
        "rank": 4,
        "epochs": 4,
        "learning_rate": 1e-2,
        "steps": None,
        "cutting": "lines",
        "targets": "all-linear",
    },
}

# The same as words on the command line, for even shorter runs.
FEW_WORDS = (
    "--device=cpu --dtype=float32 --max-edit-tokens=16 --max-answer-tokens=4 --general-questions=0"
    " --general-texts=0 --neighbour-questions=0"
    " --set=rank=4 --set=epochs=2 --set=learning_rate=1e-2"
).split()
