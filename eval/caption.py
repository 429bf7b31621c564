"""Captions of held-out pictures, beside a constant, the nearest training picture and shuffled images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from lavit.data.order import seed_for
from lavit.experiment import Experiment, run_stage
from lavit.few_shot import writer_of
from lavit.metrics.captions import caption_scores, category_accuracy, category_of, cider_many, label_of
from lavit.metrics.retrieval import chance_recall, derangements, nearest, recall_at
from lavit.runs import Progress, write_json
from lavit.tokens import Picture
from lavit.workspace import Workspace

PRIOR_PICTURES = 64
RANKS = (1, 5, 10)
# What baselines are searched in, so that they take minutes with millions of pictures too.
CONSTANTS = 2000  # training labels, the commonest
HELD = 500  # validation labels that they are tried on


def main(experiment: Experiment, run: Path) -> None:
    work, cfg = Workspace(experiment, run), experiment.evaluation
    folder = work.folder("eval/caption")
    progress = Progress(folder, 4, "passes")
    system = writer_of(work)
    pictures, train = work.pictures("captions", cfg.split), work.pictures("captions", "train")
    numbers = pictures.distinct(cfg.captions)
    seen = views(work, cfg.split, numbers)
    truth = [pictures.captions[n] for n in numbers]
    written = system.caption(seen, cfg.text, [seed_for(experiment.seed, n) for n in numbers])
    progress.update(1)
    near = [train.captions[n] for n in nearest_pictures(work, cfg.split, numbers)]
    progress.update(2)
    figures = compare(truth, written, near, train.captions, validation_labels(work), experiment)
    figures |= retrieval(system, seen[: cfg.retrieval], truth[: cfg.retrieval], prior_views(work))
    progress.update(3)
    samples = [
        {"number": n, "truth": t, "written": w, "nearest": m}
        for n, t, w, m in zip(numbers, truth, written, near, strict=True)
    ]
    write_json(folder / "figures.json", figures | {"n": len(numbers), "split": cfg.split, "samples": samples})
    progress.update(4)


def views(work: Workspace, split: str, numbers: list[int]) -> list[Picture]:
    """Extracted tokens of some pictures."""
    codes = work.codes("captions", split)
    return [codes.picture(n) for n in numbers]


def nearest_pictures(work: Workspace, split: str, numbers: list[int]) -> list[int]:
    """The numbers of the training pictures with the encoder features most similar to those of some pictures.

    In a large training split some are searched, at even steps (:meth:`lavit.workspace.Workspace.searched`).
    """
    searched, known = work.searched()
    found = nearest(work.head_features("captions", split, numbers), known)
    return [searched[n] for n in found.tolist()]


def prior_views(work: Workspace) -> list[Picture]:
    """Validation pictures over which a caption's prior is averaged."""
    return views(work, "validation", work.pictures("captions", "validation").distinct(PRIOR_PICTURES))


def validation_labels(work: Workspace) -> list[str]:
    pictures = work.pictures("captions", "validation")
    return [label_of(pictures.captions[n]) for n in pictures.distinct(HELD)]


def compare(
    truth: list[str],
    written: list[str],
    near: list[str],
    train: list[str],
    validation: list[str],
    experiment: Experiment,
) -> dict:
    """Category accuracy and caption scores (on the label alone) of the model and of every baseline."""
    shuffles = derangements(len(truth), experiment.evaluation.derangements, experiment.seed).tolist()
    keys = [str(i) for i in range(len(truth))]
    references = {k: [label_of(t)] for k, t in zip(keys, truth, strict=True)}
    labels = [label_of(w) for w in written]
    scores = caption_scores(references, dict(zip(keys, labels, strict=True)))
    # The constant is chosen where nothing is reported: the training label that scores best on validation.
    constants = sorted(label for label, _ in Counter(map(label_of, train)).most_common(CONSTANTS))
    held = {str(i): [label] for i, label in enumerate(validation)}
    tried = cider_many(held, [dict.fromkeys(held, label) for label in constants])
    constant = constants[max(range(len(constants)), key=tried.__getitem__)]
    others = [dict.fromkeys(keys, constant), {k: label_of(m) for k, m in zip(keys, near, strict=True)}]
    others += [{k: labels[i] for k, i in zip(keys, order, strict=True)} for order in shuffles]
    cider_constant, cider_nearest, *cider_shuffled = cider_many(references, others)
    return {
        **categories(truth, written, near, train, shuffles),
        **{name: scores[name] for name in ("cider", "bleu1", "bleu2", "bleu3", "bleu4", "tokenization")},
        "cider_constant": cider_constant,
        "cider_nearest": cider_nearest,
        "cider_shuffled": sum(cider_shuffled) / len(cider_shuffled),
        "constant": constant,
        "exact": sum(w == t for w, t in zip(written, truth, strict=True)) / len(truth),
    }


def categories(truth: list[str], written: list[str], near: list[str], train: list[str], shuffles: list) -> dict:
    """How often the class word is right; without figures where captions are not of the form ``category: label``."""
    names = [f"category_{name}" for name in ("accuracy", "shuffled", "nearest", "majority")]
    words = [category_of(caption) for caption in train]
    if not all(words) or not all(category_of(caption) for caption in truth):
        return dict.fromkeys(names) | {"reasons": dict.fromkeys(names, "the captions have no category")}
    majority = max(sorted(set(words)), key=words.count)
    wrong = [category_accuracy([written[i] for i in order], truth) for order in shuffles]
    right = [category_accuracy(guess, truth) for guess in (near, [f"{majority}: "] * len(truth))]
    return dict(zip(names, [category_accuracy(written, truth), sum(wrong) / len(wrong), *right], strict=True))


def retrieval(system: Any, seen: list[Picture], truth: list[str], prior: list[Picture]) -> dict:
    """Finding a picture's caption among all: by likelihood, and by its excess over the mean over other pictures."""
    raw = system.caption_scores(seen, truth)
    target, n = torch.arange(len(truth)), len(truth)
    # log p(caption | image) − log p(caption). The prior is a mean over the pictures that are searched; beside it
    # stands the figure with a prior from validation pictures, which looks at one picture at a time.
    scores = {
        "retrieval": raw - raw.logsumexp(0, keepdim=True),
        "retrieval_validation_prior": raw - system.caption_scores(prior, truth).logsumexp(0, keepdim=True),
        "retrieval_likelihood": raw,
    }
    figures = {f"{name}_r{k}": recall_at(score, target, min(k, n)) for name, score in scores.items() for k in RANKS}
    figures |= {f"retrieval_chance_r{k}": chance_recall(n, min(k, n)) for k in RANKS}
    return figures | {"retrieval_n": n}


if __name__ == "__main__":
    run_stage(main, "eval/caption")
