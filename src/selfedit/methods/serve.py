"""An OpenAI-compatible server that answers with what was learned: `transformers serve` on the merged model.

The model is merged into a folder that only this user can read and that is gone when the server ends.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from selfedit.errors import UserError
from selfedit.methods.adapters import LEARNED, one_model
from selfedit.methods.export import export
from selfedit.models.loading import usable_device


def serve(
    source: Path,
    *,
    host: str = "localhost",
    port: int = 8000,
    model: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = print,
) -> int:
    """Serves an adapter, or those of a run (see `export`), as the model `learned`, until it is interrupted; the
    server's exit code.

    It answers greedily unless a request says otherwise, prompted as in training.  Errors: as `export`, and UserError
    where transformers' server is not installed."""
    one_model(source)
    if not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")):
        raise UserError("a server needs fastapi and uvicorn; run: pip install 'selfedit[serving]'")
    with tempfile.TemporaryDirectory(prefix="selfedit-serve-") as folder:
        export(source, Path(folder) / LEARNED, model=model, dtype=dtype, trust_remote_code=trust_remote_code)
        # By a relative name, which is the model's for those who ask.
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", LEARNED]
        command += ["--host", host, "--port", str(port), "--device", device or str(usable_device(None))]
        command += ["--trust-remote-code"] * trust_remote_code
        environment = os.environ | ({} if trust_remote_code else {"HF_HUB_OFFLINE": "1"})  # all that it needs is here
        tell(f"serving {source} as the model '{LEARNED}' at http://{host}:{port}/v1; Ctrl-C ends it")
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the folder goes
        with subprocess.Popen(command, cwd=folder, env=environment) as server:
            try:
                return server.wait()
            finally:
                server.kill()
