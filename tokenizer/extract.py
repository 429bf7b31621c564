"""Between stages 1 and 2: pictures to codes and merged features. ``make extract CONFIG=…``"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lavit.experiment import Experiment, run_stage
from lavit.runs import Progress, written_whole
from lavit.tokenizers.features import PictureSet
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.workspace import SPLITS, Workspace

BATCH = 64


def main(experiment: Experiment, run: Path) -> None:
    work = Workspace(experiment, run)
    folder, tokenizer = work.folder("extract"), work.tokenizer()
    sets = [(part, split, work.pictures(part, split)) for part in work.parts() for split in SPLITS]
    progress, done = Progress(folder, sum(len(s) for _, _, s in sets), "pictures"), 0
    for part, split, pictures in sets:
        path = folder / f"{part}-{split}.npz"
        if not path.is_file():
            write_codes(tokenizer, pictures, path, progress, done)
        done += len(pictures)


@torch.no_grad()
def write_codes(tokenizer: Tokenizer, pictures: PictureSet, path: Path, progress: Progress, done: int) -> None:
    """Visual words (n,) int32, merged features (n, D) float16, starts (pictures + 1,) int64, whole or not at all."""
    words, features, counts = [], [], []
    for start in range(0, len(pictures), BATCH):
        numbers = list(range(start, min(start + BATCH, len(pictures))))
        inputs = pictures.inputs(numbers, tokenizer.config.encoder.image_size)
        tokens = tokenizer.encode_features(tokenizer.patch_features(inputs))
        words.append(tokenizer.words(tokens)[tokens.keep].int().numpy())
        features.append(tokens.features[tokens.keep].half().numpy())
        counts.append(tokens.keep.sum(1).numpy())
        progress.update(done + numbers[-1] + 1)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    with written_whole(path) as draft, draft.open("wb") as f:
        np.savez(f, words=np.concatenate(words), features=np.concatenate(features), start=starts)


if __name__ == "__main__":
    run_stage(main, "extract")
