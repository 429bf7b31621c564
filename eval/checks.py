"""All arms of an experiment with all seeds, side by side: ``make checks CONFIG=…``; hours of work that may be cut.

The ``checks`` section names the arms, each with what it sets otherwise. Every arm and seed is a run of its own, as
``make demo`` makes it, below the experiment's run folder: what is done is skipped, and the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.collect import collect
from eval.demo import main as demo
from eval.figures import REQUIRED
from lavit.config import load_section
from lavit.runs import ChecksConfig, write_atomic, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: that of the first run which did not finish, else 0; 2 for a mistake of the user's."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or "=" in argv[0]:
        print("usage: python -m eval.checks CONFIG [key=value ...]", file=sys.stderr)
        return 2
    try:
        checks = load_section(argv[0], argv[1:], "checks", ChecksConfig)
        run = Path(load_section(argv[0], argv[1:], "run", str))
        if not checks.arms or not checks.seeds:
            raise ValueError(
                f"{argv[0]} has no checks; name some in checks.arms, e.g. {{plain: [], other: [key=value]}}"
            )
        wrong = [name for name in checks.figures if name.partition(".")[0] not in REQUIRED]
        if wrong or not checks.figures:
            raise ValueError(
                f"checks.figures: {wrong or 'none'}; name group.figure, the groups being {', '.join(REQUIRED)}"
            )
        for seed in checks.seeds:
            for arm, settings in checks.arms.items():
                print(f"== {arm}, seed {seed}", flush=True)
                status = demo([*argv, *settings, f"seed={seed}", f"run={folder_of(run, arm, seed)}"])
                if status:
                    return status
        rows = rows_of(run, checks)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(run / "checks" / "checks.json", rows)
    write_atomic(run / "checks" / "checks.md", markdown(rows, len(checks.seeds)))
    print(markdown(rows, len(checks.seeds)))
    return 0


def folder_of(run: Path, arm: str, seed: int) -> Path:
    """The run folder of an arm with a seed."""
    return run / "checks" / f"{arm}-{seed}"


def rows_of(run: Path, checks: ChecksConfig) -> dict[str, dict[str, dict[str, Any]]]:
    """Arm → ``group.figure`` → {mean, std, values} over the seeds; see :func:`eval.collect.collect`.

    Raises:
        ValueError: a figure that a run has not.
    """
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in checks.arms:
        runs = [folder_of(run, arm, seed) for seed in checks.seeds]
        table = {f"{group}.{name}": found for group, its in collect(runs).items() for name, found in its.items()}
        if missing := [name for name in checks.figures if name not in table]:
            raise ValueError(f"checks.figures: {runs[0]}/metrics.json has no {missing[0]}")
        rows[arm] = {name: table[name] for name in checks.figures}
    return rows


def markdown(rows: dict[str, dict[str, dict[str, Any]]], seeds: int) -> str:
    """A table with an arm a row, mean ± standard deviation over the seeds."""
    names = list(next(iter(rows.values())))
    lines = [f"| {seeds} seeds | {' | '.join(f'`{name}`' for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for arm, figures in rows.items():
        cells = [f"{found['mean']:.3f} ± {found['std']:.3f}" for found in figures.values()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
