"""Drawings from a held-out picture together with the text of another held-out thing of its category."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.caption import views
from eval.reconstruct import similarity, to_bytes
from lavit.data.order import evenly, seed_for
from lavit.metrics.captions import category_of
from lavit.metrics.retrieval import nearer_rate
from lavit.pipeline import LaVIT
from lavit.workspace import Workspace

SHOWN = 12  # drawings that are painted


def draw_prompts(
    system: LaVIT, work: Workspace, numbers: list[int], real: Tensor, text_alone: Tensor, shuffles: Tensor
) -> tuple[dict[str, Any], np.ndarray]:
    """Draw each picture followed by another one's text, and see which of the two pictures the drawing is like.

    Args:
        numbers: n held-out pictures, one of every caption.
        real: (n, D) mean features of theirs.
        text_alone: (n, D) mean features of what was drawn from their captions alone.
        shuffles: (d, n) derangements.

    Returns:
        The figures: how often a drawing is nearer to the picture of its prompt than to another one of the n, and to
        the picture that the text belongs to. And k drawings at even steps, painted, (k, S, S, 3) uint8.
    """
    experiment, split = work.experiment, work.experiment.evaluation.split
    pictures = work.pictures("captions", split)
    captions = [pictures.captions[n] for n in numbers]
    other = partners(captions, [pictures.meta[n]["concept"] for n in numbers])
    prompts = [(seen, captions[j]) for seen, j in zip(views(work, split, numbers), other.tolist(), strict=True)]
    drawn = system.draw_words(prompts, experiment.evaluation.image, [seed_for(experiment.seed, 4, n) for n in numbers])
    features = system.features(drawn)
    similar, alone = similarity(features.mean(1), real), similarity(text_alone, real)[other]
    figures: dict[str, Any] = {"image_text_n": len(numbers), "image_text_chance": 0.5}
    for name, target in (("picture", torch.arange(len(numbers))), ("thing", other)):
        figures[f"image_text_{name}_nearer"] = nearer_rate(similar, target)
        figures[f"image_text_{name}_shuffled"] = fmean(nearer_rate(similar, target[order]) for order in shuffles)
        figures[f"image_text_{name}_text_alone"] = nearer_rate(alone, target)
    shown = evenly(list(range(len(numbers))), SHOWN)
    images = system.render(features[shown], [seed_for(experiment.seed, 5, numbers[i]) for i in shown])
    figures["image_text_prompts"] = [
        {"number": numbers[i], "text": prompts[i][1], "tokens": len(drawn[i])} for i in shown
    ]
    return figures, to_bytes(images)


def partners(captions: list[str], concepts: list[str]) -> Tensor:
    """(n,) int64: whose text goes with each picture, a rule that cannot choose what will look well.

    It is the next picture of the same category that shows another concept, and where there is none the next of another
    concept; after the last comes the first.

    Raises:
        ValueError: fewer than two pictures.
    """
    count = len(captions)
    if count < 2:
        raise ValueError(f"{count} held-out pictures; a prompt of a picture and another one's text needs two")
    categories = [category_of(caption) for caption in captions]

    def rank(i: int, j: int) -> tuple[bool, bool, int]:
        return concepts[j] == concepts[i], categories[j] != categories[i], (j - i) % count

    return torch.tensor([min((j for j in range(count) if j != i), key=lambda j: rank(i, j)) for i in range(count)])
