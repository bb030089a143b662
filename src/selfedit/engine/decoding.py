"""Completions for prompts of many adapters in one batch.

Greedy decoding and nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751), on token ids.

A sampled token is drawn with a number that derives from (request's seed, position) alone, so a completion depends on
its own request, never on its neighbours in the batch or on how work was split.

Axes: B rows, T time, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import accumulate, chain, islice, takewhile
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfedit.engine import paths
from selfedit.engine.attention import KeyValues, Layout, packed_attention
from selfedit.engine.backbone import Backbone
from selfedit.engine.bank import AdapterBank
from selfedit.engine.jobs import Completion, DecodeRequest, LessMemoryWarning, check_ids
from selfedit.engine.lora import Routing
from selfedit.engine.memory import attempted, device_kind, free_memory, move, release_memory

# Below this a temperature is taken for 0: logits divided by it may be no numbers any more.
_GREEDY = 1e-6

# Finished rows leave the batch when so few are still going: leaving copies what the others have stored.
_LEAVE = 0.75
# Prompts go through the model in parts of so many tokens: more would only need more memory and leave a CPU's caches.
PREFILL_TOKENS = {"cpu": 1024, "accelerator": 16384}
# So many tokens of a draft are compared at once: each has logits of a whole vocabulary.
_COMPARED = 64


def decode(
    model: PreTrainedModel,
    requests: Sequence[DecodeRequest],
    *,
    bank: AdapterBank | None = None,
    token_budget: int | None = None,
    memory: int | None = None,
    halvings: int = 0,
    on_tokens: Callable[[int], None] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Completes all requests, in batches of similar length whose prompts and answers together hold at most
    `token_budget` tokens (by default 16,384 on a CPU; on an accelerator, what half of `memory` holds, bytes, by default
    those that are free), halved so often where memory ran out before.

    `on_tokens` is called with how many tokens were computed, `on_token` with each request's number and token as it
    comes.  Running out of memory halves the budget, with a warning, and repeats the batch (`on_token` begins again).
    Errors: ValueError for an empty prompt, no new tokens, a temperature or top_p out of range, a token that is not in
    the vocabulary, or an adapter that the bank does not have.
    """
    if not requests:
        return []
    backbone = Backbone(model)
    _check(requests, bank, backbone.vocabulary)
    backbone.check_length(max(map(_size, requests)))
    completions: dict[int, Completion] = {}
    waiting = sorted(range(len(requests)), key=lambda k: (-_size(requests[k]), k))
    budget = (_default_budget(backbone, memory) if token_budget is None else token_budget) >> halvings
    while waiting:
        rows = max(1, budget // _size(requests[waiting[0]]))
        # Rows of one adapter lie together.
        batch = sorted(waiting[:rows], key=lambda k: (requests[k].adapter or 0, requests[k].prompt, k))
        told = None if on_token is None else lambda k, token, batch=batch: on_token(batch[k], token)
        asked = [requests[k] for k in batch]
        compute = partial(_decode_batch, backbone, asked, bank, on_tokens, told)
        # Starting operations is what takes the time of a token on an accelerator, and training's forms start fewer.
        on_cpu = backbone.head_VD.device.type == "cpu"
        with packed_attention(model) if on_cpu else backbone.training():
            results = attempted(compute, last=len(batch) == 1)
        if results is None:
            line = f"out of memory: answers go on in batches of {budget // 2} tokens instead of {budget}"
            warnings.warn(line, LessMemoryWarning, stacklevel=2)
            budget //= 2
            release_memory()
            continue
        completions.update(zip(batch, results, strict=True))
        waiting = waiting[rows:]
    return [completions[k] for k in range(len(requests))]


def _check(requests: Sequence[DecodeRequest], bank: AdapterBank | None, vocabulary: int) -> None:
    routed = [request.adapter is not None for request in requests]
    if any(routed) and (bank is None or not all(routed)):
        raise ValueError("requests to adapters need a bank, and cannot be mixed with requests to the base model")
    for request in requests:
        if not request.prompt:
            raise ValueError("a prompt is empty")
        check_ids(request.prompt, vocabulary, "a prompt")
        if request.draft:
            check_ids(request.draft, vocabulary, "a draft")
            if request.temperature > _GREEDY:
                raise ValueError(f"a draft goes with greedy decoding, not with temperature {request.temperature}")
        if request.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {request.max_new_tokens}")
        if not 0 <= request.temperature < math.inf or not 0 < request.top_p <= 1:
            raise ValueError(
                "temperature must be finite and not negative, and top_p above 0 and at most 1,"
                f" not {request.temperature} and {request.top_p}"
            )
        if bank is not None and request.adapter is not None and not 0 <= request.adapter < bank.size:
            raise ValueError(f"a request names adapter {request.adapter} of a bank of {bank.size}")


def _size(request: DecodeRequest) -> int:
    return len(request.prompt) + request.max_new_tokens


def _default_budget(backbone: Backbone, memory: int | None) -> int:
    device = backbone.head_VD.device
    if device.type == "cpu":
        return 16_384
    config = backbone.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = 2 * config.num_hidden_layers * heads * width * backbone.head_VD.dtype.itemsize
    # Beside keys and values: a prompt's hidden states, and logits where every row is a token.
    usable = free_memory(device) if memory is None else memory
    return max(1024, int(usable / 2 / (kept + 64 * config.hidden_size)))


@torch.no_grad()
def _decode_batch(
    backbone: Backbone,
    requests: list[DecodeRequest],
    bank: AdapterBank | None,
    on_tokens: Callable[[int], None] | None,
    on_token: Callable[[int, int], None] | None,
) -> list[Completion]:
    device = backbone.head_VD.device
    # Requests with the same adapter and prompt (several samples of one edit) share its prefill.
    unique: dict[tuple[int | None, tuple[int, ...], tuple[int, ...]], int] = {}
    source = [unique.setdefault((r.adapter, r.prompt, _draft(r)), len(unique)) for r in requests]
    adapters = [adapter for adapter, _, _ in unique]
    drafts = [draft for _, _, draft in unique]
    texts = [(*prompt, *draft) for _, prompt, draft in unique]
    lengths = [len(text) for text in texts]
    store = KeyValues(lengths, torch.tensor(lengths, device=device), max(map(_size, requests)))
    ends, kept = [], []
    for part in parts(lengths, PREFILL_TOKENS[device_kind(device)]):
        routing = routing_of(bank, adapters[part], lengths[part])
        borders = accumulate(lengths[part])
        # The last token of each prompt, and those of its draft.
        wanted = [range(end - len(draft) - 1, end) for end, draft in zip(borders, drafts[part], strict=True)]
        last = SimpleNamespace(rows=torch.tensor([*chain(*wanted)]))
        layout = Layout.of(texts[part], device, store=store, first=part.start, along=[routing, last])
        with routed(bank, routing):
            hidden_PD = backbone.packed(layout)[0][last.rows]
        for draft, hidden_TD in zip(drafts[part], hidden_PD.split([len(some) for some in wanted]), strict=True):
            kept.append(_agreed(backbone, hidden_TD, draft))
            ends.append(hidden_TD[kept[-1]])
    store.shorten([len(draft) - agreed for draft, agreed in zip(drafts, kept, strict=True)])
    hidden_BD = torch.stack([ends[place] for place in source])
    if len(unique) < len(requests):
        store.select(source)
    going_on: Routing | None = None  # where the next tokens go, until rows leave

    output = [list(drafts[place][: kept[place]]) for place in source]
    finished = [False] * len(requests)
    rows = list(range(len(requests)))  # the request of each row
    going = {k for k in rows if len(output[k]) < requests[k].max_new_tokens}
    if on_tokens is not None and any(output):
        on_tokens(sum(map(len, output)))
    if on_token is not None:
        for k in rows:
            for token in output[k]:
                on_token(k, token)
    while True:
        tokens = _next_tokens(backbone.logits(hidden_BD), [requests[k] for k in rows], [len(output[k]) for k in rows])
        computed = 0
        for k, token in zip(rows, tokens, strict=True):
            if k not in going:
                continue
            computed += 1
            if token in requests[k].stop_ids:
                finished[k] = True
                going.remove(k)
                continue
            output[k].append(token)
            if on_token is not None:
                on_token(k, token)
            if len(output[k]) == requests[k].max_new_tokens:
                going.remove(k)
        if on_tokens is not None:
            on_tokens(computed)
        if not going:
            return [Completion(tuple(ids), done) for ids, done in zip(output, finished, strict=True)]
        if len(going) <= _LEAVE * len(rows):
            # Finished rows leave the batch.
            keep = [place for place, k in enumerate(rows) if k in going]
            store.select(keep)
            rows, tokens, going_on = [rows[place] for place in keep], [tokens[place] for place in keep], None
        if going_on is None:
            going_on = routing_of(bank, [requests[k].adapter for k in rows], [1] * len(rows))
            move(device, going_on)
        with routed(bank, going_on):
            hidden_BD = backbone.packed(Layout.next_tokens(store, tokens))[0]
        store.advance()


def _draft(request: DecodeRequest) -> tuple[int, ...]:
    """As much of the draft as may be written."""
    written = takewhile(lambda token: token not in request.stop_ids, request.draft)
    return tuple(islice(written, request.max_new_tokens))


def _agreed(backbone: Backbone, hidden_TD: Tensor, draft: tuple[int, ...]) -> int:
    """How many of the draft's first tokens greedy decoding writes too; behind `hidden_TD` stand a prompt's last token
    and the draft."""
    for first in range(0, len(draft), _COMPARED):
        some = draft[first : first + _COMPARED]
        written = backbone.logits(hidden_TD[first : first + len(some)]).argmax(-1).tolist()
        if tuple(written) != some:
            return first + next(k for k, pair in enumerate(zip(written, some, strict=True)) if pair[0] != pair[1])
    return len(draft)


def parts(lengths: list[int], most: int) -> Iterator[slice]:
    """Neighbours that have at most `most` tokens together; a longer one goes alone."""
    first = tokens = 0
    for k, length in enumerate(lengths):
        if k > first and tokens + length > most:
            yield slice(first, k)
            first, tokens = k, 0
        tokens += length
    yield slice(first, len(lengths))


def routing_of(bank: AdapterBank | None, adapters: Sequence[int | None], lengths: Sequence[int]) -> Routing:
    """The routing of so many rows each to these adapters; an empty one where none is named."""
    chosen = [adapter for adapter in adapters if adapter is not None]
    if bank is None or not chosen:
        return Routing([], [], [])
    return Routing.of(chosen, lengths, size=bank.size, grouped=bank.grouped)


def routed(bank: AdapterBank | None, routing: Routing) -> AbstractContextManager[None]:
    """The bank's context of this routing; none where it is empty."""
    return nullcontext() if bank is None or not routing.adapters else bank.route(routing)


def _next_tokens(logits_BV: Tensor, requests: list[DecodeRequest], positions: list[int]) -> list[int]:
    tokens_B = logits_BV.argmax(-1)
    sampled = [row for row, request in enumerate(requests) if request.temperature > _GREEDY]
    if sampled and not _doubles_work(logits_BV.device):
        logits_BV, tokens_B = logits_BV.cpu(), tokens_B.cpu()
    # Sorting a vocabulary takes a CPU longer than all else.
    for nucleus, draw in ((True, _of_nuclei), (False, _of_all)):
        rows = [row for row in sampled if (requests[row].top_p < 1) is nucleus]
        if not rows:
            continue
        given = SimpleNamespace(
            rows=torch.tensor(rows),
            temperature=torch.tensor([requests[row].temperature for row in rows]),
            top_p=torch.tensor([requests[row].top_p for row in rows], dtype=torch.float64),
            uniform=torch.tensor([_uniform(requests[row].seed, positions[row]) for row in rows], dtype=torch.float64),
        )
        move(logits_BV.device, given)
        tokens_B[given.rows] = draw(logits_BV[given.rows] / given.temperature[:, None], given.top_p, given.uniform)
    return tokens_B.tolist()


def _of_all(scaled_BV: Tensor, _: Tensor, uniform_B: Tensor) -> Tensor:
    """The tokens [B] that these numbers in [0, 1) draw by these logits."""
    cumulative = scaled_BV.softmax(-1).double().cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniform_B[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    return drawn.clamp_(max=scaled_BV.shape[1] - 1)


def _of_nuclei(scaled_BV: Tensor, top_p_B: Tensor, uniform_B: Tensor) -> Tensor:
    """`_of_all`, each from the smallest set of the likeliest tokens that has at least this probability."""
    probabilities, order = torch.sort(scaled_BV.softmax(-1), dim=-1, descending=True, stable=True)
    cumulative = probabilities.double().cumsum(-1)
    # The nucleus: tokens before which less than top_p has been gathered; the first always.
    inside = (cumulative - probabilities.double()) < top_p_B[:, None]
    mass = (probabilities.double() * inside).sum(-1)
    drawn = torch.searchsorted(cumulative, (uniform_B * mass)[:, None], right=True).squeeze(1)
    # Of logits that are no numbers nothing is inside: any token, so that the other rows go on.
    drawn = torch.minimum(drawn, inside.sum(-1) - 1).clamp_(min=0)
    return order.gather(1, drawn[:, None]).squeeze(1)


def _doubles_work(device: torch.device) -> bool:
    """Whether a device computes in double precision; where not, the host samples."""

    def trial() -> tuple[paths.Way, paths.Way]:
        ones = torch.ones(3, device=device)
        return lambda: [ones.double().cumsum(0).float()], lambda: [ones.cumsum(0)]

    return paths.works("double precision", device, torch.float64, None, trial)


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the two."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
