"""The lock of a run directory: one process at a time writes a run.

The kernel drops the lock when the process ends, however it ends, so a killed run leaves nothing to clean up; the file
itself stays.  A forked worker that outlives its killed parent does not hold it (filelock sees to that).
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from selfedit.errors import UserError
from selfedit.runs.files import disk_errors


class RunLock:
    """An exclusive lock, held from construction to `release`.  UserError if another process (or this one) holds it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_symlink():
            raise UserError(f"{self.path}: is a link, and what it leads to would be overwritten; remove it")
        self._lock = FileLock(self.path, mode=0o600, blocking=False, thread_local=False, preserve_lock_file=True)
        try:
            with disk_errors(self.path):
                self._lock.acquire()
                self.path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        except Timeout:
            holder = self.path.read_text(errors="replace")[:300].strip() or "another process"
            raise UserError(
                f"{self.path.parent}: in use by {holder}; wait until it ends, or name another run directory"
            ) from None

    def release(self) -> None:
        """Let others in.  Releasing twice does nothing."""
        self._lock.release()


def is_held(path: str | Path) -> bool:
    """Whether a process holds this lock now; False where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)  # lets go of it
    return False
