"""Questions about held-out pictures, beside what the question alone gives, the majority answer and shuffled images."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import torch

from lavit.data.order import generator_for, seed_for
from lavit.experiment import Experiment, run_stage
from lavit.few_shot import writer_of
from lavit.metrics.retrieval import derangements
from lavit.metrics.vqa import vqa_accuracy
from lavit.runs import Progress, write_json
from lavit.workspace import Workspace


def main(experiment: Experiment, run: Path) -> None:
    work, cfg = Workspace(experiment, run), experiment.evaluation
    if experiment.data.vqa is None:
        print("data.vqa is not set: there are no questions to ask")
        return
    folder, codes = work.folder("eval/vqa"), work.codes("vqa", cfg.split)
    system = writer_of(work)
    picked, asked = picked_questions(work)
    questions, answers = [q["question"] for _, q in asked], [q["answers"] for _, q in asked]
    seen = [codes.picture(n) for n, _ in asked]
    progress = Progress(folder, 2, "passes")
    seeds = [seed_for(experiment.seed, number) for number in picked]
    given = system.answer(seen, questions, cfg.answer, seeds)
    progress.update(1)
    order = derangements(len(seen), 1, experiment.seed)[0].tolist()
    shuffled = system.answer([seen[i] for i in order], questions, cfg.answer, seeds)
    progress.update(2)
    by_question, majority = question_priors(metas(work, "train"))
    guesses = {
        "accuracy": given,
        "shuffled": shuffled,
        "question_only": [by_question.get(q, majority) for q in questions],
        "majority": [majority] * len(questions),
    }
    figures = {name: mean_accuracy(guess, answers) for name, guess in guesses.items()}
    samples = [
        {"number": n, "question": q["question"], "answers": q["answers"], "given": g}
        for (n, q), g in zip(asked, given, strict=True)
    ]
    write_json(folder / "figures.json", figures | {"n": len(asked), "split": cfg.split, "samples": samples})


def metas(work: Workspace, split: str) -> list[dict]:
    shards = work.shards("vqa", split)
    return [shards.describe(i)[1] for i in range(len(shards))]


def picked_questions(work: Workspace) -> tuple[list[int], list[tuple[int, dict]]]:
    """The numbers of the questions that are asked, among all of the split, and for each its picture and itself."""
    cfg = work.experiment.evaluation
    asked = [(n, q) for n, meta in enumerate(metas(work, cfg.split)) for q in meta["questions"]]
    picked = sorted(torch.randperm(len(asked), generator=generator_for(work.experiment.seed))[: cfg.questions].tolist())
    return picked, [asked[i] for i in picked]


def question_priors(train: list[dict]) -> tuple[dict[str, str], str]:
    """The most frequent training answer of every question, and of all: the strongest guess without the picture."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for meta in train:
        for question in meta["questions"]:
            counts[question["question"]].update(question["answers"])
    total = sum(counts.values(), Counter())
    # Ties go to the alphabetically first answer, so that the figure does not depend on the order of the shards.
    best = {question: min(c, key=lambda answer: (-c[answer], answer)) for question, c in counts.items()}
    return best, min(total, key=lambda answer: (-total[answer], answer))


def mean_accuracy(given: list[str], answers: list[list[str]]) -> float:
    return sum(vqa_accuracy(g, a) for g, a in zip(given, answers, strict=True)) / len(answers)


if __name__ == "__main__":
    run_stage(main, "eval/vqa")
