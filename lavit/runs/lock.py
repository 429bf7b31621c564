"""One writer a folder, by a kernel lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

STOPPING_PATIENCE = 60.0  # seconds to wait for a holder that has said that it is stopping
_HELD: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderInUse(ValueError):
    """Another process writes to the folder."""


class FolderLock:
    """Context manager: this process alone writes to ``folder``.

    ``flock`` on ``folder/.lock``, so that the kernel lets go even after ``kill -9``. Neither programs started from
    here nor forked workers keep the lock: it ends with the process that took it.

    Args:
        folder: created where it is not there.
        wait: seconds to wait for another holder before giving up; one that is stopping gets a minute more.
        waiting: called twice a second meanwhile, with a text that says who holds the folder; it may raise.

    Raises:
        FolderInUse: naming the holder's process id and command.
    """

    def __init__(self, folder: str | Path, wait: float = 0.0, waiting: Callable[[str], None] | None = None):
        self.folder = Path(folder)
        self._wait = wait
        self._waiting = waiting or (lambda text: None)
        self._fd: int | None = None

    def __enter__(self) -> FolderLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._acquire(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        if not getattr(_close_in_child, "registered", False):
            os.register_at_fork(after_in_child=_close_in_child)
            _close_in_child.registered = True
        _HELD.add(self)
        self._write(stopping=False)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._fd is not None:
            os.close(self._fd)  # the last reference to the open file: the kernel unlocks it
        self._fd = None
        _HELD.discard(self)

    def stopping(self) -> None:
        """Tell those who wait that this process is on its way out."""
        self._write(stopping=True)

    def _acquire(self, fd: int) -> None:
        start = time.monotonic()
        while True:
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(fd)
            limit = max(self._wait, STOPPING_PATIENCE) if self._wait and holder.get("stopping") else self._wait
            text = f"{self.folder} is in use by process {holder.get('pid', '?')} ({holder.get('command', 'unknown')})"
            if time.monotonic() - start >= limit:
                raise FolderInUse(f"{text}; wait for it to end or stop it, or choose another folder with run=…")
            self._waiting(text)
            time.sleep(0.5)

    def _write(self, stopping: bool) -> None:
        assert self._fd is not None
        record = json.dumps({"pid": os.getpid(), "command": _command(), "stopping": stopping}).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, record, 0)


def _holder(fd: int) -> dict[str, Any]:
    try:
        return dict(json.loads(os.pread(fd, 65536, 0)))
    except ValueError:  # taken, and not yet signed
        return {}


def _command() -> str:
    return " ".join(" ".join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]).split())[:200]


def _close_in_child() -> None:
    """A forked worker holds the same open file: left open, it would keep the lock after this process was killed."""
    for lock in list(_HELD):
        if lock._fd is not None:
            os.close(lock._fd)
            lock._fd = None
    _HELD.clear()
