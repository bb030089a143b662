"""The directory of a run of `learn` that was not named."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from selfedit.methods.settings import FREE, LearnSettings


def directory_by_content(settings: LearnSettings) -> Path:
    """`runs/learn-NAME-HASH`, where a run goes whose directory was not named: by its settings and its documents'
    content, so that the same command resumes and another one is another run."""
    digest = hashlib.sha256(
        json.dumps({k: v for k, v in settings.model_dump(mode="json").items() if k not in FREE}).encode()
    )
    for source in map(Path, settings.documents):
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        for file in files:
            if file.is_file() and os.access(file, os.R_OK):
                digest.update(str(file).encode("utf-8", "surrogateescape"))
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(settings.documents[0]).stem).strip(".-")[:40] or "documents"
    return Path("runs") / f"learn-{name}-{digest.hexdigest()[:8]}"
