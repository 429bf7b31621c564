"""Drawings from held-out texts, alone and after a picture: can the pictured thing be found by what was drawn?"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from eval.prompts import draw_prompts
from eval.reconstruct import pooled, similarity, to_bytes
from lavit.data.order import seed_for
from lavit.experiment import Experiment, run_stage
from lavit.metrics.retrieval import chance_recall, derangements, nearest_texts, recall_at
from lavit.pipeline import LaVIT
from lavit.runs import Progress, write_json
from lavit.tokenizers.features import write_array
from lavit.workspace import Workspace


def main(experiment: Experiment, run: Path) -> None:
    work, cfg = Workspace(experiment, run), experiment.evaluation
    folder = work.folder("eval/text_to_image")
    progress = Progress(folder, 4, "passes")
    system, pictures, codes = (
        LaVIT.from_run(work),
        work.pictures("captions", cfg.split),
        work.codes("captions", cfg.split),
    )
    numbers = pictures.distinct(cfg.drawings)
    texts = [pictures.captions[n] for n in numbers]
    drawn = system.draw_best(texts, cfg.image, cfg.candidates, [seed_for(experiment.seed, 2, n) for n in numbers])
    features = system.features(drawn)
    progress.update(1)
    images = system.render(features, [seed_for(experiment.seed, 3, n) for n in numbers])
    progress.update(2)
    size = experiment.tokenizer.model.encoder.image_size
    real_features = system.tokenizer.patch_features(pictures.inputs(numbers, size)).mean(1)
    real_head = work.head_features("captions", cfg.split, numbers)
    ceiling = system.features([codes.codes(n) for n in numbers])
    shuffles = derangements(len(numbers), cfg.derangements, experiment.seed)
    similar = similarity(features.mean(1), real_features)
    rendered = similarity(pooled(system.tokenizer.encoder, images, system.batch), real_head)
    figures = recalls("feature", similar, shuffles) | recalls("rendered", rendered, shuffles)
    figures |= recalls("real_codes", similarity(ceiling.mean(1), real_features), None)
    figures |= {f"chance_r{k}": chance_recall(len(numbers), min(k, len(numbers))) for k in (1, 5, 10)}
    figures["shuffled_r10"] = figures["feature_shuffled_r10"]
    # What copying would give: the training picture with the most similar caption.
    train = work.pictures("captions", "train")
    captioned = train.distinct()
    near = [captioned[i] for i in nearest_texts(texts, [train.captions[n] for n in captioned])]
    copied = system.tokenizer.patch_features(train.inputs(near, size)).mean(1)
    figures |= recalls("feature_nearest", similarity(copied, real_features), None)
    figures |= recalls("rendered_nearest", similarity(work.head_features("captions", "train", near), real_head), None)
    progress.update(3)
    prompted, painted = draw_prompts(system, work, numbers, real_features, features.mean(1), shuffles)
    samples = [{"number": n, "text": t, "tokens": len(c)} for n, t, c in zip(numbers, texts, drawn, strict=True)]
    write_array(folder / "images.npy", to_bytes(images))
    write_array(folder / "prompts.npy", painted)
    extra = {"n": len(numbers), "split": cfg.split, "candidates": cfg.candidates, "samples": samples}
    write_json(folder / "figures.json", figures | prompted | extra)
    progress.update(4)


def recalls(name: str, similar: Tensor, shuffles: Tensor | None) -> dict[str, float]:
    """R@1, 5, 10 of finding the picture of the text by the drawing; with shuffled texts as the mean of derangements."""
    target, n = torch.arange(len(similar)), len(similar)
    figures = {f"{name}_r{k}": recall_at(similar, target, min(k, n)) for k in (1, 5, 10)}
    if shuffles is not None:
        wrong = [recall_at(similar, order, min(10, n)) for order in shuffles]
        figures[f"{name}_shuffled_r10"] = sum(wrong) / len(wrong)
    return figures


if __name__ == "__main__":
    run_stage(main, "eval/text_to_image")
