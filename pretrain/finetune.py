"""Stage 2 again, from the trained run that ``finetune.start`` names: ``make finetune CONFIG=…``"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from lavit.experiment import Experiment, load_experiment, require_alike, run_stage
from lavit.layers.lora import add_lora
from lavit.model import UnifiedLM
from lavit.runs import is_done
from lavit.training.engine import start_processes
from lavit.weights import load_weights
from lavit.workspace import Workspace
from pretrain.train import pretrain

ALIKE = ("pretrain.model", "pretrain.text")  # settings that must be that run's
MAY_DIFFER = ("pretrain.model.lora", "pretrain.model.z_loss", "pretrain.model.checkpoint_activations")


def main(experiment: Experiment, run: Path) -> None:
    work = Workspace(experiment, run)
    folder = work.folder("pretrain")
    if is_done(folder):
        return
    start = started_from(experiment)
    rank, _, _ = start_processes()
    if rank == 0:
        take_text_tokenizer(start, run)
    torch.distributed.barrier()
    pretrain(work, started_model(experiment, run, start), rank)


def started_model(experiment: Experiment, run: Path, start: Path) -> UnifiedLM:
    """The model of ``start``; adapters, where they are asked for, are added to it."""
    config = experiment.pretrain.model
    plain = replace(experiment, pretrain=replace(experiment.pretrain, model=replace(config, lora=None)))
    model = load_weights(Workspace(plain, run).new_model(), start / "pretrain" / "model.safetensors")
    if config.lora:
        add_lora(model.blocks, config.lora, experiment.seed + 2)
    return model


def started_from(experiment: Experiment) -> Path:
    """The run to go on from.

    Raises:
        ValueError: none is named, it has not been trained, or its settings are others.
    """
    if experiment.finetune.start is None:
        raise ValueError("finetune.start is not set; name the run folder to go on from, e.g. finetune.start=runs/demo")
    start = Path(experiment.finetune.start)
    if not is_done(start / "pretrain"):
        raise ValueError(f"finetune.start: {start} has no finished pretrain; train it first")
    if load_experiment(start / "config.yaml").pretrain.model.lora is not None:
        raise ValueError(f"finetune.start: {start} was trained with adapters (pretrain.model.lora); name one without")
    require_alike("finetune.start", start, experiment, ALIKE, MAY_DIFFER)
    return start


def take_text_tokenizer(start: Path, run: Path) -> None:
    """Copy the text tokenizer that ``start`` trained, if it did."""
    text = run / "pretrain" / "text"
    if (start / "pretrain" / "text").is_dir() and not text.is_dir():
        draft = text.with_name("text.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(start / "pretrain" / "text", draft)
        draft.rename(text)


if __name__ == "__main__":
    run_stage(main)
