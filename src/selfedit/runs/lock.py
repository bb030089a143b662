"""The lock of a run directory: one process at a time writes a run.

The kernel drops the lock when the process ends, however it ends, so a killed run leaves nothing to clean up; the file
itself stays.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from selfedit.errors import UserError
from selfedit.runs.files import disk_errors

# Descriptors of the locks that this process holds.
_held: set[int] = set()


def _let_go_in_child() -> None:
    # A forked worker that outlives its killed parent would otherwise keep the run locked.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class RunLock:
    """An exclusive lock, held from construction to `release`.  UserError if another process (or this one) holds it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_symlink():
            raise UserError(f"{self.path}: is a link, and what it leads to would be overwritten; remove it")
        with disk_errors(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            os.fchmod(descriptor, 0o600)  # whatever the umask
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 300, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(descriptor)
            raise UserError(
                f"{self.path.parent}: in use by {holder}; wait until it ends, or name another run directory"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        _held.add(descriptor)
        self._descriptor = descriptor
        try:
            with disk_errors(self.path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others in.  Releasing twice does nothing."""
        if self._descriptor in _held:
            _held.remove(self._descriptor)
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
        self._descriptor = -1


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
