"""Names of runs' directories that nobody named."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from selfedit.documents.files import folder_files
from selfedit.methods.settings import FREE, LearnSettings


def directory_by_content(settings: LearnSettings) -> Path:
    """`runs/learn-NAME-HASH`, where a run goes whose directory was not named: by its settings and its documents'
    content, so that the same command resumes and another one is another run."""
    digest = hashlib.sha256(
        json.dumps({k: v for k, v in settings.model_dump(mode="json").items() if k not in FREE}).encode()
    )
    for source in settings.documents:
        path = Path(os.path.expanduser(source))
        files = folder_files(path, follow_links=settings.follow_links)[0] if os.path.isdir(path) else [path]
        for file in files:
            if os.path.isfile(file) and os.access(file, os.R_OK):
                digest.update(str(file).encode("utf-8", "surrogateescape"))
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(settings.documents[0]).stem).strip(".-")[:40] or "documents"
    return Path("runs") / f"learn-{name}-{digest.hexdigest()[:8]}"


def run_names(models: Sequence[str]) -> list[str]:
    """A folder's name for each model: the last part of the model's, and where several share it, a hash of the whole."""
    names = [Path(model).resolve().name if Path(model).is_dir() else Path(model).name for model in models]
    return [
        name if names.count(name) == 1 else f"{name}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
        for model, name in zip(models, names, strict=True)
    ]
