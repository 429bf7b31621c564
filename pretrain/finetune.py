"""Stage 2 again, from the trained run that ``finetune.start`` names: ``make finetune CONFIG=…``"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from lavit.config import changed_keys, read_plain_text, to_yaml
from lavit.experiment import Experiment, load_experiment, run_stage
from lavit.layers.lora import add_lora
from lavit.model import UnifiedLM
from lavit.runs import is_done
from lavit.training.engine import start_processes
from lavit.training.weights import load_weights
from lavit.workspace import Workspace
from pretrain.train import pretrain

SHARED = ("data", "features", "tokenizer", "extract")  # folders of the run that is gone on from
ALIKE = ("data", "tokenizer.model", "pretrain.model", "pretrain.text")  # settings that must be that run's
MAY_DIFFER = ("pretrain.model.lora", "pretrain.model.z_loss", "pretrain.model.checkpoint_activations")


def main(experiment: Experiment, run: Path) -> None:
    work = Workspace(experiment, run)
    folder = work.folder("pretrain")
    if is_done(folder):
        return
    start = started_from(experiment)
    rank, _, _ = start_processes()
    if rank == 0:
        take_over(start, run)
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
    for stage in ("extract", "pretrain"):
        if not is_done(start / stage):
            raise ValueError(f"finetune.start: {start} has no finished {stage}; train it first")
    if load_experiment(start / "config.yaml").pretrain.model.lora is not None:
        raise ValueError(f"finetune.start: {start} was trained with adapters (pretrain.model.lora); name one without")
    known, own = (read_plain_text(to_yaml(e)) for e in (load_experiment(start / "config.yaml"), experiment))
    changed = changed_keys(known, own)
    wrong = [key for key in changed if _under(key, ALIKE) and not _under(key, MAY_DIFFER)]
    if wrong:
        raise ValueError(
            f"finetune.start: {start} has other settings of {', '.join(wrong[:5])}; they must be the same here"
        )
    return start


def _under(key: str, beginnings: tuple[str, ...]) -> bool:
    return any(key == start or key.startswith(f"{start}.") for start in beginnings)


def take_over(start: Path, run: Path) -> None:
    """Let ``run`` have the folders of ``start`` that stay as they are, and its text tokenizer."""
    for name in SHARED:
        place = run / name
        if place.is_symlink():
            place.unlink()
        if place.exists():
            raise ValueError(f"{place} is there, which a fine-tuned run takes from {start}; remove it")
        if (start / name).is_dir():
            place.symlink_to((start / name).resolve())
    text = run / "pretrain" / "text"
    if (start / "pretrain" / "text").is_dir() and not text.is_dir():
        draft = text.with_name("text.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(start / "pretrain" / "text", draft)
        draft.rename(text)


if __name__ == "__main__":
    run_stage(main)
