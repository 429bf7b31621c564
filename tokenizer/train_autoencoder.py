"""Train the VAE that the pixel decoder works on, where the configuration has one of its own. ``make autoencoder``"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from lavit.data.order import Place, generators_at, items_at
from lavit.experiment import Experiment, run_stage
from lavit.renderers.autoencoder import AutoencoderBatch, AutoencoderObjective, measure_scale, posterior_noise
from lavit.renderers.latents import new_vae
from lavit.runs import is_done, mark_done
from lavit.training.loop import train
from lavit.workspace import Workspace

BATCH = 16


def main(experiment: Experiment, run: Path) -> None:
    work, stage, seed = Workspace(experiment, run), experiment.autoencoder, experiment.seed
    model = experiment.decoder.model
    folder = work.folder("autoencoder")
    if is_done(folder):
        return
    if not experiment.trains_autoencoder:
        raise ValueError(
            "decoder.model.latents has no VAE to be trained; give it one, e.g. {vae: {channels: [64, 128, 256]}}, "
            "without a folder"
        )
    vae = new_vae(model.latents.vae, model.image_size, seed)
    objective = AutoencoderObjective(vae, stage.model, work.encoder() if stage.model.features else None)
    pictures = work.pictures("captions", "train")

    def batch_at(place: Place) -> AutoencoderBatch:
        numbers = items_at(place, stage.train.accumulate, len(pictures), seed)
        noise = posterior_noise(model.shape, generators_at(place, seed))
        return AutoencoderBatch(pictures.pixels(numbers, model.image_size) * 2 - 1, noise)

    train(objective, batch_at, stage.train, folder)
    if torch.distributed.get_rank() == 0:
        numbers = np.linspace(0, len(pictures) - 1, min(len(pictures), stage.scale_sample)).astype(int)
        parts = (numbers[start : start + BATCH].tolist() for start in range(0, len(numbers), BATCH))
        device, made = vae.device, new_vae(model.latents.vae, model.image_size, seed)
        made.load_state_dict(vae.state_dict())  # what ZeRO-3 trained would ask the other ranks for its parts
        vae = made.to(device).eval()
        measure_scale(vae, (pictures.pixels(part, model.image_size) * 2 - 1 for part in parts))
        draft = folder / "vae.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        vae.save_pretrained(draft, safe_serialization=True)
        shutil.rmtree(folder / "vae", ignore_errors=True)
        draft.rename(folder / "vae")
        mark_done(folder, {"steps": stage.train.steps, "scaling_factor": vae.config.scaling_factor})


if __name__ == "__main__":
    run_stage(main)
