"""Stage 1: train selector, merger, codebook and feature decoder. ``make tokenizer CONFIG=…``"""

from __future__ import annotations

from pathlib import Path

import torch

from lavit.data.order import Place, generator_for, items_at
from lavit.experiment import Experiment, TokenizerStage, run_stage
from lavit.layers.ranks import gathered
from lavit.runs import is_done, mark_done
from lavit.tokenizers.quantizer import read_codebook
from lavit.tokenizers.selector import gumbel_noise, noise_scale
from lavit.tokenizers.tokenizer import TokenizerBatch
from lavit.training.engine import digest
from lavit.training.loop import train
from lavit.weights import load_weights, save_weights
from lavit.workspace import Workspace

CALIBRATION_BATCH, CALIBRATION_BATCHES = 64, 16


def main(experiment: Experiment, run: Path) -> None:
    work, stage, seed = Workspace(experiment, run), experiment.tokenizer, experiment.seed
    folder = work.folder("tokenizer")
    if is_done(folder):
        return
    sets = {part: work.pictures(part, "train") for part in work.parts()}
    share = stage.vqa_share if "vqa" in sets else 0.0
    tokenizer = work.new_tokenizer()
    size = stage.model.encoder.image_size

    def inputs(step: int, batch: int, mine: slice = slice(None)) -> torch.Tensor:
        """A part of a step's batch, of which each set has its share."""
        second = max(1, round(batch * share)) if share and batch > 1 else 0
        items: list[tuple[str, int]] = []
        for part, count in (("captions", batch - second), ("vqa", second)):
            if count:
                numbers = items_at(Place(step, 0, 0, 1, count), 1, len(sets[part]), seed)
                items += [(part, number) for number in numbers.tolist()]
        chosen = {part: [number for name, number in items[mine] if name == part] for part in sets}
        return torch.cat([sets[part].inputs(numbers, size) for part, numbers in chosen.items() if numbers])

    def batch_at(place: Place) -> TokenizerBatch:
        # Cut from the step's whole batch, so that pictures and noise depend on neither ranks nor accumulation.
        first = (place.micro * place.world + place.rank) * place.size
        mine = slice(first, first + place.size)
        noise = gumbel_noise((stage.train.batch, stage.model.encoder.patches, 2), generator_for(seed, place.step, 0))
        scale = noise_scale(place.step, stage.noise_steps)
        return TokenizerBatch(inputs(place.step, stage.train.batch, mine), noise[mine] * scale if scale else None)

    @torch.no_grad()
    def before_step(step: int) -> None:
        tokenizer.quantize = step >= stage.plain_steps
        if tokenizer.selector is not None:
            tokenizer.selector.anneal(noise_scale(step, stage.noise_steps))
        if step == stage.plain_steps and given is not None:
            tokenizer.quantizer.take(given)
        elif step == stage.plain_steps:
            units = [gathered(_projected(tokenizer, batch_at(place))) for place in _kmeans_places(experiment)]
            tokenizer.quantizer.start_from(torch.cat(units))

    quantizer = stage.model.quantizer
    given = read_codebook(quantizer) if quantizer.file is not None else None
    check_kmeans(stage, sum(len(part) for part in sets.values()))
    frozen = digest(tokenizer.encoder)
    train(tokenizer, batch_at, stage.train, folder, before_step, tokenizer.quantizer.move)
    if torch.distributed.get_rank() == 0:
        if digest(tokenizer.encoder) != frozen:
            raise RuntimeError("the frozen encoder changed in training; nothing may be made of its features")
        path = folder / "tokenizer.safetensors"
        save_weights(tokenizer, path)
        if tokenizer.selector is not None and tokenizer.selector.calibrated:
            # A new one, because what ZeRO-3 spread over the ranks would call for them at every use.
            trained = load_weights(work.new_tokenizer(), path).to(next(tokenizer.parameters()).device)
            batches = (inputs(step, CALIBRATION_BATCH) for step in range(CALIBRATION_BATCHES))
            trained.selector.calibrate(_features(trained, batch) for batch in batches)
            save_weights(trained, path)
        mark_done(folder, {"steps": stage.train.steps, "encoder": frozen})


def check_kmeans(stage: TokenizerStage, pictures: int) -> None:
    """Check that k-means will find a vector a code, which is long after the start.

    Raises:
        ValueError: it will not.
    """
    kind, choice = stage.model.selection.chosen()
    patches, codes = stage.model.encoder.patches, stage.model.quantizer.codes
    kept = choice.tokens if kind == "even" else choice.rho * patches
    if stage.model.quantizer.file is not None:
        return
    vectors = round(kept * min(pictures, kmeans_steps(stage) * stage.train.batch))
    if vectors < codes:
        raise ValueError(
            f"tokenizer.model.quantizer.codes is {codes}, but k-means will see only about {vectors} vectors: "
            f"{kept:.0f} of each of at most {pictures} pictures; use more pictures, fewer codes or more kmeans_vectors"
        )


def kmeans_steps(stage: TokenizerStage) -> int:
    """Batches that k-means looks at, if a third of the patches is kept."""
    wanted = max(stage.model.quantizer.kmeans_vectors, 2 * stage.model.quantizer.codes)
    return -(-3 * wanted // (stage.model.encoder.patches * stage.train.batch))


def _features(tokenizer, inputs: torch.Tensor) -> torch.Tensor:
    """(B, P, D) features of inputs, where the tokenizer is."""
    return tokenizer.patch_features(inputs.to(next(tokenizer.parameters()).device))


def _projected(tokenizer, batch: TokenizerBatch) -> torch.Tensor:
    """(n, C) float32 unit vectors of a batch's kept patches, before quantization."""
    features = _features(tokenizer, batch.inputs)
    merged, keep, _ = tokenizer.merger(features, tokenizer.select(features))
    return tokenizer.quantizer.project(merged)[keep]


def _kmeans_places(experiment: Experiment) -> list[Place]:
    """The micro-batches of this rank that k-means looks at, in the order of the global batches."""
    stage = experiment.tokenizer
    accumulate, rank, world = stage.train.accumulate, torch.distributed.get_rank(), torch.distributed.get_world_size()
    size = stage.train.batch // (world * accumulate)
    return [Place(step, micro, rank, world, size) for step in range(kmeans_steps(stage)) for micro in range(accumulate)]


if __name__ == "__main__":
    run_stage(main)
