"""Where a model is: bundled, in a folder, in the local cache of the Hugging Face hub, or on the hub.

A model is found before anything heavy is imported, and the hub gets one request: its own library tries for minutes,
file by file, to reach a hub that is not there.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from selfedit.errors import UserError
from selfedit.models.bundled import MODELS, bundled_folder

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_CONFIG = "config.json"
_PATIENCE = 10.0  # seconds for the hub to answer; a hub that takes the call and is slow is not given up


def local_path(name: str) -> str | Path:
    """What `from_pretrained` loads a model from: a folder, or its name on the hub.

    A model in the hub's local cache is taken from there where the hub cannot be reached.  Errors: UserError, at once,
    for a model that is in none of these places.
    """
    if name in MODELS:
        return bundled_folder(name)
    if os.path.isdir(name):  # False for a name that is too long, and below a folder that may not be searched
        if not any(os.path.isfile(Path(name) / file) for file in (_CONFIG, "tokenizer_config.json")):
            raise UserError(f"model {name}: not a local folder with a causal language model ({_CONFIG} is missing)")
        return name
    if not _HUB_NAME.fullmatch(name) or ".." in name:
        raise UserError(
            f"model {name}: not a local folder with a causal language model (there is no such folder), and no name on"
            " the hub"
        )
    return _on_hub(name)


def public_name(name: str) -> str:
    """What others' tools load a model by: the hub's name of a bundled one, a folder's whole path."""
    if name in MODELS:
        return MODELS[name].origin
    return os.path.abspath(name) if os.path.isdir(name) else name


@functools.lru_cache(maxsize=32)
def _on_hub(name: str) -> str | Path:
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError, build_hf_headers, get_session

    nowhere = f"model {name}: no local folder, not bundled ({', '.join(MODELS)}), not in the hub's local cache"
    try:
        cached = try_to_load_from_cache(name, _CONFIG)
    except HFValidationError as error:
        raise UserError(f"model {name}: no local folder, and no name on the hub ({error})") from None
    folder = Path(cached).parent if isinstance(cached, str) else None
    if constants.HF_HUB_OFFLINE:
        if folder is None:
            raise UserError(f"{nowhere}, and HF_HUB_OFFLINE forbids to look on the hub")
        return folder
    try:
        reply = get_session().head(
            hf_hub_url(name, _CONFIG), headers=build_hf_headers(), timeout=_PATIENCE, follow_redirects=False
        )
    except Exception as error:
        # By name, for the library has changed from httpx to httpx2 without a change of these.
        if type(error).__name__ not in ("ConnectError", "ConnectTimeout", "ProxyError"):
            return name  # slow, or something else that the library may get over
        if folder is None:
            raise UserError(f"{nowhere}, and {constants.ENDPOINT} cannot be reached ({error})") from None
        return folder
    if folder is None and reply.status_code in (401, 404):
        raise UserError(
            f"{nowhere}, and not on {constants.ENDPOINT} ({reply.status_code}); is the name right?  A private model"
            " needs HF_TOKEN"
        )
    return name
