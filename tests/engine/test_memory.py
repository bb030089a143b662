"""Memory of accelerators that these tests have not, by what torch would answer there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from selfedit.engine import memory
from selfedit.engine.memory import free_memory, move, out_of_memory, usable_memory


@pytest.mark.parametrize(("kind", "waits"), [("mps", True), ("xpu", False)])
def test_the_host_waits_for_a_copy_where_its_memory_would_be_freed_too_early(monkeypatch, kind, waits):
    seen = []

    def to(tensor, device, non_blocking=False):
        seen.append((device.type, not non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    thing = SimpleNamespace(numbers=torch.arange(3))
    move(torch.device(kind), thing)
    assert seen == [(kind, waits)]
    assert thing.numbers.tolist() == [0, 1, 2]


def test_free_memory_of_other_accelerators_is_their_own(monkeypatch):
    host = free_memory(torch.device("cpu"))
    for kind, told in (("xpu", True), ("mps", False)):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda kind=kind: torch.device(kind))
        for name, answer in (("get_memory_info", (5, 9)), ("memory_reserved", 3), ("memory_allocated", 1)):
            monkeypatch.setattr(torch.accelerator, name, lambda _, answer=answer: answer, raising=False)
        free = free_memory(torch.device(kind))
        assert free == 7 if told else free > 0.1 * host
    monkeypatch.delattr(torch.accelerator, "get_memory_info")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    assert free_memory(torch.device("xpu")) > 0.1 * host


def test_memory_that_ran_out_is_told_from_other_errors():
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB)"))
    assert not out_of_memory(RuntimeError("the batch has 3 rows"))


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"),
    [
        ("900", "300", "50", 650),
        ("900", "300", None, 600),
        ("9000", "300", "50", 1000),
        ("900", "950", "10", 0),
        ("max", "300", "50", 1000),
        (None, "300", "50", 1000),
        ("900", None, "50", 1000),
    ],
)
def test_a_cpu_s_free_memory_is_within_the_process_s_group(monkeypatch, tmp_path, limit, used, cached, free):
    monkeypatch.setattr(memory, "_available", lambda: 1000)
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    for name, text in (
        ("memory.max", limit),
        ("memory.current", used),
        ("memory.stat", cached and f"file 70\ninactive_file {cached}\nactive_file 20"),
    ):
        if text is not None:
            (tmp_path / name).write_text(f"{text}\n")
    assert free_memory(torch.device("cpu")) == free


def test_a_process_plans_with_half_of_a_cpu_s_memory_and_nine_tenths_of_an_accelerator_s(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    assert [usable_memory(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [500, 900, 900]
