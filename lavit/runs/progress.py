"""How far a stage is: the stage writes ``progress.json``, whoever runs it reads it and shows it."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from lavit.runs.folder import read_json, write_json


class ProgressState(NamedTuple):
    """``done`` of ``total`` units; ``note`` is free text, a loss for instance; ``at`` the Unix time of writing.

    ``part`` is the phase that it is of, "" of a stage without any.
    """

    done: int
    total: int
    unit: str
    note: str
    at: float
    part: str = ""


class Progress:
    """Writes how far a stage is into its folder, at most once in ``every`` seconds; the last step always."""

    def __init__(self, folder: str | Path, total: int, unit: str = "steps", every: float = 1.0):
        self._path = Path(folder) / "progress.json"
        self._total, self._unit, self._every = total, unit, every
        self._written = float("-inf")

    def update(self, done: int, note: str = "") -> None:
        """``done`` of the total units are done."""
        now = time.monotonic()
        if done >= self._total or now - self._written >= self._every:
            self._written = now
            state = ProgressState(done, self._total, self._unit, note, time.time())._asdict()
            write_json(self._path, {name: value for name, value in state.items() if name != "part"})


def read_progress(folder: str | Path) -> ProgressState | None:
    """What the stage, or a phase in a folder of its own below it, wrote last; None before its first word."""
    folder = Path(folder)
    paths = {path: path.parent.name for path in folder.glob("*/progress.json")} | {folder / "progress.json": ""}
    states = [ProgressState(**read_json(path), part=part) for path, part in paths.items() if path.is_file()]
    return max(states, key=lambda state: state.at, default=None)


class Screen:
    """Permanent lines, and below them one status: rewritten in place on a terminal, a line now and then elsewhere."""

    def __init__(self, out: TextIO | None = None, every: float = 15.0):
        self._out = out if out is not None else sys.stdout
        self._tty = self._out.isatty()
        self._every = 0.5 if self._tty else every
        self._shown = time.monotonic()
        self._open = False

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._write(f"{self._erase()}{text}\n")

    def status(self, parts: Sequence[str]) -> None:
        """Say what is going on, unless that was said a moment ago."""
        now = time.monotonic()
        if not parts or now - self._shown < self._every:
            return
        self._shown = now
        if self._tty:
            width = shutil.get_terminal_size().columns - 1
            self._write("\r\x1b[K" + "  |  ".join(parts)[:width])
            self._open = True
        else:
            for part in parts:
                self.line(f"  {part}")

    def _erase(self) -> str:
        was_open, self._open = self._open, False
        return "\r\x1b[K" if was_open else ""

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:  # the terminal or the pipe is gone: no reason to end a run
            pass


class Pace:
    """Turns the progress of one stage into words: what is done, since when, and about how long it still takes."""

    def __init__(self, name: str, folder: str | Path):
        self._name, self._folder = name, folder
        self._since, self._start = time.time(), time.monotonic()
        self._first: ProgressState | None = None

    def seconds(self) -> float:
        """Wall seconds since it began."""
        return time.monotonic() - self._start

    def words(self) -> str:
        """``pretrain: 120/736 steps, loss 3.1, 1:10, about 4:50 left``."""
        state = read_progress(self._folder)
        parts = [clock(self.seconds())]
        if state is None or state.at < self._since:  # what an interrupted session wrote says nothing about this one
            return f"{self._name}: starting, {parts[0]}"
        if self._first is None or self._first.part != state.part:
            self._first = state
        parts = [*([state.note] if state.note else []), *parts]
        gained, passed = state.done - self._first.done, state.at - self._first.at
        if gained > 0 and state.done < state.total:
            parts.append(f"about {clock((state.total - state.done) * passed / gained)} left")
        name = f"{self._name}/{state.part}" if state.part else self._name
        return f"{name}: {state.done}/{state.total} {state.unit}, {', '.join(parts)}"


def clock(seconds: float) -> str:
    """``1:05`` for 65 s, ``1:00:05`` for an hour and five seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
