"""Means over runs with several seeds: ``python -m eval.collect RUN [RUN …]`` prints JSON."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from lavit.runs import read_json


def collect(runs: list[Path]) -> dict[str, dict[str, Any]]:
    """Group → figure → {mean, std, values} over the runs' metrics.json; std is the sample's, 0 for one run.

    A run that took a stage over from another lacks its seconds, and is left out of them.

    Raises:
        ValueError: a run without metrics.json, or without a figure that the first has.
    """
    missing = [str(run) for run in runs if not (run / "metrics.json").is_file()]
    if not runs or missing:
        raise ValueError(f"no metrics.json in {', '.join(missing) or 'no run at all'}; finish the runs first")
    all_metrics = [read_json(run / "metrics.json") for run in runs]
    table: dict[str, dict[str, Any]] = {}
    for group, figures in all_metrics[0].items():
        for name, value in figures.items() if isinstance(figures, dict) else ():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found = [metrics.get(group, {}).get(name) for metrics in all_metrics]
                values = [value for value in found if value is not None]
                if len(values) < len(found) and group != "seconds":
                    raise ValueError(f"{runs[found.index(None)]} has no {group}.{name}, which {runs[0]} has")
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                table.setdefault(group, {})[name] = {"mean": statistics.mean(values), "std": spread, "values": values}
    return table


if __name__ == "__main__":
    try:
        print(json.dumps(collect([Path(name) for name in sys.argv[1:]]), indent=1))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
