"""Held-out pictures through tokens and back to pixels, with as many tokens as they ask for, fewer and more."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.caption import nearest_pictures
from eval.figures import BUDGETS, Budget
from lavit.data.order import evenly, seed_for
from lavit.experiment import Experiment, run_stage
from lavit.metrics.images import frechet_distance, mean_psnr
from lavit.metrics.retrieval import chance_recall, derangements, recall_at
from lavit.painter import Painter
from lavit.renderers.sampling import samplers_of
from lavit.runs import Progress, write_json
from lavit.tokenizers.decoder import cosine
from lavit.tokenizers.encoders import Encoder, scaled
from lavit.tokenizers.features import write_array
from lavit.workspace import Workspace

STEPS = (2, 4, 8, 20, 50)  # of the curve
MEAN_OF = 512  # training pictures whose mean is the dullest baseline
SHOWN = 24  # pictures that are painted from every budget of tokens


@torch.no_grad()
def main(experiment: Experiment, run: Path) -> None:
    work, cfg = Workspace(experiment, run), experiment.evaluation
    folder = work.folder("eval/reconstruction")
    progress = Progress(folder, 4, "passes")
    painter, pictures, codes = (
        Painter.from_run(work),
        work.pictures("captions", cfg.split),
        work.codes("captions", cfg.split),
    )
    numbers = pictures.distinct(cfg.reconstructions)
    features = painter.features([codes.codes(n) for n in numbers])
    seeds = [seed_for(experiment.seed, 1, n) for n in numbers]
    images = painter.render(features, seeds)
    progress.update(1)
    originals = pictures.pixels(numbers, images.shape[-1])
    real = pooled(painter.tokenizer.encoder, originals, painter.batch)
    shuffles = derangements(len(numbers), cfg.derangements, experiment.seed)
    figures = measure(painter, images, originals, real, shuffles)
    progress.update(2)
    figures |= baselines(work, painter, numbers, features, originals, real)
    figures |= {f"chance_r{k}": chance_recall(len(numbers), min(k, len(numbers))) for k in (1, 5)}
    if cfg.curve:
        few = slice(0, cfg.curve)
        figures["curve"] = curve(painter, features[few], seeds[few], originals[few], real[few])
    progress.update(3)
    shown = evenly(list(range(len(numbers))), SHOWN)
    patches = painter.tokenizer.patch_features(pictures.inputs(numbers, painter.tokenizer.config.encoder.image_size))
    own = Made(float(codes.counts()[numbers].float().mean()), features, images[shown])
    made = {name: rebuild(painter, patches, share, shown, [seeds[i] for i in shown]) for name, share in BUDGETS.items()}
    figures |= {"budget_n": len(shown), "budget_chance_r1": chance_recall(len(shown), 1)}
    for name, its in {"own": own, **made}.items():
        found = measure(painter, its.images, originals[shown], real[shown])
        found |= {"tokens": its.tokens, "cosine": float(cosine(patches, its.features).mean())}
        figures |= {f"budget_{name}_{k}": found[k] for k in Budget._fields}
    write_array(folder / "images.npy", to_bytes(images))
    write_array(folder / "budgets.npy", np.stack([to_bytes(its.images) for its in made.values()], axis=1))
    extra = {"n": len(numbers), "split": cfg.split, "numbers": numbers, "shown": shown}
    write_json(folder / "figures.json", figures | extra)
    progress.update(4)


def baselines(
    work: Workspace, painter: Painter, numbers: list[int], features: Tensor, originals: Tensor, real: Tensor
) -> dict[str, float]:
    """What the nearest training picture, the mean one and the linear draft come to in the place of reconstructions."""
    train, size = work.pictures("captions", "train"), originals.shape[-1]
    near = train.pixels(nearest_pictures(work, work.experiment.evaluation.split, numbers), size)
    figures = {f"nearest_{k}": v for k, v in measure(painter, near, originals, real).items()}
    if work.experiment.decoder.model.draft:  # what the diffusion adds to
        draft = painter.renderer.draft_images(features)
        figures |= {f"draft_{k}": v for k, v in measure(painter, draft, originals, real).items()}
    mean = train.pixels(train.distinct(MEAN_OF), size).mean(0, keepdim=True)
    return figures | {"psnr_mean_image": mean_psnr(mean.expand_as(originals), originals)}


class Made(NamedTuple):
    """Pictures from a budget of tokens.

    Attributes:
        tokens: how many an image has, on average.
        features: (n, P, D) float32, rebuilt.
        images: (k, 3, S, S) float32 in [0, 1] of those that are shown.
    """

    tokens: float
    features: Tensor
    images: Tensor


def rebuild(painter: Painter, patches: Tensor, share: int, shown: list[int], seeds: list[int]) -> Made:
    """Pictures from P / ``share`` tokens; ``patches`` (n, P, D) are the features of all, ``seeds`` of those shown.

    Tokens are decoded as they are: words cannot say where fewer of them come from than there are anchors.
    """
    tokens = max(1, patches.shape[1] // share)
    found = [painter.tokenizer.encode_features(part, tokens=tokens) for part in patches.split(painter.batch)]
    features = torch.cat([painter.tokenizer.decode(its) for its in found])
    return Made(tokens, features, painter.render(features[shown], seeds))


def curve(
    painter: Painter, features: Tensor, seeds: list[int], originals: Tensor, real: Tensor
) -> list[dict[str, Any]]:
    """R@5 and the Fréchet distance by the number of steps, of each sampler that goes with the decoder's prediction."""
    rows = []
    for sampler in samplers_of(painter.renderer.config.prediction):
        for steps in STEPS:
            images = painter.render(features, seeds, steps=steps, sampler=sampler)
            figures = measure(painter, images, originals, real)
            rows.append({"sampler": sampler, "steps": steps, "r5": figures["r5"], "fd_lite0": figures["fd_lite0"]})
    return rows


def measure(
    painter: Painter, images: Tensor, originals: Tensor, real: Tensor, shuffles: Tensor | None = None
) -> dict[str, float]:
    """Retrieval of the original by the rendered picture and a Fréchet distance, in the encoder's pooled features.

    ``real`` (n, C) are those of the originals. Both sets are centred on their own means first, so that the common look
    of rendered pictures does not decide. With ``shuffles`` (d, n) also R@5 of the pictures of others, their mean.
    """
    made = pooled(painter.tokenizer.encoder, images, painter.batch)
    target, five = torch.arange(len(images)), min(5, len(images))
    similar = similarity(made, real)
    figures = {"r1": recall_at(similar, target, 1), "r5": recall_at(similar, target, five)}
    if shuffles is not None:
        figures["shuffled_r5"] = fmean(recall_at(similar, order, five) for order in shuffles)
    return figures | {"fd_lite0": frechet_distance(made, real), "psnr": mean_psnr(images, originals)}


def similarity(made: Tensor, real: Tensor) -> Tensor:
    """(n, n) cosine of (n, C) vectors, each set centred on its own mean."""
    return F.normalize(made - made.mean(0), dim=-1) @ F.normalize(real - real.mean(0), dim=-1).T


def pooled(encoder: Encoder, images: Tensor, batch: int) -> Tensor:
    """(B, C) pooled pre-classifier features of images (B, 3, H, W) in [0, 1] of any size, ``batch`` at a time."""
    size = encoder.config.image_size
    return torch.cat([encoder.raw_and_head(scaled(part, size))[1] for part in images.split(batch)])


def to_bytes(images: Tensor) -> np.ndarray:
    """(B, 3, S, S) in [0, 1] to (B, S, S, 3) uint8."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    run_stage(main, "eval/reconstruction")
