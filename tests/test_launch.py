from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lavit import launch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("OMP_NUM_THREADS", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)


def after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_the_command_for_one_machine_without_gpu(no_gpu):
    command = launch.launch_command("tokenizer.train", ["c.yaml", "a.b=1"], processes=2)
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert command[-5:] == ["--no_local_rank", "--module", "tokenizer.train", "c.yaml", "a.b=1"]
    assert after(command, "--num_accelerators") == "2"
    assert after(command, "--hostfile") == os.devnull
    other = launch.launch_command("pretrain.train", ["c.yaml"])
    assert after(command, "--master_port") != after(other, "--master_port")


def test_chosen_gpus_are_the_ones_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert launch.visible_gpus() == 3
    assert after(launch.launch_command("m", [], processes=2), "--include") == "localhost:2,5"
    assert "DS_ACCELERATOR" not in launch.launch_environment()
    with pytest.raises(ValueError, match="4 processes and 3 visible GPUs"):
        launch.launch_command("m", [], processes=4)


def test_several_machines_take_the_hostfile_s_slots(tmp_path, no_gpu):
    hosts = tmp_path / "hosts"
    with pytest.raises(ValueError, match="no hostfile .*hosts; it holds lines of `host slots=N`"):
        launch.launch_command("m", [], None, str(hosts))
    hosts.write_text("a slots=8\nb slots=8\n")
    command = launch.launch_command("m", ["c.yaml"], None, str(hosts))
    assert command[3:] == ["--hostfile", str(hosts), "--no_local_rank", "--module", "m", "c.yaml"]


def test_cores_are_shared_out_and_the_user_s_choice_stands(no_gpu, monkeypatch):
    monkeypatch.setattr(launch, "usable_cores", lambda: 8)
    for name in ("OMP_NUM_THREADS", "DS_ACCELERATOR", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    expected = {"OMP_NUM_THREADS": "2", "DS_ACCELERATOR": "cpu", "GLIBC_TUNABLES": launch.KEEP_MEMORY}
    assert launch.launch_environment(processes=2, shares=2) == expected
    assert launch.launch_environment(processes=16)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch.launch_environment(processes=2)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["m", "--processes", "two"], "two is not a whole number"), (["m", "--processes", "0"], "at least one rank")],
)
def test_a_bad_command_line_is_one_line(arguments, message, no_gpu, capsys):
    assert launch.main(arguments) == 2
    assert message in capsys.readouterr().err


RUNNER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1]]).wait()
"""
RANK = """
import os, sys, time
from pathlib import Path
from lavit.runs import StopSignal
with StopSignal() as stop:
    Path("rank.pid").write_text(str(os.getpid()))
    while not stop.requested:
        time.sleep(0.02)
    time.sleep(0.5)
    Path("saved").touch()
"""
SUPERVISE = "import sys; from lavit import launch; launch.FOLLOW = 0.2; sys.exit(launch.supervise(sys.argv[1:], {}))"


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def started(folder: Path) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-c", SUPERVISE, sys.executable, "-c", RUNNER, RANK]
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 10
    while not ((folder / "rank.pid").exists() and (folder / "rank.pid").read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return process, int((folder / "rank.pid").read_text())


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ranks_save_although_the_runner_dies_of_the_signal(tmp_path, signum, code):
    process, rank = started(tmp_path)
    process.send_signal(signum)
    process.communicate(timeout=10)
    assert process.returncode == code
    assert (tmp_path / "saved").exists() and not running(rank)


def test_a_killed_runner_is_a_failure_and_leaves_no_rank(tmp_path):
    process, rank = started(tmp_path)
    runner = int(Path(f"/proc/{rank}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(runner, signal.SIGKILL)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 137 and "launcher was killed while its ranks ran" in errors
    assert (tmp_path / "saved").exists() and not running(rank)


def test_the_exit_status_is_the_command_s():
    for status, seen in [(0, 0), (3, 3)]:
        command = [sys.executable, "-c", SUPERVISE, sys.executable, "-c", f"raise SystemExit({status})"]
        assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == seen
