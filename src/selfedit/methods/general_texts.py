"""What the model itself writes to general prompts, without any adapter, once per run and policy.

How far an adapter's predictions move on such texts measures what it forgets, whatever it was asked before; and training
that holds an adapter to the model's own predictions on other such texts keeps it from forgetting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from selfedit.engine.jobs import Completion, DecodeRequest, TokenSequence
from selfedit.evaluation.general import Use, general_prompts
from selfedit.methods.learnings import Learning
from selfedit.methods.resuming import completer
from selfedit.methods.run import Run
from selfedit.runs.records import OwnText

_TOKENS = 32  # of a text at the most


def own_texts(run: Run, use: Use, policy: tuple[str, ...] = (), *, round: int = 0) -> list[OwnText]:
    """The texts that the policy wrote to the general prompts of this use, in their order: greedily, so that they are
    what the model says, whatever the run's seed.  Those that the store lacks are written now."""
    name = "/".join(policy)
    prompts = general_prompts(use)
    tokenizer = run.workers.tokenizer

    def keep(id: str, completions: Sequence[Completion], seconds: float) -> None:
        (written,) = completions
        run.store.add_own_texts([OwnText(name, id, prompts[id], tokenizer.decode(written.ids), written.ids)])

    complete = completer(
        run,
        f"texts/{use}/{name}",
        lambda seconds: run.ledger.time("texts", "none", seconds, round),
        phase=f"texts of the model's own ({use})",
        policy=policy,
    )
    requests = {
        id: [DecodeRequest(_prompt_ids(run, prompt), _TOKENS, tokenizer.stop_ids)] for id, prompt in prompts.items()
    }
    complete(requests, run.store.own_texts(name), keep)
    found = run.store.own_texts(name)
    return [found[id] for id in prompts if id in found]


def own_sequences(run: Run, texts: Sequence[OwnText]) -> list[TokenSequence]:
    """The texts as sequences whose labels are the model's own tokens, and the end behind them.

    A text that was cut off has that end too: these are sequences for soft targets, which say what is expected there.
    """
    sequences = []
    for text in texts:
        prompt = _prompt_ids(run, text.prompt)
        sequences.append(TokenSequence((*prompt, *text.ids, *run.workers.tokenizer.stop_ids[:1]), len(prompt)))
    return [sequence for sequence in sequences if sequence.labelled]


def measured_texts(run: Run, learnings: Sequence[Learning]) -> dict[str, tuple[TokenSequence, ...]]:
    """The texts on which the divergence of each learning's adapter is measured, by the learning's id.

    They are drawn for each document and replicate, so that conditions and edits are compared on the same ones; where
    there are few adapters, more than the settings say, so that all texts are used.
    """
    # Of adapters that questions are routed to, few general ones are asked.
    examined = [learning for learning in learnings if learning.examine and learning.asked is None]
    if not run.settings.general_texts or not examined:
        return {}
    found: dict[str, tuple[TokenSequence, ...]] = {}
    for policy in dict.fromkeys(learning.policy for learning in examined):
        of_policy = [learning for learning in examined if learning.policy == policy]
        texts = own_sequences(run, own_texts(run, "measure", policy, round=of_policy[0].round))
        count = max(run.settings.general_texts, len(texts) // len(of_policy))
        for learning in of_policy:
            drawn = sorted(
                range(len(texts)), key=partial(run.seed, "texts", learning.document_id or "", learning.replicate)
            )
            found[learning.id] = tuple(texts[k] for k in sorted(drawn[:count]))
    return found


def retained(run: Run, policy: tuple[str, ...]) -> list[TokenSequence]:
    """The texts that a recipe may retain: the teacher reads what the adapter reads, so that it stays as it was."""
    texts = own_sequences(run, own_texts(run, "retain", policy))
    return [replace(one, teacher=one.ids[: one.prompt_length]) for one in texts]


def _prompt_ids(run: Run, prompt: str) -> tuple[int, ...]:
    tokenizer = run.workers.tokenizer
    # A base model goes on at the beginning of a line.
    return tuple(tokenizer.prompt_ids(prompt if tokenizer.instruct else f"{prompt}\n"))
