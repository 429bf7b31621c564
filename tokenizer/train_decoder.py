"""Stage 3: train the pixel decoder on reconstructed features. ``make decoder CONFIG=…``"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lavit.data.order import Place, generators_at, items_at
from lavit.experiment import Experiment, run_stage
from lavit.renderers.diffusion import RendererBatch, training_noise
from lavit.runs import is_done, mark_done
from lavit.training.loop import train
from lavit.training.weights import save_weights
from lavit.workspace import Workspace

DRAFT_BATCH = 64


def main(experiment: Experiment, run: Path) -> None:
    work, stage, seed = Workspace(experiment, run), experiment.decoder, experiment.seed
    folder = work.folder("decoder")
    if is_done(folder):
        return
    if stage.model.image_size > experiment.data.image_size:
        raise ValueError(
            f"decoder.model.image_size {stage.model.image_size} is more than the pictures are stored at, "
            f"data.image_size {experiment.data.image_size}: it would learn enlarged ones; make one fit the other"
        )
    tokenizer, renderer = work.tokenizer(), work.new_renderer()
    pictures, codes = work.pictures("captions", "train"), work.codes("captions", "train")
    grid = stage.model.image_size // stage.model.patch

    @torch.no_grad()
    def pair(numbers: Tensor | list[int]) -> tuple[Tensor, Tensor]:
        """Reconstructed features (B, P, D) and images (B, 3, S, S) in [-1, 1]."""
        rebuilt = tokenizer.decode(tokenizer.lookup(*codes.padded(numbers)))
        return rebuilt, pictures.pixels(numbers, stage.model.image_size) * 2 - 1

    def batch_at(place: Place) -> RendererBatch:
        features, images = pair(items_at(place, stage.train.accumulate, len(pictures), seed))
        shape = (3 * stage.model.patch**2, grid, grid)
        return RendererBatch(features, images, *training_noise(stage.model, shape, generators_at(place, seed)))

    def before_step(step: int) -> None:
        if step == 0 and stage.model.draft:
            starts = range(0, len(pictures), DRAFT_BATCH)
            renderer.fit_draft(pair(list(range(s, min(s + DRAFT_BATCH, len(pictures))))) for s in starts)

    train(renderer, batch_at, stage.train, folder, before_step)
    if torch.distributed.get_rank() == 0:
        save_weights(renderer, folder / "renderer.safetensors")
        mark_done(folder, {"steps": stage.train.steps})


if __name__ == "__main__":
    run_stage(main)
