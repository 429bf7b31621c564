"""Embedding and head split into the language model's own rows and the new rows of visual words.

They are separate parameters: an optimizer cannot freeze half of one tensor, and weight decay moves masked rows.
Together they equal an embedding or a head that was grown by the new rows. A word that is a pair of a code and a gap
is embedded as the sum of the code's row and the gap's row, and every word learns from all words with its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavit.layers.chunked_loss import Divergence, chunked_kl, chunked_nll
from lavit.tokens import IGNORE
from lavit.vocabulary import Vocabulary


@dataclass
class FactoredConfig:
    """Rows of codes as a small vector each, ``width`` wide, and one projection of all of them (TEAL).

    The vectors begin as those of the tokenizer's codebook, or with ``codebook: false`` at random. Codes of speech have
    such rows of their own, ``speech`` wide: the width of the features that they are centres of.
    """

    width: int = 32
    codebook: bool = True
    speech: int = 512


class FactoredRows(nn.Module):
    """Rows (2 + K, D): of ``[IMG]`` and ``[/IMG]``, then a codebook (K, d) through a projection (d, D) with a bias.

    TEAL, arXiv 2311.04589: on the way in h = P_in(E[id]), on the way out logits = W P_out(y). The projection's bias
    begins as the mean of the text's rows ``text`` (V, D), so that new ids are about as likely as others at first.
    """

    def __init__(self, codes: int, inner: int, text: Tensor):
        super().__init__()
        width, scale = text.shape[1], text.detach().std()
        self.marks = nn.Parameter(torch.randn(2, width))
        self.codes = nn.Parameter(F.normalize(torch.randn(codes, inner), dim=-1))
        self.project = nn.Parameter(torch.randn(inner, width))
        self.project_bias = nn.Parameter(text.detach().mean(0))
        with torch.no_grad():  # in place, where they are: a release makes its model without storage
            self.marks.mul_(scale)
            self.project.mul_(scale)

    def forward(self) -> Tensor:
        """(2 + K, D)."""
        return torch.cat([self.marks, self.codes @ self.project]) + self.project_bias

    @torch.no_grad()
    def start_from(self, codebook: Tensor) -> None:
        """Take the vectors (K, d) of a codebook.

        Raises:
            ValueError: another number of codes, or of another width.
        """
        if codebook.shape != self.codes.shape:
            raise ValueError(
                f"the codebook is {tuple(codebook.shape)} and model.factored asks for {tuple(self.codes.shape)}; "
                "set its width to the codebook's"
            )
        self.codes.copy_(codebook)


class JointRows(nn.Module):
    """The factored rows (vocabulary.rows, D) of all that is not text: ``image``, and ``audio`` if there is any."""

    def __init__(self, vocabulary: Vocabulary, config: FactoredConfig, text: Tensor):
        super().__init__()
        self.image = FactoredRows(vocabulary.codes, config.width, text)
        self.audio = FactoredRows(vocabulary.sounds, config.speech, text) if vocabulary.sounds else None

    def forward(self) -> Tensor:
        return self.image() if self.audio is None else torch.cat([self.image(), self.audio()])


class SplitEmbedding(nn.Module):
    """Ids (...) int64 in [0, vocabulary.size) to vectors (..., D), or distributions over text (N, V) to means (N, D).

    ``new`` holds a row of ``[IMG]``, one of ``[/IMG]`` and one a code, and as many of speech; ``gap`` one a gap.
    """

    def __init__(self, text: nn.Embedding, vocabulary: Vocabulary, factored: FactoredConfig | None = None):
        super().__init__()
        self.text, self.vocabulary = text, vocabulary
        if factored is None:
            self.new = new_rows(vocabulary.rows, text.embedding_dim)
        else:
            self.new = factored_rows(vocabulary, text.weight, factored)
        self.gap = new_rows(vocabulary.gaps, text.embedding_dim) if vocabulary.gaps > 1 else None

    def forward(self, ids: Tensor) -> Tensor:
        if ids.is_floating_point():
            return ids @ self.text.weight[: ids.shape[1]].to(ids.dtype)
        v = self.vocabulary
        rows, word = ids - v.text_size, ids - v.first_code
        if isinstance(self.new, JointRows):
            new = F.embedding(rows.clamp(min=0), self.new())
        elif self.gap is None:
            new = self.new(rows.clamp(min=0))
        else:
            code = self.new(torch.where(word >= 0, word % v.codes + 2, rows).clamp(min=0))
            gap = self.gap(word.clamp(min=0).div(v.codes, rounding_mode="floor"))
            new = torch.where((word >= 0)[..., None], code + gap, code)
        return torch.where((ids < v.text_size)[..., None], self.text(ids.clamp(max=v.text_size - 1)), new)


class HeadLoss(NamedTuple):
    """loss () float32, the weighted sum; nll (N,) float32 of every label, zero where there is none, no gradient."""

    loss: Tensor
    nll: Tensor


class Visual(NamedTuple):
    """S places where the language model reads a picture; see :meth:`SplitHead.diverge`.

    Attributes:
        vectors: (S, D) float, what is fed there.
        states: (S, D) float hidden states of the places before them, which predict them; None where nothing does.
        weights: (S,) float32 of the places in the loss.
        fit: "head" or "model".
    """

    vectors: Tensor
    states: Tensor | None = None
    weights: Tensor | None = None
    fit: str = "head"


class SplitHead(nn.Module):
    """Hidden states to logits over text, ``[IMG]``, ``[/IMG]``, visual words, and the same of speech; or to their loss.

    What is seen depends on where: the codes' rows are multiplied by another state for every gap, the hidden one plus a
    linear map of it that starts at zero. Were the logit of a pair only the sum of its code's and its gap's, the two
    would be drawn independently, and held-out images would cost a nat a token more (docs/results.md).

    With ``names_vectors`` it also has ``words``, a row a text id, which name what is fed of a picture.

    All rows belong to this module itself, because the loss reads them outside of any other module's forward pass, and
    ZeRO-3 gathers only what a module owns.
    """

    def __init__(
        self,
        text: nn.Linear,
        vocabulary: Vocabulary,
        z_loss: float = 0.0,
        names_vectors: bool = False,
        factored: FactoredConfig | None = None,
    ):
        super().__init__()
        if text.bias is not None:
            raise ValueError("the language model's head has a bias, which LLaMA's has not")
        width, gaps = text.in_features, vocabulary.gaps
        self.vocabulary, self.z_loss = vocabulary, z_loss
        self.text = text.weight
        if factored is None:
            self.new = new_head(width, vocabulary.rows)
        else:
            self.new = factored_rows(vocabulary, self.text, factored)
        if gaps > 1:
            self.gap_logits = new_head(width, gaps)
            self.gap_states = nn.Parameter(torch.zeros(gaps, width, width))
            self.gap_bias = nn.Parameter(torch.zeros(gaps, width))
        if names_vectors:
            self.words = new_head(width, len(self.text))

    def forward(
        self, hidden: Tensor | Visual, labels: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor | HeadLoss | Divergence:
        """Logits, or the loss of labels without ever holding the logits of all of them.

        Args:
            hidden: (..., D) states; (N, D) where there are labels. Or what is fed of pictures.
            labels: (N,) int64, -100 = none; only the labelled states reach the head.
            weights: (N,) float32 of the labels in the loss, by default one each.

        Returns:
            (..., vocabulary.size) logits without ``labels``, else a HeadLoss; of pictures see :meth:`diverge`, and
            without states (S, V) float32 distributions over text, their visual words.
        """
        if isinstance(hidden, Visual):
            if hidden.states is None:
                return F.linear(hidden.vectors, self.words).float().softmax(-1)
            return self.diverge(hidden)
        rows = [self.text, self._new(), *self._gaps()]
        if labels is None:
            return split_logits(hidden, *rows)
        learned = labels != IGNORE
        weight = (torch.ones_like(labels, dtype=torch.float32) if weights is None else weights)[learned]
        size = self.vocabulary.size
        loss, found = chunked_nll(split_logits, hidden[learned], labels[learned], weight, rows, size, self.z_loss)
        nll = found.new_zeros(labels.shape).masked_scatter(learned, found)
        return HeadLoss(loss, nll)

    def diverge(self, visual: Visual) -> Divergence:
        """How far the language model's predictions are from the visual words of what it reads (arXiv 2403.07720).

        p_V = softmax(words · vector), p_L = softmax(text · state), both over text alone. The "head" is drawn to the
        model by KL(p_L ‖ p_V), the "model" to the head by KL(p_V ‖ p_L); no gradient flows into the side that is
        aimed at.
        """
        named, predicted = (visual.vectors, self.words), (visual.states, self.text)
        (rows, table), (aim, aims) = (named, predicted) if visual.fit == "head" else (predicted, named)
        aim, aims = aim.detach(), aims.detach()
        return chunked_kl(
            F.linear, rows, lambda part: F.linear(aim[part], aims).float().softmax(-1), visual.weights, [table],
            len(table),
        )  # fmt: skip

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) states to (..., text + 1) logits of the ids that may follow in a text: its own and ``[IMG]``."""
        return torch.cat([F.linear(hidden, self.text), F.linear(hidden, self._new()[:1])], dim=-1)

    def image_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) states to (..., 1 + words) logits of the ids that may follow in an image: ``[/IMG]`` and words."""
        v = self.vocabulary
        return new_logits(hidden, 1, self._new()[: v.codes + 2], *self._gaps())

    def audio_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) states to (..., 1 + sounds) logits of the ids that may follow in speech: ``[/AUD]`` and codes."""
        v = self.vocabulary
        return F.linear(hidden, self._new()[v.audio.end - v.text_size :])

    def _new(self) -> Tensor:
        return self.new() if isinstance(self.new, JointRows) else self.new

    def _gaps(self) -> list[Tensor]:
        return [self.gap_logits, self.gap_states, self.gap_bias] if hasattr(self, "gap_logits") else []


def split_logits(hidden: Tensor, text: Tensor, new: Tensor, *gap: Tensor) -> Tensor:
    """(..., D) states to (..., size) logits of the rows ``text`` (V, D) and ``new`` (N, D).

    ``gap`` are rows (G, D), maps (G, D, D) and biases (G, D) of the states that each of G gaps has.
    """
    return torch.cat([F.linear(hidden, text), new_logits(hidden, 0, new, *gap)], dim=-1)


def new_logits(hidden: Tensor, first: int, new: Tensor, *gap: Tensor) -> Tensor:
    """The logits of ``[IMG]`` (unless ``first`` is 1), ``[/IMG]`` and all words; see :func:`split_logits`."""
    if not gap:
        return F.linear(hidden, new[first:])
    logits, maps, bias = gap
    states = hidden[..., None, :] + F.linear(hidden, maps.flatten(0, 1), bias.flatten()).unflatten(-1, bias.shape)
    words = F.linear(hidden, logits)[..., None] + F.linear(states, new[2:])
    return torch.cat([F.linear(hidden, new[first:2]), words.flatten(-2)], dim=-1)


def factored_rows(vocabulary: Vocabulary, text: Tensor, config: FactoredConfig) -> JointRows:
    """Rows as wide and, at first, about as long as those of ``text`` (V, D).

    Raises:
        ValueError: words that say places, whose rows are made otherwise.
    """
    if vocabulary.gaps > 1:
        raise ValueError("model.factored has rows of codes alone; set tokenizer.model.places to null beside it")
    return JointRows(vocabulary, config, text)


def new_rows(rows: int, width: int) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=0.02)
    return table


def new_head(width: int, rows: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, width).normal_(std=0.02))
