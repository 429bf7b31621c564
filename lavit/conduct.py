"""Run the stages of an experiment in order, each a process of its own: skip what is done, end without leftovers.

Light on purpose: whether a stage is done is read from its ``done.json``, and nothing here imports torch.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lavit.launch import FOLLOW, SAVE_PATIENCE, launch_command, launch_environment
from lavit.runs import (
    DemoConfig,
    FolderLock,
    ProcessGroup,
    Screen,
    StopSignal,
    end_all,
    is_done,
    read_done,
    read_seconds,
    stage_clock,
    stage_folder,
)
from lavit.runs.folder import CLOCKED
from lavit.runs.progress import Pace, clock

NOTICE = 2.0  # seconds in which a run whose make was killed sees that, and says that it is stopping
AT_ONCE = 2  # stages of one group that run at the same time
ERROR = re.compile(r"(?:\[rank\d+\]: *)?(?:error: *(?P<said>.+)|(?P<raised>[\w.]*(?:Error|Exception|InUse)(?:: .*)?))")
RANK_EXIT = re.compile(r"exits with return code = (-?\d+)")  # DeepSpeed's launcher of a rank that ended badly
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


@dataclass(frozen=True)
class Stage:
    """One step of an experiment, a process of its own: ``python -m module CONFIG [key=value ...]``.

    Attributes:
        name: what the user reads, and the stage's folder below the run folder.
        module: what is run.
        needs: names of the stages that must be done before.
        ranks: whether DeepSpeed's launcher starts it, with the configured number of processes.
        group: stages of one group may run at the same time; "" runs alone.
        clocks: folders below the run folder whose seconds it counts itself; by default it is timed from outside.
    """

    name: str
    module: str
    needs: tuple[str, ...] = ()
    ranks: bool = False
    group: str = ""
    clocks: tuple[str, ...] = ()

    def at(self, run: Path) -> Path:
        """The stage's folder."""
        return run / self.name

    def done(self, run: Path) -> bool:
        """Whether it has finished."""
        return is_done(self.at(run))

    def seconds(self, run: Path) -> dict[str, float]:
        """Wall seconds so far, by folder."""
        return {name: read_seconds(run / name) for name in self.clocks or (self.name,)}

    def command(self, arguments: Sequence[str], processes: int) -> list[str]:
        """What to execute; ``arguments`` are the config file and the overrides."""
        if self.ranks:
            return launch_command(self.module, arguments, processes)
        return [sys.executable, "-u", "-m", self.module, *arguments]


class StageFailed(Exception):
    """A stage ended without finishing; the message is what the user is told."""


class Running:
    """A stage under way: its processes, its clock and the part of its log that they write."""

    def __init__(self, stage: Stage, run: Path, arguments: Sequence[str], processes: int, shares: int):
        self.stage, self._run = stage, run
        self.folder = stage_folder(run, stage.name)
        self.log = self.folder / "log.txt"
        self.pace = Pace(stage.name, self.folder)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._clock = ExitStack()
        environment = launch_environment(processes if stage.ranks else 1, shares)
        command = stage.command(arguments, processes)
        if not stage.clocks:
            environment[CLOCKED] = str(self.folder.resolve())
            self._clock.enter_context(stage_clock(self.folder))
        try:
            self.group = ProcessGroup(command, environment, self.log)
        except BaseException:
            self._clock.close()
            raise

    def finished(self) -> bool:
        """Whether the command has ended, and then close its accounts.

        Raises:
            StageFailed: it ended and the stage is not done.
        """
        code = self.group.poll()
        if code is None:
            return False
        if not self.stage.done(self._run):
            raise StageFailed(self._why(code))
        self.group.outlives(FOLLOW)
        self.close()
        return True

    def close(self) -> None:
        """End what is left of the processes, stop the clock."""
        end_all([self.group], signal.SIGTERM, 5.0)
        self._clock.close()

    def _why(self, code: int) -> str:
        name = self.stage.name
        if code in STOPPED:
            return f"{name} was stopped by a signal; run again to go on"
        with open(self.log, "rb") as file:
            file.seek(max(self._log_start, self.log.stat().st_size - 2**20))
            lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
        exits = [int(match[1]) for line in lines if (match := RANK_EXIT.search(line))]
        if -signal.SIGKILL in exits:
            return f"{name}: one of its processes was killed (kill -9, or too little memory); run again to go on"
        errors = [match["said"] or match["raised"] for line in lines if (match := ERROR.fullmatch(line.rstrip()))]
        reason = errors[-1] if errors else _exit_words(code)
        tail = "".join(f"  | {line}\n" for line in lines[-30:])
        return f"last lines of {self.log}:\n{tail}{name} failed: {reason}"


def _exit_words(code: int) -> str:
    if code == 0:
        return "it ended without an error and without finishing; was its launcher killed?"
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL, 256 - signal.SIGKILL):
        return "it was killed (kill -9, or too little memory)"
    return f"exit status {code}"


class Conductor:
    """Runs the stages of ``run`` that are not done, each after those it needs, two of a group at the same time."""

    def __init__(self, stages: Sequence[Stage], run: Path, arguments: Sequence[str], demo: DemoConfig, screen: Screen):
        self._stages, self._run, self._arguments = stages, run, arguments
        self._demo, self._screen = demo, screen
        self._running: list[Running] = []
        self.ran: list[str] = []  # names of the stages that this session finished

    def conduct(self) -> int:
        """Run to the end: 0, 1 after a failure, 130 or 143 after a signal; no process is left behind.

        Raises:
            FolderInUse: another process works in the run folder.
            ValueError: a finished stage is older than one that it was built on.
        """
        with StopSignal(self._at_once) as stop:
            try:
                with FolderLock(self._run, wait=NOTICE, waiting=self._waiter(stop)) as lock:
                    check_order(self._stages, self._run)
                    if not self._waiting_stages():
                        return 0
                    with stage_clock(self._run):
                        self._loop(stop, lock)
            except StageFailed as failure:
                if not stop.requested:
                    self._screen.line(str(failure))
                    return 1
            return stop.exit_code

    def _loop(self, stop: StopSignal, lock: FolderLock) -> None:
        try:
            self._start_ready(stop)
            while self._running and not stop.requested:
                time.sleep(0.2)
                self._collect()
                self._start_ready(stop)
                self._screen.status([item.pace.words() for item in self._running])
        finally:
            if self._running:
                lock.stopping()
                self._end(stop)

    def _collect(self) -> None:
        """Take note of the stages that have finished."""
        for item in list(self._running):
            if item.finished():
                self._running.remove(item)
                self.ran.append(item.stage.name)
                note = (read_done(item.stage.at(self._run)) or {}).get("note")
                after = f"; {note}" if note else ""
                self._screen.line(f"  {item.stage.name}: done in {clock(item.pace.seconds())}{after}")

    def _start_ready(self, stop: StopSignal) -> None:
        """Start what needs nothing that is still to come and may run beside what runs."""
        waiting = self._waiting_stages()
        under_way = [item.stage for item in self._running]  # done.json may be there while the processes still end
        done = {stage.name for stage in self._stages if stage not in waiting and stage not in under_way}
        for stage in waiting:
            busy = [item.stage for item in self._running]
            if stop.requested or stage in busy or not done.issuperset(stage.needs):
                continue
            beside = self._demo.concurrent and stage.group and all(other.group == stage.group for other in busy)
            if busy and not (beside and len(busy) < AT_ONCE):
                continue
            self._screen.line(f"[{self._stages.index(stage) + 1}/{len(self._stages)}] {stage.name}")
            folder = stage.at(self._run)
            with FolderLock(folder, wait=SAVE_PATIENCE, waiting=self._waiter(stop)):
                pass  # what an interrupted run left of this stage is still saving: let it end
            if stop.requested:
                return
            running = Running(stage, self._run, self._arguments, self._demo.processes, self._shares(stage))
            self._running.append(running)

    def _shares(self, stage: Stage) -> int:
        """Parts of the cores, the same in each session, since the number of threads changes the last digits."""
        if not (self._demo.concurrent and stage.group):
            return 1
        return min(AT_ONCE, sum(other.group == stage.group for other in self._stages))

    def _waiting_stages(self) -> list[Stage]:
        return [stage for stage in self._stages if not stage.done(self._run)]

    def _waiter(self, stop: StopSignal) -> Callable[[str], None]:
        said: list[str] = []

        def waiting(holder: str) -> None:
            if stop.requested:
                raise StageFailed(f"stopped while waiting: {holder}")
            if not said:
                said.append(holder)
                self._screen.line(f"  waiting: {holder}")

        return waiting

    def _end(self, stop: StopSignal) -> None:
        names = " and ".join(item.stage.name for item in self._running)
        if stop.requested:
            self._screen.line(f"stopping: {names} may save first (Ctrl-C again stops at once)")
        groups = [item.group for item in self._running]
        if not end_all(groups, stop.signal or signal.SIGTERM, SAVE_PATIENCE):
            self._screen.line(f"what did not end in {SAVE_PATIENCE:.0f} s was killed; its last checkpoint is whole")
        for item in self._running:
            item.close()

    def _at_once(self, signum: int) -> None:
        end_all([item.group for item in self._running], signal.SIGKILL, 5.0)
        os._exit(128 + signum)


def check_order(stages: Sequence[Stage], run: Path) -> None:
    """Check that no finished stage was built on one that is gone or was made anew since.

    Raises:
        ValueError: naming the folders to remove.
    """
    finished = {stage.name: (read_done(stage.at(run)) or {}).get("finished") for stage in stages}
    gone = {stage.name for stage in stages if not stage.done(run)}
    stale: dict[str, str] = {}
    for index, stage in enumerate(stages):
        assert {other.name for other in stages[:index]}.issuperset(stage.needs), f"{stage.name}: {stage.needs}"
        for need in stage.needs if stage.name not in gone else ():
            times = finished.get(need), finished.get(stage.name)
            newer = None not in times and times[0] > times[1]
            if need in gone or need in stale or newer:
                stale.setdefault(stage.name, need)
    if stale:
        name, need = next(iter(stale.items()))
        places = " ".join(str(s.at(run)) for s in stages if s.name in stale)
        raise ValueError(f"{name} was built on a {need} that is gone or newer; remove what is out of date: {places}")
