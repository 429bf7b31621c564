"""How processes end: on Ctrl-C or SIGTERM with a checkpoint, with the processes that started them, and in groups.

DeepSpeed's runner installs no signal handler on a single node: killed, it leaves its ranks running, and a second run
would write beside them. So each rank watches the chain of processes above it itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

CHAIN = "LAVIT_CHAIN"  # "pid:start,pid:start": the processes that started this one, handed down
ROOMS = ("lavit", "tokenizer", "pretrain", "eval")  # the packages whose modules are run
ECHO = 1.0  # seconds within which a second Ctrl-C counts as the first one's echo
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Context manager that turns the first SIGINT or SIGTERM into a flag for a loop to poll.

    A loop that finds ``requested`` saves and exits with ``exit_code``; where several ranks work together, they agree on
    the step first. A second Ctrl-C does not wait. A second SIGTERM changes nothing: DeepSpeed's launcher answers every
    signal by sending its ranks one more, which may already have had theirs.

    Args:
        insist: what a second Ctrl-C does; by default the process exits at once.
    """

    def __init__(self, insist: Callable[[int], None] | None = None):
        self.signal: int | None = None
        self._insist = insist or (lambda signum: os._exit(128 + signum))
        self._since = 0.0

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, 0 after none."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> StopSignal:
        self._owner = os.getpid()
        self._before = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: object) -> None:
        if os.getpid() != self._owner:  # a forked worker has inherited the handler: its parent decides when it ends
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
        elif self.signal is None:
            self.signal, self._since = int(signum), time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - self._since > ECHO:
            self._insist(int(signum))


# -------------------------------------------------------------------------------------- the processes above


class _Stat(NamedTuple):
    state: str
    parent: int
    group: int
    start: int  # clock ticks after boot: with the id it names one process for good


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the command's name before it may hold spaces and brackets
    return _Stat(fields[0], int(fields[1]), int(fields[2]), int(fields[19]))


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return [""]


def _of_the_run(command: list[str]) -> bool:
    """make, DeepSpeed's runner or launcher, or one of our modules."""
    if Path(command[0]).name in ("make", "gmake", "gnumake"):
        return True
    if any(Path(word).name in ("deepspeed", "deepspeed.pt", "ds") for word in command[:2]):
        return True
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
    return module.startswith("deepspeed.launcher.") or module.split(".")[0] in ROOMS


def _is_glue(command: list[str]) -> bool:
    """``sh -c …``: part of the run between two of its processes only, since a shell at the top may leave before it."""
    return Path(command[0]).name in ("sh", "bash", "dash", "zsh") and len(command) > 2 and command[1].endswith("c")


def chain() -> dict[int, int]:
    """The processes above this one that belong to its run, ``{pid: start}``: handed down, or found in /proc now."""
    handed = (item.split(":") for item in os.environ.get(CHAIN, "").split(",") if item)
    found = {int(pid): int(start) for pid, start in handed}
    glue: dict[int, int] = {}
    stat = _stat(os.getpid())
    while stat is not None and stat.parent > 1:
        pid, stat = stat.parent, _stat(stat.parent)
        if stat is None:
            break
        if _is_glue(_command(pid)):
            glue[pid] = stat.start
        elif _of_the_run(_command(pid)):
            found |= {**glue, pid: stat.start}
            glue = {}
        else:
            break
    return found


def handed_down() -> dict[str, str]:
    """The environment variable by which a child knows the processes above it, even those gone before it looks."""
    own = _stat(os.getpid())
    links = chain() | ({os.getpid(): own.start} if own else {})
    return {CHAIN: ",".join(f"{pid}:{start}" for pid, start in links.items())}


def _gone(pid: int, start: int) -> bool:
    stat = _stat(pid)
    return stat is None or stat.start != start or stat.state in "ZX"


def end_with_parent(grace: float = 20.0, every: float = 1.0) -> None:
    """End this process when one of those that started it is gone: make, a launcher, the program that runs all stages.

    A daemon thread looks each ``every`` seconds and sends this process SIGTERM; ``grace`` seconds later it exits at
    once with 143. Call it first thing. Without /proc it does nothing.
    """
    name = "end-with-parent"
    if _stat(os.getpid()) is None or any(thread.name == name for thread in threading.enumerate()):
        return
    links = chain()

    def watch() -> None:
        while (lost := next((pid for pid, start in links.items() if _gone(pid, start)), None)) is None:
            time.sleep(every)
        try:
            print(f"process {lost}, which started this run, is gone: stopping", file=sys.stderr, flush=True)
        except OSError:  # it was our terminal too
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os._exit(143)

    threading.Thread(target=watch, name=name, daemon=True).start()


# ---------------------------------------------------------------------------------------- the processes below


class ProcessGroup:
    """A command in a session of its own, so that the terminal's Ctrl-C reaches it through its starter only, once.

    Args:
        command: the program and its arguments.
        environment: added to this process's own.
        log: the file that its output is appended to; None leaves it on the terminal.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None, log: Path | None = None):
        environment = {**os.environ, **(environment or {}), **handed_down()}
        out = open(log, "ab") if log is not None else None
        try:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=out, start_new_session=True,
                stderr=subprocess.STDOUT if out is not None else None,
            )  # fmt: skip
        finally:
            if out is not None:
                out.close()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit status of the command itself (negative: killed by that signal), None while it runs."""
        return self._process.poll()

    def alive(self) -> bool:
        """Whether the command or anything it left in its group still runs."""
        return self.poll() is None or self._has_members()

    def outlives(self, seconds: float) -> bool:
        """Whether something of the group still runs ``seconds`` from now; helpers get that long to follow."""
        deadline = time.monotonic() + seconds
        while (alive := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return alive

    def send(self, signum: int) -> None:
        """Signal the whole group."""
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:
            pass

    def _has_members(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        if _stat(os.getpid()) is None:
            return True
        # What answers may be zombies only, which nobody collects where process 1 is not an init.
        others = (_stat(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
        return any(stat is not None and stat.group == self.pid and stat.state not in "ZX" for stat in others)


def end_all(groups: Iterable[ProcessGroup], signum: int, patience: float = 45.0) -> bool:
    """Signal each group once, wait until all are gone, and kill what is left after ``patience`` seconds.

    Returns:
        Whether all of them ended by themselves.
    """
    left = [group for group in groups if group.alive()]
    for group in left:
        group.send(signum)
    deadline = time.monotonic() + patience
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = [group for group in left if group.alive()]
    for group in left:
        group.send(signal.SIGKILL)
    for group in left:
        group._process.wait()
    return not left


def usable_cores() -> int:
    """The cores this process may use: its affinity, and a container's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or the quota is "max"
        pass
    return cores
