"""What decoders compute between their matrix products, as one autograd function each: RMS norms, gated activations,
rotations.

A form is used only where it gives what the model's own code gives on random numbers; anything else runs as it is.
Written out, a norm's backward pass is a dozen passes over memory; here it is five.

Sources: root mean square layer normalisation (Zhang and Sennrich 2019, arXiv 1910.07467); gated linear units (Shazeer
2020, arXiv 2002.05202); rotary position embedding (Su et al. 2021, arXiv 2104.09864).

Axes: P rows, D width, F width inside the MLP.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from selfedit.engine.paths import close

_aten = torch.ops.aten


Form = Callable[..., Tensor]
_ROTATE = "apply_rotary_pos_emb"


@torch.no_grad()
def known_forms(decoder: nn.Module) -> dict[nn.Module, Form]:
    """The decoder's norms and gated MLPs whose form is known, each with its own; one module of each kind is tried."""
    tried: dict[Any, Form | None] = {}
    forms: dict[nn.Module, Form] = {}
    for module in decoder.modules():
        weight = getattr(module, "weight", None)
        dims = weight.dim() if isinstance(weight, Tensor) else None  # some norms have no weight
        kind = (type(module), str(getattr(module, "act_fn", "")), dims)
        if kind not in tried:
            tried[kind] = _norm(module) or _mlp(module)
        if (form := tried[kind]) is not None:
            forms[module] = form
    return forms


@torch.no_grad()
def rotating_files(decoder: nn.Module) -> list[ModuleType]:
    """The Python modules, of those that the decoder's layers are defined in, whose function `apply_rotary_pos_emb` has
    the usual form.  It is no part of any layer, so it can only be exchanged where it is defined."""
    files = {type(module).__module__ for module in decoder.modules()}
    found = []
    for file in (sys.modules[name] for name in sorted(files) if name in sys.modules):
        rotate = getattr(file, _ROTATE, None)
        if rotate is not None and _rotates_as_usual(rotate):
            found.append(file)
    return found


def fused(forms: dict[nn.Module, Form], files: Sequence[ModuleType] = ()) -> AbstractContextManager[None]:
    """Within this context, these modules run in these forms, and these files' rotations too, whoever calls them: they
    give the same numbers."""
    forwards = [(module, "forward", partial(form, module)) for module, form in forms.items()]
    return exchanged([*forwards, *((file, _ROTATE, partial(_rotate, getattr(file, _ROTATE))) for file in files)])


@contextmanager
def exchanged(attributes: Sequence[tuple[object, str, Callable[..., Any]]]) -> Iterator[None]:
    """Within this context, (object, name) is this function; such contexts may lie in each other, as where answers are
    asked for between two steps."""
    before = [vars(owner).get(name) for owner, name, _ in attributes]
    for owner, name, function in attributes:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for (owner, name, _), own in zip(attributes, before, strict=True):
            if own is None:  # its class has it
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def _norm(module: nn.Module) -> Form | None:
    """A forward function for norms of this module's kind, or None."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or weight is None or weight.dim() != 1 or epsilon is None:
        return None
    # torch's own is one operation on an accelerator, and many on a CPU.
    library = [] if weight.device.type == "cpu" else [_library_norm]
    return _agreeing(module, (*library, _plain_norm, _shifted_norm), weight)


def _library_norm(module: Any, x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, x.shape[-1:], module.weight, _epsilon(module))


def _plain_norm(module: Any, x: Tensor) -> Tensor:
    return _RmsNorm.apply(x, module.weight, _epsilon(module), False)


def _shifted_norm(module: Any, x: Tensor) -> Tensor:
    """As Gemma does: the gain is 1 + weight, and all is float32 until the end."""
    return _RmsNorm.apply(x, 1.0 + module.weight.float(), _epsilon(module), True)


def _epsilon(module: Any) -> float:
    return float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)


def _mlp(module: Any) -> Form | None:
    """A forward function for gated MLPs of this module's kind, or None."""
    if not all(
        isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")
    ):
        return None
    return _agreeing(module, (partial(_gated_mlp, "silu"), partial(_gated_mlp, "gelu")), module.gate_proj.weight)


def _gated_mlp(kind: str, module: Any, x: Tensor) -> Tensor:
    return module.down_proj(_Gated.apply(module.gate_proj(x), module.up_proj(x), kind))


def _agreeing(module: nn.Module, forms: Sequence[Form], weight: Tensor) -> Form | None:
    """The first of the forms that gives what the module gives on random rows, of the last axis of this weight."""
    generator = torch.Generator().manual_seed(0)
    x_PD = torch.randn(7, weight.shape[-1], generator=generator).to(device=weight.device, dtype=weight.dtype)
    return next((form for form in forms if close(form(module, x_PD), module(x_PD))), None)


def _rotates_as_usual(rotate: Callable[..., Any]) -> bool:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 5, 8, generator=generator) for heads in (4, 2))
    cos, sin = (torch.randn(1, 5, 8, generator=generator) for _ in range(2))
    try:
        theirs = rotate(q, k, cos, sin)
    except (TypeError, RuntimeError, ValueError):
        return False  # takes other arguments
    return all(close(own, their) for own, their in zip(_rotate(rotate, q, k, cos, sin), theirs, strict=False))


def _rotate(
    theirs: Callable[..., tuple[Tensor, Tensor]], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """As transformers' `apply_rotary_pos_emb`, by which rotations of a part of the width, or in another dtype than the
    heads', are computed: in these, models differ."""
    if cos.shape[-1] != q.shape[-1] or cos.dtype != q.dtype:
        return theirs(q, k, cos, sin, unsqueeze_dim)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotated.apply(q, cos, sin), _Rotated.apply(k, cos, sin)


class _RmsNorm(torch.autograd.Function):
    """y = gain * x / sqrt(mean(x^2) + epsilon), computed in float32; `late` rounds after the gain, else before it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain_D: Tensor, epsilon: float, late: bool) -> Tensor:
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, scale, gain_D)
        y = wide * scale
        return y.mul_(gain_D).to(x.dtype) if late else y.to(x.dtype).mul_(gain_D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, scale, gain_D = ctx.saved_tensors
        wide = x.float()
        slope = grad.float() * gain_D
        along = (slope * wide).sum(-1, keepdim=True)
        along.mul_(scale.pow(3)).div_(-x.shape[-1])
        return slope.mul_(scale).addcmul_(wide, along).to(x.dtype), None, None, None


class _Rotated(torch.autograd.Function):
    """x cos + (-x2, x1) sin, where x1 and x2 are the halves of the last axis; in the memory order of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        slope = grad * cos
        slope[..., :half].addcmul_(grad[..., half:], sin[..., half:])
        slope[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
        return slope, None, None


class _Gated(torch.autograd.Function):
    """activation(gate) * up.  The backward pass computes into the memory of what was saved, which nothing else
    reads."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: str) -> Tensor:
        active = _aten.silu(gate) if kind == "silu" else _aten.gelu(gate, approximate="tanh")
        ctx.save_for_backward(gate, up, active)
        ctx.kind = kind
        return active * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up, active = ctx.saved_tensors
        active.mul_(grad)
        up.mul_(grad)
        if ctx.kind == "silu":
            return _aten.silu_backward.grad_input(up, gate, grad_input=up), active, None
        return _aten.gelu_backward.grad_input(up, gate, approximate="tanh", grad_input=up), active, None
