"""Private names of torch and transformers that src/ still uses: each in one file, and each does what we count on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

SRC = Path(__file__).parents[2] / "src" / "selfedit"


def softmax_backward():
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    share = torch.softmax(scores, -1)
    slope = torch.arange(15.0).view(3, 5)
    (expected,) = torch.autograd.grad(share, scores, slope)
    return torch.allclose(torch._softmax_backward_data(slope, share.detach(), -1, share.dtype), expected, atol=1e-6)


def foreach_copy():
    narrow = [torch.zeros(3, dtype=torch.bfloat16) for _ in range(2)]
    torch._foreach_copy_(narrow, [torch.ones(3), torch.full((3,), 2.0)])
    return [x.tolist() for x in narrow] == [[1.0] * 3, [2.0] * 3]


def foreach_division_and_norm():
    numbers = [torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])]
    torch._foreach_div_(numbers, [1.0, 2.0])
    return [x.item() for x in torch._foreach_norm(numbers)] == [5.0, 5.0]


def attention_implementation():
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    return model.config._attn_implementation == "eager"


# Name -> (its file in src/selfedit, the library, whether it does what the file counts on)
PRIVATE = {
    "torch._softmax_backward_data": ("engine/attention.py", torch, softmax_backward),
    "torch._foreach_copy_": ("engine/bank.py", torch, foreach_copy),
    "torch._foreach_div_": ("engine/fitting.py", torch, foreach_division_and_norm),
    "torch._foreach_norm": ("engine/fitting.py", torch, foreach_division_and_norm),
    "config._attn_implementation": ("engine/attention.py", transformers, attention_implementation),
    "torch.cpu._is_amx_tile_supported": (
        "models/loading.py",
        torch,
        lambda: isinstance(torch.cpu._is_amx_tile_supported(), bool),
    ),
    "torch.cpu._is_avx512_bf16_supported": (
        "models/loading.py",
        torch,
        lambda: isinstance(torch.cpu._is_avx512_bf16_supported(), bool),
    ),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_does_what_it_did(name):
    file, library, works = PRIVATE[name]
    try:
        broken = "" if works() else "gives something else"
    except (AttributeError, TypeError) as error:
        broken = str(error)
    assert not broken, f"{library.__name__} {library.__version__} broke {name} ({broken}); src/selfedit/{file} uses it"


def test_no_other_private_name_is_used_and_each_in_one_file():
    private = re.compile(r"\b(?:torch(?:\.\w+)*|transformers(?:\.\w+)*|config)\._[a-z]\w*")
    found = {
        (name, file.relative_to(SRC).as_posix())
        for file in SRC.rglob("*.py")
        for name in private.findall(file.read_text(encoding="utf-8"))
    }
    assert found == {(name, file) for name, (file, _, _) in PRIVATE.items()}
