"""How likely the language model finds documents, and continuations of prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.data.documents import Document
from lavit.data.packing import document_length, pack, pack_rows
from lavit.generation.cache import Cache, check_prompts
from lavit.model import UnifiedLM
from lavit.tokens import to_device


@torch.no_grad()
def log_likelihood(model: UnifiedLM, documents: list[Document], row: int, rows_at_once: int = 16) -> Tensor:
    """(n,) float32 log-likelihood of the learned tokens of each document."""
    out = torch.zeros(len(documents), device=model.head.text.device)
    for start in range(0, len(documents), 256):
        part = documents[start : start + 256]
        batch_rows = pack_rows([document_length(d) for d in part], row)
        for first in range(0, len(batch_rows), rows_at_once):
            batch = to_device(pack(part, rows=batch_rows[first : first + rows_at_once]), out.device)
            nll = model.token_nll(batch)
            owner = batch.document.flatten()
            out[start : start + len(part)].index_add_(0, owner.clamp(min=0), -nll * (owner >= 0))
    return out.cpu()


@torch.no_grad()
def continuation_likelihood(model: UnifiedLM, prompts: list[Document], continuations: list[Tensor]) -> Tensor:
    """(prompts, continuations) float32 log-likelihoods of every continuation, (n,) int64 ids, of every prompt.

    Each prompt is read once, which is most of the work where prompts are pictures and continuations short.

    Raises:
        ValueError: a prompt that is empty, or too long for the longest continuation.
    """
    longest = max(map(len, continuations))
    check_prompts(model, prompts, longest)
    cache = Cache(model, prompts, longest)
    columns = []
    for ids in continuations:
        rows = ids.to(cache.device).expand(len(prompts), -1)
        hidden = torch.cat([cache.last[:, None], cache.feed(rows[:, :-1])], dim=1) if len(ids) > 1 else cache.last
        nll = model.head(hidden.reshape(-1, hidden.shape[-1]), rows.flatten()).nll
        columns.append(-nll.view(len(prompts), -1).sum(1))
        cache.rewind()
    return torch.stack(columns, dim=1).cpu()
