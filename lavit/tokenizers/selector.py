"""Which patches become tokens: LaVIT's selector, one that regresses what keeping a patch gains, and even spacing.

LaVIT, arXiv 2309.04669, section 3.1.
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
from lavit.layers.transformer import init_weights

EXPLORATION = 0.6  # standard deviations of the gains for one of the noise's logits
ANCHOR = 10.0  # more than any gain: errors are cosine distances


@dataclass
class LearnedConfig:
    """Content decides what is kept: eq. 1 with target rate ``rho`` and rate-loss weight ``rate_weight`` (eq. 4).

    In the paper a patch is kept where its probability is above one half, and the rate loss alone leads to ``rho``. Then
    all probabilities gather at one half, and the last step of a training can move the count by a third.
    ``calibrated`` decides by rank instead: a training batch keeps its share ``rho`` of likeliest patches, and the
    threshold that does so for a sample of training pictures is stored at the end.

    ``temperature`` is that of the straight-through gradient; it goes to ``final_temperature`` while the noise goes to
    zero. (The decision itself depends on the size of the noise alone.)
    """

    rho: float = 1 / 3
    rate_weight: float = 2.0
    calibrated: bool = False
    temperature: float = 1.0
    final_temperature: float = 1.0


@dataclass
class GainConfig:
    """What a patch gains by being kept decides: its predicted reconstruction error if dropped minus that if kept.

    Both are regressed, with weight ``weight`` in the loss, on the errors of the training batch, where noise keeps every
    patch now and drops it then. A batch keeps its share ``rho`` of patches by rank; the threshold that does so for a
    sample is stored at the end. (The straight-through gradient of ``learned`` only scales what is kept and what is
    dropped; it never sees what the other choice would have given.)
    """

    rho: float = 1 / 3
    weight: float = 10.0


@dataclass
class EvenConfig:
    """A fixed number of evenly spaced patches, whatever the image: the baseline of the learned selection."""

    tokens: int = 21


@dataclass
class SelectionConfig(OneOf):
    learned: LearnedConfig | None = None
    gain: GainConfig | None = None
    even: EvenConfig | None = None


class Selection(NamedTuple):
    """keep (B, P) bool; gate (B, P) float, numerically ``keep`` but carrying the selector's gradient; importance
    (B, P) float, the log-odds of being kept or the gain, by which a budget ranks patches; errors (B, P, 2) float that
    are predicted for dropped and for kept patches, where the gain decides."""

    keep: Tensor
    gate: Tensor
    importance: Tensor
    errors: Tensor | None = None

    @classmethod
    def of(cls, keep: Tensor) -> Selection:
        """A fixed choice (B, P) bool, which nothing is to be learned from."""
        return cls(keep, keep.float(), keep.float())


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
        self.temperature = 1.0  # of the gradient; the training sets it by :meth:`anneal`
        init_weights(self)

    @property
    def calibrated(self) -> bool:
        """Whether training decides by rank and :meth:`calibrate` has to store a threshold at its end."""
        return self.config.calibrated

    def anneal(self, noise: float) -> None:
        """Set the gradient's temperature for a step whose noise has the size ``noise``, from 1 down to 0."""
        cfg = self.config
        self.temperature = cfg.final_temperature + noise * (cfg.temperature - cfg.final_temperature)

    def scores(self, features: Tensor) -> Tensor:
        """(B, P, 2) float32 of (B, P, D) features."""
        # The decision is taken in fp32 whatever the precision around it.
        with torch.autocast(features.device.type, enabled=False):
            x = F.gelu(self.inner(self.norm(features.float())))
            half = x.shape[-1] // 2
            local, whole = x[..., :half], x[..., half:].mean(1, keepdim=True)
            x = torch.cat([local, whole.expand(-1, x.shape[1], -1)], dim=-1)
            return self.out(x)

    def forward(self, features: Tensor) -> Tensor:
        """(B, P, 2) float32 log-probabilities; column 0 = keep."""
        return self.scores(features).log_softmax(-1)

    def select(self, features: Tensor, noise: Tensor | None = None) -> Selection:
        """Decide what to keep.

        Args:
            features: (B, P, D).
            noise: (B, P, 2) Gumbel noise for training (straight-through), already scaled by the schedule; None decides
                by the probability alone and is deterministic. A batch that keeps its share does so over all ranks, each
                micro-batch for itself.

        Returns:
            A Selection that keeps at least the likeliest patch of every image.
        """
        log_p = self(features)
        scores = log_p if noise is None else log_p + noise
        odds = scores[..., 0] - scores[..., 1]
        threshold = self.threshold
        if self.training and self.config.calibrated:
            threshold = self._threshold_of(gathered(odds))
        soft = ((odds - threshold) / self.temperature).sigmoid()
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


class GainSelector(Selector):
    """Keeps the patches that gain most by being kept; see :class:`GainConfig`.

    ``anchors`` (P,) bool are kept whatever they gain.
    """

    calibrated = True

    def anneal(self, noise: float) -> None:
        """Nothing: the gain is learned without a straight-through gradient."""

    def __init__(self, width: int, config: GainConfig, patches: int, anchors: Tensor | None = None):
        super().__init__(width, config)
        anchors = torch.zeros(patches, dtype=torch.bool, device="cpu") if anchors is None else anchors
        self.register_buffer("anchors", anchors, persistent=False)
        fixed = int(anchors.sum())
        self.share = (config.rho * patches - fixed) / (patches - fixed)  # of the patches that are no anchors
        if not 0 < self.share < 1:
            raise ValueError(
                f"tokenizer.selection.gain.rho is {config.rho}, which is {config.rho * patches:.1f} of {patches} "
                f"patches; it must leave some of them to choose beside {fixed} anchors, and drop some"
            )

    def forward(self, features: Tensor) -> Tensor:
        """(B, P, 2) float32 predicted reconstruction errors, if dropped and if kept."""
        return self.scores(features)

    def select(self, features: Tensor, noise: Tensor | None = None) -> Selection:
        """As :meth:`Selector.select`; ``noise`` explores, at a size that goes with the spread of the gains."""
        errors = self(features)
        gain = (errors[..., 0] - errors[..., 1]).detach()
        if noise is not None:
            gain = gain + EXPLORATION * gathered(gain).std() * (noise[..., 0] - noise[..., 1])
        threshold = self._threshold_of(gathered(gain)) if self.training else self.threshold
        importance = gain + ANCHOR * self.anchors
        keep = importance > threshold
        keep = keep.scatter(1, importance.argmax(1, keepdim=True), True)
        return Selection(keep, keep.float(), importance, errors)

    def _threshold_of(self, gain: Tensor) -> Tensor:
        return gain[:, ~self.anchors].flatten().quantile(1 - self.share)

    def loss(self, selection: Selection, error: Tensor) -> Tensor:
        """() mean squared error of the prediction for what was chosen, given the patches' errors (B, P)."""
        taken = torch.where(selection.keep, selection.errors[..., 1], selection.errors[..., 0])
        return (taken - error.detach()).square().mean()


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
            raise ValueError(f"{name} is {value!r}; give a whole number from 1 to the {patches} patches of an image")
        return value


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
