"""Completions for prompts of many adapters in one batch.

Knows prompts as token ids, greedy decoding and nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751).  Knows nothing of text.

A sampled token is drawn with a number that derives from (request's seed, position) alone, so a completion depends on its own
request, never on its neighbours in the batch or on how work was split.

Axes: B rows, T time, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from selfedit.engine.backbone import Backbone
from selfedit.engine.bank import AdapterBank
from selfedit.engine.lora import Routing
from selfedit.engine.memory import out_of_memory, release_memory


@dataclass(frozen=True)
class DecodeRequest:
    """A prompt and how to go on from it.  `adapter` is its place in the bank, None for the base model (one call of `decode` has
    either).  `temperature` 0 is greedy; else `top_p` keeps the smallest set of tokens with that probability.  Decoding
    ends at a token of `stop_ids`, which is not returned, or after `max_new_tokens`."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    adapter: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """`finished` is False where the completion was cut off at `max_new_tokens`."""

    ids: tuple[int, ...]
    finished: bool


def decode(
    model: PreTrainedModel,
    requests: Sequence[DecodeRequest],
    *,
    bank: AdapterBank | None = None,
    token_budget: int = 8192,
    on_tokens: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Completes all requests, in batches of rows of similar length whose caches together hold at most `token_budget` tokens.

    Running out of memory halves the budget and repeats the batch.
    """
    backbone = Backbone(model)
    routed = [request.adapter is not None for request in requests]
    if any(routed) and (bank is None or not all(routed)):
        raise ValueError("requests to adapters need a bank, and cannot be mixed with requests to the base model")
    if any(not request.prompt for request in requests):
        raise ValueError("a prompt is empty")
    if bank is not None and any(
        not 0 <= request.adapter < bank.size for request in requests if request.adapter is not None
    ):
        wrong = next(r.adapter for r in requests if r.adapter is not None and not 0 <= r.adapter < bank.size)
        raise ValueError(f"a request names adapter {wrong} of a bank of {bank.size}")
    completions: dict[int, Completion] = {}
    waiting = sorted(range(len(requests)), key=lambda k: (-_size(requests[k]), k))
    while waiting:
        rows = max(1, token_budget // _size(requests[waiting[0]]))
        # Rows of one adapter lie together.
        batch = sorted(waiting[:rows], key=lambda k: (requests[k].adapter or 0, requests[k].prompt, k))
        try:
            results = _decode_batch(backbone, [requests[k] for k in batch], bank, on_tokens)
        except RuntimeError as error:
            if rows == 1 or not out_of_memory(error):
                raise
            token_budget //= 2
            release_memory()
            continue
        completions.update(zip(batch, results, strict=True))
        waiting = waiting[rows:]
    return [completions[k] for k in range(len(requests))]


def _size(request: DecodeRequest) -> int:
    return len(request.prompt) + request.max_new_tokens


@torch.no_grad()
def _decode_batch(
    backbone: Backbone,
    requests: list[DecodeRequest],
    bank: AdapterBank | None,
    on_tokens: Callable[[int], None] | None,
) -> list[Completion]:
    device = backbone.head_VD.device
    # Requests with the same adapter and prompt (several samples of one edit) share its prefill.
    unique: dict[tuple[int | None, tuple[int, ...]], int] = {}
    source = [unique.setdefault((r.adapter, r.prompt), len(unique)) for r in requests]
    adapters = [adapter for adapter, _ in unique]
    prompts = [prompt for _, prompt in unique]
    width = max(map(len, prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    input_ids_BT = torch.tensor([(width - len(p)) * [p[0]] + list(p) for p in prompts], device=device)
    mask_BT = (torch.arange(width, device=device)[None] >= width - lengths[:, None]).long()
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=backbone.model.config)
    with _route(bank, adapters, width):
        hidden = backbone.hidden(
            input_ids=input_ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
        )
    select = torch.tensor(source, device=device)
    hidden_BD, mask_BT, lengths = hidden[select, -1], mask_BT[select], lengths[select]
    if len(unique) < len(requests):
        cache.batch_select_indices(select)

    output: list[list[int]] = [[] for _ in requests]
    finished = [False] * len(requests)
    alive = list(range(len(requests)))  # the request of each row
    while True:
        tokens = _next_tokens(backbone.logits(hidden_BD), [requests[k] for k in alive], [len(output[k]) for k in alive])
        going = []
        for row, (k, token) in enumerate(zip(alive, tokens, strict=True)):
            if token in requests[k].stop_ids:
                finished[k] = True
                continue
            output[k].append(token)
            if len(output[k]) < requests[k].max_new_tokens:
                going.append(row)
        if on_tokens is not None:
            on_tokens(len(tokens))
        if not going:
            return [Completion(tuple(ids), done) for ids, done in zip(output, finished, strict=True)]
        if len(going) < len(alive):
            # Finished rows leave the batch.
            keep = torch.tensor(going, device=device)
            cache.batch_select_indices(keep)
            mask_BT, lengths = mask_BT[keep], lengths[keep]
            alive = [alive[row] for row in going]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], dim=1)
        done = torch.tensor([len(output[k]) for k in alive], device=device)
        with _route(bank, [requests[k].adapter for k in alive], 1):
            hidden = backbone.hidden(
                input_ids=torch.tensor([output[k][-1:] for k in alive], device=device),
                attention_mask=mask_BT,
                position_ids=(lengths + done - 1)[:, None],
                past_key_values=cache,
                use_cache=True,
            )
        hidden_BD = hidden[:, -1]


def _route(bank: AdapterBank | None, adapters: Sequence[int | None], width: int) -> AbstractContextManager[None]:
    chosen = [adapter for adapter in adapters if adapter is not None]
    if bank is None or not chosen:
        return nullcontext()
    return bank.route(
        Routing.of(chosen, [width] * len(chosen), size=bank.size, device=bank.device, grouped=bank.grouped)
    )


def _next_tokens(logits_BV: Tensor, requests: list[DecodeRequest], positions: list[int]) -> list[int]:
    tokens = logits_BV.argmax(-1).tolist()
    sampled = [row for row, request in enumerate(requests) if request.temperature > 0]
    if not sampled:
        return tokens
    device = logits_BV.device
    temperature = torch.tensor([requests[row].temperature for row in sampled], device=device)
    top_p = torch.tensor([requests[row].top_p for row in sampled], device=device, dtype=torch.float64)
    uniform = torch.tensor(
        [_uniform(requests[row].seed, positions[row]) for row in sampled], device=device, dtype=torch.float64
    )
    scaled = logits_BV[torch.tensor(sampled, device=device)] / temperature[:, None]
    probabilities, order = torch.sort(scaled.softmax(-1), dim=-1, descending=True, stable=True)
    cumulative = probabilities.double().cumsum(-1)
    # The nucleus: tokens before which less than top_p has been gathered; the first always.
    inside = (cumulative - probabilities.double()) < top_p[:, None]
    mass = (probabilities.double() * inside).sum(-1)
    drawn = torch.searchsorted(cumulative, (uniform * mass)[:, None], right=True).squeeze(1)
    drawn = torch.minimum(drawn, inside.sum(-1) - 1)
    for row, token in zip(sampled, order.gather(1, drawn[:, None]).squeeze(1).tolist(), strict=True):
        tokens[row] = token
    return tokens


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the two."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
