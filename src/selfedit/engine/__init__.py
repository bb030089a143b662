"""Many LoRA adapters on one frozen causal language model, trained and decoded together.

Needs torch, transformers and safetensors only; knows token ids, nothing of text, documents or exams.  The data classes
come without torch; a function or a bank loads it when first used."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from selfedit.engine.jobs import (
    Completion,
    DecodeRequest,
    FitJob,
    FitResult,
    FitSettings,
    LessMemoryWarning,
    LoraSpec,
    NotEnoughMemoryError,
    TokenSequence,
    UnsupportedModelError,
    UnusableStateError,
)

if TYPE_CHECKING:
    from selfedit.engine.bank import AdapterBank
    from selfedit.engine.decode import decode
    from selfedit.engine.fit import UnderWay, fit
    from selfedit.engine.peft_format import load as load_adapter
    from selfedit.engine.peft_format import merge as merge_adapter
    from selfedit.engine.plan import Plan, plan
    from selfedit.engine.waves import OnWave, fit_all

_HOMES = {
    "AdapterBank": "bank.AdapterBank",
    "OnWave": "waves.OnWave",
    "UnderWay": "fit.UnderWay",
    "Plan": "plan.Plan",
    "decode": "decode.decode",
    "fit": "fit.fit",
    "fit_all": "waves.fit_all",
    "load_adapter": "peft_format.load",
    "merge_adapter": "peft_format.merge",
    "plan": "plan.plan",
}

__all__ = [
    "AdapterBank",
    "Completion",
    "DecodeRequest",
    "FitJob",
    "FitResult",
    "FitSettings",
    "LessMemoryWarning",
    "LoraSpec",
    "NotEnoughMemoryError",
    "OnWave",
    "Plan",
    "TokenSequence",
    "UnderWay",
    "UnsupportedModelError",
    "UnusableStateError",
    "decode",
    "fit",
    "fit_all",
    "load_adapter",
    "merge_adapter",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'selfedit.engine' has no attribute {name!r}")
    module, attribute = _HOMES[name].split(".")
    return getattr(import_module(f"selfedit.engine.{module}"), attribute)


class _Engine(ModuleType):
    """Python makes a loaded submodule an attribute of its package; `decode`, `fit` and `plan` stay the functions."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOMES:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Engine
