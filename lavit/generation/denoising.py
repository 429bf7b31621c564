"""Generation in context: a frozen language model writes the words of a pyramid after corrupted examples of it.

Progressive decoding of SPAE (arXiv 2306.17842, section 3.3): the upper layers are written one word after the other, the
deeper ones in segments, each after the upper words. The examples of "denoise" are copies of the query's own pyramid
that grow cleaner, so that the commonest word of every place is the baseline to beat; the clean one is none of them,
since it would only have to be copied. Those of "reconstruct" are other pictures, corrupted and clean, and the query is
given corrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lavit.data.documents import Document
from lavit.data.order import generator_for, seed_for
from lavit.generation.cache import Cache, check_prompts, go_on
from lavit.generation.in_context import Contexts
from lavit.generation.plans import TextPlan, check_plan, choose, lots
from lavit.model import UnifiedLM

VARIANTS = ("denoise", "reconstruct")
SAYS = {
    "denoise": "Each output is a cleaner copy of the same words.",
    "reconstruct": "Some words of each input are wrong; the output has the right ones.",
}


@dataclass
class DenoisingConfig:
    """``pictures`` are written after ``contexts`` examples, of whose words the shares ``first`` to ``last`` are wrong.

    The first ``upper`` layers of the pyramid are written one word after the other, the others up to layer ``depth`` (0:
    all) in segments of ``segment`` words. The likeliest word is taken at ``temperature`` 0, else one is drawn, of the
    ``top_k`` likeliest (0: of all). ``at_once`` rows are written together, ``shown`` pictures are painted.
    """

    pictures: int = 12
    contexts: int = 6
    first: float = 0.5
    last: float = 0.2
    upper: int = 2
    depth: int = 0
    segment: int = 16
    temperature: float = 0.0
    top_k: int = 0
    at_once: int = 16
    shown: int = 6

    def check(self, key: str) -> None:
        """Raise ValueError, with the dotted ``key`` of this section, for what cannot be."""
        for name in ("pictures", "contexts", "upper", "segment", "at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{key}.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.last <= self.first <= 1:
            raise ValueError(f"{key}: first {self.first} and last {self.last} are shares from 1 to 0 that fall")
        if self.depth and self.depth < self.upper:
            raise ValueError(f"{key}: depth {self.depth} leaves out some of the {self.upper} upper layers; raise it")
        check_plan(self.plan, key)

    @property
    def plan(self) -> TextPlan:
        """How a word is chosen."""
        return TextPlan(temperature=self.temperature, top_k=self.top_k)

    def layers(self, counts: list[int]) -> list[int]:
        """The words of each layer that is written, of all layers' ``counts``.

        Raises:
            ValueError: a pyramid with fewer layers than asked for.
        """
        if (asked := max(self.depth, self.upper)) > len(counts):
            raise ValueError(
                f"in_context.denoising asks for {asked} layers and the pyramid has {len(counts)}; lower depth or upper"
            )
        return counts[: self.depth or len(counts)]


def corrupt(codes: Tensor, share: float, size: int, generator: torch.Generator) -> Tensor:
    """(n,) int64 codes in [0, size) of which round(share · n), drawn by lot, are another code than they were."""
    places = torch.randperm(len(codes), generator=generator)[: round(share * len(codes))]
    out = codes.clone()
    # One of the size − 1 others, all alike.
    out[places] = (codes[places] + torch.randint(1, size, places.shape, generator=generator)) % size
    return out


class Problem(NamedTuple):
    """One pyramid to write.

    Attributes:
        given: (C, n) int64 what the examples are given, or None where it is their number alone.
        shown: (C, n) int64 what they answer.
        query: (n,) int64 the corrupted pyramid to be made clean, or None.
        truth: (n,) int64 what is right.
    """

    given: Tensor | None
    shown: Tensor
    query: Tensor | None
    truth: Tensor


def problems_of(variant: str, codes: Tensor, size: int, config: DenoisingConfig, seed: int) -> list[Problem]:
    """The problems of pictures with words (P, n) int64 in [0, size), each of the seed and its place alone.

    Raises:
        ValueError: an unknown variant, or too few pictures for examples of others.
    """
    if variant not in VARIANTS:
        raise ValueError(f"'{variant}' is no way to generate in context; choose {', '.join(VARIANTS)}")
    if variant == "reconstruct" and len(codes) <= config.contexts:
        raise ValueError(
            f"in_context.denoising.contexts is {config.contexts} and there are {len(codes)} pictures; lower it, since "
            "no picture is an example of its own"
        )
    shares = torch.linspace(config.first, config.last, config.contexts).tolist()
    problems = []
    for number, truth in enumerate(codes):
        lot = generator_for(seed, VARIANTS.index(variant), number)
        if variant == "denoise":
            copies = torch.stack([corrupt(truth, share, size, lot) for share in shares])
            problems.append(Problem(None, copies, None, truth))
            continue
        others = torch.randperm(len(codes) - 1, generator=lot)[: config.contexts]
        clean = codes[others + (others >= number)]
        given = torch.stack([corrupt(row, share, size, lot) for row, share in zip(clean, shares, strict=True)])
        problems.append(Problem(given, clean, corrupt(truth, config.last, size, lot), truth))
    return problems


@torch.no_grad()
def write_pyramids(
    model: UnifiedLM,
    contexts: Contexts,
    problems: list[Problem],
    variant: str,
    ids: Tensor,
    counts: list[int],
    config: DenoisingConfig,
    seeds: list[int],
) -> Tensor:
    """(P, n) int64 places in the word list that the model writes for each problem; nothing else can be written.

    Args:
        model: frozen.
        contexts: writes the prompts.
        problems: of n tokens each.
        variant: what the prompts say is to be done.
        ids: (K,) int64 the word list.
        counts: words of each layer, n in all.
        config: how.
        seeds: one for each problem.

    Raises:
        ValueError: a prompt that is longer than the model reads.
    """
    top = sum(counts[: config.upper])
    made = torch.zeros(len(problems), sum(counts), dtype=torch.int64)
    deeper = segments(counts, config.upper, config.segment)
    lengths = dict.fromkeys(end - start for start, end in deeper)
    # Upper words first, which all other pieces read; then pieces of one length, whose rows end together.
    for pieces in ([(0, top)], *([piece for piece in deeper if piece[1] - piece[0] == n] for n in lengths)):
        length = pieces[0][1] - pieces[0][0]
        work = [(p, *piece) for p in range(len(problems)) for piece in pieces]
        for begin in range(0, len(work), config.at_once):
            part = work[begin : begin + config.at_once]
            prompts = [prompt(contexts, problems[p], variant, made[p, :top], (s, e), ids) for p, s, e in part]
            lot = lots([seed_for(seeds[p], start) for p, start, _ in part], length)
            for (p, start, end), row in zip(part, _write(model, prompts, ids, length, config, lot), strict=True):
                made[p, start:end] = row
    return made


def segments(counts: list[int], upper: int, length: int) -> list[tuple[int, int]]:
    """Where the segments of the layers after the first ``upper`` begin and end; none spans two layers."""
    out, start = [], sum(counts[:upper])
    for count in counts[upper:]:
        out += [(place, min(place + length, start + count)) for place in range(start, start + count, length)]
        start += count
    return out


def prompt(
    contexts: Contexts, problem: Problem, variant: str, top: Tensor, piece: tuple[int, int], ids: Tensor
) -> Document:
    """The examples of a piece of a pyramid, from one place to another, and what asks for the query's.

    The upper words are given before any other piece: an example's own, and the query's as they were written, ``top``.
    """
    start, end = piece

    def given(number: int, upper: Tensor, corrupted: Tensor | None) -> tuple[str | Tensor, ...]:
        parts: list[str | Tensor] = [ids[upper]] if start else []
        if corrupted is not None:
            parts.append(ids[corrupted[start:end]])
        return tuple(parts) or (f" {number + 1}",)

    document = contexts.begin(SAYS[variant])
    for number, shown in enumerate(problem.shown):
        corrupted = None if problem.given is None else problem.given[number]
        document += contexts.example(given(number, shown[: len(top)], corrupted), ids[shown[start:end]])
    return document + contexts.ask(*given(len(problem.shown), top, problem.query))


def _write(
    model: UnifiedLM, prompts: list[Document], ids: Tensor, length: int, config: DenoisingConfig, lot: Tensor
) -> Tensor:
    """(B, length) int64 places in the word list, one after the other."""
    try:
        check_prompts(model, prompts, length)
    except ValueError as error:
        raise ValueError(f"{error}: lower in_context.denoising.contexts, upper or segment") from None
    rows = go_on(Cache(model, prompts, length), len(prompts), _Listed(model, ids, length, config.plan, lot))
    place = torch.full((int(ids.max()) + 1,), -1)
    place[ids] = torch.arange(len(ids))
    return place[torch.tensor(rows)]


class _Listed:
    """Rows of ``length`` words of a list."""

    def __init__(self, model: UnifiedLM, ids: Tensor, length: int, plan: TextPlan, lot: Tensor):
        self.ids, self.rows = ids, model.head.text[ids].float()
        self.length, self.plan, self.lot = length, plan, lot

    def choose(self, hidden: Tensor, rows: list[int], step: int) -> Tensor:
        logits = F.linear(hidden.float(), self.rows)
        return self.ids.to(hidden.device)[choose(logits, self.plan, self.lot[rows, step])]

    def take(self, row: int, number: int, step: int) -> bool:
        return step + 1 == self.length
