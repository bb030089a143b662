"""The self-test passes here, and fails where the engine does something else than it promises."""

from __future__ import annotations

import pytest
import torch

from selfedit.engine import fitting, lora, selftest


def main(device):
    return selftest.main(["--device", str(device)])


def test_it_passes(device, capsys):
    assert main(device) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == ["exactness", "isolation", "sampling", "format"]
    assert lines[1].split() == [str(dtype).removeprefix("torch.") for dtype in selftest.usable_dtypes(device)]
    assert lines[-1].startswith("no failures")


def other_betas(monkeypatch):
    monkeypatch.setattr(fitting, "ADAM_BETAS", (0.8, 0.999))


def neighbours_gradient(monkeypatch):
    """The first adapter's gradient goes to all."""
    real = fitting.AdapterBank.gradient
    monkeypatch.setattr(fitting.AdapterBank, "gradient", lambda bank, adapter: real(bank, 0))


def likeliest_token(monkeypatch):
    monkeypatch.setattr("selfedit.engine.decoding._uniform", lambda seed, position: 0.0)


def lost_update(monkeypatch):
    monkeypatch.setattr(lora.LoraGroup, "set_parameters", None)


@pytest.mark.parametrize(
    ("broken", "failing"),
    [
        (other_betas, {"exactness"}),
        (neighbours_gradient, {"exactness", "isolation"}),
        (likeliest_token, {"sampling"}),
        (lost_update, {"exactness", "isolation", "format"}),
    ],
)
def test_it_fails_where_the_engine_is_wrong(monkeypatch, capsys, device, broken, failing):
    monkeypatch.setattr(selftest, "DTYPES", (torch.float32,))
    broken(monkeypatch)
    assert main(device) == 1
    out = capsys.readouterr().out
    assert {line.split()[0] for line in out.splitlines() if "FAILED" in line} == failing


@pytest.mark.parametrize("name", ["cuda", "gpu", "cuda:one"])
def test_a_device_that_is_not_there_is_named(capsys, name):
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert main(name) == 2
    assert capsys.readouterr().out.endswith(f"no device {name} here\n")
