"""Embedding and head split into the language model's own rows and the new rows of visual words.

They are separate parameters: an optimizer cannot freeze half of one tensor, and weight decay moves masked rows.
Together they equal an embedding or a head that was grown by the new rows. A word that is a pair of a code and a gap
is embedded as the sum of the code's row and the gap's row, and every word learns from all words with its code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavit.tokens import IGNORE
from lavit.vocabulary import Vocabulary


class SplitEmbedding(nn.Module):
    """Ids (...) int64 in [0, vocabulary.size) to vectors (..., D).

    ``new`` holds a row of ``[IMG]``, one of ``[/IMG]`` and one a code; ``gap`` holds one a gap.
    """

    def __init__(self, text: nn.Embedding, vocabulary: Vocabulary):
        super().__init__()
        self.text, self.vocabulary = text, vocabulary
        self.new = new_rows(vocabulary.codes + 2, text.embedding_dim)
        self.gap = new_rows(vocabulary.gaps, text.embedding_dim) if vocabulary.gaps > 1 else None

    def forward(self, ids: Tensor) -> Tensor:
        v = self.vocabulary
        rows, word = ids - v.text_size, ids - v.first_code
        if self.gap is None:
            new = self.new(rows.clamp(min=0))
        else:
            code = self.new(torch.where(word >= 0, word % v.codes + 2, rows).clamp(min=0))
            gap = self.gap(word.clamp(min=0).div(v.codes, rounding_mode="floor"))
            new = torch.where((word >= 0)[..., None], code + gap, code)
        return torch.where((ids < v.text_size)[..., None], self.text(ids.clamp(max=v.text_size - 1)), new)


class SplitHead(nn.Module):
    """Hidden states to logits over the text rows, then ``[IMG]``, ``[/IMG]`` and the visual words.

    What is seen depends on where: the codes' rows are multiplied by another state for every gap, the hidden one plus a
    linear map of it that starts at zero. Were the logit of a pair only the sum of its code's and its gap's, the two
    would be drawn independently, and held-out images would cost a nat a token more (docs/results.md).
    """

    def __init__(self, text: nn.Linear, vocabulary: Vocabulary):
        super().__init__()
        self.text = text
        self.new = new_head(text.in_features, vocabulary.codes + 2)
        self.gap = Gaps(text.in_features, vocabulary.gaps) if vocabulary.gaps > 1 else None

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) hidden states to (..., vocabulary.size) logits."""
        new = self.new(hidden)
        if self.gap is not None:
            logits, states = self.gap(hidden)
            words = logits[..., None] + self.new(states)[..., 2:]
            new = torch.cat([new[..., :2], words.flatten(-2)], dim=-1)
        return torch.cat([self.text(hidden), new], dim=-1)

    def nll(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihoods (N,) float32 of labels (N,) int64 under hidden (N, D); zero where label = -100.

        Only the labelled places reach the head.
        """
        learned = labels != IGNORE
        logits = self(hidden[learned]).float()
        out = hidden.new_zeros(labels.shape, dtype=torch.float32)
        return out.masked_scatter(learned, F.cross_entropy(logits, labels[learned], reduction="none"))


class Gaps(nn.Module):
    """Hidden states (..., D) to a logit of every gap (..., G) and the states (..., G, D) that the codes' rows meet."""

    def __init__(self, width: int, gaps: int):
        super().__init__()
        self.gaps = gaps
        self.logits = new_head(width, gaps)
        self.states = nn.Linear(width, gaps * width)
        nn.init.zeros_(self.states.weight)
        nn.init.zeros_(self.states.bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits(hidden), hidden[..., None, :] + self.states(hidden).unflatten(-1, (self.gaps, -1))


def new_rows(rows: int, width: int) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=0.02)
    return table


def new_head(width: int, rows: int) -> nn.Linear:
    head = nn.Linear(width, rows, bias=False)
    nn.init.normal_(head.weight, std=0.02)
    return head
