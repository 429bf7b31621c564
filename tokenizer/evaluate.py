"""How good the tokenizer is: reconstruction of features, use of the codebook, numbers of tokens and what decides them.

``make eval-tokenizer CONFIG=…`` writes ``eval/tokenizer/figures.json`` and ``eval/tokenizer/page.html``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavit.experiment import Experiment, run_stage
from lavit.metrics.codes import code_usage
from lavit.pages.pictures import kept_patches
from lavit.runs import write_atomic, write_json
from lavit.tokenizers.codes import CodeSet
from lavit.tokenizers.decoder import cosine
from lavit.tokenizers.features import BATCH, PictureSet
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.workspace import Workspace
from tokenizer.curves import CURVE_PICTURES, complexity, content, length_curve
from tokenizer.page import tokenizer_page


@torch.no_grad()
def main(experiment: Experiment, run: Path) -> None:
    work, split = Workspace(experiment, run), experiment.evaluation.split
    tokenizer, pictures, codes = work.tokenizer(), work.pictures("captions", split), work.codes("captions", split)
    # One picture of every caption, as in the other evaluations; the figures by source are over all pictures.
    chosen = pictures.distinct()
    counts, kept = codes.counts()[chosen], kept_of(tokenizer, pictures, chosen)
    if (unlike := int((kept.sum(1) != counts).sum())) > 0:
        raise ValueError(
            f"{unlike} of {len(chosen)} pictures have other tokens than were extracted, by another device or version; "
            f"remove {work.folder('extract')} and extract again"
        )
    constant = mean_direction(work, tokenizer)
    ours, fixed = similarities(tokenizer, pictures, codes, constant)
    used = torch.cat([codes.codes(n) for n in chosen])
    size = tokenizer.config.quantizer.codes
    usage = code_usage(used % size, size)
    sizes, blank = content(pictures, chosen, tokenizer)
    figures = {
        "cosine": float(ours[chosen].mean()),
        "cosine_constant": float(fixed[chosen].mean()),
        "cosine_by_source": by_source(pictures, ours),
        "codes_used": usage["used"],
        "utilization": usage["utilization"],
        "perplexity": usage["perplexity"],
        "codes_total": len(used),
        "patches": tokenizer.config.encoder.patches,
        "tokens_mean": float(counts.float().mean()),
        "tokens_std": float(counts.float().std()) if len(chosen) > 1 else 0.0,
        "tokens_min": int(counts.min()),
        "tokens_max": int(counts.max()),
        "counts": counts.tolist(),
        "histogram": torch.bincount(counts).tolist(),
        "complexity": complexity(tokenizer, pictures, chosen, counts, sizes),
        "kept": keep_rates(kept, blank, tokenizer.config.encoder.grid),
        "curve": length_curve(tokenizer, pictures, pictures.distinct(CURVE_PICTURES), experiment.seed),
        "n": len(chosen),
        "pictures": pictures.shards.digest,
        "split": split,
    }
    folder = work.folder("eval/tokenizer")
    write_atomic(folder / "page.html", tokenizer_page(work, tokenizer, figures, kept))
    write_json(folder / "figures.json", figures)


def similarities(tokenizer: Tokenizer, pictures: PictureSet, codes: CodeSet, constant: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) mean cosine over each picture's patches, of the reconstruction from codes and of a constant (D,)."""
    ours, fixed = [], []
    for start in range(0, len(pictures), BATCH):
        numbers = list(range(start, min(start + BATCH, len(pictures))))
        features = tokenizer.patch_features(pictures.inputs(numbers, tokenizer.config.encoder.image_size))
        rebuilt = tokenizer.decode(tokenizer.lookup(*codes.padded(numbers)))
        ours.append(cosine(features, rebuilt).mean(1))
        fixed.append(cosine(features, constant).mean(1))
    return torch.cat(ours), torch.cat(fixed)


def kept_of(tokenizer: Tokenizer, pictures: PictureSet, numbers: list[int]) -> Tensor:
    """(n, P) bool: the patches of pictures that became tokens."""
    size = tokenizer.config.encoder.image_size
    parts = [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]
    return torch.cat([kept_patches(tokenizer, pictures.inputs(part, size)) for part in parts])


def keep_rates(kept: Tensor, blank: Tensor, grid: int) -> dict[str, Any]:
    """How often patches are kept: by place (grid, grid), and by whether anything is drawn in them; None: no such."""
    drawn, plain = (float(kept[where].float().mean()) if where.any() else None for where in (~blank, blank))
    by_place = kept.float().mean(0).unflatten(0, (grid, grid)).tolist()
    return {"by_place": by_place, "drawn": drawn, "blank": plain, "blank_share": float(blank.float().mean())}


def by_source(pictures: PictureSet, values: Tensor) -> dict[str, float]:
    """The mean of a figure over the pictures of each source."""
    sources = [meta.get("source", "unknown") for meta in pictures.meta]
    names = sorted(set(sources))
    return {name: float(values[[i for i, s in enumerate(sources) if s == name]].mean()) for name in names}


def mean_direction(work: Workspace, tokenizer: Tokenizer) -> Tensor:
    """(D,) the constant prediction with the best mean cosine over training patches: the mean of unit features."""
    pictures = work.pictures("captions", "train")
    numbers = list(range(0, len(pictures), max(1, len(pictures) // 512)))
    total = torch.zeros(tokenizer.config.encoder.width)
    for start in range(0, len(numbers), BATCH):
        inputs = pictures.inputs(numbers[start : start + BATCH], tokenizer.config.encoder.image_size)
        total += torch.nn.functional.normalize(tokenizer.patch_features(inputs), dim=-1).sum((0, 1))
    return total / (len(numbers) * tokenizer.config.encoder.patches)


if __name__ == "__main__":
    run_stage(main, "eval/tokenizer")
