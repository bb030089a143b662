"""Many LoRA adapters on one frozen causal language model, trained and decoded together.

Needs torch, transformers and safetensors only, and works on token ids.  `docs/engine.md` has an example.  Importing
this package loads no torch: the data classes need none, and the rest is imported when it is first used.
"""

from importlib import import_module
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
    SoftTargets,
    TokenSequence,
    UnsupportedModelError,
    UnusableStateError,
)

if TYPE_CHECKING:
    from selfedit.engine.bank import AdapterBank
    from selfedit.engine.decoding import decode
    from selfedit.engine.fitting import UnderWay, fit
    from selfedit.engine.measuring import losses
    from selfedit.engine.passes import Part, Partner, Share
    from selfedit.engine.peft_format import load as load_adapter
    from selfedit.engine.peft_format import merge as merge_adapter
    from selfedit.engine.planning import Plan, plan
    from selfedit.engine.teaching import soft_targets, teach
    from selfedit.engine.waves import OnWave, fit_all

_HOMES = {
    "AdapterBank": "bank.AdapterBank",
    "OnWave": "waves.OnWave",
    "UnderWay": "fitting.UnderWay",
    "Part": "passes.Part",
    "Partner": "passes.Partner",
    "Plan": "planning.Plan",
    "Share": "passes.Share",
    "decode": "decoding.decode",
    "fit": "fitting.fit",
    "fit_all": "waves.fit_all",
    "load_adapter": "peft_format.load",
    "losses": "measuring.losses",
    "merge_adapter": "peft_format.merge",
    "plan": "planning.plan",
    "soft_targets": "teaching.soft_targets",
    "teach": "teaching.teach",
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
    "Part",
    "Partner",
    "Plan",
    "Share",
    "SoftTargets",
    "TokenSequence",
    "UnderWay",
    "UnsupportedModelError",
    "UnusableStateError",
    "decode",
    "fit",
    "fit_all",
    "load_adapter",
    "losses",
    "merge_adapter",
    "plan",
    "soft_targets",
    "teach",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'selfedit.engine' has no attribute {name!r}")
    module, attribute = _HOMES[name].split(".")
    return getattr(import_module(f"selfedit.engine.{module}"), attribute)
