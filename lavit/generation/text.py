"""Text: greedy, drawn by lot, or searched for with beams; image ids are suppressed."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.data.documents import Document
from lavit.generation.cache import Cache, check_prompts, go_on
from lavit.generation.plans import TextPlan, check_plan, check_seeds, choose, lots
from lavit.model import UnifiedLM


@torch.no_grad()
def write_text(
    model: UnifiedLM, prompts: list[Document], end: int, plan: TextPlan, seeds: list[int] | None = None
) -> list[Tensor]:
    """Continuations as (n,) int64 ids, without the ``end`` id.

    Args:
        model: in evaluation mode.
        prompts: documents that end where a text is to go on.
        end: the id that ends a text.
        plan: how to write.
        seeds: one for each prompt, where the plan draws by lot.

    Raises:
        ValueError: a plan that cannot be, a prompt that is empty or too long, or seeds that are missing.
    """
    check_plan(plan)
    check_seeds(plan, len(prompts), seeds)
    check_prompts(model, prompts, plan.max_tokens)
    if not prompts:
        return []
    if plan.beams > 1:
        rows = search(model, prompts, end, plan)
    else:
        count = len(prompts)
        limits = [plan.min_tokens] * count, [plan.max_tokens] * count
        rows = write(model, prompts, Writing(model, plan, end, seeds, *limits, draws=[False] * count))
    return [torch.tensor(row[:-1] if row[-1] == end else row, dtype=torch.int64, device="cpu") for row in rows]


class Writing:
    """Rows of text of ``least`` to ``most`` tokens, which end with ``end``, or, where a row ``draws``, with [IMG]."""

    def __init__(
        self,
        model: UnifiedLM,
        plan: TextPlan,
        end: int,
        seeds: list[int] | None,
        least: list[int],
        most: list[int],
        draws: list[bool],
    ):
        self.head, self.plan, self.least, self.most, self.draws = model.head, plan, least, most, draws
        self.stops = [end, model.vocabulary.image_begin]
        self.lots = lots(seeds, max(most)) if plan.temperature else None

    def choose(self, hidden: Tensor, rows: list[int], step: int) -> Tensor:
        logits = self.head.text_logits(hidden).float()
        barred = torch.tensor([[step < self.least[row], not self.draws[row]] for row in rows], device=logits.device)
        logits[:, self.stops] = logits[:, self.stops].masked_fill(barred, -torch.inf)
        return choose(logits, self.plan, self.lots[rows, step] if self.plan.temperature else None)

    def take(self, row: int, number: int, step: int) -> bool:
        return number in self.stops or step + 1 == self.most[row]


def write(model: UnifiedLM, prompts: list[Document], writing: Writing) -> list[list[int]]:
    """The ids of every row, its last one too."""
    return go_on(Cache(model, prompts, max(writing.most)), len(prompts), writing)


def search(model: UnifiedLM, prompts: list[Document], end: int, plan: TextPlan) -> list[list[int]]:
    """The best text of each prompt by beam search, the ``end`` id too, as ``transformers.generate`` finds it.

    Scores are log-likelihoods over the whole vocabulary, as there: suppressed ids keep their probability.
    """
    size = model.vocabulary.text_size
    if 2 * plan.beams > size:
        raise ValueError(f"TextPlan.beams is {plan.beams}; it must be at most half of the {size} text ids")
    cache = Cache(model, prompts, plan.max_tokens)
    searches = [_Beams(end, plan) for _ in prompts]
    going = list(searches)
    for _ in range(plan.max_tokens):
        logs = model.head(cache.last).float().log_softmax(-1)[:, :size]
        if len(going[0].running[0][1]) < plan.min_tokens:
            logs[:, end] = -torch.inf
        before = torch.tensor([[score for score, _ in beams.running] for beams in going], device=logs.device)
        scores = (logs.unflatten(0, before.shape) + before[..., None]).flatten(1)
        best, index = scores.topk(2 * plan.beams)
        rows, ids, left = [], [], []
        for number, (beams, *found) in enumerate(zip(going, best.tolist(), index.tolist(), strict=True)):
            parents = beams.extend([(score, i // size, i % size) for score, i in zip(*found, strict=True)])
            if not beams.done:
                left.append(beams)
                rows += [number * before.shape[1] + parent for parent in parents]
                ids += [text[-1] for _, text in beams.running]
        going = left
        if not going:
            break
        cache.select(rows)
        cache.feed(torch.tensor(ids, device=cache.device)[:, None])
    return [beams.ended[0][1] for beams in searches]


class _Beams:
    """The beams of one prompt: texts under way and texts that ended, each with its score, the best first."""

    def __init__(self, end: int, plan: TextPlan):
        self.end, self.plan = end, plan
        self.running: list[tuple[float, list[int]]] = [(0.0, [])]
        self.ended: list[tuple[float, list[int]]] = []
        self.done = False

    def extend(self, candidates: list[tuple[float, int, int]]) -> list[int]:
        """Go on with the best of (score, beam, id), given in order; returns from which beams they come.

        There are twice as many as beams, so that enough are left when some of them end; those that end count only
        among the first half.
        """
        beams, texts = self.plan.beams, [text for _, text in self.running]
        length = len(texts[0]) + 1
        weight = length**self.plan.length_penalty
        last = length == self.plan.max_tokens
        stop = [last or number == self.end for _, _, number in candidates]
        for (score, beam, number), stops in list(zip(candidates, stop, strict=True))[:beams]:
            if stops:
                self.ended.append((score / weight, [*texts[beam], number]))
        self.ended = sorted(self.ended, key=lambda found: -found[0])[:beams]
        kept = [found for found, stops in zip(candidates, stop, strict=True) if not stops][:beams]
        self.running = [(score, [*texts[beam], number]) for score, beam, number in kept]
        # Scores of texts under way only fall with more tokens, but for the length's weight, which is taken as it is.
        full = len(self.ended) == beams
        self.done = last or (full and self.running[0][0] / weight <= self.ended[-1][0])
        return [beam for _, beam, _ in kept]
