"""Stage 2: pretrain the language model on text and visual words. ``make pretrain CONFIG=…``"""

from __future__ import annotations

from pathlib import Path

import torch

from lavit.data.documents import DocumentMaker, question_text
from lavit.data.mixture import Mixture
from lavit.data.packing import pack, with_common_total
from lavit.data.text import train_text_tokenizer
from lavit.experiment import Experiment, run_stage
from lavit.runs import is_done, mark_done
from lavit.tokens import PackedBatch
from lavit.training.engine import start_processes
from lavit.training.loop import Place, generator_for, items_at, train
from lavit.training.weights import save_weights
from lavit.workspace import Workspace


def main(experiment: Experiment, run: Path) -> None:
    work, stage, seed = Workspace(experiment, run), experiment.pretrain, experiment.seed
    folder = work.folder("pretrain")
    if is_done(folder):
        return
    rank, _, _ = start_processes()
    texts = {part: work.shards(part, "train") for part in work.parts()}
    described = {part: [shards.describe(i) for i in range(len(shards))] for part, shards in texts.items()}
    captions = [caption for caption, _ in described["captions"]]
    metas = [meta for _, meta in described.get("vqa", [])]
    if rank == 0:
        make_text_tokenizer(experiment, folder, captions, metas)
    torch.distributed.barrier()
    model = work.new_model()
    maker = DocumentMaker(model.vocabulary, work.text_tokenizer(), stage.row)
    questions = (work.codes("vqa", "train"), metas) if "vqa" in described else None
    mixture = Mixture(maker, (work.codes("captions", "train"), captions), questions, stage.mixture)

    def batch_at(place: Place) -> PackedBatch:
        numbers = items_at(place, stage.train.accumulate, len(captions), seed)
        asked = items_at(place, stage.train.accumulate, max(1, len(metas)), seed + 1)
        # A generator a document: what is drawn depends on its place in the global batch, not on the ranks.
        first = (place.micro * place.world + place.rank) * place.size
        documents = []
        for i in range(place.size):
            generator = generator_for(seed, place.step, first + i)
            documents += mixture.documents(numbers[i : i + 1], asked[i : i + 1], generator)
        return pack(documents, row=stage.row)

    train(model, batch_at, stage.train, folder, together=with_common_total)
    if rank == 0:
        save_weights(model, folder / "model.safetensors")
        mark_done(folder, {"steps": stage.train.steps, "vocabulary": model.vocabulary.size})


def make_text_tokenizer(experiment: Experiment, folder: Path, captions: list[str], metas: list[dict]) -> None:
    """Train the text tokenizer on the training texts, where the config asks for one and it is not there yet."""
    trained = experiment.pretrain.text.trained
    if trained is None or (folder / "text").is_dir():
        return
    asked = [question for meta in metas for question in meta["questions"]]
    answers = [answer for question in asked for answer in question["answers"]]
    text = train_text_tokenizer([*captions, *(question_text(q["question"]) for q in asked), *answers], trained)
    draft = folder / "text.tmp"
    text.save_pretrained(draft)
    draft.rename(folder / "text")


if __name__ == "__main__":
    run_stage(main)
