"""The engine's promises, tried on the user's own device: `python -m selfedit.engine.selftest [--device D]`.

For each dtype that the device multiplies: fits of a bank against plain autograd with torch's AdamW, one adapter at a
time; isolation; sampling; the format.  Prints a table; the exit code is 1 where something failed.  The models are tiny
and random, made in place.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from selfedit.engine import (
    AdapterBank,
    DecodeRequest,
    FitJob,
    FitSettings,
    LoraSpec,
    TokenSequence,
    decode,
    fit,
    load_adapter,
    losses,
    merge_adapter,
)
from selfedit.engine.peft_format import files

State = Mapping[str, tuple[Tensor, Tensor]]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# How far parameters may be apart, in norm: all of them, and those of B alone, which are nothing but what was learned.
# AdamW makes a whole step out of a gradient that is itself rounding noise, so the second is wider; half of the digits
# are missing in bfloat16, where the direction of learning is compared: 0.15 on a processor without bfloat16 arithmetic,
# while adapters that have nothing to do with each other are 1.4 apart.
TOLERANCE = {"float32": (1e-5, 1e-3), "bfloat16": (5e-3, 0.3), "float16": (5e-3, 0.15)}
SPEC = LoraSpec(rank=8, alpha=16)


def random_job(
    seed: int, *, sequences: int, shortest: int = 4, longest: int = 24, vocabulary: int = 160, **settings: Any
) -> FitJob:
    """A job on random tokens; about a third of the sequences begin with a prompt that is not learned."""
    generator = random.Random(seed)
    made = []
    for _ in range(sequences):
        length = generator.randint(shortest, longest)
        ids = tuple(generator.randrange(3, vocabulary) for _ in range(length))
        made.append(TokenSequence(ids, prompt_length=generator.choice([0, 0, length // 2])))
    return FitJob(tuple(made), FitSettings(**settings), seed)


def five_jobs() -> list[FitJob]:
    return [
        random_job(11, sequences=2, learning_rate=3e-4, epochs=3),
        random_job(12, sequences=5, learning_rate=2e-4, epochs=1, batch_size=2, schedule="cosine", warmup_steps=1),
        random_job(13, sequences=3, learning_rate=3e-4, epochs=2, batch_size=3, weight_decay=0.1),
        random_job(14, sequences=1, longest=60, learning_rate=3e-4, epochs=5, max_grad_norm=None, shuffle=False),
        random_job(15, sequences=7, learning_rate=3e-4, epochs=2, batch_size=2, schedule="constant", max_grad_norm=0.1),
    ]


def first_weights(model: Any, spec: LoraSpec, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The weights that a bank gives an adapter of this seed before training."""
    with AdapterBank(model, spec, 1) as bank:
        bank.reset(0, seed)
        return copied(bank.state(0))


def copied(state: State) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (a.clone(), b.clone()) for name, (a, b) in state.items()}


def train_plainly(
    wrapped: Any, parameters: Sequence[Tensor], job: FitJob, losses_of: Callable[[Any, TokenSequence], Tensor]
) -> None:
    """Trains the parameters of one adapter: the job's data order, transformers' schedule, torch's clipping and AdamW,
    one sequence at a time."""
    settings = job.settings
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=settings.weight_decay
    )
    schedule = transformers.get_scheduler(
        settings.schedule, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=job.steps
    )
    for numbers in job.order():
        optimizer.zero_grad()
        batch = [job.sequences[k] for k in numbers]
        labelled = sum(s.labelled for s in batch)
        for sequence in batch:
            (losses_of(wrapped, sequence).sum() * sequence.weight / labelled).backward()
        if settings.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        schedule.step()


def next_token_losses(wrapped: Any, sequence: TokenSequence) -> Tensor:
    """The losses of a sequence's labelled tokens by plain autograd."""
    ids = torch.tensor([sequence.ids], device=wrapped.device)
    logits = wrapped(input_ids=ids, use_cache=False).logits[0].float()
    return nn.functional.cross_entropy(logits[sequence.first - 1 : -1], ids[0, sequence.first :], reduction="none")


def difference(own: State, other: State) -> tuple[float, float]:
    """How far an adapter is from another in norm: relative to all its parameters, and, for the B matrices, which start
    at zero and are therefore all learned, relative to those.

    One entry in 5,000 is left out: AdamW divides a gradient by its own size, so that an entry whose gradient is nothing
    but rounding moves by a good part of a step, in PEFT's own run on another machine as here."""
    assert own.keys() == other.keys()

    def relative(which: tuple[int, ...]) -> float:
        x, y = (
            torch.cat([state[name][k].detach().float().flatten() for name in own for k in which])
            for state in (own, other)
        )
        apart = (x - y).abs().sort().values
        return (apart[: len(apart) - len(apart) // 5000].norm() / y.norm()).item()

    return relative((0, 1)), relative((1,))


@torch.no_grad()
def greedy_alone(wrapped: Any, prompt: tuple[int, ...], new_tokens: int) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(new_tokens):
        logits = wrapped(input_ids=torch.tensor([ids], device=wrapped.device), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    return tuple(ids[len(prompt) :])


class _PlainLora(nn.Module):
    """One adapter on one layer, as the paper has it."""

    def __init__(self, base: nn.Module, a_RI: Tensor, b_OR: Tensor, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.a_RI, self.b_OR = nn.Parameter(a_RI), nn.Parameter(b_OR)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return (y + self.scaling * (x.float() @ self.a_RI.t() @ self.b_OR.t())).to(y.dtype)


def trained_plainly(model: Any, spec: LoraSpec, job: FitJob) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
    """A copy of the model with one adapter, trained by plain autograd, and the adapter."""
    wrapped, layers = copy.deepcopy(model), {}
    for name, (a, b) in first_weights(model, spec, job.seed).items():
        layers[name] = _PlainLora(wrapped.get_submodule(name), a, b, spec.scaling)
        wrapped.set_submodule(name, layers[name])
    parameters = [p for layer in layers.values() for p in (layer.a_RI, layer.b_OR)]
    train_plainly(wrapped, parameters, job, next_token_losses)
    return wrapped, {name: (layer.a_RI.data, layer.b_OR.data) for name, layer in layers.items()}


def tiny_model(kind: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A frozen model with random weights: `qwen2` has grouped queries and biases, `gemma3_text` a sliding window."""
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=160,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        sliding_window=8,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        query_pre_attn_scalar=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def exactness(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Five fits in one bank, and each alone by plain autograd."""
    name, worst, answers = _short(dtype), (0.0, 0.0), True
    for kind in ("qwen2", "gemma3_text"):
        model, jobs = tiny_model(kind, device, dtype), five_jobs()
        alone = [trained_plainly(model, SPEC, job) for job in jobs]
        with AdapterBank(model, SPEC, len(jobs)) as bank:
            failed = [result.error for result in fit(bank, jobs, token_budget=64) if result.error]
            if failed:
                return False, failed[0]
            apart = [difference(bank.state(k), state) for k, (_, state) in enumerate(alone)]
            requests = [DecodeRequest((3, 4 + k, 20, 21 + k), 8, adapter=k) for k in range(len(jobs))]
            own = decode(model, requests, bank=bank)
        worst = max(worst[0], *(a for a, _ in apart)), max(worst[1], *(b for _, b in apart))
        # Greedy tokens may differ where two are as good as equal in a narrow dtype.
        answers &= dtype != torch.float32 or all(
            a.ids == greedy_alone(wrapped, r.prompt, 8) for a, r, (wrapped, _) in zip(own, requests, alone, strict=True)
        )
    passed = answers and all(a < b for a, b in zip(worst, TOLERANCE[name], strict=True))
    return passed, f"{worst[0]:.0e}" + ("" if answers else ", other answers")


def isolation(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """One fit alone, and among others at another place of a larger bank, in smaller passes."""
    model, states = tiny_model("qwen2", device, dtype), []
    for place, size, budget in ((0, 1, 2048), (2, 6, 48)):
        jobs = [random_job(k, sequences=k + 1, learning_rate=1e-3) for k in range(place)]
        jobs.append(random_job(5, sequences=4, learning_rate=5e-4, epochs=2, batch_size=3))
        with AdapterBank(model, SPEC, size) as bank:
            fit(bank, jobs, token_budget=budget)
            states.append(copied(bank.state(place)))
    apart, _ = difference(*states)
    return apart < TOLERANCE[_short(dtype)][0], f"{apart:.0e}"


def sampling(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Sampled tokens are as frequent as the model says, within five standard errors, and are drawn again equal."""
    model, prompt, count = tiny_model("qwen2", device, dtype), (5, 6, 7), 4000
    requests = [DecodeRequest(prompt, 1, temperature=0.7, seed=seed) for seed in range(count)]
    drawn, again = decode(model, requests), decode(model, requests)
    found = Counter(completion.ids[0] for completion in drawn)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt], device=device)).logits[0, -1].float().cpu()
    expected = (logits / 0.7).softmax(-1).double()
    observed = torch.tensor([found[token] for token in range(len(expected))]) / count
    errors = ((observed - expected).abs() / (expected * (1 - expected) / count + 1 / count**2).sqrt()).max().item()
    passed = drawn == again and errors < 5
    return passed, f"{errors:.1f} s.e." + ("" if drawn == again else ", not repeatable")


def form(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """An adapter that is saved and loaded is the same, and the model merged with it has the adapter's losses."""
    model, job = tiny_model("qwen2", device, dtype), random_job(3, sequences=4, learning_rate=1e-3, epochs=2)
    with AdapterBank(model, SPEC, 2) as bank:
        fit(bank, [job])
        saved = files(SPEC, bank.state(0), base_model="tiny")
        bank.load_state(1, load_adapter(saved, model)[1])
        same = torch.equal(bank.parameters_NF[0], bank.parameters_NF[1])
        own = losses(model, [(1, sequence) for sequence in job.sequences], bank=bank)
    merge_adapter(model, saved)
    theirs = losses(model, [(None, sequence) for sequence in job.sequences])
    apart = max(abs(a - b) for a, b in zip(own, theirs, strict=True))
    return same and apart < (1e-4 if dtype == torch.float32 else 0.05), f"{apart:.0e}" if same else "not the same"


def use_every_path(device: torch.device, dtype: torch.dtype) -> None:
    """One small fit and one sampled token, so that `paths.chosen` has what this device uses."""
    model = tiny_model("qwen2", device, dtype)
    # On a CPU, only a long sequence comes to torch's attention.
    job = random_job(0, sequences=1, shortest=520, longest=520, epochs=1)
    with AdapterBank(model, SPEC, 1) as bank:
        fit(bank, [job])
        decode(model, [DecodeRequest((5, 6), 1, adapter=0, temperature=0.5)], bank=bank)


CHECKS = {"exactness": exactness, "isolation": isolation, "sampling": sampling, "format": form}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def usable_dtypes(device: torch.device | str) -> list[torch.dtype]:
    """Those in which the device multiplies matrices; none where torch knows no such device."""
    usable = []
    for dtype in DTYPES:
        try:
            ones = torch.ones(16, 16, device=device, dtype=dtype)
            if float((ones @ ones).sum()) == 16**3:
                usable.append(dtype)
        except (RuntimeError, AssertionError):  # what torch raises without such a device, or without CUDA at all
            continue
    return usable


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m selfedit.engine.selftest", description=__doc__)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    parser.add_argument(
        "--device", default=str(found or "cpu"), help="cpu, cuda, cuda:1, mps, ... (default %(default)s)"
    )
    asked = parser.parse_args(argv).device
    dtypes = usable_dtypes(asked)
    if not dtypes:
        print(f"selfedit.engine.selftest: torch {torch.__version__} has no device {asked} here")
        return 2
    device = torch.device(asked)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(
        f"selfedit engine self-test on {device} ({name}), torch {torch.__version__},"
        f" transformers {transformers.__version__}"
    )
    print(f"{'':12}" + "".join(f"{_short(dtype):>20}" for dtype in dtypes))
    began, failures = time.perf_counter(), 0
    for check, run in CHECKS.items():
        cells = []
        for dtype in dtypes:
            try:
                passed, measured = run(device, dtype)
            except Exception as error:  # a check that cannot run has failed; the others still say something
                passed, measured = False, type(error).__name__
                traceback.print_exc()
            failures += not passed
            cells.append(f"{'ok' if passed else 'FAILED'} ({measured})")
        print(f"{check:12}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    print(f"{failures or 'no'} failures, {time.perf_counter() - began:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
