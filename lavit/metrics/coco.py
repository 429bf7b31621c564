"""All scores of the COCO caption evaluation (arXiv 1504.00325), image by image: CIDEr, BLEU, ROUGE-L, METEOR, SPICE.

Each equals what pycocoevalcap's `COCOEvalCap` gives for the same words. A score here is made of sums over images of
what each contributes, so that one can be had of some images, or of images that are drawn for an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.rouge.rouge import Rouge

from lavit.metrics.bootstrap import Score
from lavit.metrics.captions import cider_values, tokenize_all
from lavit.metrics.meteor import meteor_counts, meteor_missing, meteor_scores
from lavit.metrics.spice import spice_missing, spice_values

FIGURES = ("cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "meteor", "spice")
BLEU_TINY, BLEU_SMALL = 1e-15, 1e-9  # the official code's guards against 0 / 0


class Contributions(NamedTuple):
    """One figure of all images, in the order of the references.

    Attributes:
        statistics: (N, K), what each image adds.
        score: sums (R, K) to scores (R,).
    """

    statistics: NDArray[np.float64]
    score: Score

    @property
    def value(self) -> float:
        """The score of all images together."""
        return float(self.score(self.statistics.sum(axis=0, keepdims=True))[0])

    @property
    def values(self) -> NDArray[np.float64]:
        """(N,): the score of each image alone, but for CIDEr, whose document frequencies are those of all."""
        return self.score(self.statistics)


class CaptionFigures(NamedTuple):
    """What was measured.

    Attributes:
        figures: by name, as in `FIGURES`.
        reasons: why others of these were not.
        references, candidates: by image, tokenized.
        tokenization: what did that.
    """

    figures: dict[str, Contributions]
    reasons: dict[str, str]
    references: dict[str, list[str]]
    candidates: dict[str, str]
    tokenization: str

    def part(self, keys: Iterable[str]) -> dict[str, Contributions]:
        """The figures of some images, as if these were all: CIDEr with their own document frequencies."""
        chosen = set(keys)
        kept = np.array([key in chosen for key in self.references])
        figures = {name: figure._replace(statistics=figure.statistics[kept]) for name, figure in self.figures.items()}
        references, candidates = (
            {k: v for k, v in of.items() if k in chosen} for of in (self.references, self.candidates)
        )
        return figures | {"cider": _mean(cider_values(references, [candidates])[0])}


def caption_figures(
    references: dict[str, list[str]], candidates: dict[str, str], tokenization: str = "auto"
) -> CaptionFigures:
    """All scores of one candidate an image against its references.

    CIDEr is in [0, 10], the others in [0, 1]. An empty candidate scores 0. METEOR and SPICE are left out, with the
    reason, where what they need is not here or fails. Arguments and errors: as `lavit.metrics.captions.caption_scores`.
    """
    tokenized, [words], used = tokenize_all(references, [candidates], tokenization)
    several, ours = list(tokenized.values()), list(words.values())
    [cider] = cider_values(tokenized, [words])
    figures = {"cider": _mean(cider)} | _bleu(several, ours)
    rouge = Rouge()
    figures["rouge_l"] = _mean([rouge.calc_score([text], theirs) for text, theirs in zip(ours, several, strict=True)])
    reasons: dict[str, str] = {}
    programs: tuple[tuple[str, str | None, Callable[[], Contributions]], ...] = (
        ("meteor", meteor_missing(), lambda: Contributions(meteor_counts(several, ours), meteor_scores)),
        ("spice", spice_missing(), lambda: _mean(spice_values(several, ours))),
    )
    for name, missing, run in programs:
        try:
            if missing is None:
                figures[name] = run()
            else:
                reasons[name] = missing
        except RuntimeError as error:  # the other figures are no less true
            reasons[name] = f"not run: {error}"
    return CaptionFigures(figures, reasons, tokenized, words, used)


def _mean(values: NDArray[np.float64] | list[float]) -> Contributions:
    statistics = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)
    return Contributions(statistics, lambda sums: sums[:, 0] / sums[:, 1])


def _bleu(references: list[list[str]], candidates: list[str]) -> dict[str, Contributions]:
    """Of n-grams of one to four words; an image adds lengths, n-grams and those of them that a reference has."""
    rows = []
    for several, text in zip(references, candidates, strict=True):
        scorer = BleuScorer(text, several)
        [found] = scorer.ctest
        length = found["testlen"]
        closest = min((abs(other - length), other) for other in found["reflen"])[1]
        rows.append([length, closest, *found["guess"], *found["correct"]])
    statistics = np.array(rows, dtype=np.float64)
    return {f"bleu{n}": Contributions(statistics, _bleu_of(n)) for n in (1, 2, 3, 4)}


def _bleu_of(size: int) -> Score:
    def score(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        tried, right = sums[:, 2 : 2 + size], sums[:, 6 : 6 + size]
        mean = ((right + BLEU_TINY) / (tried + BLEU_SMALL)).prod(axis=1) ** (1 / size)
        ratio = (sums[:, 0] + BLEU_TINY) / (sums[:, 1] + BLEU_SMALL)
        return mean * np.exp(np.minimum(0, 1 - 1 / ratio))

    return score
