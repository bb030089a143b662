"""The accelerator's paths without an accelerator: everything runs on torch's "meta" device, which has shapes and dtypes
and no numbers.  What would fail on a GPU for want of a `.to(device)` or of a dtype fails here.

(Fake tensors that say "cuda" would be closer, but a CPU build of torch cannot index them: it has no guard for that
device.)"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from reference import taught
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfedit.engine import (
    AdapterBank,
    DecodeRequest,
    FitJob,
    FitSettings,
    LoraSpec,
    TokenSequence,
    attention,
    decode,
    fit,
    fit_all,
    load_adapter,
    losses,
    merge_adapter,
    plan,
    soft_targets,
)
from selfedit.engine.selftest import five_jobs, random_job

aten = torch.ops.aten
# Operations that may read from one device and write to another.
ACROSS = {aten.copy_.default, aten._to_copy.default}
# What starts no work on a device beside views: memory alone.
FREE = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default}


class Strict(TorchDispatchMode):
    """Refuses operations on tensors of two devices, and grouped products that a GPU would refuse; answers with ones
    where the host reads from the device; counts.

    `launches` are the operations that start work on the device, by name; `waits`, how often the host reads from it;
    `moves`, how often tensors of the host are copied there without a wait, and `copies`, with one."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits = self.moves = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_device = [x for x in tensors if x.is_meta]
        there = torch.device(kwargs["device"]).type if kwargs.get("device") else "meta" if on_device else "cpu"
        if not on_device and there == "cpu":
            return func(*args, **kwargs)
        if func not in ACROSS:
            strays = [x for x in tensors if not x.is_meta and x.dim() > 0]
            assert not strays, f"{func} got a tensor {list(strays[0].shape)} of the host"
        if func is aten._local_scalar_dense.default:
            self.waits += 1
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten._to_copy.default and there == "cpu":
            self.waits += 1
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.copy_.default and not args[0].is_meta:
            self.waits += 1
            return args[0].fill_(1)
        if func is aten.nonzero.default:
            self.waits += 1
            return torch.empty(0, args[0].dim(), dtype=torch.long, device="meta")
        if func in ACROSS and not all(x.is_meta for x in tensors):
            if kwargs.get("non_blocking"):
                self.moves += 1
            else:
                self.copies += 1
        elif not func.is_view and func not in FREE:
            self.launches[func.name().removeprefix("aten::").partition(".")[0]] += 1
        if func is aten._fused_adamw_.default:
            assert all(x.dtype == torch.float32 for x in tensors)
            return None
        if func is aten._grouped_mm.default:
            # torch's own function for this device refuses what the kernel refuses; this is so in older versions too.
            assert all(stride % 8 == 0 for x in args[:2] for stride in sorted(x.stride())[1 - x.dim() :])
        return func(*args, **kwargs)


@pytest.fixture
def on_meta(tiny_model, device, monkeypatch):
    """`on_meta(kind, dtype)`: a tiny model on the meta device, of two layers since an operation takes a millisecond."""
    if device.type != "cpu":
        pytest.skip("a real device is at hand")
    # No generator is for the meta device, and it draws nothing.
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    return lambda kind, dtype, layers=2: tiny_model(kind, dtype=dtype, num_hidden_layers=layers).to("meta")


# Launches of a decoder layer, forwards and backwards: docs/performance.md.
LAYER = 108
JOBS = [taught(random_job(k, sequences=3, epochs=1, batch_size=2)) for k in range(3)]
SPECS = {
    "plain": LoraSpec(rank=8, alpha=16),
    "dropout": LoraSpec(rank=8, alpha=16, dropout=0.1),
    "rslora": LoraSpec(rank=16, rslora=True, targets=("q_proj", "down_proj")),
}


@pytest.mark.parametrize(
    ("kind", "dtype", "spec"),
    [
        ("llama", "bfloat16", "plain"),
        ("llama", "float16", "dropout"),
        ("qwen2", "bfloat16", "dropout"),
        ("qwen2", "float16", "rslora"),
        ("qwen3", "bfloat16", "rslora"),
        ("qwen3", "float16", "plain"),
        ("gemma3", "bfloat16", "plain"),
        ("gemma3", "float16", "dropout"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*going on without grouped products:UserWarning")
def test_everything_stays_on_the_device_and_in_its_dtype(on_meta, kind, dtype, spec, tmp_path):
    # A second layer is another only in gemma3; with llama it shows what two of one kind do.
    model, spec = on_meta(kind, dtype, 1 if kind.startswith("qwen") else 2), SPECS[spec]
    grouped = dtype == "bfloat16"
    with Strict() as strict:
        soft_targets(model, [((5, 6), (7, 8, 9)), ((5,), (6,))], top=4)
        chosen = plan(model, spec, JOBS, memory=10**9, calibrate=False)
        fit_all(model, spec, JOBS, plan=chosen, on_wave=lambda bank, wave: None)
        with AdapterBank(model, spec, 4) as bank:
            assert bank.grouped == grouped
            strict.reset()
            requests = [
                DecodeRequest(tuple(range(5, 9 + k)), 4, adapter=k, temperature=0.5 * k, top_p=0.9) for k in range(3)
            ]

            def between(under_way):
                """Two steps, as when a fit is examined on the way."""
                decode(model, requests[:1], bank=under_way.bank, token_budget=1000)

            for checkpointing, on_step in ((False, None), (True, between)):
                fit(bank, JOBS, token_budget=60, checkpointing=checkpointing, on_step=on_step)
            assert bank.parameters_NF.is_meta
            losses(model, [(place, s) for place in (2, 0, None) for s in JOBS[0].sequences], bank=bank)
            answers = decode(model, requests, bank=bank, token_budget=1000)
            bank.save_pretrained(0, tmp_path)
            _, state = load_adapter(tmp_path, model)
            bank.load_state(1, state)
        merge_adapter(model, tmp_path)
        with AdapterBank(model, spec, 1) as bank:  # the next round's policy
            fit(bank, JOBS[:1])
        decode(model, [DecodeRequest((5, 6), 3)], token_budget=1000)
    assert [len(answer.ids) for answer in answers] == [4, 4, 4]
    assert ("_grouped_mm" in strict.launches) == grouped


@pytest.fixture
def counted(on_meta, monkeypatch):
    """`counted(model, spec, jobs)`: what the second step of these fits does on an accelerator.

    torch's attention and norms, which are kernels of their own there, are put down as those: attention one operation
    forwards and three backwards, a norm one and one."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            ctx.given = q, k, v
            return q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3])

        @staticmethod
        def backward(ctx, _):
            return tuple(torch.zeros_like(x) for x in ctx.given)

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.zeros_like(x)

        @staticmethod
        def backward(ctx, slope):
            return torch.zeros_like(slope)

    monkeypatch.setattr(attention, "_packed", lambda q, k, v, *_: Attention.apply(q, k, v))
    monkeypatch.setattr(torch.nn.functional, "rms_norm", lambda x, *_: Norm.apply(x))

    def count(model, spec, jobs, size=None):
        class Enough(Exception):
            pass

        def after_a_step(_):
            nonlocal steps
            steps += 1
            if steps == 2:
                raise Enough
            strict.reset()

        def tensor(*given, device=None, **named):
            strict.copies += device is not None  # which a mode does not see
            return made(*given, device=device, **named)

        steps, made = 0, torch.tensor
        monkeypatch.setattr(torch, "tensor", tensor)
        with Strict() as strict, AdapterBank(model, spec, size or len(jobs)) as bank, pytest.raises(Enough):
            fit(bank, jobs, token_budget=16384, on_tokens=after_a_step)
        monkeypatch.setattr(torch, "tensor", made)
        return strict

    return count


def fits(count, **settings):
    """Fits of one sequence length, and so of one schedule."""
    job = random_job(0, sequences=4, shortest=16, longest=16, **settings)
    return [FitJob(job.sequences, job.settings, seed) for seed in range(count)]


def test_a_step_waits_once_and_takes_one_copy(on_meta, counted):
    model = on_meta("llama", "bfloat16")
    for jobs in (fits(2), fits(6), five_jobs()):
        found = counted(model, LoraSpec(rank=8), jobs)
        assert (found.waits, found.moves, found.copies) == (1, 1, 0)
    # A teacher's probabilities may be too small for float32, and the host asks whether some are.
    found = counted(model, LoraSpec(rank=8), [taught(job, every=1) for job in fits(1)])
    assert (found.waits, found.moves, found.copies) == (2, 1, 0)


def test_what_a_step_launches_grows_with_layers_and_learning_rates_alone(on_meta, counted, tiny_model):
    spec = LoraSpec(rank=8)

    def launches(count, layers=2, size=None):
        model = tiny_model("llama", dtype="bfloat16", num_hidden_layers=layers).to("meta")
        return sum(counted(model, spec, fits(count), size).launches.values())

    assert launches(6) == launches(2)
    # docs/performance.md
    assert launches(2, layers=3) - launches(2) == LAYER
    # Where some of the bank's adapters have no rows: parameters are gathered, gradients scattered.
    assert launches(2, layers=3, size=3) - launches(2, size=3) == LAYER + 33
    model = on_meta("llama", "bfloat16")
    rates = [FitJob(job.sequences, FitSettings(learning_rate=10.0**-k), k) for k, job in enumerate(fits(6), 2)]
    apart = sum(counted(model, spec, rates).launches.values()) - launches(6)
    assert apart == 2 * 5  # a step's count and AdamW


@pytest.mark.parametrize("lora", ["seal", "all-linear"])
def test_arithmetic_and_not_launches_bounds_a_step_of_the_published_shape(on_meta, counted, lora):
    """96 adapters on Qwen2.5-3B, at 5 microseconds per launch, on a GPU of 990 TFLOP/s."""
    from benchmarks.engine import EDITS, LORA, SHAPES

    lengths = [EDITS[k % len(EDITS)] for k in range(96)]
    jobs = [
        FitJob(tuple(TokenSequence((5,) * n) for n in each), FitSettings(epochs=1), seed)
        for seed, each in enumerate(lengths)
    ]
    tokens = sum(len(job.sequences[job.order()[1][0]].ids) for job in jobs)
    counts, weights = {}, {}
    for layers in (1, 2):
        settings = {"max_position_embeddings": 4096, **SHAPES["qwen2.5-3b"], "num_hidden_layers": layers}
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(**settings), dtype=torch.bfloat16
            )
        model.eval().requires_grad_(False)
        weights[layers] = sum(p.numel() for p in model.parameters() if p.dim() == 2)
        counts[layers] = sum(counted(model, LORA[lora], jobs).launches.values())
    layer, whole = counts[2] - counts[1], counts[1] + 35 * (counts[2] - counts[1])
    arithmetic = 4 * tokens * (weights[1] + 35 * (weights[2] - weights[1])) / 990e12
    print(f"{lora}: {tokens} tokens, {layer} launches per layer, {whole} in all: {whole * 5e-3:.1f} ms;", end=" ")
    print(f"arithmetic {arithmetic * 1e3:.1f} ms; share of peak {arithmetic / (arithmetic + whole * 5e-6):.0%} in turn")
    assert whole * 5e-6 < arithmetic
