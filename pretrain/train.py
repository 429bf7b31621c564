"""Stage 2: pretrain the language model on text and visual words. ``make pretrain CONFIG=…``"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from lavit.data.documents import Document, question_text
from lavit.data.order import Place
from lavit.data.packing import document_length, pack, rows_for, with_common_total
from lavit.data.text import train_text_tokenizer
from lavit.experiment import Experiment, run_stage
from lavit.model import UnifiedLM
from lavit.runs import is_done, mark_done
from lavit.tokens import PackedBatch
from lavit.training.engine import start_processes
from lavit.training.loop import train
from lavit.training.validation import Validation
from lavit.training.weights import save_weights
from lavit.workspace import Workspace


def main(experiment: Experiment, run: Path) -> None:
    work = Workspace(experiment, run)
    folder = work.folder("pretrain")
    if is_done(folder):
        return
    if experiment.finetune.start is not None:
        raise ValueError(f"finetune.start is {experiment.finetune.start}: this is for `make finetune`; set it to null")
    rank, _, _ = start_processes()
    if rank == 0:
        make_text_tokenizer(work, folder)
    torch.distributed.barrier()
    pretrain(work, work.new_model(), rank)


def pretrain(work: Workspace, model: UnifiedLM, rank: int) -> None:
    """Train ``model`` as the ``pretrain`` section says, from the weights that it has."""
    stage, seed, folder = work.experiment.pretrain, work.experiment.seed, work.folder("pretrain")
    mixture = work.mixture(model.vocabulary)

    @functools.lru_cache(maxsize=1)
    def step_of(step: int, world: int) -> tuple[list[Document], list[list[list[int]]], dict[str, float]]:
        drawn = mixture.step(step, stage.train.batch, seed)
        documents = [one.document for one in drawn]
        rows = rows_for(list(map(document_length, documents)), stage.row, world * stage.train.accumulate)
        return documents, rows, mixture.counts(drawn)

    def batch_at(place: Place) -> PackedBatch:
        documents, rows, counts = step_of(place.step, place.world)
        return pack(documents, rows=rows[place.micro * place.world + place.rank])._replace(counts=counts)

    validate = None
    if stage.train.validate_every:
        held_out = work.mixture(model.vocabulary, "validation")
        validate = Validation(model, held_out, stage.row, stage.validation, seed)

    train(
        model,
        batch_at,
        stage.train,
        folder,
        together=with_common_total,
        validate=validate,
        counts=lambda batch: batch.counts,
        flops=model.flops,
    )
    if rank == 0:
        save_weights(model, folder / "model.safetensors")
        mark_done(folder, {"steps": stage.train.steps, "vocabulary": model.vocabulary.size})


def make_text_tokenizer(work: Workspace, folder: Path) -> None:
    """Train the text tokenizer on the training texts, where the config asks for one and it is not there yet."""
    trained = work.experiment.pretrain.text.trained
    if trained is None or (folder / "text").is_dir():
        return
    texts: dict[str, list[str]] = {"captions": [], "asked": [], "answers": []}
    for part in work.parts():
        shards = work.shards(part, "train")
        for caption, meta in (shards.describe(i) for i in range(len(shards))):
            if part == "captions":
                texts["captions"].append(caption)
            for question in meta.get("questions", ()) if part == "vqa" else ():
                texts["asked"].append(question_text(question["question"]))
                texts["answers"] += question["answers"]
    text = train_text_tokenizer([line for lines in texts.values() for line in lines], trained)
    draft = folder / "text.tmp"
    text.save_pretrained(draft)
    draft.rename(folder / "text")


if __name__ == "__main__":
    run_stage(main)
