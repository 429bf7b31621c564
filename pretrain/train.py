"""Stage 2: pretrain the language model on text and visual words. ``make pretrain CONFIG=…``"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from lavit.data.documents import Document, question_text
from lavit.data.order import Place
from lavit.data.packing import document_length, pack, rows_for, with_common_total
from lavit.data.text import train_text_tokenizer
from lavit.data.words import train_word_tokenizer, word_vectors
from lavit.experiment import Experiment, PretrainStage, run_stage
from lavit.model import UnifiedLM
from lavit.runs import FolderLock, is_done, mark_done, stage_clock, written_whole
from lavit.tokens import PackedBatch
from lavit.training.engine import start_processes
from lavit.training.loop import train
from lavit.training.validation import Validation
from lavit.weights import load_weights, save_weights
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
    model = work.new_model()
    if experiment.pretrain.text.words:
        start_from_words(model, work.text_tokenizer())
    pretrain(work, model, rank)


def pretrain(work: Workspace, model: UnifiedLM, rank: int) -> None:
    """Train ``model`` as the ``pretrain`` section says, phase by phase, from the weights that it has."""
    folder, parts = work.folder("pretrain"), work.experiment.pretrain.parts()
    with contextlib.ExitStack() as whole:
        if rank == 0 and "" not in parts:  # one phase alone keeps lock and clock of the folder itself
            whole.enter_context(FolderLock(folder))
            whole.enter_context(stage_clock(folder))
        first, before = 0, None
        for name, stage in parts.items():
            path = folder / name / "model.safetensors"
            if not name or not is_done(path.parent):
                if before is not None:  # on a model of its own: an engine leaves hooks in the one that it trained
                    model = None  # before the next is made: both are large
                    model = load_weights(work.new_model(), before)
                train_phase(work, model, stage, folder / name, first)
                if rank == 0:
                    save_weights(model, path)
                    if name:
                        mark_done(path.parent, {"steps": stage.train.steps})
                torch.distributed.barrier()
            first, before = first + stage.train.steps, path
    if rank == 0:
        last = folder / list(parts)[-1] / "model.safetensors"
        if last.parent != folder:
            with written_whole(folder / "model.safetensors") as draft:
                draft.unlink()
                try:  # no more room for the same weights: gigabytes, of which nobody writes into the file that is there
                    os.link(last, draft)
                except OSError:  # a file system without links
                    shutil.copyfile(last, draft)
        steps = sum(stage.train.steps for stage in parts.values())
        mark_done(folder, {"steps": steps, "vocabulary": model.vocabulary.size})


def train_phase(work: Workspace, model: UnifiedLM, stage: PretrainStage, folder: Path, first: int) -> None:
    """Train ``model`` as ``stage`` says, in ``folder``; its documents are those from the step ``first`` on."""
    seed = work.experiment.seed
    model.words = stage.model.word_head
    mixture = work.mixture(model.vocabulary, stage=stage)

    @functools.lru_cache(maxsize=1)
    def step_of(step: int, world: int) -> tuple[list[Document], list[list[list[int]]], dict[str, float]]:
        drawn = mixture.step(first + step, stage.train.batch, seed)
        documents = [one.document for one in drawn]
        rows = rows_for(list(map(document_length, documents)), stage.row, world * stage.train.accumulate)
        return documents, rows, mixture.counts(drawn)

    def batch_at(place: Place) -> PackedBatch:
        documents, rows, counts = step_of(place.step, place.world)
        return pack(documents, rows=rows[place.micro * place.world + place.rank])._replace(counts=counts)

    validate = None
    if stage.train.validate_every:
        held_out = work.mixture(model.vocabulary, "validation", stage)
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


def make_text_tokenizer(work: Workspace, folder: Path) -> None:
    """Make the text tokenizer from the training texts, where the config asks for one and it is not there yet."""
    kind, settings = work.experiment.pretrain.text.chosen()
    make = {"trained": train_text_tokenizer, "words": train_word_tokenizer}.get(kind)
    if make is None or (folder / "text").is_dir():
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
    text = make([line for lines in texts.values() for line in lines], settings)
    draft = folder / "text.tmp"
    text.save_pretrained(draft)
    draft.rename(folder / "text")


@torch.no_grad()
def start_from_words(model: UnifiedLM, text: PreTrainedTokenizerBase) -> None:
    """Give the rows of whole words, in embedding and head, the vectors that a sentence encoder has of them."""
    table = model.embedding.text.weight
    ids, vectors = word_vectors(text, table.shape[1], float(table.std()))
    table[ids] = vectors
    if model.head.text is not table:
        model.head.text[ids] = vectors / 2  # alike words would be as likely as each other for long


if __name__ == "__main__":
    run_stage(main)
