"""The log of a training: JSON lines, and the same in tensorboard's form."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from lavit.runs import write_atomic


class TrainingLog:
    """Appends to ``folder/log.jsonl`` and to event files in ``folder/tensorboard``.

    Lines of ``first`` and later steps, which an interrupted training wrote after its last checkpoint, are taken out:
    every step stands in the log once.
    """

    def __init__(self, folder: Path, first: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path, self.started = folder / "log.jsonl", time.monotonic()
        if self.path.is_file():
            lines = self.path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) < first]
            if len(kept) < len(lines):
                write_atomic(self.path, "".join(f"{line}\n" for line in kept))
        self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def write(self, step: int, figures: dict[str, float], speed: dict[str, float] | None = None) -> None:
        """A line of a step; what is not finite is null there. ``speed`` stands apart, as nothing repeats it exactly."""
        line = {"step": step, "elapsed": round(time.monotonic() - self.started, 2)}
        line |= {k: round(v, 6) if math.isfinite(v) else None for k, v in figures.items()}
        if speed:
            line["speed"] = {k: round(v, 6) for k, v in speed.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in {**figures, **{f"speed/{k}": v for k, v in (speed or {}).items()}}.items():
            self.events.add_scalar(name, value, step)

    def close(self) -> None:
        self.events.close()


def _step_of(line: str) -> float:
    """The step of a line, infinite for one that was cut while it was written."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf
