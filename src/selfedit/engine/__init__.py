"""Many LoRA adapters on one frozen causal language model, trained and decoded together.

Needs torch, transformers and safetensors only, and works on token ids.  `docs/engine.md` has an example.  Everything
here is imported when it is first used; the data classes need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfedit.engine.bank import AdapterBank as AdapterBank
    from selfedit.engine.decoding import decode as decode
    from selfedit.engine.fitting import UnderWay as UnderWay
    from selfedit.engine.fitting import fit as fit
    from selfedit.engine.jobs import Completion as Completion
    from selfedit.engine.jobs import DecodeRequest as DecodeRequest
    from selfedit.engine.jobs import FitJob as FitJob
    from selfedit.engine.jobs import FitResult as FitResult
    from selfedit.engine.jobs import FitSettings as FitSettings
    from selfedit.engine.jobs import LessMemoryWarning as LessMemoryWarning
    from selfedit.engine.jobs import LoraSpec as LoraSpec
    from selfedit.engine.jobs import NotEnoughMemoryError as NotEnoughMemoryError
    from selfedit.engine.jobs import SoftTargets as SoftTargets
    from selfedit.engine.jobs import TokenSequence as TokenSequence
    from selfedit.engine.jobs import UnsupportedModelError as UnsupportedModelError
    from selfedit.engine.jobs import UnusableStateError as UnusableStateError
    from selfedit.engine.measuring import losses as losses
    from selfedit.engine.passes import Part as Part
    from selfedit.engine.passes import Partner as Partner
    from selfedit.engine.passes import Share as Share
    from selfedit.engine.peft_format import load_adapter as load_adapter
    from selfedit.engine.peft_format import merge_adapter as merge_adapter
    from selfedit.engine.planning import Plan as Plan
    from selfedit.engine.planning import plan as plan
    from selfedit.engine.teaching import soft_targets as soft_targets
    from selfedit.engine.teaching import teach as teach
    from selfedit.engine.waves import OnWave as OnWave
    from selfedit.engine.waves import fit_all as fit_all

_NAMES = {
    "bank": "AdapterBank",
    "decoding": "decode",
    "fitting": "UnderWay fit",
    "jobs": "Completion DecodeRequest FitJob FitResult FitSettings LessMemoryWarning LoraSpec NotEnoughMemoryError"
    " SoftTargets TokenSequence UnsupportedModelError UnusableStateError",
    "measuring": "losses",
    "passes": "Part Partner Share",
    "peft_format": "load_adapter merge_adapter",
    "planning": "Plan plan",
    "teaching": "soft_targets teach",
    "waves": "OnWave fit_all",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'selfedit.engine' has no attribute {name!r}")
    return getattr(import_module(f"selfedit.engine.{_HOMES[name]}"), name)
