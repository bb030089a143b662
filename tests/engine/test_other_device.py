"""The accelerator's paths without an accelerator: everything runs on torch's "meta" device, which has shapes and dtypes
and no numbers.  What would fail on a GPU for want of a `.to(device)` or of a dtype fails here."""

from __future__ import annotations

import pytest
import torch
from reference import taught
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfedit.engine import (
    AdapterBank,
    DecodeRequest,
    LoraSpec,
    decode,
    fit,
    fit_all,
    load_adapter,
    losses,
    plan,
    soft_targets,
)
from selfedit.engine.selftest import random_job

aten = torch.ops.aten
# Operations that may read from one device and write to another, or index with what lies on the host.
ACROSS = {aten.copy_.default, aten._to_copy.default}


class Strict(TorchDispatchMode):
    """Refuses operations on tensors of two devices, and grouped products that a GPU would refuse; answers with ones
    where the host reads from the device."""

    def __init__(self):
        super().__init__()
        self.grouped = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_device = [x for x in tensors if x.is_meta]
        if not on_device:
            return func(*args, **kwargs)
        if func not in ACROSS:
            strays = [x for x in tensors if not x.is_meta and x.dim() > 0]
            assert not strays, f"{func} got a tensor {list(strays[0].shape)} of the host"
        if func is aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten._to_copy.default and torch.device(kwargs.get("device") or "meta").type == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.copy_.default and not args[0].is_meta:
            return args[0].fill_(1)
        if func is aten.nonzero.default:
            return torch.empty(0, args[0].dim(), dtype=torch.long, device="meta")
        if func is aten._fused_adamw_.default:
            assert all(x.dtype == torch.float32 for x in tensors)
            return None
        if func is aten._grouped_mm.default:
            self.grouped += 1
            for x in args[:2]:
                assert x.dtype == torch.bfloat16, f"a grouped product got {x.dtype}"
                wide = sorted(x.stride())[-x.dim() + 1 :]  # every stride but the one that is 1
                assert 1 in x.stride()[-2:], f"a grouped product got strides {x.stride()}"
                assert all(stride % 8 == 0 for stride in wide), f"a grouped product got strides {x.stride()}"
        return func(*args, **kwargs)


@pytest.fixture
def on_meta(tiny_model, device, monkeypatch):
    """`on_meta(kind, dtype)`: a tiny model on the meta device."""
    if device.type != "cpu":
        pytest.skip("a real device is at hand")
    # No generator is for the meta device, and it draws nothing.
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    return lambda kind, dtype: tiny_model(kind, dtype=dtype).to("meta")


JOBS = [taught(random_job(k, sequences=3, epochs=2, batch_size=2)) for k in range(3)]
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
        ("qwen3", "bfloat16", "rslora"),
        ("gemma3", "bfloat16", "plain"),
        ("gemma3", "float16", "rslora"),
    ],
)
def test_everything_stays_on_the_device_and_in_its_dtype(on_meta, kind, dtype, spec, tmp_path):
    model, spec = on_meta(kind, dtype), SPECS[spec]
    grouped = dtype == "bfloat16"
    with Strict() as strict:
        soft_targets(model, [((5, 6), (7, 8, 9)), ((5,), (6,))], top=4)
        chosen = plan(model, spec, JOBS, memory=10**9, calibrate=False)
        fit_all(model, spec, JOBS, plan=chosen, on_wave=lambda bank, wave: None)
        with AdapterBank(model, spec, 4) as bank:
            bank.grouped = grouped
            for checkpointing in (False, True):
                fit(bank, JOBS, token_budget=60, checkpointing=checkpointing)
            assert bank.parameters_NF.is_meta
            requests = [
                DecodeRequest(tuple(range(5, 9 + k)), 4, adapter=k, temperature=0.5 * k, top_p=0.9) for k in range(3)
            ]
            losses(model, [(place, s) for place in (2, 0, None) for s in JOBS[0].sequences], bank=bank)
            answers = decode(model, requests, bank=bank, token_budget=1000)
            bank.save_pretrained(0, tmp_path)
            _, state = load_adapter(tmp_path, model)
            bank.load_state(1, state)
        decode(model, [DecodeRequest((5, 6), 3)], token_budget=1000)
    assert [len(answer.ids) for answer in answers] == [4, 4, 4]
    assert (strict.grouped > 0) == grouped
