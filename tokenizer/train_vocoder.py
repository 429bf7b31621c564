"""Train the vocoder, which makes sound of codes of speech. ``python -m tokenizer.train_vocoder CONFIG``"""

from __future__ import annotations

from pathlib import Path

import torch

from lavit.data.audio import read_sounds
from lavit.data.order import Place, items_at
from lavit.experiment import Experiment, run_stage
from lavit.renderers.vocoder import VocoderBatch, VocoderObjective, vocoder_batch
from lavit.runs import is_done, mark_done
from lavit.training.loop import train
from lavit.weights import save_weights
from lavit.workspace import Workspace


def main(experiment: Experiment, run: Path) -> None:
    work, stage, seed = Workspace(experiment, run), experiment.vocoder, experiment.seed
    folder = work.folder("vocoder")
    if is_done(folder):
        return
    vocoder = work.new_vocoder()
    clips, codes = work.shards("speech", "train"), work.codes("speech", "train")
    maker = work.new_vocoder()  # spectrograms are made on the CPU, wherever the vocoder is trained

    def batch_at(place: Place) -> VocoderBatch:
        numbers = items_at(place, stage.train.accumulate, len(clips), seed).tolist()
        return vocoder_batch(maker, *codes.padded(numbers), read_sounds(clips, numbers))

    train(VocoderObjective(vocoder), batch_at, stage.train, folder)
    if torch.distributed.get_rank() == 0:
        save_weights(vocoder, folder / "vocoder.safetensors")
        mark_done(folder, {"steps": stage.train.steps})


if __name__ == "__main__":
    run_stage(main)
