"""The dynamic part of LaVIT's tokenizer: a selector that keeps patches and a merger that folds the rest into them.

LaVIT, arXiv 2309.04669, section 3.1. The merger runs on gathered kept tokens, so that what is dropped costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavit.config import OneOf
from lavit.layers.ranks import gathered
from lavit.layers.transformer import Block, init_weights, sequence_positions
from lavit.tokens import Rows


@dataclass
class LearnedConfig:
    """Content decides what is kept: eq. 1 with target rate ``rho`` and rate-loss weight ``rate_weight`` (eq. 4).

    In the paper a patch is kept where its probability is above one half, and the rate loss alone leads to ``rho``. Then
    all probabilities gather at one half, and the last step of a training can move the count by a third.
    ``calibrated`` decides by rank instead: a training batch keeps its share ``rho`` of likeliest patches, and the
    threshold that does so for a sample of training pictures is stored at the end.
    """

    rho: float = 1 / 3
    rate_weight: float = 2.0
    calibrated: bool = False


@dataclass
class EvenConfig:
    """A fixed number of evenly spaced patches, whatever the image: the baseline of the learned selection."""

    tokens: int = 21


@dataclass
class SelectionConfig(OneOf):
    learned: LearnedConfig | None = None
    even: EvenConfig | None = None


@dataclass
class MergerConfig:
    """``blocks`` pre-norm blocks of ``width``; the paper's size is 12 × 1408 with 16 heads and MLP 6144.

    ``position`` adds a learned place to every patch before merging. A ViT's features know where they are (the paper
    adds nothing); a convolutional encoder's do not, and a word could not say what it describes.
    ``soft_mask`` computes all patches under the factor masks of the published code, to open its weights with equal
    outputs.
    """

    width: int = 192
    blocks: int = 2
    heads: int = 4
    mlp: int = 768
    position: bool = False
    soft_mask: bool = False


class Selection(NamedTuple):
    """keep (B, P) bool; gate (B, P) float, numerically ``keep`` but carrying the selector's gradient; importance
    (B, P) float, the log-odds of being kept, by which a budget ranks patches."""

    keep: Tensor
    gate: Tensor
    importance: Tensor


class Budget(NamedTuple):
    """How long the token sequence of an image may be; at most one of the three, none leaves it to the selector.

    tokens: exactly so many; ratio: exactly this share of the patches, in (0, 1], rounded, at least one token;
    at_most: what the selector keeps, without the least important of them if there are more.
    """

    tokens: int | None = None
    ratio: float | None = None
    at_most: int | None = None

    def limit(self, patches: int) -> int | None:
        """The number of tokens that is meant for an image of ``patches``, None without a budget.

        Raises:
            ValueError: more than one budget, or one that no image can meet.
        """
        given = {name: value for name, value in self._asdict().items() if value is not None}
        if not given:
            return None
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} contradict each other; give one of tokens, ratio and at_most")
        [(name, value)] = given.items()
        if name == "ratio":
            if not 0 < value <= 1:
                raise ValueError(f"ratio is {value}, but it must be above 0 and at most 1")
            return max(1, round(value * patches))
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= patches:
            raise ValueError(f"{name} is {value!r}, but an image has {patches} patches: give a whole number from 1 on")
        return value


class Selector(nn.Module):
    """Keep probabilities for patches (B, P, D): half of the channels see the patch, half the image's mean."""

    def __init__(self, width: int, config: LearnedConfig):
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        half = width - width // 2
        self.out = nn.Sequential(
            nn.Linear(width, half), nn.GELU(), nn.Linear(half, half // 2), nn.GELU(), nn.Linear(half // 2, 2)
        )
        # The log-odds of being kept above which a patch is kept; 0 is a probability of one half.
        self.register_buffer("threshold", torch.zeros(()))
        init_weights(self)

    def forward(self, features: Tensor) -> Tensor:
        """(B, P, 2) float32 log-probabilities; column 0 = keep."""
        # The decision is taken in fp32 whatever the precision around it.
        with torch.autocast(features.device.type, enabled=False):
            x = F.gelu(self.inner(self.norm(features.float())))
            half = x.shape[-1] // 2
            local, whole = x[..., :half], x[..., half:].mean(1, keepdim=True)
            x = torch.cat([local, whole.expand(-1, x.shape[1], -1)], dim=-1)
            return self.out(x).log_softmax(-1)

    def select(self, features: Tensor, noise: Tensor | None = None) -> Selection:
        """Decide what to keep.

        Args:
            features: (B, P, D).
            noise: (B, P, 2) Gumbel noise for training (straight-through, temperature 1), already scaled by the
                schedule; None decides by the probability alone and is deterministic.

        Returns:
            A Selection that keeps at least the likeliest patch of every image.
        """
        log_p = self(features)
        scores = log_p if noise is None else log_p + noise
        odds = scores[..., 0] - scores[..., 1]
        threshold = self.threshold
        if self.training and self.config.calibrated:
            threshold = self._threshold_of(gathered(odds))
        soft = (odds - threshold).sigmoid()
        keep = odds > threshold
        keep = keep.scatter(1, odds.argmax(1, keepdim=True), True)
        gate = keep.to(soft.dtype) + (soft - soft.detach())
        return Selection(keep, gate, odds)

    def _threshold_of(self, odds: Tensor) -> Tensor:
        """() log-odds above which the share ``rho`` of the patches (B, P) lies."""
        return odds.flatten().quantile(1 - self.config.rho)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Store the threshold that keeps the share ``rho`` of the patches of ``batches``, each (B, P, D) features."""
        scores = torch.cat([self(features) for features in batches])
        self.threshold.copy_(self._threshold_of(scores[..., 0] - scores[..., 1]))


FREE = Budget()


def within(selection: Selection, budget: Budget) -> Selection:
    """The selection of every image cut or filled to ``budget``, the most important patches first.

    Among equally important patches the first in raster order is kept.
    """
    limit = budget.limit(selection.keep.shape[1])
    if limit is None:
        return selection
    order = selection.importance.sort(dim=1, descending=True, stable=True).indices
    keep = torch.zeros_like(selection.keep).scatter(1, order[:, :limit], True)
    if budget.at_most is not None:
        keep &= selection.keep
    return Selection(keep, keep.float(), selection.importance)


def even_positions(patches: int, tokens: int) -> Tensor:
    """(patches,) bool with ``tokens`` places spread evenly over the raster."""
    if not 1 <= tokens <= patches:
        raise ValueError(f"even.tokens is {tokens}, but an image has {patches} patches")
    keep = torch.zeros(patches, dtype=torch.bool)
    keep[((torch.arange(tokens) + 0.5) * patches / tokens).long()] = True
    return keep


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of ``shape``, float32."""
    return -torch.empty(shape).exponential_(generator=generator).log()


def noise_scale(step: int, steps: int) -> float:
    """Annealing of the Gumbel noise from 1 to 0 by a cosine over ``steps``, then 0.

    With constant noise the rate loss can be met by probabilities that never cross one half, and the deterministic
    decision collapses to one token.
    """
    return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))) if steps else 0.0


class Merger(nn.Module):
    """Kept patches attend to each other causally and to the dropped ones (paper, eq. 2), ``blocks`` times.

    Only kept patches are computed, packed without padding; what is dropped costs its keys and values.
    """

    def __init__(self, feature_width: int, patches: int, config: MergerConfig, backend: str = "sdpa"):
        super().__init__()
        self.config = config
        self.norm_in = nn.LayerNorm(feature_width)
        same = feature_width == config.width
        self.proj_in = nn.Identity() if same else nn.Linear(feature_width, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp, backend) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.width)
        self.position = sequence_positions(patches, config.width, std=0.5) if config.position else None
        init_weights(self)

    def forward(self, features: Tensor, selection: Selection) -> tuple[Tensor, Tensor, Tensor]:
        """Merge.

        Args:
            features: (B, P, D_in) patches.
            selection: what to keep.

        Returns:
            merged (B, N, D), keep (B, N) bool, position (B, N) int64; N = the most tokens of any image.
        """
        rows = Rows.of(selection.keep)
        if self.config.soft_mask:
            merged = rows.take(self.dense(features, selection, soft=True))
        else:
            merged = self.norm(self._gathered(self._embedded(features), selection, rows))
        position = rows.source % features.shape[1]
        return rows.pad(merged), rows.real, rows.pad(position[:, None])[..., 0]

    def _embedded(self, features: Tensor) -> Tensor:
        x = self.proj_in(self.norm_in(features))
        return x if self.position is None else x + self.position

    def _gathered(self, x: Tensor, selection: Selection, rows: Rows) -> Tensor:
        """(T, D) packed tokens of (B, P, D) patches."""
        rest = Rows.of(~selection.keep)
        gate = selection.gate[..., None].to(x.dtype)
        # Gates are 1 where gathered; multiplying carries the straight-through gradient to the selector.
        kept, context = rows.take(x * gate), rest.take(x * (1 - gate))
        length = rows.real.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        self_mask = (causal & rows.real[:, None, :])[:, None]
        for block in self.blocks:
            kept = block(kept, context, self_mask, rest.real[:, None, None, :], rows, rest)
        return kept

    def dense(self, features: Tensor, selection: Selection, soft: bool = False) -> Tensor:
        """The same merger on all patches under masks: (B, P, D), of which the kept rows count.

        The plain reading of the paper, with as much work for a dropped patch as for a kept one: what the gathered form
        is tested and timed against. ``soft`` takes the masks as factors, as the published code does.
        """
        x, gate = self._embedded(features), selection.gate
        patches = x.shape[1]
        causal = torch.ones(patches, patches, dtype=torch.bool, device=x.device).tril()
        itself = torch.eye(patches, dtype=torch.bool, device=x.device)
        if soft:
            kept = context = x
            self_mask = torch.where(itself, 1.0, gate[:, None, :]) * causal
            cross_mask = (1 - gate)[:, None, :]
        else:
            kept, context = x * gate[..., None].to(x.dtype), x * (1 - gate)[..., None].to(x.dtype)
            self_mask = causal & (selection.keep[:, None, :] | itself)
            cross_mask = ~selection.keep[:, None, :]
        for block in self.blocks:
            kept = block(kept, context, self_mask[:, None], cross_mask[:, None])
        return self.norm(kept)
