"""Files that are there whole or not at all, whatever happens while they are written.

Temporary names begin with a dot and end with `TEMPORARY`; `sweep` removes what a crash left.  A run holds its user's
documents: what is written inside a private run's directory (`begin_privately`) is for its owner alone; elsewhere the
umask decides."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from uuid import uuid4

from safetensors import SafetensorError

from selfedit.errors import UserError

TEMPORARY = ".selfedit-unfinished"


def check_writable(path: Path) -> None:
    """Finds out whether a file can be written under a user's name for it, before the work of which it tells.  Errors:
    UserError."""
    with disk_errors(path):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file")
        TemporaryFile(dir=path.parent).close()


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a run after a crash, sees the old content or the new, whole.

    Text is written in UTF-8.  UserError for a full disk, a missing directory or missing permission; the old content
    stays.
    """
    path = Path(path)
    # A name of its own: two workers may do the same task.
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}{TEMPORARY}")
    data = content.encode("utf-8") if isinstance(content, str) else content
    with disk_errors(path):
        try:
            with open(temporary, "wb") as file:
                if is_private(path):
                    os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextmanager
def directory_atomically(path: str | Path) -> Iterator[Path]:
    """A directory to fill; it takes the name `path`, whole and on the disk, when the block ends without an error.

    A directory that is already there is replaced.  Parents are made.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    with disk_errors(path):
        private = is_private(path)
        if private:
            begin_privately(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            if private:
                temporary.chmod(0o700)
            yield temporary
            for entry in (*temporary.rglob("*"), temporary):
                # A file that is also elsewhere, by a hard link, keeps the permissions that it has there.
                if private and (entry.is_dir() or entry.stat().st_nlink == 1):
                    entry.chmod(0o700 if entry.is_dir() else 0o600)
                _sync(entry)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
            _sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def begin_privately(path: Path) -> None:
    """Makes a directory, with its parents, into which nobody but its owner may look."""
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)


def is_private(path: Path) -> bool:
    """Whether a path lies in the directory of a private run, which has a lock."""
    return any((parent / "lock").is_file() and parent.stat().st_mode & 0o077 == 0 for parent in path.absolute().parents)


def sweep(directory: Path) -> None:
    """Remove what crashes left unfinished anywhere below `directory`."""
    for path in sorted(directory.rglob(f".*{TEMPORARY}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """The operating system's errors that a user can mend, in one line each."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors tells the operating system's error in words.
        told = re.search(r"\(os error (\d+)\)", str(error))
        code = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"{path}: the disk is full; make room and give the same command again") from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{path}: may not be written; change its permissions, or name another directory") from error
        if code in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UserError(f"{path}: not a name that this file system can hold; give another one") from error
        if code in (errno.ENOENT, errno.ENOTDIR):
            raise UserError(f"{path}: its directory is not there; make it, or name another") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
