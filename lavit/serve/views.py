"""What the page shows of a system, and the limits of what a visitor may ask; it knows nothing of gradio."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lavit.data.images import FORMATS, ImageError, open_image
from lavit.pages.pictures import data_uri, lit, to_image
from lavit.pipeline import LaVIT, VisualTokens
from lavit.tokenizers.encoders import to_pixels

MEGAPIXELS = 40  # of one picture; Pillow's own limit stays
TEXT, IMAGES, CANDIDATES, STEPS, GUIDANCE = 500, 4, 16, 100, 10.0
SEEDS = 2**31 - 1
SIDE = 448  # pixels of a shown picture, about
FORGET = 3600  # seconds after which an upload is removed


class Seen(NamedTuple):
    """What is shown of a picture: its square, the kept patches over it, what its tokens remember (if any decoder)."""

    picture: Image.Image
    kept: Image.Image
    rebuilt: Image.Image | None
    tokens: int
    patches: int


class Drawn(NamedTuple):
    """A drawing in the history of a visit."""

    prompt: str
    seed: int
    source: str  # the picture itself, as a data URI
    small: bool


def opened(path: str) -> Image.Image:
    """An uploaded picture.

    Raises:
        ImageError: no picture that can be read, or one that is too large; its name, but not its folder, is told.
    """
    name = Path(path).name
    if not Path(path).is_file():
        raise ImageError(f"image '{name}' was removed after {FORGET // 60} minutes; choose it again")
    try:
        with Image.open(path, formats=FORMATS) as image:
            size = image.width * image.height
    except Image.DecompressionBombError:
        size = sys.maxsize
    except Exception:  # said better by what decodes it
        size = 0
    if size > MEGAPIXELS * 10**6:
        raise ImageError(f"image '{name}' is too large: more than {MEGAPIXELS} megapixels; make it smaller")
    return open_image(Path(path), name)


def overlay(picture: Image.Image, found: VisualTokens) -> Image.Image:
    """The square picture with the patches that became tokens as they are, and the others dimmed under a thin grid."""
    keep = found.places.new_zeros(found.grid**2).bool()
    keep[found.places] = True
    keep = keep.view(found.grid, found.grid).numpy()
    shown = np.array(lit(picture, keep, SIDE))
    cell = len(shown) // found.grid
    dropped = ~keep.repeat(cell, 0).repeat(cell, 1)
    line = np.arange(len(shown)) % cell == 0
    lines = dropped & (line[:, None] | line)
    shown[lines] = shown[lines] // 2 + 64
    return Image.fromarray(shown)


def look(system: LaVIT, path: str, tokens: int | None = None) -> Seen:
    """A picture, its tokens and what they remember; as many as it asks for, or as ``tokens`` says.

    Raises:
        ValueError: see :func:`opened`; a budget that is out of range.
    """
    image, patches = opened(path), system.tokenizer.config.encoder.patches
    tokens = None if tokens is None else _within("the number of tokens", tokens, 1, patches)
    found = system.tokens(image, tokens)
    square = to_image(to_pixels(image, SIDE, system.tokenizer.config.encoder.fit))
    rebuilt = None if system.renderer is None else system.reconstruct(image, tokens)
    return Seen(square, overlay(square, found), rebuilt, len(found.codes), patches)


def ask(system: LaVIT, path: str | None, question: str) -> str:
    """The answer to a question about a picture.

    Raises:
        ValueError: no picture, an empty or too long question.
    """
    if not path:
        raise ValueError("there is no picture to ask about; choose one first")
    return system.answer(opened(path), _short("the question", question))


def draw(
    system: LaVIT, text: str, paths: list[str] | None, seed: int, candidates: int, guidance: float, steps: int
) -> Image.Image:
    """A drawing from text, from images before it, or from both.

    Raises:
        ValueError: a setting out of range, an empty or too long prompt.
    """
    paths = paths or []
    if len(paths) > IMAGES:
        raise ValueError(f"{len(paths)} images are more than the {IMAGES} that a drawing may follow; take some away")
    settings = {
        "seed": int(_within("the seed", seed, 0, SEEDS)),
        "candidates": int(_within("the number of candidates", candidates, 1, CANDIDATES)),
        "guidance": float(_within("the guidance", guidance, 1, GUIDANCE)),
        "steps": int(_within("the number of steps", steps, 1, STEPS)),
    }
    return system.draw(_short("the text", text), [opened(path) for path in paths] or None, **settings)


def _short(name: str, text: str | None) -> str:
    text = (text or "").strip()
    if len(text) > TEXT:
        raise ValueError(f"{name} has {len(text)} characters; shorten it to {TEXT}")
    return text


def _within(name: str, value: Any, least: float, most: float) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} is {value if value is not None else 'empty'}; give a number from {least} to {most}")
    return value


def figure(source: str, alt: str, title: str, note: str = "", small: bool = False) -> str:
    """HTML of one picture with its words; ``small`` pictures are enlarged without smoothing."""
    note = f'<br><span class="soft">{escape(note)}</span>' if note else ""
    image = f'<img src="{source}" alt="{escape(alt)}"{" class=small" if small else ""}>'
    return f"<figure>{image}<figcaption>{escape(title)}{note}</figcaption></figure>"


def seen_html(seen: Seen) -> str:
    """HTML of a picture beside its tokens and what they remember."""
    count = f"{seen.tokens} of {seen.patches} patches"
    figures = [
        figure(data_uri(seen.picture), "The picture, as a square", "The picture"),
        figure(data_uri(seen.kept), f"{count} kept, the others dimmed", "Kept as tokens", count),
    ]
    if seen.rebuilt is not None:
        alt = f"The picture rebuilt from {counted(seen.tokens, 'token')}"
        note = f"rebuilt from {counted(seen.tokens, 'token')}"
        source = data_uri(seen.rebuilt, lossless=True)
        figures.append(figure(source, alt, "What they remember", note, is_small(seen.rebuilt)))
    return f'<div class="figures">{"".join(figures)}</div>'


def figures_html(drawings: list[Drawn], past: bool = False) -> str:
    """HTML of drawings, side by side; those of the ``past`` are smaller."""
    figures = (figure(d.source, f"Drawing of {d.prompt}", d.prompt, f"seed {d.seed}", d.small) for d in drawings)
    kind = "figures past" if past else "figures"
    return f'<div class="{kind}">{"".join(figures)}</div>' if drawings else ""


def counted(count: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def is_small(picture: Image.Image) -> bool:
    """Whether a picture is enlarged so much that its pixels are to be seen."""
    return max(picture.size) < SIDE // 4
