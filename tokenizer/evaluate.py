"""How good the tokenizer is: reconstruction of features, use of the codebook, numbers of tokens."""

from __future__ import annotations

from pathlib import Path

import torch

from lavit.experiment import Experiment, run_stage
from lavit.metrics.codes import code_usage
from lavit.runs import write_json
from lavit.tokenizers.decoder import cosine
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.workspace import Workspace


@torch.no_grad()
def main(experiment: Experiment, run: Path) -> None:
    work, split = Workspace(experiment, run), experiment.evaluation.split
    tokenizer, pictures, codes = work.tokenizer(), work.pictures("captions", split), work.codes("captions", split)
    size = tokenizer.config.encoder.image_size
    constant = mean_direction(work, tokenizer)
    totals = {"cosine": 0.0, "cosine_constant": 0.0}
    for start in range(0, len(pictures), 64):
        numbers = list(range(start, min(start + 64, len(pictures))))
        features = tokenizer.patch_features(pictures.inputs(numbers, size))
        rebuilt = tokenizer.decode(tokenizer.lookup(*codes.padded(numbers)))
        totals["cosine"] += float(cosine(features, rebuilt).mean(1).sum())
        totals["cosine_constant"] += float(cosine(features, constant).mean(1).sum())
    counts = codes.counts().float()
    usage = code_usage(codes.all_codes(), tokenizer.config.quantizer.codes)
    figures = {name: value / len(pictures) for name, value in totals.items()}
    figures |= {
        "codes_used": usage["used"],
        "utilization": usage["utilization"],
        "perplexity": usage["perplexity"],
        "codes_total": int(counts.sum()),
        "patches": tokenizer.config.encoder.patches,
        "tokens_mean": float(counts.mean()),
        "tokens_std": float(counts.std()),
        "tokens_min": int(counts.min()),
        "tokens_max": int(counts.max()),
        "histogram": torch.bincount(codes.counts()).tolist(),
        "n": len(pictures),
        "split": split,
    }
    write_json(work.folder("eval/tokenizer") / "figures.json", figures)


def mean_direction(work: Workspace, tokenizer: Tokenizer) -> torch.Tensor:
    """(D,) the constant prediction with the best mean cosine over training patches: the mean of unit features."""
    pictures = work.pictures("captions", "train")
    numbers = list(range(0, len(pictures), max(1, len(pictures) // 512)))
    features = tokenizer.patch_features(pictures.inputs(numbers, tokenizer.config.encoder.image_size))
    return torch.nn.functional.normalize(features, dim=-1).mean((0, 1))


if __name__ == "__main__":
    run_stage(main, "eval/tokenizer")
