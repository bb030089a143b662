"""What a model is trained to write is what it has to write when it is asked: same prompt, same tokens, same edit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from counting_pool import CountingPool

import families
from selfedit.documents import Document
from selfedit.editors.cleaning import clean
from selfedit.execution.tasks import CompletionTask, FitTask
from selfedit.methods.restem import train
from selfedit.methods.settings import TrainSettings
from selfedit.models import Tokenizer
from selfedit.prompts import Prompts, edit_lead
from selfedit.runs.store import Store
from selfedit.training.cutting import TrainingSequence
from selfedit.training.recipes import load_recipe
from selfedit.training.tokens import tokenize

DOCUMENT = Document("d", "The kite", "Ada made a kite in Oslo.\nIt cost 3 coins.")
WRITTEN = [
    " Who made the kite?\nAnswer: Ada\nQuestion: What did it cost?\nAnswer: 3 coins",
    "\nAda made the kite.\nThe kite is from Oslo.",
    "Ada made the kite.\n- 1. It cost 3 coins.\n\nIt cost 3 coins",
    '"Kites <|im_end|></s> fly",\tsaid Ada 🪁.',
    "Who?",
]


def prompts_of(tokenizer: Tokenizer, tmp_path: Any) -> dict[str, str]:
    """Every built-in prompt, and some that end otherwise."""
    own = tmp_path / "own.yaml"
    own.write_text(
        "edit:\n"
        "  no-newline: {base: 'Notes on {{ text }}:', chat: 'Notes on {{ text }}:'}\n"
        '  newlines: {base: "Notes on {{ text }}:\\n\\n", chat: "Notes on {{ text }}:\\n\\n"}\n'
        "  space: {base: 'Notes on {{ text }}: ', chat: 'Notes on {{ text }}: '}\n"
        '  lead: {base: "{{ text }}\\nQuestion: Who", chat: "{{ text }}\\nQuestion: Who"}\n'
    )
    prompts = Prompts(own)
    return {
        name: prompts.edit(name, instruct=tokenizer.instruct, title=DOCUMENT.title, text=DOCUMENT.text)
        for name in prompts.edit_names
    }


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_an_edit_is_trained_as_it_is_sampled(family: str, chat: bool, tmp_path: Any) -> None:
    tokenizer = families.tokenizer(family, chat=chat)
    for name, prompt in prompts_of(tokenizer, tmp_path).items():
        lead = "" if chat else edit_lead(prompt)
        assert bool(lead) == (not chat and name in ("self-qa", "sentence-qa", "exam-questions", "lead"))
        for raw in WRITTEN:
            stored = clean(lead + raw, cut_off=False)[0]
            ids, length = tokenizer.example(prompt, stored, lead=lead)
            sampled_from = tokenizer.prompt_ids(prompt)
            assert ids[:length] == sampled_from
            target, end = ids[length:-1], ids[-1]
            assert end in tokenizer.stop_ids
            assert not set(target) & set(tokenizer.stop_ids)
            # As sampling: the same text behind the prompt, and the same edit from it.
            decoded = tokenizer.decode([*tokenizer.encode(lead), *target])
            assert clean(decoded, cut_off=False)[0] == stored, (name, raw)
            whole = tokenizer.hf.decode(ids[:-1])
            before = tokenizer.hf.decode(sampled_from)
            assert whole.startswith(before)
            if chat:
                assert whole.removeprefix(before).removeprefix(" " * (family == "llama2")) == stored
                continue
            # Nothing doubled, nothing glued; and where words are encoded word by word, the tokens are those of the
            # whole.
            between = "" if lead or prompt[-1].isspace() else " "
            text = prompt + between + stored[len(lead) :]
            assert whole.endswith(text)
            if name != "space" and family in ("smollm2", "qwen2", "qwen3", "llama3"):
                assert ids[:-1][-len(tokenizer.encode(text)) :] == tokenizer.encode(text), (name, raw)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_an_exam_answer_is_trained_as_it_is_asked_for(family: str, chat: bool) -> None:
    tokenizer, prompts = families.tokenizer(family, chat=chat), Prompts()
    sequence = TrainingSequence("The kite", "3 coins", question="What did it cost?")
    found = tokenize(sequence, load_recipe("default"), tokenizer, prompts)
    asked = prompts.exam(instruct=chat, title="The kite", question="What did it cost?")
    assert list(found.ids[: found.prompt_length]) == tokenizer.prompt_ids(asked)
    assert tokenizer.decode(found.ids[found.prompt_length :]).strip() == "3 coins"
    if not chat:
        assert tokenizer.decode(found.ids).endswith("\nAnswer: 3 coins")


@pytest.mark.parametrize("chat", [True, False])
def test_a_round_trains_the_editor_on_what_it_sampled_from(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, base_model: str, chat: bool
) -> None:
    settings = TrainSettings(
        **{**quick, "max_edit_tokens": 40},
        model=chat_model if chat else base_model,
        documents=(documents(3),),
        validation_share=0,
        rounds=1,
        edits=2,
        replicates=1,
        edit_prompt="implications" if chat else "self-qa",  # of which the tiny model writes something
        outer_set={"rank": 4},
    )
    pool = CountingPool(settings.model)
    train(settings, pool=pool)
    prompts = {
        request.prompt
        for task in pool.tasks
        if isinstance(task, CompletionTask) and task.id.startswith("edits/1/")
        for request in task.requests
    }
    (outer,) = (task for task in pool.tasks if isinstance(task, FitTask) and task.id == "outer/1")
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        kept = sorted(stored.text for stored in store.edits(round=1) if stored.kept)
    assert kept
    sequences = outer.fits[0].job.sequences
    assert {sequence.ids[: sequence.prompt_length] for sequence in sequences} <= prompts
    lead = () if chat else pool.tokenizer.encode("Question:")
    written = [pool.tokenizer.decode([*lead, *sequence.ids[sequence.prompt_length :]]) for sequence in sequences]
    assert kept == sorted(clean(text, cut_off=False)[0] for text in written)
