"""Ctrl-C: the first ends a command within two seconds, whatever is under way; a second one ends it at once.

The first raises KeyboardInterrupt, as always, so that what takes a moment is still done: replies under way are kept,
workers stopped. What takes longer is ended from a thread that learns of the signal through a pipe, also while the main
thread is inside a library that never comes back.  A run may end at any moment: its store holds finished work whole and
nothing of the rest."""

from __future__ import annotations

import os
import select
import signal
import threading

PATIENCE = 1.0
EXIT_CODE = 130

resumable = False
"""Whether the command is one that keeps what it has done."""

told = threading.Event()
"""Set by whoever has said it."""


def watch_interrupts(patience: float = PATIENCE) -> None:
    """From now on to the process's end.  To be called in the main thread."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # ignored (nohup, a background job), or somebody else's
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, patience), name="interrupts", daemon=True).start()


def message() -> str:
    return "selfedit: interrupted" + ("; the same command goes on from here" if resumable else "")


def _watch(reader: int, patience: float) -> None:
    while signal.SIGINT not in os.read(reader, 1):
        pass
    while select.select([reader], [], [], patience)[0]:
        if signal.SIGINT in os.read(reader, 1):
            break
    if not told.is_set():
        cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar has hidden it
        os.write(2, f"{cursor}{message()}\n".encode())
    os._exit(EXIT_CODE)
