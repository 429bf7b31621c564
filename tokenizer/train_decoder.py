"""Stage 3: train the pixel decoder on reconstructed features. ``make decoder CONFIG=…``"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lavit.data.order import Place, generators_at, items_at
from lavit.experiment import Experiment, check_stored, run_stage
from lavit.renderers.objective import RendererBatch, RendererObjective, training_noise
from lavit.runs import is_done, mark_done
from lavit.training.loop import train
from lavit.weights import save_weights
from lavit.workspace import Workspace

DRAFT_BATCH = 64


def main(experiment: Experiment, run: Path) -> None:
    work, stage, seed = Workspace(experiment, run), experiment.decoder, experiment.seed
    folder = work.folder("decoder")
    if is_done(folder):
        return
    check_stored(experiment, stage.model.image_size, "decoder.model.image_size")
    tokenizer = work.tokenizer()
    tokenizer.encoder = tokenizer.selector = tokenizer.merger = None  # what makes words is not needed, and large
    objective = RendererObjective(work.new_renderer(), tokenizer)
    pictures, codes = work.pictures("captions", "train"), work.codes("captions", "train")

    def images(numbers: Tensor | list[int]) -> Tensor:
        return pictures.pixels(numbers, stage.model.image_size) * 2 - 1

    def batch_at(place: Place) -> RendererBatch:
        numbers = items_at(place, stage.train.accumulate, len(pictures), seed)
        noise = training_noise(stage.model, generators_at(place, seed))
        return RendererBatch(*codes.padded(numbers), images(numbers), *noise)

    def before_step(step: int) -> None:
        if step == 0 and stage.model.draft:
            device = objective.renderer.device
            starts = range(0, len(pictures), DRAFT_BATCH)
            parts = [list(range(start, min(start + DRAFT_BATCH, len(pictures)))) for start in starts]
            pairs = ((objective.features(*codes.padded(part)), images(part).to(device)) for part in parts)
            objective.renderer.fit_draft(pairs)

    train(objective, batch_at, stage.train, folder, before_step)
    if torch.distributed.get_rank() == 0:
        save_weights(objective.renderer, folder / "renderer.safetensors")
        mark_done(folder, {"steps": stage.train.steps})


if __name__ == "__main__":
    run_stage(main)
