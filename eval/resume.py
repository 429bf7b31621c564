"""A training that is killed again and again, beside one that is left alone: a bench of :mod:`eval.bench`.

The documents are those of a finished run (``make demo`` first); the model is small, so that a step takes no time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from lavit.launch import launch_environment
from lavit.runs import is_done, take_over
from lavit.training.engine import latest_checkpoint

RUN = Path("runs/demo")
SMALL = "{hidden: 32, layers: 2, heads: 2, mlp: 64, max_position: 512}"
PATIENCE = 60.0  # seconds in which a training that was told to stop must have ended
# Most are the hard way. Whom they hit is drawn: the starter, DeepSpeed's runner or launcher, or a rank.
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)


def resume(run: Path = RUN, kills: int = 20, steps: int = 1200, seed: int = 0) -> dict[str, float]:
    """Figures of interruptions at random moments: ``kills`` of them, fewer if the training ends before.

    ``identical`` is 1.0 if weights, the optimizer's state and every line of the log are those of a training that was
    left alone, bit for bit; ``orphans`` processes were alive a minute after a signal; ``exit_seconds`` is the longest
    that a training took to end after one; ``steps_repeated`` were made again in all.

    Raises:
        ValueError: there is no finished run, or a training fails.
    """
    if not is_done(run / "extract"):
        raise ValueError(f"the resume benchmark reads the documents of {run}; run make demo first")
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        alone, killed = Path(folder, "alone"), Path(folder, "killed")
        for copy in (alone, killed):
            take_over(run, copy)
        _finish(run, alone, steps)
        orphans, longest, repeated, struck = 0, 0.0, 0, 0
        while struck < kills:
            process = _start(run, killed, steps)
            _wait_for(process, killed, draw.randint(0, steps // kills))
            if is_done(killed / "pretrain"):
                break
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            start = time.monotonic()
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
                draw.choice(family).send_signal(SIGNALS[struck % len(SIGNALS)])
            struck += 1
            left = psutil.wait_procs(family, timeout=PATIENCE)[1]
            orphans, longest = orphans + len(left), max(longest, time.monotonic() - start)
            for other in left:
                other.kill()
            process.wait()
            saved = latest_checkpoint(killed / "pretrain" / "checkpoints")
            repeated += _logged(killed) - (int(saved.name[4:]) if saved else 0)
        _finish(run, killed, steps)
        identical = _state(alone) == _state(killed) and _lines(alone) == _lines(killed)
    return {
        "kills": struck,
        "identical": float(identical),
        "orphans": orphans,
        "exit_seconds": longest,
        "steps_repeated": repeated,
        "steps": steps,
    }


def _start(run: Path, copy: Path, steps: int) -> subprocess.Popen:
    train = {"steps": steps, "checkpoint_every": max(1, steps // 40), "log_every": 1}
    settings = {"run": copy, "pretrain.model.llm": f"{{scratch: {SMALL}}}", "pretrain.train.optimizer.muon": "null"}
    settings |= {f"pretrain.train.{name}": value for name, value in train.items()}
    arguments = [str(run / "config.yaml"), *(f"{key}={value}" for key, value in settings.items())]
    command = [sys.executable, "-m", "lavit.launch", "pretrain.train", "--processes", "1", "--", *arguments]
    with (copy / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | launch_environment())


def _finish(run: Path, copy: Path, steps: int) -> None:
    if _start(run, copy, steps).wait() or not is_done(copy / "pretrain"):
        raise ValueError(f"the training failed: {(copy / 'log.txt').read_text()[-2000:]}")


def _logged(copy: Path) -> int:
    """Steps in the training's log, of which the last line may be cut."""
    path = copy / "pretrain" / "log.jsonl"
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.is_file() else []
    return json.loads(whole[-1])["step"] + 1 if whole else 0


def _wait_for(process: subprocess.Popen, copy: Path, more: int) -> None:
    """Until ``more`` steps have passed, or the training has ended.

    Raises:
        ValueError: it failed.
    """
    first = _logged(copy)
    while process.poll() is None and _logged(copy) < first + more:
        time.sleep(0.01)
    if process.poll():
        raise ValueError(f"the training failed: {(copy / 'log.txt').read_text()[-2000:]}")


def _state(copy: Path) -> dict[str, bytes]:
    """All tensors and numbers of the last checkpoint, and the weights' file."""
    checkpoint = latest_checkpoint(copy / "pretrain" / "checkpoints")
    found = {"weights": (copy / "pretrain" / "model.safetensors").read_bytes()}
    for path in sorted(checkpoint.glob("*.pt")):
        found |= _flat(torch.load(path, weights_only=False, map_location="cpu"), path.name)
    return found


def _flat(value: Any, name: str) -> dict[str, bytes]:
    if torch.is_tensor(value):
        return {name: value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()}
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in _flat(item, f"{name}.{i}").items()}
    return {name: repr(value).encode()} if isinstance(value, (bool, int, float, str)) else {}


def _lines(copy: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (copy / "pretrain" / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("elapsed", "speed")} for line in lines]
