"""What a tokenizer made of held-out pictures, as one page that opens offline: ``eval/tokenizer/page.html``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lavit.data.order import evenly
from lavit.pages.html import render
from lavit.pages.pictures import data_uri, lit, to_image
from lavit.pages.plots import code_usage_plot, length_plot, place_map, token_histogram
from lavit.tokenizers.features import PictureSet
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.workspace import Workspace

TEMPLATE = Path(__file__).with_name("page.html.j2")
PICTURES, CODES, PATCHES = 24, 24, 10
SIDE, CELL = 192, 48


def tokenizer_page(work: Workspace, tokenizer: Tokenizer, figures: dict[str, Any], kept: Tensor) -> str:
    """The page's HTML.

    Args:
        figures: of ``tokenizer.evaluate``.
        kept: (n, P) bool, the kept patches of one picture of every caption, in the order of ``distinct()``.
    """
    split = work.experiment.evaluation.split
    pictures, codes = work.pictures("captions", split), work.codes("captions", split)
    numbers, size = pictures.distinct(), tokenizer.config.quantizer.codes
    used = [codes.codes(n) % size for n in numbers]
    counts = torch.bincount(torch.cat(used), minlength=size)
    own = figures["tokens_mean"], figures["cosine"]
    plots = {
        "Reconstruction by token count": length_plot({"": figures["curve"]}, own),
        "Tokens an image": token_histogram(figures["histogram"], figures["tokens_mean"]),
        "Where patches are kept": place_map(np.array(figures["kept"]["by_place"])),
        "Use of the codebook": code_usage_plot(counts.numpy(), figures["perplexity"]),
    }
    return render(TEMPLATE, {
        "name": work.run.resolve().name,
        "t": figures,
        "plots": plots,
        "cards": kept_cards(pictures, numbers, kept, tokenizer.config.encoder.grid),
        "codes": code_cards(pictures, numbers, kept, used, counts, tokenizer.config.encoder.grid),
        "config": (work.run / "config.yaml").read_text(),
    })  # fmt: skip


def kept_cards(pictures: PictureSet, numbers: list[int], kept: Tensor, grid: int) -> list[dict[str, Any]]:
    """Pictures with their kept patches lit."""
    cards = []
    for place in evenly(list(range(len(numbers))), PICTURES):
        image = to_image(pictures.pixels([numbers[place]], SIDE)[0])
        mask = kept[place].unflatten(0, (grid, grid)).numpy()
        picture = data_uri(lit(image, mask))
        cards.append({"caption": pictures.captions[numbers[place]], "kept": picture, "tokens": int(mask.sum())})
    return cards


def code_cards(
    pictures: PictureSet, numbers: list[int], kept: Tensor, used: list[Tensor], counts: Tensor, grid: int
) -> list[dict[str, Any]]:
    """The most used codes, and evenly chosen patches that they stand for, each with its surroundings."""
    tokens = torch.cat(used)
    owner = torch.repeat_interleave(torch.arange(len(used)), torch.tensor([len(u) for u in used]))
    patch = torch.cat([row.nonzero().flatten() for row in kept])
    cards = []
    for code in counts.argsort(descending=True, stable=True)[:CODES].tolist():
        if not counts[code]:
            break
        shown = [
            around(pictures, numbers[int(owner[i])], int(patch[i]), grid)
            for i in evenly((tokens == code).nonzero().flatten().tolist(), PATCHES)
        ]
        strip = Image.new("RGB", (len(shown) * (CELL + 4) - 4, CELL), "white")
        for place, image in enumerate(shown):
            strip.paste(image, (place * (CELL + 4), 0))
        cards.append({"code": code, "count": int(counts[code]), "patches": data_uri(strip)})
    return cards


def around(pictures: PictureSet, number: int, patch: int, grid: int) -> Image.Image:
    """A patch of a picture, twice as wide as it is, since a feature sees more than its patch; white beyond the edge."""
    cell = SIDE // grid
    image = to_image(pictures.pixels([number], cell * grid)[0])
    x, y = patch % grid * cell, patch // grid * cell
    out = Image.new("RGB", (2 * cell, 2 * cell), "white")
    out.paste(image, (cell // 2 - x, cell // 2 - y))
    return out.resize((CELL, CELL), Image.Resampling.BICUBIC)
