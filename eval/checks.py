"""All arms of an experiment with all seeds, side by side: ``make checks CONFIG=…``; hours of work that may be cut.

The ``checks`` section names the arms, each with what it sets otherwise. Every arm and seed is a run of its own, as
``make demo`` makes it, below the experiment's run folder: what is done is skipped, and the same command goes on. What
an arm has in common with the first one of its seed, stages and phases before the first that differs, it has by links.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from eval.collect import collect
from eval.demo import main as demo
from eval.demo import stages_of
from eval.figures import REQUIRED
from lavit.config import load_section
from lavit.experiment import OWNERS, load_experiment
from lavit.runs import ChecksConfig, is_done, owners_of, write_atomic, write_json
from lavit.workspace import Workspace


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
                f"{argv[0]} has no checks; those of teal, visual_words and spae have some (configs/*/demo.yaml), and "
                "others are named in checks.arms, e.g. {plain: [], other: [key=value]}"
            )
        wrong = [name for name in checks.figures if name.partition(".")[0] not in REQUIRED]
        if wrong or not checks.figures:
            raise ValueError(
                f"checks.figures: {wrong or 'none'}; name group.figure, the groups being {', '.join(REQUIRED)}"
            )
        for arm, settings in checks.arms.items():
            require_stages(argv[0], [*argv[1:], *checks.settings, *settings], checks.figures, arm)
        for turn, seed in enumerate(checks.seeds):
            for number, (arm, settings) in enumerate(checks.arms.items(), 1):
                of = f"{turn * len(checks.arms) + number} of {len(checks.seeds) * len(checks.arms)}"
                print(f"== {arm}, seed {seed} ({of})", flush=True)
                own = folder_of(run, arm, seed)
                given = [*argv, *checks.settings, *settings, f"seed={seed}", f"run={own}"]
                first, *others = checks.arms
                if arm in others and not own.exists():
                    share(folder_of(run, first, seed), own, given, [*checks.arms[first], *settings])
                if status := demo(given):
                    return status
                forget_checkpoints(own)
        rows = rows_of(run, checks)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(run / "checks" / "checks.json", rows)
    write_atomic(run / "checks" / "checks.md", markdown(rows, len(checks.seeds)))
    print(markdown(rows, len(checks.seeds)))
    return 0


def require_stages(config: str, overrides: Sequence[str], figures: Sequence[str], arm: str) -> None:
    """Check that the figures' stages are among those of a run, before hours are spent without them.

    Raises:
        ValueError: naming a figure whose stage is not.
    """
    stages = {stage.name for stage in stages_of(config, overrides)}
    for figure in figures:
        stage = f"eval/{figure.partition('.')[0]}"
        if stage not in stages:
            raise ValueError(f"checks.figures: {figure} is of {stage}, which is not among demo.stages of the arm {arm}")


def folder_of(run: Path, arm: str, seed: int) -> Path:
    """The run folder of an arm with a seed."""
    return run / "checks" / f"{arm}-{seed}"


def share(first: Path, own: Path, given: Sequence[str], settings: Sequence[str]) -> None:
    """Link into the run folder ``own`` what the run ``first`` has made just as the arm would.

    Args:
        given: the arm's command line, with all settings.
        settings: those in which the two differ.
    """
    changed = [setting.partition("=")[0] for setting in settings]
    known = [("data",) if key.startswith("data.") else owners_of(key, OWNERS) for key in changed]
    if None in known:
        return
    owned = {owner for owners in known if owners for owner in owners}
    kept: set[str] = set()
    stages = stages_of(given[0], given[1:])
    for stage in stages:
        concerned = any(stage.name == owner or stage.name.startswith(f"{owner}/") for owner in owned)
        if not concerned and kept.issuperset(stage.needs) and stage.done(first) and stage is not stages[-1]:
            kept.add(stage.name)
            for name in ("assets", "data", "features", "text") if stage.name == "data" else (stage.name,):
                link(first / name, own / name)
    pretrain = next((stage for stage in stages if stage.name == "pretrain"), None)
    if pretrain and "pretrain" not in kept and kept.issuperset(pretrain.needs) and owned <= {"pretrain"}:
        share_phases(first, own, given, changed)


def share_phases(first: Path, own: Path, given: Sequence[str], changed: Sequence[str]) -> None:
    """Link the phases of pretraining before the first that is changed, if it is of a model with the same weights."""
    experiment = load_experiment(given[0], given[1:])
    phases = list(experiment.pretrain.phases)
    if not phases or not all(key.startswith("pretrain.phases.") for key in changed):
        return
    done = phases[: min(phases.index(key.split(".")[2]) for key in changed)]
    done = [name for name in done if is_done(first / "pretrain" / name)]
    if not done:
        return
    (own / "pretrain").mkdir(parents=True, exist_ok=True)
    if (first / "pretrain" / "text").is_dir():
        link(first / "pretrain" / "text", own / "pretrain" / "text")
    with safe_open(first / "pretrain" / done[-1] / "model.safetensors", "pt") as file:
        names = set(file.keys())
    if names == set(Workspace(experiment, own).new_model().state_dict()):
        for name in done:
            link(first / "pretrain" / name, own / "pretrain" / name)


def forget_checkpoints(run: Path) -> None:
    """Remove what a finished run would have gone on from: with a language model that is gigabytes a run."""
    for folder in run.rglob("checkpoints"):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)


def link(source: Path, place: Path) -> None:
    if source.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source.resolve())


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
