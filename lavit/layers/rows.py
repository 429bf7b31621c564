"""Embedding and head split into the language model's own rows and the new rows of visual words.

They are separate parameters: an optimizer cannot freeze half of one tensor, and weight decay moves masked rows.
Together they equal an embedding or a head that was grown by the new rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavit.tokens import IGNORE


class SplitEmbedding(nn.Module):
    """Ids (...) int64 in [0, text rows + new rows) to vectors (..., D)."""

    def __init__(self, text: nn.Embedding, new_rows: int):
        super().__init__()
        self.text = text
        self.new = nn.Embedding(new_rows, text.embedding_dim)
        nn.init.normal_(self.new.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.text.num_embeddings
        is_text = (ids < rows)[..., None]
        return torch.where(is_text, self.text(ids.clamp(max=rows - 1)), self.new((ids - rows).clamp(min=0)))


class SplitHead(nn.Module):
    """Hidden states to logits over the text rows followed by the new rows."""

    def __init__(self, text: nn.Linear, new_rows: int):
        super().__init__()
        self.text = text
        self.new = nn.Linear(text.in_features, new_rows, bias=False)
        nn.init.normal_(self.new.weight, std=0.02)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) hidden states to (..., rows) logits."""
        return torch.cat([self.text(hidden), self.new(hidden)], dim=-1)

    def nll(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihoods (N,) float32 of labels (N,) int64 under hidden (N, D); zero where label = -100.

        Only the labelled places reach the head.
        """
        learned = labels != IGNORE
        logits = self(hidden[learned]).float()
        out = hidden.new_zeros(labels.shape, dtype=torch.float32)
        return out.masked_scatter(learned, F.cross_entropy(logits, labels[learned], reduction="none"))
