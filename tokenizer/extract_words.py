"""Pictures to words of the language model, a folder a shard. ``python -m tokenizer.extract_words CONFIG``

``run/words/PART/SHARD`` holds indices into the word list, which ``run/words/words.json`` has: ids of the text
vocabulary and strings. A shard appears whole or not at all, so that a run that was cut goes on at the next one.
"""

from __future__ import annotations

from pathlib import Path

import torch

from lavit.experiment import Experiment, run_stage
from lavit.runs import Progress, read_json
from lavit.tokenizers.codes import Extracted, write_shard
from lavit.tokenizers.features import PictureSet
from lavit.tokenizers.pyramid_autoencoder import PyramidTokenizer
from lavit.tokens import Tokens
from lavit.weights import file_digest
from lavit.workspace import SPLITS, Workspace


@torch.no_grad()
def main(experiment: Experiment, run: Path) -> None:
    work = Workspace(experiment, run)
    folder = work.folder("words")
    made_by = file_digest(run / "pyramid" / "pyramid.safetensors")
    tokenizer = work.pyramid()
    sets = [(part, split) for part in work.parts() for split in SPLITS]
    jobs = [(part, split, *job) for part, split in sets for job in work.shards(part, split).by_tar()]
    progress = Progress(folder, len(jobs), "shards")
    for done, (part, split, tar, numbers) in enumerate(jobs, start=1):
        path = work.words_folder(part, tar)
        if not path.is_dir():
            pictures = PictureSet(work.shards(part, split), fit=experiment.tokenizer.model.encoder.fit)
            pooled = work.head_features(part, split) if experiment.pyramid.model.pooled else None
            keys = [pictures.shards.keys[n] for n in numbers]
            found = words_of(tokenizer, pictures, pooled, list(numbers), experiment.extraction.batch)
            write_shard(path, found, {"keys": keys, "skipped": {}, "made_by": made_by}, features=False)
        elif read_json(path / "about.json")["made_by"] != made_by:
            raise ValueError(f"{path} has words of another pyramid; remove {folder}")
        progress.update(done)
    work.word_list().save(folder / "words.json")


def words_of(
    tokenizer: PyramidTokenizer, pictures: PictureSet, pooled: torch.Tensor | None, numbers: list[int], batch: int
) -> list[Extracted]:
    """The words of some pictures, ``batch`` at a time; ``pooled`` (n, F) are the split's features where needed."""
    found = []
    for start in range(0, len(numbers), batch):
        some = numbers[start : start + batch]
        tokens = tokens_of(tokenizer, pictures, pooled, some)
        nothing = torch.zeros(len(tokens.codes[0]), 0)
        found += [Extracted(codes, nothing, at) for codes, at in zip(tokens.codes, tokens.position, strict=True)]
    return found


def tokens_of(
    tokenizer: PyramidTokenizer, pictures: PictureSet, pooled: torch.Tensor | None, numbers: list[int]
) -> Tokens:
    """The tokens of the pictures with these numbers."""
    images = pictures.pixels(numbers, tokenizer.config.image_size) * 2 - 1
    return tokenizer.quantizer.tokens(tokenizer.name(images, None if pooled is None else pooled[numbers]))


if __name__ == "__main__":
    run_stage(main, "words")
