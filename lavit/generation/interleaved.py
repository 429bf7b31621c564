"""Text with pictures in it: a row that writes [IMG] draws, and after [/IMG] it goes on with its text."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lavit.data.documents import Document
from lavit.data.order import seed_for
from lavit.generation.cache import check_prompts
from lavit.generation.images import Drawing, check_opened, draw, is_opened
from lavit.generation.plans import ImagePlan, TextPlan, check_plan, check_seeds
from lavit.generation.text import Writing, write
from lavit.model import UnifiedLM
from lavit.tokenizers.places import Places
from lavit.tokens import Span


@torch.no_grad()
def write_interleaved(
    model: UnifiedLM,
    prompts: list[Document],
    unconditional: Document,
    text_plan: TextPlan,
    image_plan: ImagePlan,
    seeds: list[int],
    end: int,
    places: Places | None = None,
    most_pictures: int = 1,
) -> list[Document]:
    """The spans that continue each prompt: text without the ``end`` id, and pictures, ``[IMG] codes [/IMG]``.

    The limits of the text plan hold for all text of a row together. A prompt that ends with ``[IMG]`` begins with a
    picture, which is one of the ``most_pictures`` and whose span is without the ``[IMG]``. What is drawn is as
    :func:`lavit.generation.draw_codes` has it.

    Raises:
        ValueError: plans that cannot be, beams, another number of seeds than of prompts, no picture at all, or a prompt
            that is empty or too long for all that may follow.
    """
    check_plan(text_plan)
    check_plan(image_plan)
    check_seeds(image_plan, len(prompts), seeds)
    check_opened(model, [unconditional])
    if text_plan.beams > 1:
        raise ValueError(f"TextPlan.beams is {text_plan.beams}; text with pictures is written without beams: set 1")
    if most_pictures < 1:
        raise ValueError(f"most_pictures is {most_pictures}; it must be at least 1")
    check_prompts(model, prompts, text_plan.max_tokens + most_pictures * (image_plan.max_tokens + 2))
    begin, stop = model.vocabulary.image_begin, model.vocabulary.image_end
    rows = [
        _Row(prompt, seed, "image" if is_opened(model, prompt) else "text")
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    # Documents are read anew at every turn between text and picture, which is simple, and keeps rows in batches.
    while any(row.state != "end" for row in rows):
        if drawers := [row for row in rows if row.state == "image"]:
            drawing = Drawing(model, image_plan, [row.seed() for row in drawers], places)
            documents = [row.document() for row in drawers]
            for row, ids in zip(drawers, draw(model, documents, unconditional, drawing), strict=True):
                row.add_picture([*ids, stop])
        if writers := [row for row in rows if row.state == "text"]:
            least, most = ([n - row.text for row in writers] for n in (text_plan.min_tokens, text_plan.max_tokens))
            more = [row.pictures < most_pictures for row in writers]
            writing = Writing(model, text_plan, end, [row.seed() for row in writers], least, most, more)
            for row, ids in zip(writers, write(model, [row.document() for row in writers], writing), strict=True):
                row.add_text([number for number in ids if number not in writing.stops])
                if ids[-1] == begin:
                    row.open_picture(begin)
                else:
                    row.state = "end"
    return [row.pieces for row in rows]


@dataclass
class _Row:
    """A prompt, what follows next ("text", "image" or "end"), and what continues it so far."""

    prompt: Document
    number: int
    state: str
    pieces: Document = field(default_factory=list)
    turns: int = 0
    text: int = 0
    pictures: int = 0

    def document(self) -> Document:
        return [*self.prompt, *self.pieces]

    def seed(self) -> int:
        """Of the next turn."""
        self.turns += 1
        return seed_for(self.number, self.turns)

    def add_text(self, ids: list[int]) -> None:
        self.text += len(ids)
        if ids:
            self.pieces.append(Span("text", _ids(ids)))

    def open_picture(self, begin: int) -> None:
        self.pieces.append(Span("image", _ids([begin])))
        self.state = "image"

    def add_picture(self, ids: list[int]) -> None:
        """What follows [IMG], which stands here or at the end of the prompt; text follows, of which some is left."""
        begun = self.pieces.pop().ids if self.pieces else _ids([])
        self.pieces.append(Span("image", torch.cat([begun, _ids(ids)])))
        self.pictures, self.state = self.pictures + 1, "text"


def _ids(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64, device="cpu")
