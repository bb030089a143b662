"""An OpenAI-compatible server that answers as `ask` does; of a run with an adapter per document, with that of the
document which the last message is about, and says which.

`chat_api` has the API.  `transformers serve` on an exported model offers more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import FrameType

from selfedit.errors import UserError
from selfedit.methods.ask import Asker


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
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port {port}: give a number from 0 to 65535")
    import uvicorn

    from selfedit.methods.chat_api import make_app

    ending = Event()

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            ending.set()  # it waits for its connections, which wait for their answers
            super().handle_exit(sig, frame)

    with (
        Asker(source, model=model, device=device, dtype=dtype, trust_remote_code=trust_remote_code) as asker,
        ThreadPoolExecutor(1) as writer,
    ):
        tell(f"serving {source} as the model '{asker.names[0]}' at http://{host}:{port}/v1; Ctrl-C ends it")
        app = make_app(asker, writer, ending)
        try:
            Server(uvicorn.Config(app, host=host, port=port, log_level="warning")).run()
        except KeyboardInterrupt:
            pass
        except SystemExit as end:  # where it cannot listen, which it has said
            return int(end.code or 0)
    return 0
