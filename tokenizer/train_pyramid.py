"""Train SPAE's pyramid autoencoder over the words of a frozen language model. ``make pyramid CONFIG=…``"""

from __future__ import annotations

from pathlib import Path

import torch

from lavit.data.order import Place, generators_at, items_at
from lavit.experiment import Experiment, check_stored, run_stage
from lavit.runs import is_done, mark_done
from lavit.tokenizers.pyramid_objective import PyramidBatch, PyramidObjective
from lavit.tokenizers.word_codebook import codebook_digest
from lavit.training.loop import train
from lavit.weights import save_weights
from lavit.workspace import Workspace


def main(experiment: Experiment, run: Path) -> None:
    work, stage, seed = Workspace(experiment, run), experiment.pyramid, experiment.seed
    if stage is None:
        raise ValueError("the configuration has no pyramid; add a section pyramid, or take configs/spae/demo.yaml")
    folder = work.folder("pyramid")
    if is_done(folder):
        return
    check_stored(experiment, stage.model.image_size, "pyramid.model.image_size")
    tokenizer = work.new_pyramid()
    frozen = codebook_digest(tokenizer.quantizer.codebook)
    pictures, size = work.pictures("captions", "train"), stage.model.image_size
    pooled = work.head_features("captions", "train") if stage.model.pooled else None
    words = work.word_meanings() if stage.loss.semantic else None
    vectors = work.picture_meanings("train") if stage.loss.semantic else None
    encoder = work.encoder() if stage.loss.features else None
    objective = PyramidObjective(tokenizer, stage.loss, words, encoder, seed)

    def batch_at(place: Place) -> PyramidBatch:
        numbers = items_at(place, stage.train.accumulate, len(pictures), seed)
        drawn = generators_at(place, seed)
        layers = [prefix_of(generator, stage.loss.shorter, len(tokenizer.counts)) for generator in drawn]
        given = [None if part is None else part[numbers] for part in (pooled, vectors)]
        seen = pictures.inputs(numbers, 0) if stage.loss.features and pictures.cached is not None else None
        return PyramidBatch(pictures.pixels(numbers, size) * 2 - 1, torch.tensor(layers), *given, seen)

    def before_step(step: int) -> None:
        objective.adversary.active = step >= stage.loss.adversary.start

    train(objective, batch_at, stage.train, folder, before_step, objective.adversary.move)
    if torch.distributed.get_rank() == 0:
        if codebook_digest(tokenizer.quantizer.codebook) != frozen:
            raise RuntimeError("the frozen codebook changed in training; its codes would be no words any more")
        save_weights(tokenizer, folder / "pyramid.safetensors")
        mark_done(folder, {"steps": stage.train.steps, "codebook": frozen, "words": len(work.word_list().ids)})


def prefix_of(generator: torch.Generator, shorter: float, layers: int) -> int:
    """How many layers a picture is rebuilt from: all, but for the ``shorter`` share a random number of them."""
    draw, number = torch.rand((), generator=generator), torch.randint(1, layers + 1, (), generator=generator)
    return int(number) if float(draw) < shorter else layers


if __name__ == "__main__":
    run_stage(main)
