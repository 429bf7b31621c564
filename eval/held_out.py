"""Every evaluation of an experiment's own held-out data that is not done yet: ``python -m eval.held_out CONFIG``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.demo import stages_of
from lavit.config import load_section, read_layers
from lavit.launch import launch_environment
from lavit.runs import end_with_parent, is_done


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 for a mistake of the user's, or that of the first evaluation that fails."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0].startswith("-") or "=" in argv[0]:
        print("usage: python -m eval.held_out CONFIG [key=value ...]", file=sys.stderr)
        return 2
    end_with_parent()
    try:
        run = Path(load_section(argv[0], argv[1:], "run", str))
        if any((layer.get("benchmarks") or {}).get("release") for _, layer in read_layers(argv[0], argv[1:])):
            print("benchmarks.release is measured: the run's own evaluations are left out", flush=True)
            return 0
        stages = [stage for stage in stages_of(argv[0], argv[1:]) if stage.name.startswith("eval/")]
        for stage in stages:
            if is_done(run / stage.name):
                continue
            if missing := [need for need in stage.needs if not is_done(run / need)]:
                raise ValueError(f"{stage.name} needs {missing[0]}, which {run} has not finished; train it first")
            print(f"== {stage.name}", flush=True)
            command = [sys.executable, "-m", stage.module, *argv]
            if status := subprocess.call(command, env=os.environ | launch_environment()):
                return status
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
