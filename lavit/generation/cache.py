"""A batch of documents under way: what was read of them stays as keys and values."""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import torch
from torch import Tensor

from lavit.data.documents import Document
from lavit.data.packing import document_length, pack
from lavit.model import UnifiedLM
from lavit.tokens import to_device

LEAVE = 8  # rows that ended leave the batch when they are one in so many, which pays for moving the others


class Memory:
    """Keys and values (B, G, capacity, d) of every layer; transformers' own cache is copied to grow by a token."""

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self.layers: list[tuple[Tensor, Tensor]] = []

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """What transformers calls: remember (B, G, n, d) of a layer, and give all of it, (B, G, length + n, d)."""
        if layer == len(self.layers):
            self.layers.append((self._empty(key, len(key)), self._empty(value, len(value))))
        end = self.length + key.shape[2]
        keys, values = self.layers[layer]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer: int = 0) -> int:
        """What transformers asks for before the first layer: tokens remembered so far."""
        return self.length

    def select(self, rows: Tensor) -> None:
        """Rows (n,) int64 of the batch in place of all; one may stand there more than once."""
        for number, pair in enumerate(self.layers):
            made = tuple(self._empty(part, len(rows)) for part in pair)
            for new, old in zip(made, pair, strict=True):
                new[:, :, : self.length] = old[rows, :, : self.length]
            self.layers[number] = made

    def _empty(self, like: Tensor, rows: int) -> Tensor:
        return like.new_empty(rows, like.shape[1], self.capacity, like.shape[3])


class Cache:
    """Documents as left-padded rows, and room for ``room`` tokens after them."""

    def __init__(self, model: UnifiedLM, documents: list[Document], room: int):
        self.model = model
        self.device = model.head.text.device
        batch = to_device(pack(documents), self.device)
        self.next_position = (batch.document >= 0).sum(1)
        self.width = width = batch.ids.shape[1]
        place = torch.arange(width, device=self.device) - (width - self.next_position)[:, None]
        x = model.embed(batch.ids, batch)
        # Rows end together, so that the next token of all of them is one position.
        x = x.gather(1, place.clamp(min=0)[..., None].expand_as(x))
        self.memory = Memory(width + room)
        self.real = torch.ones(len(documents), 1, 1, width + room, dtype=torch.bool, device=self.device)
        self.real[:, 0, 0, :width] = place >= 0
        # What stands before a row sees itself, since a softmax over nothing is not a number.
        mask = self.real[..., :width] & self._causal(width) | torch.eye(width, dtype=torch.bool, device=self.device)
        self.last = self._read(x, place.clamp(min=0), mask)[:, -1]
        self.read = self.next_position, self.last

    def feed(self, ids: Tensor) -> Tensor:
        """Read more ids, (B, n) int64, and return what the blocks make of them, (B, n, D)."""
        count = ids.shape[1]
        mask = self.real[..., : self.memory.length + count]
        if count > 1:
            mask = mask & self._causal(count, self.memory.length)
        position = self.next_position[:, None] + torch.arange(count, device=self.device)
        hidden = self._read(self.model.embedding(ids), position, mask)
        self.next_position = self.next_position + count
        self.last = hidden[:, -1]
        return hidden

    def select(self, rows: list[int]) -> None:
        """Go on with these rows of the batch alone; one may stand there more than once."""
        if rows == list(range(len(self.last))):
            return
        index = torch.tensor(rows, device=self.device)
        self.memory.select(index)
        self.real, self.next_position, self.last = self.real[index], self.next_position[index], self.last[index]

    def keep(self) -> None:
        """Let what was read by now count as the documents, to which :meth:`rewind` goes back."""
        self.width, self.read = self.memory.length, (self.next_position, self.last)

    def rewind(self) -> None:
        """Forget what was read after the documents."""
        self.memory.length = self.width
        self.next_position, self.last = self.read

    def _read(self, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        out = self.model.blocks(
            inputs_embeds=x,
            attention_mask=mask,  # has four dimensions, so that transformers makes none of its own
            position_ids=position,
            past_key_values=self.memory,
            use_cache=True,
        )
        self.memory.length += x.shape[1]
        return out.last_hidden_state

    def _causal(self, count: int, before: int = 0) -> Tensor:
        """(count, before + count) bool, what each of ``count`` places sees after ``before`` others."""
        return torch.ones(count, before + count, dtype=torch.bool, device=self.device).tril(before)


class Rows(Protocol):
    """What rows are writing: which ids may follow in the state of each, and when it ends."""

    def choose(self, hidden: Tensor, rows: list[int], step: int) -> Tensor:
        """The next ids (n,) int64 of these ``rows`` by the last hidden states (branches × n, D)."""

    def take(self, row: int, number: int, step: int) -> bool:
        """Note the id that follows in a row, and say whether it is the last one."""


def go_on(cache: Cache, count: int, rows: Rows) -> list[list[int]]:
    """Write ``count`` rows until they end: the ids of each, the last one too.

    The batch holds all rows once, or several times one after another (as prompts and as unconditional ones).
    """
    branches = len(cache.last) // count
    here, written, done = list(range(count)), [[] for _ in range(count)], [False] * count
    for step in itertools.count():
        ids = rows.choose(cache.last, here, step)
        for row, number in zip(here, ids.tolist(), strict=True):
            if not done[row]:
                written[row].append(number)
                done[row] = rows.take(row, number, step)
        if all(done):
            return written
        going = [i for i, row in enumerate(here) if not done[row]]
        if (len(here) - len(going)) * LEAVE >= len(here):
            cache.select([branch * len(here) + i for branch in range(branches) for i in going])
            ids, here = ids[going], [here[i] for i in going]
        cache.feed(ids.repeat(branches)[:, None])


def check_prompts(model: UnifiedLM, prompts: list[Document], room: int) -> None:
    """Raise ValueError if a prompt is empty, or if with ``room`` tokens after it it is more than the model reads."""
    limit = model.blocks.config.max_position_embeddings
    for number, prompt in enumerate(prompts):
        length = document_length(prompt)
        if not length:
            raise ValueError(f"prompt {number} is empty; begin it with a text or a picture")
        if length + room > limit:
            raise ValueError(
                f"prompt {number} has {length} tokens and up to {room} may follow, which is more than the {limit} that "
                "the model reads; shorten the prompt or lower max_tokens"
            )
