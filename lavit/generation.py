"""Constrained sampling from the language model: batched, with a KV cache and classifier-free guidance.

Text is written with image ids suppressed, images with text ids suppressed; guidance follows LaVIT's eq. 7,
``l_u + a (l_c − l_u)``, the unconditional prompt being ``[IMG]`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lavit.data.documents import Document
from lavit.data.packing import document_length, pack, pack_rows
from lavit.model import UnifiedLM
from lavit.tokenizers.places import Places
from lavit.vocabulary import Vocabulary


@dataclass
class TextPlan:
    """Greedy text of at most ``max_tokens``."""

    max_tokens: int = 20


@dataclass
class ImagePlan:
    """Sampled visual words; ``guidance`` 1 needs no unconditional pass. The image may end after ``min_tokens``."""

    min_tokens: int = 8
    max_tokens: int = 28
    top_k: int = 50
    temperature: float = 1.0
    guidance: float = 2.0


class _Cache:
    """A batch of prompts under way: left-padded, with the keys and values of what was read."""

    def __init__(self, model: UnifiedLM, prompts: list[Document]):
        self.model = model
        batch = pack(prompts)
        lengths = (batch.document >= 0).sum(1)
        width = batch.ids.shape[1]
        pad = (width - lengths)[:, None]
        self.width = width
        place = torch.arange(width)[None] - pad
        x = model.embed(batch.ids, batch)
        # Rows end together, so that the next token of all of them is one position.
        x = x.gather(1, place.clamp(min=0)[..., None].expand_as(x))
        self.mask = (place >= 0).long()
        self.lengths, self.next_position = lengths, lengths
        out = model.blocks(inputs_embeds=x, attention_mask=self.mask, position_ids=place.clamp(min=0), use_cache=True)
        self.past = out.past_key_values
        self.read = self.last = out.last_hidden_state[:, -1]

    def logits(self) -> Tensor:
        """(B, rows) float32 for the next token."""
        return self.model.head(self.last).float()

    def feed(self, ids: Tensor) -> Tensor:
        """Read more ids, (B, n) int64, and return what the blocks make of them, (B, n, D)."""
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        out = self.model.blocks(
            inputs_embeds=self.model.embedding(ids),
            attention_mask=self.mask,
            position_ids=self.next_position[:, None] + torch.arange(ids.shape[1]),
            past_key_values=self.past,
            use_cache=True,
        )
        self.next_position = self.next_position + ids.shape[1]
        self.last = out.last_hidden_state[:, -1]
        return out.last_hidden_state

    def rewind(self) -> None:
        """Forget what was read after the prompts."""
        if more := self.mask.shape[1] - self.width:
            self.past.crop(-more)
        self.mask, self.next_position, self.last = self.mask[:, : self.width], self.lengths, self.read


@torch.no_grad()
def write_text(model: UnifiedLM, prompts: list[Document], end: int, plan: TextPlan) -> list[Tensor]:
    """Greedy continuations as (n,) int64 ids, without the ``end`` id."""
    cache = _Cache(model, prompts)
    allowed = model.vocabulary.text_mask()
    done = torch.zeros(len(prompts), dtype=torch.bool)
    written: list[Tensor] = []
    for _ in range(plan.max_tokens):
        ids = cache.logits().masked_fill(~allowed, -torch.inf).argmax(-1)
        ids = torch.where(done, torch.full_like(ids, end), ids)
        done |= ids == end
        written.append(ids)
        if done.all():
            break
        cache.feed(ids[:, None])
    return _cut(written, end)


@torch.no_grad()
def draw_codes(
    model: UnifiedLM,
    prompts: list[Document],
    unconditional: Document,
    plan: ImagePlan,
    generator: torch.Generator,
    places: Places | None = None,
) -> list[Tensor]:
    """Sampled visual words (n,) int64 for every prompt, which must end with ``[IMG]``.

    Where words say ``places``, only sequences that the tokenizer could have written are drawn, and they end where the
    grid ends instead of after ``min_tokens``.

    Raises:
        ValueError: limits that leave no image, or a prompt that does not end with ``[IMG]``.
    """
    vocabulary = model.vocabulary
    if not 1 <= plan.min_tokens <= plan.max_tokens:
        raise ValueError(f"image limits {plan.min_tokens} to {plan.max_tokens} tokens leave no image")
    if any(int(prompt[-1].ids[-1]) != vocabulary.image_begin for prompt in [*prompts, unconditional]):
        raise ValueError(f"a prompt of an image must end with [IMG], id {vocabulary.image_begin}")
    guided = plan.guidance != 1.0
    n = len(prompts)
    cache = _Cache(model, prompts + [unconditional] * (n if guided else 0))
    inside, ending = vocabulary.image_mask(may_end=False), vocabulary.image_mask(may_end=True)
    done = torch.zeros(n, dtype=torch.bool)
    position = torch.full((n,), -1)
    drawn: list[Tensor] = []
    for step in range(plan.max_tokens):
        logits = cache.logits().log_softmax(-1)
        if guided:
            conditional, free = logits.split(n)
            logits = free + plan.guidance * (conditional - free)
        allowed = ending if step >= plan.min_tokens else inside
        if places is not None:
            allowed = _placed(vocabulary, places, position)
        ids = _sample(logits.masked_fill(~allowed, -torch.inf), plan, generator)
        ids = torch.where(done, torch.full_like(ids, vocabulary.image_end), ids)
        done |= ids == vocabulary.image_end
        if places is not None:
            gap = (ids - vocabulary.first_code).div(places.codes, rounding_mode="floor") + 1
            position = torch.where(done, position, position + gap)
        drawn.append(ids)
        if done.all():
            break
        cache.feed((torch.cat([ids, ids]) if guided else ids)[:, None])
    return [vocabulary.to_codes(ids) for ids in _cut(drawn, vocabulary.image_end)]


@torch.no_grad()
def log_likelihood(model: UnifiedLM, documents: list[Document], row: int, rows_at_once: int = 16) -> Tensor:
    """(n,) float32 log-likelihood of the learned tokens of each document."""
    out = torch.zeros(len(documents))
    for start in range(0, len(documents), 256):
        part = documents[start : start + 256]
        batch_rows = pack_rows([document_length(d) for d in part], row)
        for first in range(0, len(batch_rows), rows_at_once):
            batch = pack(part, rows=batch_rows[first : first + rows_at_once])
            nll = model.token_nll(batch)
            owner = batch.document.flatten()
            out[start : start + len(part)].index_add_(0, owner.clamp(min=0), -nll * (owner >= 0))
    return out


@torch.no_grad()
def continuation_likelihood(model: UnifiedLM, prompts: list[Document], continuations: list[Tensor]) -> Tensor:
    """(prompts, continuations) float32 log-likelihoods of every continuation, (n,) int64 ids, of every prompt.

    Each prompt is read once, which is most of the work where prompts are pictures and continuations short.
    """
    cache = _Cache(model, prompts)
    columns = []
    for ids in continuations:
        rows = ids.expand(len(prompts), -1)
        hidden = torch.cat([cache.last[:, None], cache.feed(rows[:, :-1])], dim=1) if len(ids) > 1 else cache.last
        nll = model.head(hidden.reshape(-1, hidden.shape[-1]), rows.flatten()).nll
        columns.append(-nll.view(len(prompts), -1).sum(1))
        cache.rewind()
    return torch.stack(columns, dim=1)


def _placed(vocabulary: Vocabulary, places: Places, position: Tensor) -> Tensor:
    """(B, size) bool: the ids that may follow words at ``position`` (B,)."""
    words, end = places.allowed(position)
    allowed = torch.zeros(len(position), vocabulary.size, dtype=torch.bool)
    allowed[:, vocabulary.first_code :] = words
    allowed[:, vocabulary.image_end] = end
    return allowed


def _sample(logits: Tensor, plan: ImagePlan, generator: torch.Generator) -> Tensor:
    logits = logits / max(plan.temperature, 1e-6)
    if plan.top_k:
        kth = logits.topk(min(plan.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def _cut(columns: list[Tensor], end: int) -> list[Tensor]:
    rows = torch.stack(columns, dim=1)
    lengths = (rows != end).long().cumprod(1).sum(1).tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]
