"""A bank: N LoRA adapters of one shape, stacked on one frozen causal language model.

The parameters of one adapter are one row of a flat float32 buffer, so that clipping and AdamW take a few operations per
adapter, however many layers it has.  The layers' own matrices are views into that buffer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfedit.engine.jobs import LoraSpec, UnsupportedModelError
from selfedit.engine.lora import LoraGroup, LoraLinear, Routing, Shared, grouped_works
from selfedit.engine.peft_format import files, targeted

# Each tensor of an adapter starts at a multiple of this many numbers: grouped products need 16-byte strides.
_ALIGN = 16


class AdapterBank:
    """Attaches `size` stacked LoRAs to a causal language model's chosen linear layers.

    The wrapped model without a routing is the base model, bit for bit; `route` switches adapters on for the rows of one
    batch. The model is changed in place (chosen layers are wrapped, parameters frozen) until `detach`; a bank is also a
    context manager that detaches. Parameters are float32 always; products run in the model's own dtype.

    Errors: UnsupportedModelError where a chosen layer is not a plain `torch.nn.Linear` in float32, bfloat16 or float16
    (GPT-2's Conv1D, quantised layers) or nothing matches the targets.
    """

    def __init__(self, model: PreTrainedModel, spec: LoraSpec, size: int) -> None:
        if size < 1:
            raise ValueError(f"AdapterBank: size must be at least 1, not {size}")
        self.model = model
        self.spec = spec
        self.size = size
        self.names = target_layers(model, spec)
        # Else a backward pass would compute their gradients too, and leave them there.
        self._thawed = [parameter for parameter in model.parameters() if parameter.requires_grad]
        linears = [cast(nn.Linear, model.get_submodule(name)) for name in self.names]
        self.device: torch.device = linears[0].weight.device
        self.dtype: torch.dtype = linears[0].weight.dtype
        self._shared = Shared(spec, torch.zeros((), device=self.device, requires_grad=True))
        # Dropout draws a mask for each layer, so that nothing can be shared there.
        together = [[k] for k in range(len(linears))] if spec.dropout else _same_input(model, linears)
        self.groups = [
            LoraGroup([linears[k] for k in members], self._shared, index) for index, members in enumerate(together)
        ]
        places = {
            k: (group, place)
            for group, members in zip(self.groups, together, strict=True)
            for place, k in enumerate(members)
        }
        self.layers = [LoraLinear(linear, *places[k]) for k, linear in enumerate(linears)]
        # On a CPU, one product per run of rows is faster than grouped ones.
        self.grouped = self.device.type != "cpu" and grouped_works(self.groups)

        self._starts: list[list[int]] = []
        offset = 0
        for group in self.groups:
            starts = [offset]
            offset += _aligned(spec.rank * group.in_features * len(group.linears))
            for linear in group.linears:
                starts.append(offset)
                offset += _aligned(linear.out_features * spec.rank)
            self._starts.append(starts)
        self.adapter_size = offset
        self.parameters_NF = torch.zeros(size, offset, device=self.device)
        self._compute_NF = (
            self.parameters_NF if self.dtype == torch.float32 else self.parameters_NF.to(self.dtype, copy=True)
        )
        self.gradients_NF: Tensor | None = None
        self._fresh: dict[int, Tensor] = {}
        for group in self.groups:
            group.set_parameters(*self._views(self._compute_NF, group))
        for name, layer in zip(self.names, self.layers, strict=True):
            model.set_submodule(name, layer)
        for parameter in self._thawed:
            parameter.requires_grad_(False)

    def __enter__(self) -> AdapterBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Gives the model its own layers back, and thaws the parameters that the bank froze."""
        for name, layer in zip(self.names, self.layers, strict=True):
            self.model.set_submodule(name, layer.base_layer)
        for parameter in self._thawed:
            parameter.requires_grad_(True)

    def reset(self, adapter: int, seed: int, below: Mapping[str, tuple[Tensor, Tensor]] | None = None) -> None:
        """Gives an adapter fresh weights, as PEFT does: A Kaiming-uniform (a = sqrt 5) from `seed`, B zero.  The first
        of its rank are those of an adapter `below`, whose B is in this bank's scale."""
        generator = torch.Generator().manual_seed(seed)
        for group in self.groups:
            group.written.discard(adapter)  # by a step that was interrupted
        self.parameters_NF[adapter].zero_()
        for name, (a_RI, b_OR) in self.state(adapter).items():
            fresh_RI = a_RI
            if below is not None:
                held_a, held_b = below[name]
                a_RI[: len(held_a)].copy_(held_a)
                b_OR[:, : len(held_a)].copy_(held_b)
                fresh_RI = a_RI[len(held_a) :]
            bound = 1 / math.sqrt(a_RI.shape[1])
            fresh_RI.copy_(torch.empty(fresh_RI.shape).uniform_(-bound, bound, generator=generator))
        self.publish([adapter])

    def fresh(self, held: int) -> Tensor:
        """[F]: whether a parameter of an adapter is not among the first `held` of its rank.  All adapters share it."""
        if held in self._fresh:
            return self._fresh[held]
        flat_NF, rank = torch.ones(1, self.adapter_size, dtype=torch.bool, device=self.device), self.spec.rank
        for group in self.groups:
            a_NGI, b_NOR = self._views(flat_NF, group)
            for place, b in enumerate(b_NOR):
                a_NGI[0, place * rank : place * rank + held] = False
                b[0, :, :held] = False
        self._fresh[held] = flat_NF[0]
        return flat_NF[0]

    def publish(self, adapters: Sequence[int]) -> None:
        """Copies the float32 parameters of adapters to the buffer that products read, where that is another dtype."""
        if self._compute_NF is not self.parameters_NF and adapters:
            there, here = ([buffer[k] for k in adapters] for buffer in (self._compute_NF, self.parameters_NF))
            torch._foreach_copy_(there, here)

    def enable_gradients(self) -> Tensor:
        """The gradient buffer [N, F], float32, made at the first call."""
        if self.gradients_NF is None:
            self.gradients_NF = torch.zeros_like(self.parameters_NF)
            for group in self.groups:
                group.set_gradients(*self._views(self.gradients_NF, group))
        return self.gradients_NF

    def gradient(self, adapter: int) -> Tensor:
        """The gradient [F] of an adapter's step, which ends here: the next backward pass overwrites it."""
        gradient_F = self.enable_gradients()[adapter]
        for group in self.groups:
            if adapter not in group.written:  # no row of this adapter came through these layers
                for gradients_N in (group.grad_a_GI, *group.grad_b_OR):
                    gradients_N[adapter].zero_()
            group.written.discard(adapter)
        return gradient_F

    def drop_gradients(self) -> None:
        """Frees the gradient buffer, which decoding does not need."""
        self.gradients_NF = None
        for group in self.groups:
            group.set_gradients(None, [])

    @contextmanager
    def route(self, routing: Routing) -> Iterator[None]:
        """Within this context, the rows of a batch (batch and time flattened) belong to adapters as `routing` says."""
        if self._shared.routing is not None:
            raise RuntimeError("a routing is active already")
        self._shared.routing = routing
        try:
            yield
        finally:
            self._shared.routing = None
            self._shared.waiting.clear()

    def state(self, adapter: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer name -> (A [R, D_in], B [D_out, R]) of one adapter, float32, views."""
        rank, state = self.spec.rank, {}
        for name, layer in zip(self.names, self.layers, strict=True):
            a_NGI, b_NOR = self._views(self.parameters_NF, layer.group)
            state[name] = a_NGI[adapter, layer.place * rank : (layer.place + 1) * rank], b_NOR[layer.place][adapter]
        return state

    def load_state(self, adapter: int, state: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Sets an adapter's weights.  Errors: ValueError where layers or shapes differ from the bank's."""
        own = self.state(adapter)
        if own.keys() != state.keys():
            different = sorted(own.keys() ^ state.keys())
            raise ValueError(
                f"the adapter's layers differ from the bank's: {different[0]} and {len(different) - 1} more"
            )
        for name, (a, b) in state.items():
            if a.shape != own[name][0].shape or b.shape != own[name][1].shape:
                raise ValueError(f"the adapter's {name} has another shape than the bank's")
            own[name][0].copy_(a)
            own[name][1].copy_(b)
        self.publish([adapter])

    def save_pretrained(self, adapter: int, path: str | Path, *, base_model: str | None = None) -> None:
        """Writes one adapter's files (`peft.PeftModel.from_pretrained` loads it, vLLM serves it).  `base_model` is the
        name by which `AutoPeftModelForCausalLM` loads the model, by default the one that it was loaded by here."""
        folder, base_model = Path(path), base_model or str(self.model.config.name_or_path)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files(self.spec, self.state(adapter), base_model=base_model).items():
            (folder / name).write_bytes(content)

    def _views(self, flat_NF: Tensor, group: LoraGroup) -> tuple[Tensor, list[Tensor]]:
        rank, starts = self.spec.rank, self._starts[group.index]
        stacked = rank * len(group.linears)
        a = flat_NF[:, starts[0] : starts[0] + stacked * group.in_features].view(-1, stacked, group.in_features)
        bs = [
            flat_NF[:, start : start + linear.out_features * rank].view(-1, linear.out_features, rank)
            for start, linear in zip(starts[1:], group.linears, strict=True)
        ]
        return a, bs


@torch.no_grad()
def _same_input(model: PreTrainedModel, linears: list[nn.Linear]) -> list[list[int]]:
    """Numbers of the layers that read one and the same tensor, found by running two tokens through the model."""
    readers: dict[int, list[int]] = {}
    inputs: list[Tensor] = []  # kept, so that no two share an id

    def note(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs.append(given[0])
            readers.setdefault(id(given[0]), []).append(number)

        return hook

    hooks = [linear.register_forward_pre_hook(note(k)) for k, linear in enumerate(linears)]
    try:
        model.get_decoder()(input_ids=torch.tensor([[0, 1]], device=linears[0].weight.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    called = [number for members in readers.values() for number in members]
    if sorted(called) != list(range(len(linears))):
        # Layers that are skipped, or called more than once, stand alone.
        return [[k] for k in range(len(linears))]
    return list(readers.values())


def target_layers(model: PreTrainedModel, spec: LoraSpec) -> list[str]:
    """The dotted names of the layers that a spec adapts, in the order of the model.

    Errors: UnsupportedModelError, naming the layer, where one cannot be adapted, or where nothing matches; and where
    the model has fewer decoder layers than the spec names.
    """
    last = model.config.get_text_config().num_hidden_layers - 1
    if spec.layers is not None and spec.layers[1] > last:
        raise UnsupportedModelError(f"layers {list(spec.layers)}: the model's last decoder layer is {last}")
    head = model.get_output_embeddings()
    names = []
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            raise UnsupportedModelError(f"{name} carries the adapters of another bank: detach that bank first")
        if module is head or not _matches(name, module, spec):
            continue
        if not isinstance(module, nn.Linear):
            raise UnsupportedModelError(
                f"{name} is a {type(module).__name__}; only torch.nn.Linear layers can be adapted"
                " (models built on Conv1D, such as GPT-2, are not supported)"
            )
        if (
            module.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16)
            or type(module.weight.data) is not Tensor
            or type(module).forward is not nn.Linear.forward
        ):
            raise UnsupportedModelError(
                f"{name} is no plain torch.nn.Linear ({type(module).__name__}, {module.weight.dtype}),"
                " quantised perhaps; load the model in bfloat16 or float32"
            )
        names.append(name)
    if not names:
        raise UnsupportedModelError(
            f"no layer matches the targets {spec.targets!r} (layers {spec.layers}); linear layers here end in: "
            + ", ".join(sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)}))
        )
    return names


def _matches(name: str, module: nn.Module, spec: LoraSpec) -> bool:
    if spec.targets in ("all-linear", "mlp"):
        chosen = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        # Attention blocks are called so in every causal model of transformers; what is left is the MLP's.
        chosen &= spec.targets == "all-linear" or not re.search("attn|attention", name)
    else:
        chosen = targeted(name, spec.targets)
    if not chosen or spec.layers is None:
        return chosen
    # As in PEFT: the first number in a dotted name is the decoder layer's.
    number = next((int(part) for part in name.split(".") if part.isdigit()), None)
    return number is not None and spec.layers[0] <= number <= spec.layers[1]


def _aligned(count: int) -> int:
    return -(-count // _ALIGN) * _ALIGN
