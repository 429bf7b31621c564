"""Tokenizers side by side, each over its seeds: ``make compare-tokenizers RUNS="gain=runs/a,runs/b even=runs/c"``

Reads what ``tokenizer.evaluate`` wrote into each run and writes ``comparison.json`` and ``comparison.svg``: figures as
means and standard deviations over the runs of a name, the mean curve of reconstruction by token count, and whether
seeds agree about how many tokens an image needs.
"""

from __future__ import annotations

import argparse
import base64
import statistics
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from lavit.pages.plots import length_plot
from lavit.runs import read_json, write_atomic, write_json
from tokenizer.curves import POLICIES, rank_correlation

FIGURES = ("cosine", "cosine_constant", "tokens_mean", "tokens_std", "codes_used", "perplexity", "n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN[,RUN…]")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"))
    arguments = parser.parse_args(argv)
    try:
        figures = {name: read_runs(runs) for name, runs in map(named, arguments.runs)}
        require_same_pictures([run for runs in figures.values() for run in runs])
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    summaries = {name: summary(runs) for name, runs in figures.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "comparison.json", summaries)
    plot = length_plot({name: s["curve"] for name, s in summaries.items()})
    write_atomic(arguments.out / "comparison.svg", base64.b64decode(plot.split(",", 1)[1]).decode())
    print(table(summaries))


def named(argument: str) -> tuple[str, list[Path]]:
    """``name=run,run`` as a name and its runs."""
    name, separator, runs = argument.partition("=")
    if not (name and separator and runs):
        raise ValueError(f"'{argument}' is no NAME=RUN[,RUN…]")
    return name, [Path(run) for run in runs.split(",")]


def read_runs(runs: list[Path]) -> list[dict[str, Any]]:
    """What was measured on each run.

    Raises:
        ValueError: a run without figures.
    """
    paths = [run / "eval" / "tokenizer" / "figures.json" for run in runs]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"no {', '.join(missing)}; run make eval-tokenizer for each run first")
    return [read_json(path) for path in paths]


def require_same_pictures(figures: list[dict[str, Any]]) -> None:
    """Raise ValueError unless all were measured on the same pictures and at the same token counts."""
    if len({(f["split"], f["n"], f["pictures"], tuple(f["curve"]["tokens"])) for f in figures}) > 1:
        raise ValueError("the runs were measured on different pictures or token counts, and cannot be compared")


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations over runs, the mean curve, and the agreement of the counts between runs."""
    curves = [run["curve"] for run in runs]
    out: dict[str, Any] = {name: spread([run[name] for run in runs]) for name in FIGURES}
    out["complexity"] = spread([run["complexity"]["gain"] for run in runs])
    for where in ("drawn", "blank"):
        rates = [run["kept"][where] for run in runs]
        out[f"kept_{where}"] = None if None in rates else spread(rates)
    out["curve"] = {"tokens": curves[0]["tokens"]} | {
        policy: [statistics.mean(values) for values in zip(*(curve[policy] for curve in curves), strict=True)]
        for policy in POLICIES
    }
    out["seeds"] = agreement([run["counts"] for run in runs])
    return out


def spread(values: list[float]) -> dict[str, Any]:
    return {
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": values,
    }


def agreement(counts: list[list[int]]) -> dict[str, float] | None:
    """Between pairs of runs: mean rank correlation of their token counts of the same images, and mean difference.

    ``difference_shuffled`` is the mean difference between counts of unrelated images. None for a single run.
    """
    pairs = [(torch.tensor(a).float(), torch.tensor(b).float()) for a, b in combinations(counts, 2)]
    if not pairs:
        return None
    return {
        "rank_correlation": statistics.mean(rank_correlation(a, b) for a, b in pairs),
        "difference": statistics.mean(float((a - b).abs().mean()) for a, b in pairs),
        "difference_shuffled": statistics.mean(float((a[:, None] - b[None]).abs().mean()) for a, b in pairs),
    }


def table(summaries: dict[str, dict[str, Any]]) -> str:
    """The figures in Markdown, a row a name."""
    rows = [
        "| tokenizer | runs | cosine | tokens | codes used | perplexity | kept drawn / blank | tokens ~ gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in summaries.items():
        kept = " / ".join("–" if s[k] is None else f"{s[k]['mean']:.2f}" for k in ("kept_drawn", "kept_blank"))
        rows.append(
            f"| {name} | {len(s['cosine']['values'])} | {s['cosine']['mean']:.3f} ± {s['cosine']['std']:.3f} "
            f"| {s['tokens_mean']['mean']:.1f} ± {s['tokens_std']['mean']:.1f} | {s['codes_used']['mean']:.0f} "
            f"| {s['perplexity']['mean']:.0f} | {kept} | {s['complexity']['mean']:.2f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
