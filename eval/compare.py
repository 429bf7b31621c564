"""Several systems in one table on the same captions and questions: ``python -m eval.compare CONFIG [CONFIG …]``.

Runs may have been evaluated on more pictures or fewer: figures are of those that all of them have, and it is
checked that the data are the same. ``make compare`` takes the demos of the four systems.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from eval.caption import compare as caption_figures
from eval.caption import validation_labels
from eval.figures import stage_seconds
from eval.vqa import mean_accuracy, metas, question_priors
from lavit.data.shards import read_index
from lavit.experiment import Experiment, load_experiment
from lavit.runs import read_json, write_atomic, write_json
from lavit.training.optimizer import trained_names
from lavit.workspace import Workspace

OUT = Path("runs/compare")
NOISE = 2.0  # standard errors that a figure must be above its baseline


class Compared(NamedTuple):
    """A finished run, and what its evaluations wrote."""

    name: str
    work: Workspace
    caption: dict[str, Any]
    vqa: dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 for a mistake of the user's."""
    paths = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(paths) < 2:
            raise ValueError("give two configurations or more, each of a finished run")
        systems = [opened(load_experiment(path)) for path in paths]
        rows = rows_of(systems)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(OUT / "compare.json", rows)
    write_atomic(OUT / "compare.md", markdown(rows))
    print(markdown(rows))
    return 0


def opened(experiment: Experiment) -> Compared:
    """A run with its captions and answers.

    Raises:
        ValueError: it has not been evaluated.
    """
    run = Path(experiment.run)
    if experiment.data.vqa is None:
        raise ValueError(f"{run} has no questions (data.vqa is null); compare runs of the same pictures and questions")
    found: dict[str, dict[str, Any]] = {}
    for part in ("caption", "vqa"):
        path = run / "eval" / part / "figures.json"
        if not path.is_file():
            raise ValueError(f"{run} has no {path.relative_to(run)}; run its demo, or `make eval-{part}`, first")
        found[part] = read_json(path)
    return Compared(experiment.card.name, Workspace(experiment, run), **found)


def rows_of(systems: list[Compared]) -> dict[str, Any]:
    """What is compared, by system, with the baselines that need none.

    Raises:
        ValueError: runs of other data, or without a picture or a question in common.
    """
    first, *others = systems
    for other in others:
        check_data(first.work, other.work)
    pictures = common([{s["number"]: s for s in one.caption["samples"]} for one in systems], "captions")
    asked = common([{(s["number"], s["question"]): s for s in one.vqa["samples"]} for one in systems], "questions")
    experiment = first.work.experiment
    train = first.work.pictures("captions", "train").captions
    labels = validation_labels(first.work)
    by_question, majority = question_priors(metas(first.work, "train"))
    answers = [sample["answers"] for sample in asked[0].values()]
    rows = {}
    for one, captions, questions in zip(systems, pictures, asked, strict=True):
        truth, written, near = ([s[name] for s in captions.values()] for name in ("truth", "written", "nearest"))
        figures = caption_figures(truth, written, near, train, labels, experiment)
        rows[one.name] = {
            **{name: figures[name] for name in ("category_accuracy", "category_shuffled", "cider")},
            "vqa": mean_accuracy([s["given"] for s in questions.values()], answers),
            **costs(one.work),
        }
    beside = {name: figures[f"category_{name}"] for name in ("nearest", "majority")}
    guesses = {
        "question_only": [by_question.get(q, majority) for _, q in asked[0]],
        "majority": [majority] * len(answers),
    }
    return {
        "systems": rows,
        "captions": {"n": len(pictures[0]), **beside, "cider_nearest": figures["cider_nearest"],
                     "cider_constant": figures["cider_constant"]},
        "questions": {"n": len(answers), **{name: mean_accuracy(guess, answers) for name, guess in guesses.items()}},
    }  # fmt: skip


def check_data(one: Workspace, other: Workspace) -> None:
    """Raise ValueError unless two runs have the same shards, byte by byte."""
    for part in ("captions", "vqa"):
        shards = [read_index(work.run / "data" / part)["shards"] for work in (one, other)]
        if shards[0] != shards[1]:
            raise ValueError(
                f"{one.run} and {other.run} have other {part}: compare runs whose data sections are the same"
            )


def common(samples: list[dict[Any, dict]], what: str) -> list[dict[Any, dict]]:
    """Of every system the samples that all have, in one order."""
    keys = sorted(set.intersection(*(set(its) for its in samples)))
    if not keys:
        raise ValueError(f"the runs were evaluated on no {what} in common; give them one seed and one split")
    return [{key: its[key] for key in keys} for its in samples]


def costs(work: Workspace) -> dict[str, float]:
    """Mean tokens of a held-out picture as the language model reads it, trained parameters, and seconds of the run."""
    experiment = work.experiment
    codes = work.codes("captions", experiment.evaluation.split)
    tokens = [len(codes.picture(n).codes) for n in range(len(codes))]
    mean = sum(tokens) / len(tokens)
    if experiment.pyramid is not None:
        mean = min(mean, experiment.evaluation.in_context.read)
    return {
        "tokens": mean,
        "trained": trained_parameters(work),
        "seconds": stage_seconds(work.run, experiment.demo.stages)["total"],
    }


def trained_parameters(work: Workspace) -> int:
    """Parameters that any stage before the pixel decoder moved."""
    experiment, count = work.experiment, 0
    if experiment.pyramid is not None:
        return sum(p.numel() for p in work.pyramid().parameters() if p.requires_grad)
    if experiment.pretrain.last().model.port != "unmerged":
        count += sum(p.numel() for p in work.tokenizer().parameters() if p.requires_grad)
    model = work.new_model()
    moved: set[str] = set()
    for stage in experiment.pretrain.parts().values():
        moved |= trained_names(model, stage.train.optimizer)
    return count + sum(p.numel() for name, p in model.named_parameters() if name in moved)


def markdown(rows: dict[str, Any]) -> str:
    """The table, with a line on what stays at chance."""
    said, asked = rows["captions"], rows["questions"]
    lines = [
        f"| system | class of the caption ({said['n']}) | shuffled | CIDEr | questions ({asked['n']}) | "
        "tokens read of an image | trained parameters | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows["systems"].items():
        lines.append(
            f"| {name} | {three(row['category_accuracy'])} | {three(row['category_shuffled'])} | {row['cider']:.3f} | "
            f"{row['vqa']:.3f} | {row['tokens']:.1f} | {row['trained']:,} | {row['seconds']:.0f} |"
        )
    lines += [
        f"| nearest training picture | {three(said['nearest'])} | | {said['cider_nearest']:.3f} | | | | |",
        f"| majority | {three(said['majority'])} | | | {asked['majority']:.3f} | | | |",
        f"| best constant | | | {said['cider_constant']:.3f} | | | | |",
        f"| the question alone | | | | {asked['question_only']:.3f} | | | |",
        "",
        *(f"{line}\n" for line in remarks(rows)),
    ]
    return "\n".join(lines)


def three(value: float | None) -> str:
    """Three digits; nothing of classes that captions have not."""
    return "" if value is None else f"{value:.3f}"


def remarks(rows: dict[str, Any]) -> list[str]:
    """What is not told from chance, within two standard errors."""
    said, asked, out = rows["captions"], rows["questions"], []
    for name, row in rows["systems"].items():
        if row["category_accuracy"] is not None:
            base = max(row["category_shuffled"], said["majority"])
            if row["category_accuracy"] - base < NOISE * (base * (1 - base) / said["n"]) ** 0.5:
                out.append(f"{name}: the class of its captions is at chance.")
        base = max(asked["question_only"], asked["majority"])
        if row["vqa"] - base < NOISE * (base * (1 - base) / asked["n"]) ** 0.5:
            out.append(f"{name}: its answers are no better than the question alone gives.")
    return out


if __name__ == "__main__":
    sys.exit(main())
