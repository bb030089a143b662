"""Models and their tokenizers: finding, loading, and prompting them as they expect to be prompted.

A model is named by a hub name, a folder, or one of the bundled models' names; `load_model` takes all three.
"""

from selfedit.models.bundled import MODELS as BUNDLED_MODELS
from selfedit.models.bundled import NAME as BUNDLED
from selfedit.models.finding import local_path, public_name
from selfedit.models.loading import (
    Model,
    load_model,
    load_outline,
    load_tokenizer,
    parameter_count,
    stored_dtype,
    torch_dtype,
)
from selfedit.models.tokenizer import Tokenizer

__all__ = [
    "BUNDLED",
    "BUNDLED_MODELS",
    "Model",
    "Tokenizer",
    "load_model",
    "load_outline",
    "load_tokenizer",
    "local_path",
    "parameter_count",
    "public_name",
    "stored_dtype",
    "torch_dtype",
]
