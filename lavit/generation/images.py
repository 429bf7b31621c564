"""Visual words or codes of speech: all other ids are suppressed, and guidance is LaVIT's eq. 7 (arXiv 2309.04669).

``l_u + a (l_c − l_u)``, the unconditional prompt being ``[IMG]`` or ``[AUD]`` alone. Both are read in one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.data.documents import Document
from lavit.generation.cache import Cache, check_prompts, go_on
from lavit.generation.plans import ImagePlan, check_plan, check_seeds, choose, lots
from lavit.model import UnifiedLM
from lavit.tokenizers.places import Places


@torch.no_grad()
def draw_codes(
    model: UnifiedLM,
    prompts: list[Document],
    unconditional: Document,
    plan: ImagePlan,
    seeds: list[int],
    places: Places | None = None,
    modality: str = "image",
) -> list[Tensor]:
    """Visual words (n,) int64, or codes of the ``modality`` "audio", for every prompt, which must end with its begin.

    A prompt and its seed decide what is drawn, whatever other prompts stand beside them. Where words say ``places``,
    only sequences that the tokenizer could have written are drawn, and they end where the grid ends instead of after
    ``min_tokens``.

    Raises:
        ValueError: a plan that cannot be, another number of seeds than of prompts, a prompt that does not end with
            ``[IMG]`` (``[AUD]``) or one that is too long.
    """
    check_plan(plan)
    check_seeds(plan, len(prompts), seeds)
    check_prompts(model, prompts, plan.max_tokens)
    check_opened(model, [*prompts, unconditional], modality)
    if not prompts:
        return []
    drawing = Drawing(model, plan, seeds, places, modality)
    rows = draw(model, prompts, unconditional, drawing)
    return [drawing.stretch.to_codes(torch.tensor(row, dtype=torch.int64, device="cpu")) for row in rows]


class Drawing:
    """Rows of visual words or codes of speech, which end with [/IMG] ([/AUD]) or with the plan's most tokens."""

    def __init__(
        self, model: UnifiedLM, plan: ImagePlan, seeds: list[int], places: Places | None, modality: str = "image"
    ):
        self.logits = {"image": model.head.image_logits, "audio": model.head.audio_logits}[modality]
        self.stretch = getattr(model.vocabulary, modality)
        self.end, self.plan, self.places = self.stretch.end, plan, places
        self.lots = lots(seeds, plan.max_tokens)
        self.position = torch.full((len(seeds),), -1, device="cpu")

    def choose(self, hidden: Tensor, rows: list[int], step: int) -> Tensor:
        logits = self.logits(hidden).float()
        if self.plan.guidance != 1:
            conditional, free = logits.chunk(2)
            logits = free + self.plan.guidance * (conditional - free)
        if self.places is not None:
            gaps, end = (allowed.to(logits.device) for allowed in self.places.allowed(self.position[rows]))
            logits[:, 1:].unflatten(1, (gaps.shape[1], -1)).masked_fill_(~gaps[..., None], -torch.inf)
            logits[:, 0].masked_fill_(~end, -torch.inf)
        elif step < self.plan.min_tokens:
            logits[:, 0] = -torch.inf
        return self.end + choose(logits, self.plan, self.lots[rows, step])

    def take(self, row: int, number: int, step: int) -> bool:
        if number == self.end:
            return True
        if self.places is not None:
            self.position[row] += (number - self.end - 1) // self.places.codes + 1
        return step + 1 == self.plan.max_tokens


def draw(model: UnifiedLM, prompts: list[Document], unconditional: Document, drawing: Drawing) -> list[list[int]]:
    """The ids of every row, without the end."""
    count, plan = len(prompts), drawing.plan
    if plan.guidance == 1:
        cache = Cache(model, prompts, plan.max_tokens)
    else:
        cache = Cache(model, [*prompts, unconditional], plan.max_tokens)
        cache.select([*range(count), *[count] * count])
    return [row[:-1] if row[-1] == drawing.end else row for row in go_on(cache, count, drawing)]


def check_opened(model: UnifiedLM, prompts: list[Document], modality: str = "image") -> None:
    """Raise ValueError unless each of the prompts ends with [IMG], or with [AUD]."""
    if not all(is_opened(model, prompt, modality) for prompt in prompts):
        name, begin = {"image": "[IMG]", "audio": "[AUD]"}[modality], getattr(model.vocabulary, modality).begin
        raise ValueError(f"a prompt of {modality} must end with {name}, id {begin}")


def is_opened(model: UnifiedLM, prompt: Document, modality: str = "image") -> bool:
    """Whether a prompt ends with [IMG], or with [AUD]."""
    return int(torch.cat([span.ids for span in prompt])[-1]) == getattr(model.vocabulary, modality).begin
