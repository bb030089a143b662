"""Many LoRA adapters on one frozen causal language model, trained and decoded together.

Needs torch, transformers and safetensors only; knows token ids, nothing of text, documents or exams.
"""

from selfedit.engine.bank import AdapterBank, UnsupportedModelError
from selfedit.engine.decode import Completion, DecodeRequest, decode
from selfedit.engine.fit import fit
from selfedit.engine.jobs import FitJob, FitResult, FitSettings, TokenSequence
from selfedit.engine.lora import LoraSpec
from selfedit.engine.peft_format import load as load_adapter
from selfedit.engine.peft_format import merge as merge_adapter
from selfedit.engine.plan import NotEnoughMemoryError, Plan, plan
from selfedit.engine.waves import OnWave, fit_all

__all__ = [
    "AdapterBank",
    "Completion",
    "DecodeRequest",
    "FitJob",
    "FitResult",
    "FitSettings",
    "LoraSpec",
    "NotEnoughMemoryError",
    "OnWave",
    "Plan",
    "TokenSequence",
    "UnsupportedModelError",
    "decode",
    "fit",
    "fit_all",
    "load_adapter",
    "merge_adapter",
    "plan",
]
