"""`transformers serve`, started here with one model, offline."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

needs_serving = pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None,
    reason="transformers serve needs the extra 'serving'",
)


def serving(model: str, port: int, folder: Path) -> AbstractContextManager[str]:
    """Serves a model's folder; yields the API's address.  The log and the hub's cache go into `folder`."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model]
    return running([*command, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)], port, folder)


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[str]:
    """Runs a command that serves on this port."""
    log = folder / "log.txt"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            _wait_until_up(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    give_up = time.monotonic() + 300
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=30):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    pytest.fail(f"transformers serve did not start: {log.read_text()[-2000:]}")
