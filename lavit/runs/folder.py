"""Run folders: ``config.yaml``, ``environment.json`` and one folder a stage with ``done.json`` and ``seconds.json``.

A file appears whole or not at all, and ``done.json`` is a stage's last: a folder without it is unfinished, whatever
else it holds.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lavit.config import ConfigError, changed_keys, load, read_plain, read_plain_text, to_yaml

PACKAGES = ("torch", "torchvision", "deepspeed", "transformers", "diffusers", "timm")
CLOCKED = "LAVIT_CLOCKED"  # the stage folder whose seconds the process that started this one counts already


@dataclass
class DemoConfig:
    """How all stages of an experiment are run by one command.

    Attributes:
        processes: ranks of a training stage; on GPUs at most one a GPU.
        concurrent: whether stages of one group run at the same time, each with its share of the cores.
        stages: the names of those that it has, by default those of LaVIT.
    """

    processes: int = 1
    concurrent: bool = True
    stages: list[str] = field(default_factory=list)


@dataclass
class ChecksConfig:
    """What ``make checks`` sets side by side.

    Attributes:
        arms: by name, what a run sets otherwise, as ``key=value``.
        settings: what the runs of all arms set otherwise than the experiment itself.
        seeds: every arm runs with each.
        figures: what is shown of them, as ``group.figure`` of metrics.json.
    """

    arms: dict[str, list[str]] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    figures: list[str] = field(default_factory=list)


# --------------------------------------------------------------------------------------------------------- files


@contextmanager
def written_whole(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """A draft's path to write to; at the end of the block the draft replaces ``path``, after an error it is removed.

    A reader, or a crash at any moment, sees the old content or the new, never a part.

    Raises:
        FileExistsError: without ``replace``, something is there by now; it stays.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        draft.touch()
        mode = draft.stat().st_mode
        yield draft
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(draft, mode)  # safetensors would keep its files from other users
        if replace:
            os.replace(draft, path)
        else:
            os.link(draft, path)  # fails where something is
            draft.unlink()
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def let_others_read(folder: Path) -> None:
    """Give all files below ``folder`` the mode of new ones; safetensors keeps its own from other users."""
    probe = folder / f".{uuid.uuid4().hex[:8]}.tmp"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write a file whole or not at all; see :func:`written_whole`."""
    with written_whole(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; NumPy and torch scalars become numbers.

    Raises:
        ValueError: a number that is not finite (JSON has none) or a value JSON cannot hold.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False, default=_scalar, ensure_ascii=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"cannot write {path}: {error}; JSON holds finite numbers, text, lists and mappings") from None
    write_atomic(path, text + "\n")


def _scalar(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"no file {path}; run the stage that writes it") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); remove it and run again") from None


def require_free(folder: str | Path, needed: int) -> None:
    """Check that ``needed`` bytes fit on the disk that holds ``folder``, which need not exist yet.

    Raises:
        ValueError: with what is needed and what is free.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        gib = 2**30
        raise ValueError(f"{folder} needs {needed / gib:.2f} GiB and {free / gib:.2f} GiB are free; make room there")


# ----------------------------------------------------------------------------------------------------------- run


KEPT = (".lock", "log.txt", "log.jsonl", "progress.json", "seconds.json")


def open_run(folder: str | Path, config: Any, owners: dict[str, tuple[str, ...]] | None = None) -> Path:
    """Create a run folder with its resolved configuration and environment, or go on in one of the same configuration.

    Any number of processes may open one folder at the same time.

    Args:
        folder: where the run lives.
        config: the typed configuration.
        owners: by the beginning of a dotted key, the stages whose work depends on it. While they have made nothing,
            the setting may still change. Those of no stage change nothing that is kept, and always may.

    Raises:
        ConfigError: the folder holds a run of another configuration, or cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.yaml").exists() or require_same_config(folder, config, owners):
            write_atomic(folder / "config.yaml", to_yaml(config))
        _record_environment(folder / "environment.json")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise ConfigError(
            f"the run folder {folder} cannot be written ({error.strerror}); choose another with run=other/folder"
        ) from None
    return folder


def require_same_config(folder: str | Path, config: Any, owners: dict[str, tuple[str, ...]] | None = None) -> bool:
    """Whether settings changed, all of them of stages that have made nothing; :func:`open_run` explains the arguments.

    Raises:
        ConfigError: naming up to five keys that changed, and what to remove.
    """
    folder = Path(folder)
    path, text = folder / "config.yaml", to_yaml(config)
    if path.read_text() == text:
        return False
    known = _as_meant(path, config)
    changed = [key for key in changed_keys(known, read_plain_text(text)) if key != "run"]
    owned = {key: owners_of(key, owners or {}) for key in changed}
    made = {stage for stages in owned.values() for stage in stages or () if _has_made(folder / stage)}
    changed = [key for key, stages in owned.items() if stages is None or made.intersection(stages)]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        whole = None in owned.values()
        places = "the folder" if whole else " ".join(str(folder / stage) for stage in sorted(made))
        raise ConfigError(
            f"{folder} holds a run with other settings: {', '.join(changed[:5])}{more} changed; "
            f"remove {places} to make it anew, or choose another run with run=other/folder"
        )
    return bool(owned)


def _as_meant(path: Path, config: Any) -> dict[str, Any]:
    """The settings of a run's file, with the defaults of those that did not exist yet when it was written."""
    try:
        return read_plain_text(to_yaml(load(type(config), path)))
    except ConfigError:  # it has settings that are gone
        return read_plain(path)


def owners_of(key: str, owners: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """The stages of the longest beginning of a dotted key, None where the whole run depends on it.

    A ``*`` among the beginnings stands for any one name.
    """
    names = key.split(".")
    beginnings = {start: start.split(".") for start in owners}
    found = [start for start, its in beginnings.items() if _begins(names, its)]
    return owners[max(found, key=lambda start: len(beginnings[start]))] if found else None


def _begins(names: list[str], its: list[str]) -> bool:
    return len(its) <= len(names) and all(a in (b, "*") for a, b in zip(its, names, strict=False))


def _has_made(folder: Path) -> bool:
    """Whether a stage has left anything but its lock, logs, clock and drafts."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return any(file.name not in KEPT and ".partial" not in str(file) and file.suffix != ".tmp" for file in files)


def _record_environment(path: Path) -> None:
    """Write the commit and versions; those of an earlier session of the run, where they differ, are kept."""
    now = environment()
    if not path.exists():
        return write_json(path, {**now, "earlier": []})
    known = read_json(path)
    earlier = known.pop("earlier", [])
    if known != now:
        write_json(path, {**now, "earlier": [*earlier, known]})


def environment() -> dict[str, Any]:
    """``{commit, dirty, python, platform, versions: {package: version or None}}``; commit "unknown" outside git."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    commit, dirty = _commit(Path(__file__).resolve().parents[2])
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }


def _commit(root: Path) -> tuple[str, bool | None]:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:  # installed inside someone else's repository
            return "unknown", None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "unknown", None


# -------------------------------------------------------------------------------------------------------- stages


def stage_folder(run: str | Path, name: str) -> Path:
    """The folder of one stage, created where it is not there."""
    folder = Path(run) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def take_over(start: Path, run: Path, texts: bool = True) -> None:
    """Let ``run`` have, by links, what comes before pretraining in the run ``start``, which stays as it is.

    Any number of processes may do so at the same time. Without ``texts`` the plain texts are left to ``run``.

    Raises:
        ValueError: ``run`` has something of its own there.
    """
    # One by one: what prepares them has its log there too.
    data = ("data/captions", "data/vqa", "data/speech", "data/done.json")
    for name in (*data, "features", "tokenizer", "speech", "extract", *(["text"] if texts else [])):
        source, place = (start / name).resolve(), run / name
        if not source.exists() or place.resolve() == source:  # also where a folder above is a link
            continue
        if place.exists() and not place.is_symlink():
            raise ValueError(f"{place} is there, which this run takes from {start}; remove it")
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
        draft.symlink_to(source)
        os.replace(draft, place)


def is_done(folder: str | Path) -> bool:
    """Whether the stage has finished."""
    return (Path(folder) / "done.json").is_file()


def mark_done(folder: str | Path, info: dict[str, Any] | None = None) -> None:
    """Declare a stage finished: its very last write, once, after every rank has written what it writes."""
    write_json(Path(folder) / "done.json", {"finished": time.time(), **(info or {})})


def read_done(folder: str | Path) -> dict[str, Any] | None:
    """What :func:`mark_done` wrote (``finished``: Unix time, and its ``info``), None for an unfinished stage."""
    return read_json(Path(folder) / "done.json") if is_done(folder) else None


def read_seconds(folder: str | Path) -> float:
    """Wall seconds spent on a stage so far, interruptions left out; 0 for one that never ran."""
    path = Path(folder) / "seconds.json"
    return float(read_json(path)["seconds"]) if path.is_file() else 0.0


@contextmanager
def stage_clock(folder: str | Path, every: float = 5.0) -> Iterator[Callable[[], float]]:
    """Count wall seconds into ``folder/seconds.json``, added to those of earlier, interrupted sessions.

    Written each ``every`` seconds, so that a killed stage loses no more. Yields a function that gives the seconds so
    far. Where the process that started this one counts the same folder already (its count includes the start of the
    launcher), nothing is written.
    """
    folder = Path(folder).resolve()
    before, start = read_seconds(folder), time.monotonic()

    def seconds() -> float:
        return before + time.monotonic() - start

    if os.environ.get(CLOCKED) == str(folder):
        yield seconds
        return
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(every):
            write_json(folder / "seconds.json", {"seconds": round(seconds(), 1)})

    thread = threading.Thread(target=tick, name="stage-clock", daemon=True)
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join()
        write_json(folder / "seconds.json", {"seconds": round(seconds(), 1)})
