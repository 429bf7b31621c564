"""Captions against reference captions: CIDEr (arXiv 1411.5726), BLEU (ACL 2002), and the class word.

The scores are pycocoevalcap's. CIDEr weighs an n-gram by its inverse document frequency **over the references that are
being evaluated**, so a figure holds for its own set of images only, and the CIDEr of a single image is 0 whatever the
captions say (log 1 = 0). It is the mean over n-grams of one to four words, times 10: a caption of four words or more
that equals its only reference gets 10, one of two words 5, one of a single word 2.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test

from lavit.metrics.ptb import java_runs, java_words, python_words

TOKENIZATIONS = ("auto", "ptb-java", "ptb-python")


def tokenize(captions: Iterable[str], tokenization: str = "auto") -> tuple[dict[str, str], str]:
    """{caption: its lower-case words joined by spaces, without punctuation}, and the name of what did it.

    tokenization: "ptb-java" (the official one), "ptb-python" (ours, see `lavit.metrics.ptb`), or "auto": the first
    where `java` runs, else the second. A caption's words do not depend on the other captions.
    Errors: ValueError for another name, or for "ptb-java" where `java` does not run.
    """
    if tokenization not in TOKENIZATIONS:
        raise ValueError(f"no tokenization {tokenization!r}: choose one of {', '.join(TOKENIZATIONS)}")
    if tokenization == "ptb-java" and not java_runs():
        raise ValueError("tokenization 'ptb-java' needs a `java` that runs: install one, or choose 'ptb-python'")
    used = tokenization
    if used == "auto":
        used = "ptb-java" if java_runs() else "ptb-python"
    distinct = list(dict.fromkeys(captions))
    words = java_words(distinct) if used == "ptb-java" else [python_words(caption) for caption in distinct]
    return {caption: " ".join(found) for caption, found in zip(distinct, words, strict=True)}, used


def caption_scores(
    references: dict[str, list[str]], candidates: dict[str, str], tokenization: str = "auto"
) -> dict[str, float | int | str]:
    """CIDEr and BLEU of one candidate an image against its references.

    references: at least one caption for each image; candidates: one, "" where there is none (it scores 0).
    Returns cider (0 to 10), bleu1 to bleu4 (0 to 1, over the corpus), tokenization (the one that was used), n (images).
    Errors: ValueError for no images, different keys, an image without references, references without a single word.
    """
    tokenized, [candidate_words], used = tokenize_all(references, [candidates], tokenization)
    lists = {key: [text] for key, text in candidate_words.items()}
    bleu, _ = Bleu(4).compute_score(tokenized, lists, verbose=0)
    scores: dict[str, float | int | str] = {"cider": float(cider_values(tokenized, [candidate_words])[0].mean())}
    scores |= {f"bleu{n}": float(value) for n, value in enumerate(bleu, start=1)}
    return scores | {"tokenization": used, "n": len(tokenized)}


def cider_many(
    references: dict[str, list[str]], candidate_sets: Sequence[dict[str, str]], tokenization: str = "auto"
) -> list[float]:
    """CIDEr of many sets of candidates against one set of references: each as `caption_scores` gives it.

    Everything is tokenized once and the references are counted once, so that twenty derangements and a search for the
    best constant caption cost seconds. Errors: as `caption_scores`; no sets give an empty list.
    """
    tokenized, candidate_words, _ = tokenize_all(references, candidate_sets, tokenization)
    return [float(values.mean()) for values in cider_values(tokenized, candidate_words)]


def category_of(caption: str) -> str:
    """The class word of `category: label`, lower case: "food" of "food: red apple"; "" where there is no colon."""
    category, colon, _ = caption.partition(":")
    return " ".join(category.lower().split()) if colon else ""


def label_of(caption: str) -> str:
    """What follows the first colon: "red apple" of "food: red apple"; the whole caption where there is no colon."""
    category, colon, label = caption.partition(":")
    return " ".join((label if colon else category).split())


def category_accuracy(predicted: Sequence[str], true: Sequence[str]) -> float:
    """The share in [0, 1] of predicted captions whose class word is that of the true caption beside it.

    Errors: ValueError for no captions, sequences of different lengths, a true caption without a class word.
    """
    if len(predicted) != len(true) or not true:
        raise ValueError(f"{len(predicted)} predicted beside {len(true)} true captions: give as many, at least one")
    for caption in true:
        if not category_of(caption):
            raise ValueError(f"the true caption {caption!r} has no class word: write it as 'category: label'")
    right = [category_of(ours) == category_of(theirs) for ours, theirs in zip(predicted, true, strict=True)]
    return sum(right) / len(right)


def tokenize_all(
    references: dict[str, list[str]], candidate_sets: Sequence[dict[str, str]], tokenization: str
) -> tuple[dict[str, list[str]], list[dict[str, str]], str]:
    """References and candidates checked and tokenized together, all keys in the references' order, and by what.

    Errors: as `caption_scores`.
    """
    if not references:
        raise ValueError("no references: give at least one image with its captions")
    for key, several in references.items():
        if not several or isinstance(several, str):
            raise ValueError(f"the references of image {key!r} are {several!r}: give a list of at least one caption")
    for candidates in candidate_sets:
        if different := sorted(map(str, references.keys() ^ candidates.keys())):
            some = ", ".join(different[:3])
            raise ValueError(
                f"references and candidates differ in {len(different)} keys ({some}): give one candidate for each image"
            )
    every = [caption for several in references.values() for caption in several]
    every += [caption for candidates in candidate_sets for caption in candidates.values()]
    words, used = tokenize(every, tokenization)
    tokenized = {key: [words[caption] for caption in several] for key, several in references.items()}
    if not any(text for several in tokenized.values() for text in several):
        raise ValueError("no reference holds a single word: nothing can be scored against them")
    return tokenized, [{key: words[candidates[key]] for key in references} for candidates in candidate_sets], used


def cider_values(
    references: dict[str, list[str]], candidate_sets: Sequence[dict[str, str]]
) -> list[NDArray[np.float64]]:
    """CIDEr of each image (N,), for each set of candidates; all tokenized, keys in the references' order."""
    counted = [cook_refs(several) for several in references.values()]
    cooked = {text: cook_test(text) for text in {text for texts in candidate_sets for text in texts.values()}}
    values = []
    for candidates in candidate_sets:
        scorer = CiderScorer()  # a new one each time: a scorer that is used again counts its documents twice
        scorer.crefs, scorer.ctest = counted, [cooked[candidates[key]] for key in references]
        values.append(np.asarray(scorer.compute_score()[1], dtype=np.float64))
    return values
