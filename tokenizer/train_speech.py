"""The speech tokenizer: k-means centres of features of training clips. ``python -m tokenizer.train_speech CONFIG``"""

from __future__ import annotations

from pathlib import Path

import torch

from lavit.data.audio import read_sounds
from lavit.data.shards import Shards
from lavit.experiment import Experiment, run_stage
from lavit.runs import Progress, write_json
from lavit.tokenizers.speech import SpeechTokenizer
from lavit.workspace import Workspace


def main(experiment: Experiment, run: Path) -> None:
    work, config = Workspace(experiment, run), experiment.tokenizer.speech
    if config is None:
        raise ValueError("tokenizer.speech is not set; give it, e.g. {codes: 512}, with data.speech")
    folder = work.folder("speech")
    tokenizer, clips = SpeechTokenizer(config), work.shards("speech", "train")
    if torch.cuda.is_available():
        tokenizer.cuda()
    features, used = gather(tokenizer, clips, experiment.seed, Progress(folder, len(clips), "clips"))
    tokenizer.start_from(features, experiment.seed)
    tokenizer.save(folder / "speech.safetensors")
    write_json(folder / "figures.json", {"clips": used, "vectors": len(features), **tokenizer.fit(features)})


def gather(tokenizer: SpeechTokenizer, clips: Shards, seed: int, progress: Progress) -> tuple[torch.Tensor, int]:
    """Features (n, D) float32 of clips in an order of the seed's, as many as centres are found among, and of how many
    clips."""
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed)).tolist()
    found, count, used = [], 0, 0
    for start in range(0, len(order), tokenizer.config.batch):
        part = order[start : start + tokenizer.config.batch]
        found += [one.cpu() for one in tokenizer.features(read_sounds(clips, part))]
        used += len(part)
        count += sum(map(len, found[-len(part) :]))
        progress.update(used)
        if count >= tokenizer.config.vectors:
            break
    return torch.cat(found), used


if __name__ == "__main__":
    run_stage(main, "speech")
