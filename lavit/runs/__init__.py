"""How runs are conducted: run folders, their locks and clocks, progress, and how processes end. Imports no torch."""

from lavit.runs.folder import (
    DemoConfig,
    is_done,
    let_others_read,
    mark_done,
    open_run,
    read_done,
    read_json,
    read_seconds,
    require_free,
    require_same_config,
    stage_clock,
    stage_folder,
    take_over,
    write_atomic,
    write_json,
    written_whole,
)
from lavit.runs.lock import FolderInUse, FolderLock
from lavit.runs.processes import ProcessGroup, StopSignal, end_all, end_with_parent, usable_cores
from lavit.runs.progress import Progress, ProgressState, Screen, read_progress

__all__ = [
    "DemoConfig",
    "FolderInUse",
    "FolderLock",
    "ProcessGroup",
    "Progress",
    "ProgressState",
    "Screen",
    "StopSignal",
    "end_all",
    "end_with_parent",
    "is_done",
    "let_others_read",
    "mark_done",
    "open_run",
    "read_done",
    "read_json",
    "read_progress",
    "read_seconds",
    "require_free",
    "require_same_config",
    "stage_clock",
    "stage_folder",
    "take_over",
    "usable_cores",
    "write_atomic",
    "write_json",
    "written_whole",
]
