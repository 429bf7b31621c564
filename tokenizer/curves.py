"""Reconstruction against token count, and what decides how many tokens an image gets.

LaVIT's claim (arXiv 2309.04669, section 3.1 and its ablations) is that patches chosen by content beat fixed ones at
the same count, and that complex images get more tokens than simple ones.
"""

from __future__ import annotations

import io

import torch
from torch import Tensor

from lavit.pages.pictures import blank_patches, to_image
from lavit.tokenizers.decoder import cosine
from lavit.tokenizers.features import BATCH, PictureSet
from lavit.tokenizers.selector import Budget, Selection, even_positions
from lavit.tokenizers.tokenizer import Tokenizer

CURVE_PICTURES = 128
SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1.0)
POLICIES = ("chosen", "even", "random")


@torch.no_grad()
def length_curve(tokenizer: Tokenizer, pictures: PictureSet, numbers: list[int], seed: int) -> dict[str, list[float]]:
    """Mean cosine of reconstructions at exact token counts, the patches being chosen in three ways.

    ``chosen`` are the tokenizer's own most important ones, ``even`` spaced evenly over the raster, ``random`` drawn
    with ``seed``; one tokenizer reads them all, so a way that it was not trained with may be at a disadvantage. Where a
    lattice of anchors is always kept, a budget that is no larger than it keeps nothing but anchors.

    Returns:
        ``tokens``, the counts, and a mean cosine for each of them by way.
    """
    patches, size = tokenizer.config.encoder.patches, tokenizer.config.encoder.image_size
    counts = sorted({max(1, round(share * patches)) for share in SHARES})
    sums = {policy: [0.0] * len(counts) for policy in POLICIES}
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(numbers), BATCH):
        features = tokenizer.patch_features(pictures.inputs(numbers[start : start + BATCH], size))
        chance = torch.rand(len(features), patches, generator=generator)
        for place, count in enumerate(counts):
            selections = {
                "chosen": tokenizer.select(features, budget=Budget(tokens=count)),
                "even": Selection.of(even_positions(patches, count).expand(len(features), -1)),
                "random": Selection.of(chance.argsort(1) < count),
            }
            for policy, selection in selections.items():
                rebuilt = tokenizer.decode(tokenizer.tokens_of(features, selection))
                sums[policy][place] += float(cosine(features, rebuilt).mean(1).sum())
    return {"tokens": counts} | {policy: [s / len(numbers) for s in row] for policy, row in sums.items()}


@torch.no_grad()
def complexity(
    tokenizer: Tokenizer, pictures: PictureSet, numbers: list[int], counts: Tensor, sizes: Tensor
) -> dict[str, float]:
    """Spearman's correlations of token counts (n,) with what makes a picture complex.

    Returns:
        with ``bytes``, the picture's file (n,); with ``error``, its reconstruction error at a quarter of the patches;
        with ``gain``, what half of the patches reconstruct better than a quarter.
    """
    patches, size = tokenizer.config.encoder.patches, tokenizer.config.encoder.image_size
    errors: dict[int, list[Tensor]] = {patches // 4: [], patches // 2: []}
    for start in range(0, len(numbers), BATCH):
        features = tokenizer.patch_features(pictures.inputs(numbers[start : start + BATCH], size))
        for count, parts in errors.items():
            selection = tokenizer.select(features, budget=Budget(tokens=count))
            parts.append(1 - cosine(features, tokenizer.decode(tokenizer.tokens_of(features, selection))).mean(1))
    quarter, half = (torch.cat(parts) for parts in errors.values())
    found = {"bytes": sizes, "error": quarter, "gain": quarter - half}
    return {name: rank_correlation(counts, values) for name, values in found.items()}


def content(pictures: PictureSet, numbers: list[int], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """How much there is to say of each picture at the encoder's resolution.

    Returns:
        (n,) float32 bytes of its lossless WebP file, and (n, P) bool, patches with nothing drawn in them.
    """
    size, grid = tokenizer.config.encoder.image_size, tokenizer.config.encoder.grid
    sizes, blank = [], []
    for start in range(0, len(numbers), BATCH):
        pixels = pictures.pixels(numbers[start : start + BATCH], size)
        blank.append(blank_patches(pixels, grid))
        sizes += [_bytes(image) for image in pixels]
    return torch.tensor(sizes, dtype=torch.float32), torch.cat(blank)


def _bytes(pixels: Tensor) -> int:
    stream = io.BytesIO()
    to_image(pixels).save(stream, "WEBP", lossless=True, quality=50, method=2)
    return stream.tell()


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of two series (n,), equal values sharing their mean rank; 0 where one is constant."""
    pair = torch.stack([_ranks(a), _ranks(b)])
    if len(a) < 2 or (pair.std(1) == 0).any():
        return 0.0
    return float(torch.corrcoef(pair)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, group, count = values.double().unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count.double() - 1) / 2)[group]
