"""How all stages are run: real processes that keep to the stages' rules, with little to do, stand in their place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.demo import LAVIT, check_settings, main, stages_of
from lavit.conduct import Stage, check_order
from lavit.config import ConfigError
from lavit.launch import usable_cores
from lavit.runs import mark_done, open_run, stage_folder

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

# a → b ‖ c → d; what each does comes from plan.json. "below" does it in a child, as DeepSpeed's runner would.
STAGE = """
import json, os, subprocess, sys, time
from pathlib import Path
from lavit.config import load_section
from lavit.runs import FolderLock, Progress, StopSignal, end_with_parent, mark_done, stage_clock, stage_folder

name, what = Path(__file__).stem, json.loads(Path("plan.json").read_text()).get(Path(__file__).stem, "work")
if what == "below" and "RANK" not in os.environ:
    sys.exit(subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, "RANK": "0"}).wait())
end_with_parent(every=0.05)
run = Path(load_section(sys.argv[1], sys.argv[2:], "run", str))
folder = stage_folder(run, name)
with FolderLock(folder), stage_clock(folder), StopSignal() as stop:
    with open(run / "events.txt", "a") as events:
        events.write(f"{name} threads={os.environ['OMP_NUM_THREADS']}\\n")
    (folder / "pid.txt").write_text(str(os.getpid()))
    if what == "fail":
        time.sleep(0.5)
        raise ValueError("the picture cat.png cannot be read")
    if what == "vanish":
        sys.exit(0)
    progress = Progress(folder, 1000, every=0.05)
    for step in range(10**6 if what in ("long", "below", "deaf") else 2):
        progress.update(step)
        time.sleep(0.02)
        if stop.requested and what != "deaf":
            time.sleep(0.3)
            (folder / "saved.txt").write_text(str(stop.signal))
            sys.exit(stop.exit_code)
    if name == "d":
        (run / "metrics.json").write_text('{"caption": {"cider": 0.25}}')
    mark_done(folder)
"""

DEMO = """
import sys
import eval.demo
import lavit.conduct
import lavit.runs.processes
from lavit.conduct import Stage
eval.demo.schema_mistake = lambda argv: ""
lavit.conduct.NOTICE = lavit.runs.processes.ECHO = 0.3
eval.demo.LAVIT = (
    Stage("a", "work.a"),
    Stage("b", "work.b", needs=("a",), group="models"),
    Stage("c", "work.c", needs=("a",), group="models"),
    Stage("d", "work.d", needs=("b", "c")),
)
sys.exit(eval.demo.main())
"""


class Place:
    """A folder with a config, stages and the program that runs them."""

    def __init__(self, folder: Path):
        self.folder, self.run = folder, folder / "run"
        (folder / "work").mkdir()
        for name in "abcd":
            (folder / "work" / f"{name}.py").write_text(STAGE)
        (folder / "demo.py").write_text(DEMO)
        (folder / "c.yaml").write_text("run: run\n")
        (folder / "Makefile").write_text(f"demo:\n\t{sys.executable} demo.py c.yaml\n")
        self.plan()

    def plan(self, **what: str) -> None:
        (self.folder / "plan.json").write_text(json.dumps(what))

    def start(self, *overrides: str, command: tuple[str, ...] = (), **options) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{self.folder}"}
        environment.pop("OMP_NUM_THREADS", None)
        return subprocess.Popen(
            command or (sys.executable, "demo.py", "c.yaml", *overrides), cwd=self.folder, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
        )  # fmt: skip

    def finish(self, *overrides: str) -> tuple[int, str]:
        process = self.start(*overrides)
        out, _ = process.communicate(timeout=30)
        return process.returncode, out

    def pid(self, stage: str) -> int:
        """The stage's process, once it is at work."""
        path = self.run / stage / "pid.txt"
        assert until(lambda: path.exists() and path.read_text()), f"{stage} does not start"
        return int(path.read_text())

    def events(self) -> list[str]:
        return [line.split()[0] for line in (self.run / "events.txt").read_text().splitlines()]


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


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


def test_stages_run_once_in_order_and_again_in_no_time(place):
    code, out = place.finish()
    assert code == 0, out
    threads = dict(line.split() for line in (place.run / "events.txt").read_text().splitlines())
    assert threads["a"] == f"threads={usable_cores()}"
    assert threads["b"] == threads["c"] == f"threads={max(1, usable_cores() // 2)}"  # they share the cores
    events = place.events()
    assert events[0] == "a" and sorted(events[1:3]) == ["b", "c"] and events[3] == "d"
    for line in ("[1/4] a", "[4/4] d", "in all", "caption CIDEr", "0.250", "report: run/report.html"):
        assert line in out
    assert json.loads((place.run / "seconds.json").read_text())["seconds"] > 0.1
    assert "seconds" in (place.run / "b" / "seconds.json").read_text()

    start = time.monotonic()
    code, out = place.finish()
    assert code == 0 and "[" not in out and time.monotonic() - start < 3
    assert place.events() == events


def test_one_at_a_time_when_asked(place):
    code, out = place.finish("demo.concurrent=false")
    assert code == 0 and place.events() == ["a", "b", "c", "d"]
    threads = {line.split("=")[1] for line in (place.run / "events.txt").read_text().splitlines()}
    assert threads == {str(usable_cores())}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_the_next_start_goes_on(place, signum):
    place.plan(b="long", c="below")
    process = place.start()
    stages = [place.pid("b"), place.pid("c")]
    process.send_signal(signum)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 128 + signum, out
    assert "stopping: b and c may save first" in out
    assert not any(map(running, stages))
    for stage in "bc":
        assert (place.run / stage / "saved.txt").read_text() == str(int(signum))

    place.plan()
    code, out = place.finish()
    assert code == 0 and place.events().count("a") == 1 and "[1/4]" not in out


def test_a_signal_to_the_whole_group_through_make(place):
    place.plan(b="long", c="below")
    make = place.start(command=("make", "demo"), start_new_session=True)
    stages = [place.pid("b"), place.pid("c")]
    os.killpg(make.pid, signal.SIGINT)
    make.communicate(timeout=10)
    assert make.returncode != 0
    assert not any(map(running, stages)) and all((place.run / stage / "saved.txt").exists() for stage in "bc")


def test_kill_9_leaves_nobody_and_the_next_start_goes_on(place):
    place.plan(b="long", c="below")
    process = place.start()
    stages = [place.pid("b"), place.pid("c")]
    process.kill()
    place.plan()
    code, out = place.finish()  # at once: the old stages are still saving
    assert code == 0, out
    assert not any(map(running, stages))
    assert all((place.run / stage / "saved.txt").exists() for stage in "bc")
    process.communicate()


def test_kill_9_of_make_stops_the_demo_and_its_stages(place):
    place.plan(b="long", c="long")
    make = place.start(command=("make", "demo"))
    stages = [place.pid("b"), place.pid("c")]
    demo = int(Path(f"/proc/{make.pid}/task/{make.pid}/children").read_text().split()[0])
    make.kill()
    assert until(lambda: not any(map(running, [demo, *stages])), 8)
    assert all((place.run / stage / "saved.txt").exists() for stage in "bc")
    make.communicate()


def test_a_second_ctrl_c_does_not_wait_for_a_stage_that_does_not_end(place):
    place.plan(b="deaf")
    process = place.start()
    stage = place.pid("b")
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    assert running(stage)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130 and not running(stage)


def test_a_failure_stops_the_other_stage_and_says_why(place):
    place.plan(b="long", c="fail")
    code, out = place.finish()
    assert code == 1
    assert out.splitlines()[-1] == "c failed: ValueError: the picture cat.png cannot be read"
    assert "last lines of run/c/log.txt:\n  | " in out
    assert (place.run / "b" / "saved.txt").exists() and not running(place.pid("b"))
    assert not (place.run / "d").exists()


def test_an_end_without_done_is_a_failure_and_a_stage_s_own_signal_none(place):
    place.plan(a="vanish")
    code, out = place.finish()
    assert code == 1 and "a failed: it ended without an error and without finishing" in out
    place.plan(a="long")
    (place.run / "a" / "pid.txt").unlink()
    process = place.start()
    os.kill(place.pid("a"), signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 1 and out.splitlines()[-1] == "a was stopped by a signal; run again to go on"


def test_one_writer_of_a_run_and_of_a_stage(place):
    place.plan(a="long")
    process = place.start()
    place.pid("a")
    code, out = place.finish()
    assert code == 2 and f"error: run is in use by process {process.pid} (python" in out
    alone = place.start(command=(sys.executable, "-m", "work.a", "c.yaml"))
    out, _ = alone.communicate(timeout=10)
    assert alone.returncode == 1 and f"run/a is in use by process {place.pid('a')}" in out
    process.terminate()
    process.communicate(timeout=10)


def test_a_mistake_of_the_user_s_is_one_line(place):
    code, out = place.finish("demo.procesess=2")
    assert (code, out) == (2, "error: command line: unknown key 'demo.procesess'; did you mean 'demo.processes'?\n")
    process = place.start(command=(sys.executable, "demo.py"))
    assert "usage" in process.communicate(timeout=10)[0] and process.returncode == 2


def test_a_stage_older_than_what_it_was_built_on_is_not_used(tmp_path):
    stages = (Stage("a", "m"), Stage("b", "m", needs=("a",)), Stage("eval/c", "m", needs=("b",)), Stage("d", "m"))
    for name in ("a", "b", "eval/c", "d"):
        mark_done(stage_folder(tmp_path, name))
        time.sleep(0.01)
    check_order(stages, tmp_path)
    (tmp_path / "a" / "done.json").unlink()
    places = f"{tmp_path}/b {tmp_path}/eval/c"
    with pytest.raises(ValueError, match=f"b was built on a a that is gone or newer; remove .*: {places}$"):
        check_order(stages, tmp_path)
    mark_done(tmp_path / "a")
    with pytest.raises(ValueError, match="b was built on"):
        check_order(stages, tmp_path)


def test_the_table_is_in_order(tmp_path):
    check_order(LAVIT, tmp_path)
    assert len({stage.at(tmp_path) for stage in LAVIT}) == len(LAVIT)
    train = next(stage for stage in LAVIT if stage.name == "tokenizer")
    assert train.command(["c.yaml", "a=1"], 2)[-3:] == ["tokenizer.train", "c.yaml", "a=1"]
    assert LAVIT[0].command(["c.yaml"], 2)[-3:] == ["-m", "tokenizer.prepare", "c.yaml"]


@pytest.mark.parametrize(
    ("latents", "trained"),
    [
        (None, False),
        ([], True),
        (["decoder.model.latents={vae: {layers: 1}}"], True),
        (["decoder.model.latents.vae.folder=/sd15/vae"], False),
        (["decoder.model.latents={folded: {patch: 4}}"], False),
    ],
)
def test_an_autoencoder_is_trained_where_the_decoder_has_one_of_its_own(tmp_path, latents, trained):
    (tmp_path / "base.yaml").write_text("decoder: {model: {latents: {vae: {layers: 2}}}}\n")
    config = tmp_path / "c.yaml"
    config.write_text("run: x\n" if latents is None else "base: base.yaml\nrun: x\n")
    stages = {stage.name: stage for stage in stages_of(str(config), latents or [])}
    assert ("autoencoder" in stages) == trained == ("autoencoder" in stages["decoder"].needs)
    check_order(tuple(stages.values()), tmp_path)
    if trained:
        order = list(stages)
        assert order.index("data") < order.index("autoencoder") < order.index("decoder")
        assert set(order) - {"autoencoder"} == {stage.name for stage in LAVIT}


def test_other_settings_for_a_finished_run_are_refused(tmp_path):
    experiment = pytest.importorskip("lavit.experiment")
    config = tmp_path / "c.yaml"
    config.write_text(f"run: {tmp_path}/run\n")
    run = open_run(tmp_path / "run", experiment.load_experiment(config))
    check_settings(run, str(config), [], seen=True)
    assert json.loads((run / "asked.json").read_text()) == [{"run": str(run)}]
    with pytest.raises(ConfigError, match="seed changed; remove the folder"):
        check_settings(run, str(config), ["seed=7"], seen=False)
    check_settings(run, str(config), ["seed=0"], seen=False)  # other words, the same settings
    assert len(json.loads((run / "asked.json").read_text())) == 2


def test_a_mistake_in_any_section_is_said_before_a_folder_is_made(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(f"run: {tmp_path / 'run'}\n")
    assert main([str(config), "tokenizer.train.stepz=3"]) == 2
    assert "unknown key 'tokenizer.train.stepz'; did you mean 'tokenizer.train.steps'?" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
