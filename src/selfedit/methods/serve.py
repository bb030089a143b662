"""An OpenAI-compatible server that answers as `ask` does; of a run with an adapter per document, with that of the
document which the last message is about, and says which.

`chat_api` has the API.  `transformers serve` on an exported model offers more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from selfedit.errors import UserError
from selfedit.methods.ask import Asker

_LAST_SECONDS = 3  # that answers under way have once the server is to end


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
    """Serves what `ask` answers with as the model `learned`, and the model as it is as `base`, until it is interrupted;
    the server's exit code.

    It answers greedily unless a request says otherwise, prompted as in training.  Errors: as `Asker`, and UserError
    where fastapi and uvicorn are not installed."""
    if not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")):
        raise UserError("a server needs fastapi and uvicorn; run: pip install 'selfedit[serving]'")
    import uvicorn

    from selfedit.methods.chat_api import make_app

    with (
        Asker(source, model=model, device=device, dtype=dtype, trust_remote_code=trust_remote_code) as asker,
        ThreadPoolExecutor(1) as writer,
    ):
        tell(f"serving {source} as the model '{asker.names[0]}' at http://{host}:{port}/v1; Ctrl-C ends it")
        try:
            app = make_app(asker, writer)
            uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=_LAST_SECONDS)
        except SystemExit as end:  # where it cannot listen, which it has said
            return int(end.code or 0)
        finally:
            writer.shutdown(cancel_futures=True)
    return 0
