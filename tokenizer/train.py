"""Stage 1: train selector, merger, codebook and feature decoder. ``make tokenizer CONFIG=…``"""

from __future__ import annotations

from pathlib import Path

import torch

from lavit.experiment import Experiment, run_stage
from lavit.layers.ranks import gathered
from lavit.runs import is_done, mark_done
from lavit.tokenizers.selector import gumbel_noise, noise_scale
from lavit.tokenizers.tokenizer import TokenizerBatch
from lavit.training.engine import digest
from lavit.training.loop import Place, generator_for, items_at, train
from lavit.training.weights import save_weights
from lavit.workspace import Workspace

CALIBRATION_BATCH, CALIBRATION_BATCHES = 64, 16


def main(experiment: Experiment, run: Path) -> None:
    work, stage, seed = Workspace(experiment, run), experiment.tokenizer, experiment.seed
    folder = work.folder("tokenizer")
    if is_done(folder):
        return
    sets = {part: work.pictures(part, "train") for part in work.parts()}
    shares = {"captions": 1 - stage.vqa_share, "vqa": stage.vqa_share} if "vqa" in sets else {"captions": 1.0}
    tokenizer = work.new_tokenizer()
    size = stage.model.encoder.image_size

    def inputs(place: Place) -> torch.Tensor:
        """Each set keeps its share of every micro-batch."""
        share = shares.get("vqa", 0.0)
        second = max(1, round(place.size * share)) if share and place.size > 1 else 0
        rows = []
        for part, count in (("captions", place.size - second), ("vqa", second)):
            if count:
                numbers = items_at(place._replace(size=count), stage.train.accumulate, len(sets[part]), seed)
                rows.append(sets[part].inputs(numbers, size))
        return torch.cat(rows)

    def batch_at(place: Place) -> TokenizerBatch:
        # Drawn for the step's whole batch, so that it depends on neither ranks nor accumulation.
        noise = gumbel_noise((stage.train.batch, stage.model.encoder.patches, 2), generator_for(seed, place.step, 0))
        scale = noise_scale(place.step, stage.noise_steps)
        first = (place.micro * place.world + place.rank) * place.size
        mine = noise[first : first + place.size]
        return TokenizerBatch(inputs(place), mine * scale if scale else None)

    @torch.no_grad()
    def before_step(step: int) -> None:
        tokenizer.quantize = step >= stage.plain_steps
        if step == stage.plain_steps:
            units = [_projected(tokenizer, batch_at(place)) for place in _kmeans_places(experiment)]
            tokenizer.quantizer.start_from(gathered(torch.cat(units)))

    frozen = digest(tokenizer.encoder)
    train(tokenizer, batch_at, stage.train, folder, before_step, tokenizer.quantizer.move)
    if torch.distributed.get_rank() == 0:
        if digest(tokenizer.encoder) != frozen:
            raise RuntimeError("the frozen encoder changed in training; nothing may be made of its features")
        if tokenizer.selector is not None and tokenizer.selector.calibrated:
            places = (Place(step, 0, 0, 1, CALIBRATION_BATCH) for step in range(CALIBRATION_BATCHES))
            tokenizer.eval().selector.calibrate(_features(tokenizer, inputs(place)) for place in places)
        save_weights(tokenizer, folder / "tokenizer.safetensors")
        mark_done(folder, {"steps": stage.train.steps, "encoder": frozen})


def _features(tokenizer, inputs: torch.Tensor) -> torch.Tensor:
    """(B, P, D) features of inputs, where the tokenizer is."""
    return tokenizer.patch_features(inputs.to(next(tokenizer.parameters()).device))


def _projected(tokenizer, batch: TokenizerBatch) -> torch.Tensor:
    """(n, C) float32 unit vectors of a batch's kept patches, before quantization."""
    features = _features(tokenizer, batch.inputs)
    merged, keep, _ = tokenizer.merger(features, tokenizer.select(features))
    return tokenizer.quantizer.project(merged)[keep]


def _kmeans_places(experiment: Experiment) -> list[Place]:
    """Enough micro-batches for k-means, at about a third of the patches kept."""
    stage = experiment.tokenizer
    wanted = max(stage.model.quantizer.kmeans_vectors, 2 * stage.model.quantizer.codes)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    size = stage.train.batch // (world * stage.train.accumulate)
    count = -(-3 * wanted // (stage.model.encoder.patches * size * world))
    return [Place(step, 0, rank, world, size) for step in range(count)]


if __name__ == "__main__":
    run_stage(main)
