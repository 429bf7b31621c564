"""One table of all that was evaluated, with published figures beside it: ``make eval CONFIG=…``.

``run/benchmarks/table.{md,json,html}``. A published figure is one that somebody printed about a model of theirs: it
stands in a column of its own, under its source, and only beside a figure of the whole split and of the rule that are
reported: those of VQAv2, OK-VQA and VizWiz are of an evaluation that lemmatises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from eval.drawings import measured
from eval.figures import EVALUATIONS, metrics_of, table
from eval.models import artist_digests, writer_digests
from lavit.benchmarks.published import PUBLISHED
from lavit.benchmarks.sets import SETS
from lavit.experiment import Experiment, run_stage
from lavit.pages.html import render
from lavit.runs import environment, is_done, read_json, write_atomic, write_json

SHOWN = {"cider": "CIDEr", "accuracy": "accuracy", "accuracy_lemmatised": "accuracy, lemmatised"}
REPORTED = {"caption": "cider", "vqa": "accuracy_lemmatised", "vizwiz": "accuracy_lemmatised", "gqa": "accuracy"}
PROTOCOL = 30_000  # captions of COCO, of which published FIDs are
DRAWN = {
    ("fid", "fid"): "FID",
    ("fid", "fd_inception"): "Fréchet distance over other Inception weights",
    ("fid", "clip_score"): "CLIP score",
    ("geneval", "overall"): "GenEval, overall",
}


class Line(NamedTuple):
    """A measured figure × 100 with its interval, on how many of how many items; ``published`` by system.

    ``model`` is a release, or the run's own one, be it that of now or an earlier one; ``setting`` names the folder and
    tells how texts were written.
    """

    title: str
    model: str
    setting: str
    split: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    n: int
    official: int | None
    published: dict[str, float]
    file: str

    @property
    def ours(self) -> str:
        spread = f" [{self.interval[0]:.1f}, {self.interval[1]:.1f}]" if self.interval else ""
        return f"{self.value:.1f}{spread}"

    @property
    def items(self) -> str:
        return f"{self.n:,}" if self.official in (None, self.n) else f"{self.n:,} of {self.official:,}"


class Drawn(NamedTuple):
    """A figure of drawings, or why there is none; ``published`` by system, of the paper's protocol alone.

    ``model`` and ``setting`` as in :class:`Line`, empty where nothing was measured.
    """

    title: str
    model: str
    setting: str
    value: float | None
    why: str
    n: int | None
    published: dict[str, float]


def main(experiment: Experiment, run: Path) -> None:
    lines, drawn, kept = benchmark_lines(experiment, run), drawing_lines(experiment, run), unscored(run)
    done = [name for name in EVALUATIONS if is_done(run / name)]
    groups = [name.removeprefix("eval/") for name in done if (run / name / "figures.json").is_file()]  # or no questions
    own = table(metrics_of({name: read_json(run / "eval" / name / "figures.json") for name in groups}, {}))
    missing = [(about.title, about.where) for name, about in SETS.items() if not scored(run, name)]
    found = {
        "sets": [line._asdict() for line in lines],
        "drawings": [line._asdict() for line in drawn],
        "own": {title: [row._asdict() for row in rows] for title, rows in own.items()},
        "published": [row._asdict() for row in PUBLISHED],
        "not_run": [{"set": title, "where": where} for title, where in missing],
        "to_send_in": kept,
        "environment": environment(),
    }
    page = found | {
        "lines": lines,
        "drawn": drawn,
        "systems": [row.system for row in PUBLISHED],
        "tables": own,
        "title": str(run),
    }
    folder = run / "benchmarks"
    folder.mkdir(exist_ok=True)
    write_json(folder / "table.json", found)
    text = markdown(lines, drawn, own, missing, kept)
    write_atomic(folder / "table.md", text)
    write_atomic(folder / "table.html", render(Path(__file__).with_name("table.html.j2"), page))
    print(text)
    print(f"{folder / 'table.html'}")


def benchmark_lines(experiment: Experiment, run: Path) -> list[Line]:
    """Lines for every setting with which a standard set was scored."""
    lines = []
    for path, figures in finished(run):
        setting = figures["setting"]
        name, about = setting["set"], SETS[setting["set"]]
        whole = setting["split"] == about.default and figures["n"] == figures.get("official_n")
        for key, words in SHOWN.items():
            if figures.get(key) is None:
                continue
            interval = figures.get(f"{key}_interval")
            reported = whole and REPORTED.get(about.metric) == key
            lines.append(
                Line(
                    about.title,
                    model_name(figures.get("release"), setting["model"], writer_digests, experiment, run),
                    f"{path.parent.name}: {written_how(setting)}",
                    setting["split"],
                    words,
                    100 * figures[key],
                    tuple(100 * end for end in interval) if interval else None,
                    figures["n"],
                    figures.get("official_n"),
                    {row.system: row.figures[name] for row in PUBLISHED if name in row.figures} if reported else {},
                    path.relative_to(run).as_posix(),
                )
            )
    return lines


def written_how(setting: dict[str, Any]) -> str:
    """A plan in a few words."""
    plan = setting["asked"].get("captions") or setting["asked"]["answers"]
    return f"{plan['beams']} beam{'s' * (plan['beams'] > 1)}, {plan['min_tokens']} to {plan['max_tokens']} tokens"


def model_name(
    release: str | None,
    found: dict[str, str],
    digests: Callable[[Experiment, Path], dict[str, str]],
    experiment: Experiment,
    run: Path,
) -> str:
    """The release that was scored, or the run's own model: the one of now, whose ``digests`` are those that were
    ``found``, or one that has been trained over since."""
    if release:
        return release
    own = replace(experiment, benchmarks=replace(experiment.benchmarks, release=None))
    with contextlib.suppress(ValueError):  # its weights are gone
        if digests(own, run) == found:
            return "the run's"
    return "the run's, earlier weights"


def drawing_lines(experiment: Experiment, run: Path) -> list[Drawn]:
    """FID, CLIP score and GenEval of every setting, or why they were not run."""
    lines = []
    published = {row.system: row.figures["coco_fid"] for row in PUBLISHED if "coco_fid" in row.figures}
    for (group, name), title in DRAWN.items():
        folder = run / "benchmarks" / group
        for place in measured(folder) or [folder]:
            figures = read_json(place / "figures.json") if (place / "figures.json").is_file() else {}
            why, setting = figures.get("reasons", {}).get(name, ""), figures.get("setting", {})
            if figures.get(name) is None and not why:
                continue
            model = ""
            if setting:
                model = model_name(figures.get("release"), setting["drawing"]["model"], artist_digests, experiment, run)
            of_coco = setting.get("captions") not in (None, "test", "validation", "train")
            known = published if name == "fid" and of_coco and figures.get("n") == PROTOCOL else {}
            digest = place.name if setting else ""
            lines.append(Drawn(title, model, digest, figures.get(name), why, figures.get("n"), known))
    return lines


def finished(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The figures of every set and setting that is done, in the order of the sets."""
    order = list(SETS)
    paths = [path for name in order for path in sorted((run / "benchmarks").glob(f"{name}-*/*/figures.json"))]
    found = [(path, read_json(path)) for path in paths if is_done(path.parent)]
    return sorted(found, key=lambda pair: order.index(pair[1]["setting"]["set"]))


def scored(run: Path, name: str) -> bool:
    return any(figures["setting"]["set"] == name for _, figures in finished(run))


def unscored(run: Path) -> list[str]:
    """Submissions of whole splits whose owner keeps the answers."""
    return [
        path.with_name("submission.json").relative_to(run).as_posix()
        for path, figures in finished(run)
        if "score" in figures.get("reasons", {}) and figures["n"] == figures["official_n"]
    ]


def markdown(
    lines: list[Line], drawn: list[Drawn], own: dict[str, Any], missing: list[tuple[str, str]], kept: list[str]
) -> str:
    """The table, what was published of others in columns that say so, and what has not been run."""
    systems = [row.system for row in PUBLISHED]
    out = ["## Standard sets", ""]
    if lines:
        heads = " | ".join(f"{name} (published)" for name in systems)
        out += [
            f"| set | split | model | setting | figure | measured here [95 %] | items | {heads} |",
            "|---" * (7 + len(systems)) + "|",
        ]
        for line in lines:
            others = " | ".join(f"{line.published[name]:.1f}" if name in line.published else "" for name in systems)
            cells = (line.title, line.split, line.model, line.setting, line.metric, line.ours, line.items, others)
            out.append(f"| {' | '.join(cells)} |")
        out += ["", "Figures are × 100. Published ones are quoted, of other models, and were not measured here."]
    if missing:
        out += ["", "Not run, for want of data: " + "; ".join(f"{title} ({where})" for title, where in missing) + "."]
    if kept:
        out += ["", "To be sent to the set's owner, who keeps the answers: " + ", ".join(kept) + "."]
    if drawn:
        heads = " | ".join(f"{name} (published)" for name in systems)
        out += ["", "## Drawings", "", f"| figure | model | setting | measured here | drawings | {heads} |"]
        out += ["|---" * (5 + len(systems)) + "|"]
        for line in drawn:
            value = line.why if line.value is None else f"{line.value:.3f}"
            others = " | ".join(f"{line.published[name]:.1f}" if name in line.published else "" for name in systems)
            cells = (line.title, line.model, line.setting, value, line.n or "", others)
            out.append(f"| {' | '.join(map(str, cells))} |")
        out += [
            "",
            "Published FIDs are of 30,000 captions of COCO, and are shown beside such a figure alone.",
        ]
    for title, rows in own.items():
        out += ["", f"## {title}, own held-out data", "", "| figure | measured | baselines |", "|---|---|---|"]
        for row in rows:
            marks = ", ".join(f"{mark.words} {mark.value}" for mark in row.marks)
            out.append(f"| {row.title}{f' ({row.note})' if row.note else ''} | {row.value} | {marks} |")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    run_stage(main)
