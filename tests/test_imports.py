"""Who may import whom, and that importing does nothing else."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN_FOLDERS = ("tokenizer", "pretrain", "eval")
# From the ground up: a room imports rooms before it, and itself.
ROOMS = (
    ("config", "tokens", "vocabulary"),
    ("runs", "layers"),
    ("weights",),
    ("launch", "data", "renderers", "metrics"),
    ("arguments", "conduct", "tokenizers", "model"),
    ("generation", "training", "placement"),
    ("benchmarks",),
    ("experiment",),
    ("workspace", "release"),
    ("painter", "pages", "official"),
    ("system",),
    ("pipeline",),
    ("few_shot", "harness"),
    ("serve",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def imported(path: Path) -> set[str]:
    """The full names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


@pytest.mark.parametrize("path", sources("lavit"), ids=lambda path: str(path.relative_to(ROOT)))
def test_lavit_never_imports_a_run_folder_and_its_imports_point_down(path):
    names = imported(path)
    assert not {name for name in names if name.split(".")[0] in RUN_FOLDERS}
    parts = path.relative_to(ROOT / "lavit").with_suffix("").parts
    if parts == ("__init__",):
        return
    room = parts[0]
    assert room in FLOOR, f"lavit/{room} is new: give it a place in ROOMS"
    for name in names:
        if name.split(".")[0] == "lavit":
            other = name.split(".")[1]
            assert other == room or FLOOR[other] < FLOOR[room], f"lavit.{room} imports {name}"


@pytest.mark.parametrize("folder", RUN_FOLDERS)
def test_run_folders_never_import_each_other(folder):
    others = set(RUN_FOLDERS) - {folder}
    for path in sources(folder):
        assert not {name for name in imported(path) if name.split(".")[0] in others}, path


def test_metrics_stand_alone():
    for path in sources("lavit/metrics"):
        used = {name for name in imported(path) if name.split(".")[0] == "lavit"}
        assert all(name.startswith("lavit.metrics") for name in used), path
    for path in sources("lavit"):
        if "metrics" not in path.parts:
            assert not any(name.startswith("lavit.metrics") for name in imported(path)), path


def test_run_scripts_hold_no_modules():
    for folder in RUN_FOLDERS:
        for path in sources(folder):
            classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
            bases = [ast.unparse(base) for node in classes for base in node.bases]
            assert not [base for base in bases if base.endswith("Module")], path


LIGHT = """
import sys
before = set(sys.modules)
import lavit
assert not [name for name in set(sys.modules) - before if not name.startswith("lavit")], "lavit imports something"
import lavit.config, lavit.launch, lavit.conduct, lavit.runs
heavy = {"torch", "transformers", "diffusers", "deepspeed", "timm", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""

# Printed: what importing each module of lavit changes in the process, beside the modules that are loaded.
EFFECTS = """
import importlib, json, os, pkgutil, random, signal, sys, threading
import numpy, torch

def state():
    return {
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": repr(numpy.random.get_state()),
        "random generator": repr(random.getstate()),
        "threads": torch.get_num_threads(),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "type": str(torch.get_default_dtype()),
        "gradients": torch.is_grad_enabled(),
        "signals": [repr(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "running": [thread.name for thread in threading.enumerate()],
        "processes": torch.distributed.is_initialized(),
        # diffusers imports torch's compiler, which notes its cache here
        "environment": {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"},
        "folder": os.getcwd(),
    }

import lavit
changed, before = {}, state()
for module in pkgutil.walk_packages(lavit.__path__, "lavit."):
    if module.name == "lavit.harness.plugin":  # for lmms-eval alone, which need not be there
        continue
    importlib.import_module(module.name)
    after = state()
    changed |= {f"{module.name}: {what}": True for what in after if after[what] != before[what]}
    before = after
assert "deepspeed" not in sys.modules, "deepspeed is for training alone"
print(json.dumps({"changed": sorted(changed)}))
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_lavit_and_what_starts_stages_are_light():
    assert run(LIGHT) == ""


def test_importing_has_no_effects():
    lines = run(EFFECTS).splitlines()
    assert len(lines) == 1, "importing prints"
    assert json.loads(lines[0]) == {"changed": []}
