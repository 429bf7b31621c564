from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lavit.config import ConfigError, load_section
from lavit.runs import (
    DemoConfig,
    FolderInUse,
    FolderLock,
    Progress,
    Screen,
    StopSignal,
    is_done,
    mark_done,
    open_run,
    owners_of,
    read_done,
    read_json,
    read_progress,
    read_seconds,
    require_free,
    stage_clock,
    stage_folder,
    write_atomic,
    write_json,
    written_whole,
)
from lavit.runs.progress import Pace, clock

ROOT = Path(__file__).parents[1]


@dataclass
class Part:
    a: int = 1
    b: float = 0.5
    c: int = 0
    d: int = 0
    e: int = 0
    f: int = 0


@dataclass
class Whole:
    run: str = "runs/x"
    seed: int = 0
    part: Part = field(default_factory=Part)


def python(code: str, *arguments: object, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, **options)


def until(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(met)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------------- files


def test_a_failed_write_leaves_the_old_content_and_no_draft(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="a.json.*finite"):
        write_json(path, {"x": float("nan")})
    with pytest.raises(IsADirectoryError):
        (tmp_path / "folder").mkdir()
        write_atomic(tmp_path / "folder", "text")
    assert read_json(path) == {"x": 1}
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.json", "folder"]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, ["0"] * 50_000)
    code = (
        "import sys; from lavit.runs import write_json\n"
        "for i in range(10**6): write_json(sys.argv[1], [str(i)] * 50_000); print(i, flush=True)"
    )
    process = python(code, path)
    assert process.stdout.readline() == "0\n"
    time.sleep(0.1)
    process.kill()
    process.communicate()
    values = read_json(path)
    assert len(values) == 50_000 and len(set(values)) == 1


def test_scalars_become_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")
    write_json(tmp_path / "m.json", {"x": numpy.float32(0.5), "n": numpy.int64(3), "p": Path("a/b")})
    assert read_json(tmp_path / "m.json") == {"x": 0.5, "n": 3, "p": "a/b"}
    with pytest.raises(ValueError, match="object has no JSON form"):
        write_json(tmp_path / "m.json", {"x": object()})


def test_reading_json_names_file_and_remedy(tmp_path):
    with pytest.raises(ValueError, match="no file .*m.json; run the stage"):
        read_json(tmp_path / "m.json")
    (tmp_path / "m.json").write_text('{"x": ')
    with pytest.raises(ValueError, match="m.json is not valid JSON .* remove it"):
        read_json(tmp_path / "m.json")


def test_too_little_disk_says_needed_and_free(tmp_path):
    require_free(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(ValueError, match=r"needs 1048576.00 GiB and \d+\.\d\d GiB are free"):
        require_free(tmp_path / "not" / "there" / "yet", 2**50)
    assert not (tmp_path / "not").exists()


# --------------------------------------------------------------------------------------------------- run folders


def test_a_run_is_opened_again_with_the_same_settings(tmp_path):
    run = open_run(tmp_path / "r", Whole())
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "environment.json")}
    assert open_run(tmp_path / "r", Whole(run="moved/there")) == run
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    environment = read_json(run / "environment.json")
    assert environment["versions"].keys() >= {"torch", "deepspeed", "transformers", "diffusers", "timm"}
    assert len(environment["commit"]) == 40 or environment["commit"] == "unknown"


def test_a_run_of_other_settings_is_refused(tmp_path):
    run = open_run(tmp_path / "r", Whole())
    with pytest.raises(ConfigError, match=r"r holds .* part.a changed; remove the folder .* run=other/folder"):
        open_run(run, Whole(part=Part(a=2)))
    with pytest.raises(ConfigError, match="part.a, part.b, part.c, part.d, part.e and 1 more changed"):
        open_run(run, Whole(part=Part(2, 2.0, 2, 2, 2, 2)))
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "environment.json"]


def test_settings_that_are_newer_than_a_run_had_their_defaults(tmp_path):
    run = open_run(tmp_path / "r", Whole())
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("\n".join(line for line in text.splitlines() if not line.strip().startswith("a:")))
    open_run(run, Whole())
    with pytest.raises(ConfigError, match=r"part.a changed; remove the folder"):
        open_run(run, Whole(part=Part(a=2)))
    (run / "config.yaml").write_text(text + "gone: 3\n")
    with pytest.raises(ConfigError, match=r"gone changed; remove the folder"):
        open_run(run, Whole())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"the run folder .*file/run cannot be written \(Not a directory\); choose"):
        open_run(tmp_path / "file" / "run", Whole())


def test_a_setting_may_change_until_its_stage_has_made_something(tmp_path):
    known = {"a": ("1",), "a.*.c": ("2", "4"), "z.y": ()}
    assert owners_of("a.x.c.d", known) == ("2", "4") and owners_of("a.x", known) == ("1",)
    assert owners_of("z.y.c", known) == () and owners_of("b", known) is owners_of("ab", known) is None
    owners = {"part": ("models",), "part.b": ("data",), "part.c": ("models", "data"), "part.d": ()}
    run = open_run(tmp_path / "r", Whole(), owners)
    for stage in ("models", "data"):
        (run / stage).mkdir()
        (run / stage / "log.txt").write_text("error: no such folder\n")
    open_run(run, Whole(part=Part(a=2)), owners)
    assert "a: 2" in (run / "config.yaml").read_text()
    (run / "data" / "captions").mkdir()
    (run / "data" / "captions" / "train-0.tar").touch()
    open_run(run, Whole(part=Part(a=3)), owners)
    with pytest.raises(ConfigError, match=rf"part.b changed; remove {run}/data to make it anew, or choose another"):
        open_run(run, Whole(part=Part(a=3, b=7.0)), owners)
    with pytest.raises(ConfigError, match=rf"part.c changed; remove {run}/data to make it anew, or choose another"):
        open_run(run, Whole(part=Part(a=3, c=7)), owners)
    (run / "models" / "done.json").touch()
    with pytest.raises(ConfigError, match=rf"part.a, part.b changed; remove {run}/data {run}/models to make it anew"):
        open_run(run, Whole(part=Part(a=4, b=7.0)), owners)
    with pytest.raises(ConfigError, match="seed changed; remove the folder"):
        open_run(run, Whole(seed=9, part=Part(a=3)), owners)
    assert "a: 3" in (run / "config.yaml").read_text()
    open_run(run, Whole(part=Part(a=3, d=8)), owners)


def test_what_is_written_can_be_read_by_others(tmp_path):
    before = os.umask(0o022)
    try:
        with written_whole(tmp_path / "x") as draft:
            draft.unlink(missing_ok=True)
            os.close(os.open(draft, os.O_CREAT | os.O_WRONLY, 0o600))
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_going_on_with_other_versions_keeps_both(tmp_path):
    run = open_run(tmp_path, Whole())
    now = read_json(run / "environment.json")
    write_json(run / "environment.json", {**now, "python": "3.10.0"})
    open_run(run, Whole())
    again = read_json(run / "environment.json")
    assert again["python"] == now["python"]
    assert [item["python"] for item in again["earlier"]] == ["3.10.0"]


def test_a_section_is_read_without_the_rest(tmp_path):
    (tmp_path / "base.yaml").write_text("run: runs/a\nunknown: {x: 1}\n")
    (tmp_path / "c.yaml").write_text("base: base.yaml\ndemo: {processes: 2}\n")
    path = tmp_path / "c.yaml"
    assert load_section(path, [], "run", str) == "runs/a"
    assert load_section(path, ["demo.concurrent=false"], "demo", DemoConfig) == DemoConfig(2, False)
    assert load_section(tmp_path / "base.yaml", [], "demo", DemoConfig) == DemoConfig()
    with pytest.raises(ConfigError, match="'demo.procesess'; did you mean 'demo.processes'"):
        load_section(path, ["demo.procesess=1"], "demo", DemoConfig)
    with pytest.raises(ConfigError, match="sets no 'name'"):
        load_section(path, [], "name", str)


def test_a_stage_is_done_once_it_says_so(tmp_path):
    folder = stage_folder(tmp_path, "eval/caption")
    assert not is_done(folder) and read_done(folder) is None
    mark_done(folder, {"steps": 3})
    assert is_done(folder) and read_done(folder)["steps"] == 3
    assert abs(read_done(folder)["finished"] - time.time()) < 5


# --------------------------------------------------------------------------------------------------------- clock


def test_seconds_add_up_over_a_kill(tmp_path):
    write_json(tmp_path / "seconds.json", {"seconds": 100.0})
    code = (
        "import sys, time; from lavit.runs import stage_clock\nwith stage_clock(sys.argv[1], every=0.1): time.sleep(60)"
    )
    process = python(code, tmp_path)
    assert until(lambda: read_seconds(tmp_path) >= 100.2)
    process.kill()
    process.communicate()
    left = read_seconds(tmp_path)
    with stage_clock(tmp_path) as seconds:
        time.sleep(0.2)
        assert seconds() >= left + 0.2
    assert left + 0.1 <= read_seconds(tmp_path) < left + 1


def test_a_clock_inside_the_starter_s_clock_does_not_count_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIT_CLOCKED", str(tmp_path.resolve()))
    with stage_clock(tmp_path):
        pass
    assert not (tmp_path / "seconds.json").exists()
    other = stage_folder(tmp_path, "other")
    with stage_clock(other):
        pass
    assert (other / "seconds.json").exists()


# ---------------------------------------------------------------------------------------------------------- lock

HOLD = """
import os, subprocess, sys, time
from lavit.runs import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    if sys.argv[2] == "program":
        print(subprocess.Popen(["sleep", "30"], close_fds=False).pid, flush=True)
    elif sys.argv[2] == "fork" and os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(30)
"""


def test_a_second_writer_is_told_who_writes(tmp_path):
    process = python(HOLD, tmp_path, "my.yaml")
    assert process.stdout.readline() == "held\n"
    with pytest.raises(FolderInUse, match=rf"in use by process {process.pid} \(python\S* -c import os.*\); wait"):
        FolderLock(tmp_path).__enter__()
    process.kill()
    process.communicate()
    with FolderLock(tmp_path), pytest.raises(FolderInUse, match=f"process {os.getpid()} "):
        FolderLock(tmp_path).__enter__()
    with FolderLock(tmp_path):
        pass


@pytest.mark.parametrize("child", ["program", "fork"])
def test_the_lock_dies_with_its_process_not_with_its_children(tmp_path, child):
    process = python(HOLD, tmp_path, child)
    assert process.stdout.readline() == "held\n"
    orphan = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        assert running(orphan)
        with FolderLock(tmp_path):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_waiting_for_a_holder(tmp_path):
    told: list[str] = []
    with FolderLock(tmp_path) as lock:
        with pytest.raises(FolderInUse):
            FolderLock(tmp_path, wait=0.2, waiting=told.append).__enter__()
        lock.stopping()
        threading.Timer(0.3, lambda: lock.__exit__()).start()
        with FolderLock(tmp_path, wait=0.1, waiting=told.append):  # one that is stopping gets more than 0.1 s
            pass
    assert "in use by process" in told[0]


# ------------------------------------------------------------------------------------------------------- signals

LOOP = """
import sys, time
import lavit.runs.processes
from lavit.runs import StopSignal
lavit.runs.processes.ECHO = float(sys.argv[2])
with StopSignal() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(float(sys.argv[1]))
    print("saved", flush=True)
sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_saving_and_its_echo_changes_nothing(signum, code):
    process = python(LOOP, 0.3, 1)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signum)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved\n"
    assert process.wait(10) == code
    process.communicate()


def test_a_second_ctrl_c_does_not_wait():
    process = python(LOOP, 60, 0.2)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saving\n"
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    process.communicate()


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        assert not stop.requested and stop.exit_code == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert until(lambda: stop.requested, 2) and stop.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
LEAF = """
import os, sys, time
from pathlib import Path
from lavit.runs import end_with_parent
end_with_parent(grace=0.5, every=0.05)
if "deaf" in sys.argv:
    import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path("leaf.pid").write_text(str(os.getpid()))
time.sleep(60)
"""


def leaf_below_make(folder: Path, *words: str) -> tuple[subprocess.Popen, int]:
    """make → sh -c → python (a module of ours, standing for a launcher) → the leaf that watches them."""
    (folder / "eval").mkdir()
    (folder / "eval" / "__init__.py").touch()
    (folder / "eval" / "leaf.py").write_text(LEAF)
    starter = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'eval.leaf', *sys.argv[1:]])\n"
    (folder / "eval" / "starter.py").write_text(starter)
    recipe = f"{sys.executable} -m eval.starter {' '.join(words)} && true"
    (folder / "Makefile").write_text(f"all:\n\t{recipe}\n")
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    make = subprocess.Popen(["make", "-s"], cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    pid = folder / "leaf.pid"
    assert until(lambda: pid.exists() and pid.read_text())
    return make, int(pid.read_text())


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@needs_proc
@pytest.mark.parametrize("victim", ["make", "sh", "starter"])
@pytest.mark.parametrize("words", [(), ("deaf",)], ids=["SIGTERM", "deaf to SIGTERM"])
def test_a_leaf_ends_when_one_of_those_above_is_killed(tmp_path, victim, words):
    make, leaf = leaf_below_make(tmp_path, *words)
    shell = children(make.pid)[0]
    os.kill({"make": make.pid, "sh": shell, "starter": children(shell)[0]}[victim], signal.SIGKILL)
    assert until(lambda: not running(leaf), 5)
    make.wait(10)


@needs_proc
def test_a_leaf_ends_when_its_starter_was_gone_before_it_looked(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    process = python(LEAF, cwd=tmp_path, env={"LAVIT_CHAIN": f"{gone.pid}:1"})
    _, errors = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM
    assert f"process {gone.pid}, which started this run, is gone" in errors


@needs_proc
def test_a_shell_at_the_top_may_leave(tmp_path):
    """``ssh host 'nohup make demo &'`` goes on: that ``sh -c`` is no part of the run."""
    (tmp_path / "leaf.py").write_text(LEAF)
    command = f"{sys.executable} leaf.py >/dev/null 2>&1 & while [ ! -s leaf.pid ]; do sleep 0.05; done"
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=10)
    leaf = int((tmp_path / "leaf.pid").read_text())
    time.sleep(0.3)
    assert running(leaf)
    os.kill(leaf, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------ progress


def test_progress_is_written_now_and_then_and_at_the_end(tmp_path):
    progress = Progress(tmp_path, total=3, every=100)
    assert read_progress(tmp_path) is None
    progress.update(1, "loss 2.0")
    progress.update(2)
    assert read_progress(tmp_path)[:4] == (1, 3, "steps", "loss 2.0")
    progress.update(3)
    assert read_progress(tmp_path).done == 3


def test_pace_says_what_is_left(tmp_path):
    stale = {"done": 9, "total": 10, "unit": "steps", "note": "", "at": time.time() - 60}
    write_json(tmp_path / "progress.json", stale)
    pace = Pace("pretrain", tmp_path)
    assert pace.words() == "pretrain: starting, 0:00"
    state = {"total": 100, "unit": "steps", "note": "loss 3.1"}
    write_json(tmp_path / "progress.json", {**state, "done": 10, "at": time.time()})
    assert pace.words() == "pretrain: 10/100 steps, loss 3.1, 0:00"
    write_json(tmp_path / "progress.json", {**state, "done": 20, "at": time.time() + 10})
    assert pace.words().startswith("pretrain: 20/100 steps, loss 3.1, 0:00, about 1:20 left")
    assert [clock(65), clock(3605.2)] == ["1:05", "1:00:05"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_status_in_place_and_a_file_lines(monkeypatch):
    monkeypatch.setattr("lavit.runs.progress.time.monotonic", iter(range(0, 1000, 10)).__next__)
    terminal, file = Terminal(), io.StringIO()
    for out in (terminal, file):
        screen = Screen(out)
        screen.line("[1/2] data")
        for _ in range(3):
            screen.status(["data: 1/2", "more: 3/4"])
        screen.line("done")
    assert file.getvalue().splitlines() == ["[1/2] data", "  data: 1/2", "  more: 3/4", "done"]
    assert terminal.getvalue() == "[1/2] data\n" + "\r\x1b[Kdata: 1/2  |  more: 3/4" * 3 + "\r\x1b[Kdone\n"


def test_importing_needs_no_torch():
    code = "import sys, lavit.runs, lavit.launch, lavit.conduct, eval.demo; print('torch' in sys.modules)"
    out, errors = python(code, cwd=ROOT).communicate()
    assert out == "False\n", errors
