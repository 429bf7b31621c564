"""Held-out pictures through tokens and back to pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lavit.data.order import seed_for
from lavit.experiment import Experiment, run_stage
from lavit.metrics.images import frechet_distance, psnr
from lavit.metrics.retrieval import chance_recall, recall_at
from lavit.pipeline import BATCH, LaVIT
from lavit.renderers.sampling import samplers_of
from lavit.runs import Progress, write_json
from lavit.tokenizers.features import write_array
from lavit.workspace import Workspace

STEPS = (2, 4, 8, 20, 50)  # of the curve
MEAN_OF = 512  # training pictures whose mean is the dullest baseline


@torch.no_grad()
def main(experiment: Experiment, run: Path) -> None:
    work, cfg = Workspace(experiment, run), experiment.evaluation
    folder = work.folder("eval/reconstruction")
    progress = Progress(folder, 3, "passes")
    system, pictures, codes = (
        LaVIT.from_run(work),
        work.pictures("captions", cfg.split),
        work.codes("captions", cfg.split),
    )
    numbers = pictures.distinct(cfg.reconstructions)
    features = system.features([codes.codes(n) for n in numbers])
    seeds = [seed_for(experiment.seed, 1, n) for n in numbers]
    images = system.render(features, seeds)
    progress.update(1)
    originals = pictures.pixels(numbers, images.shape[-1])
    progress.update(2)
    train = work.pictures("captions", "train")
    mean = train.pixels(train.distinct(MEAN_OF), images.shape[-1]).mean(0, keepdim=True)
    figures = measure(system, images, originals)
    if experiment.decoder.model.draft:  # what the diffusion adds to
        draft = system.renderer.draft_images(features)
        figures |= {f"draft_{k}": v for k, v in measure(system, draft, originals).items()}
    figures |= {"psnr_mean_image": float(psnr(mean.expand_as(originals), originals).mean())}
    figures |= {f"chance_r{k}": chance_recall(len(numbers), min(k, len(numbers))) for k in (1, 5)}
    if cfg.curve:
        few = slice(0, cfg.curve)
        figures["curve"] = curve(system, features[few], seeds[few], originals[few])
    write_array(folder / "images.npy", to_bytes(images))
    write_json(folder / "figures.json", figures | {"n": len(numbers), "split": cfg.split, "numbers": numbers})
    progress.update(3)


def curve(system: LaVIT, features: Tensor, seeds: list[int], originals: Tensor) -> list[dict[str, Any]]:
    """R@5 and the Fréchet distance by the number of steps, of each sampler that goes with the decoder's prediction."""
    rows = []
    for sampler in samplers_of(system.renderer.config.prediction):
        for steps in STEPS:
            parts = zip(features.split(BATCH), torch.tensor(seeds).split(BATCH), strict=True)
            images = [system.renderer.render(x, s.tolist(), steps=steps, sampler=sampler) for x, s in parts]
            figures = measure(system, torch.cat(images), originals)
            rows.append({"sampler": sampler, "steps": steps, "r5": figures["r5"], "fd_lite0": figures["fd_lite0"]})
    return rows


def measure(system: LaVIT, images: Tensor, originals: Tensor) -> dict[str, float]:
    """Retrieval of the original by the rendered picture and a Fréchet distance, in the encoder's pooled features.

    Both sets are centred on their own means first, so that the common look of rendered pictures does not decide.
    """
    made, real = (pooled(system, x) for x in (images, originals))
    similar, target = similarity(made, real), torch.arange(len(images))
    figures = {f"r{k}": recall_at(similar, target, min(k, len(images))) for k in (1, 5)}
    return figures | {"fd_lite0": frechet_distance(made, real), "psnr": float(psnr(images, originals).mean())}


def similarity(made: Tensor, real: Tensor) -> Tensor:
    """(n, n) cosine of (n, C) vectors, each set centred on its own mean."""
    return F.normalize(made - made.mean(0), dim=-1) @ F.normalize(real - real.mean(0), dim=-1).T


def pooled(system: LaVIT, images: Tensor) -> Tensor:
    """(B, C) pooled pre-classifier features of images (B, 3, S, S) in [0, 1] of any size."""
    size = system.tokenizer.config.encoder.image_size
    scaled = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return torch.cat([system.tokenizer.encoder.raw_and_head(part)[1] for part in scaled.split(BATCH)])


def to_bytes(images: Tensor) -> np.ndarray:
    """(B, 3, S, S) in [0, 1] to (B, S, S, 3) uint8."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    run_stage(main, "eval/reconstruction")
