"""What may be written and drawn, and how the next id is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lavit.data.order import generator_for


@dataclass
class TextPlan:
    """Text of ``min_tokens`` to ``max_tokens``.

    The likeliest id is taken at ``temperature`` 0, else one is drawn: of the ``top_k`` likeliest (0 = of all), and of
    these from the fewest that hold ``top_p`` of the probability. ``beams`` above 1 search for the likeliest text
    instead; a text of n tokens is scored by its log-likelihood / n ** ``length_penalty``.
    """

    max_tokens: int = 20
    min_tokens: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass
class ImagePlan:
    """Visual words, drawn as text is; ``guidance`` 1 needs no unconditional pass.

    The image may end after ``min_tokens``.
    """

    min_tokens: int = 8
    max_tokens: int = 28
    top_k: int = 50
    temperature: float = 1.0
    guidance: float = 2.0
    top_p: float = 1.0


def check_plan(plan: TextPlan | ImagePlan, name: str | None = None) -> None:
    """Check a plan, which has a ``name`` where it stands in a configuration.

    Raises:
        ValueError: limits that leave nothing, a temperature, top_k or top_p out of range, or beams that cannot be.
    """
    name = name or type(plan).__name__
    for key in ("min_tokens", "max_tokens", "top_k", "beams"):
        if not isinstance(getattr(plan, key, 0), int):
            raise ValueError(f"{name}.{key} is {getattr(plan, key)}; give a whole number")
    what, least = ("image", 1) if isinstance(plan, ImagePlan) else ("text", 0)
    if not least <= plan.min_tokens <= plan.max_tokens or plan.max_tokens < 1:
        raise ValueError(f"{name}.min_tokens {plan.min_tokens} and max_tokens {plan.max_tokens} leave no {what}")
    for key in ("temperature", "guidance", "length_penalty"):
        if not math.isfinite(getattr(plan, key, 0.0)):
            raise ValueError(f"{name}.{key} is {getattr(plan, key)}; give a number")
    if plan.temperature < 0:
        raise ValueError(f"{name}.temperature is {plan.temperature}; it must be 0 (the likeliest) or more")
    if plan.top_k < 0:
        raise ValueError(f"{name}.top_k is {plan.top_k}; it must be 0 (all ids) or more")
    if not 0 < plan.top_p <= 1:
        raise ValueError(f"{name}.top_p is {plan.top_p}; it must be above 0 and at most 1")
    if isinstance(plan, TextPlan) and plan.beams < 1:
        raise ValueError(f"{name}.beams is {plan.beams}; it must be at least 1")
    if isinstance(plan, TextPlan) and plan.beams > 1 and plan.temperature:
        raise ValueError(
            f"{name}.beams is {plan.beams} and temperature {plan.temperature}; set 1 beam or temperature 0"
        )


def check_seeds(plan: TextPlan | ImagePlan, prompts: int, seeds: list[int] | None) -> None:
    """Raise ValueError unless there is a seed for each prompt, or none where nothing is drawn by lot."""
    if seeds is None and plan.temperature:
        raise ValueError(f"at temperature {plan.temperature} ids are drawn by lot: give a seed for every prompt")
    if seeds is not None and len(seeds) != prompts:
        raise ValueError(f"{len(seeds)} seeds are given for {prompts} prompts; give one for each")


def lots(seeds: list[int] | None, count: int) -> Tensor | None:
    """(len(seeds), count) float64 in [0, 1): each row of its own seed, whatever stands beside it."""
    if seeds is None:
        return None
    return torch.stack(
        [torch.rand(count, generator=generator_for(s), dtype=torch.float64, device="cpu") for s in seeds]
    )


def choose(logits: Tensor, plan: TextPlan | ImagePlan, lot: Tensor | None) -> Tensor:
    """The next id (B,) int64 of logits (B, V), -inf where an id is not allowed, by the ``lot`` (B,) float64.

    One number a row decides, by the cumulative distribution in float64 in the order of ids: what another batch changes
    in the last digits of the logits hardly ever changes an id.
    """
    if plan.temperature == 0:
        return logits.argmax(-1)
    count = min(plan.top_k or logits.shape[-1], logits.shape[-1])
    if count == logits.shape[-1] and plan.top_p == 1:
        ids, share = None, (logits.double() / plan.temperature).softmax(-1)
    else:
        best, ids = logits.topk(count, dim=-1)
        share = (best.double() / plan.temperature).softmax(-1)
        share = share * (share.cumsum(-1) - share < plan.top_p)
        ids, order = ids.sort(-1)
        share = share.gather(-1, order)
    total = share.cumsum(-1)
    place = torch.searchsorted(total, lot.to(total.device)[:, None] * total[:, -1:], right=True)
    place = place.clamp(max=total.shape[-1] - 1)
    return (place if ids is None else ids.gather(-1, place))[:, 0]
