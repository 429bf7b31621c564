"""VQA accuracy of what an answer means: without words that lead up to it, and with its words' lemmas.

A second, milder score beside the official one, for models that were not trained on a set's way of answering: it lets
"It is two dogs." match "2 dog". It is in the manner of LaVIT's evaluation, not a copy of it: what leads up to an answer
is a list of our own, and no answer is cut or called unanswerable.

BLIP-2 (arXiv 2301.12597) began to lemmatise nouns and verbs so on OK-VQA, by spaCy, and only what the model wrote,
since OK-VQA's answers are stems. **Here it is not spaCy that does it**, but the
dictionary of LemmInflect (`LEMMATIZER`), which does not see a word's part of speech in its sentence; and people's
answers are lemmatised as well, so that plurals match on every set. So a figure is near that of other evaluations, and
not equal to it: of 5,000 phrases of one or two words, one of them inflected, spaCy 3.8 (`en_core_web_sm` 3.6) wrote
4,266 as this module does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib.metadata import version

from lemminflect import getAllLemmas

from lavit.metrics.vqa import agreement, normalize_answer

LEMMATIZER = f"lemminflect {version('lemminflect')}"
LEADING = re.compile(
    r"""\s*(?:(?:the\ |short\ )?answer(?:\ is|:)[\ :]*|(?:it|this|that|he|she|there)(?:\ is|['’]s)\ +
    |(?:they|there|these|those)\ are\ +|(?:(?:a|an|the)\ +)?(?:photo|picture|image)\ of\ +)(?=\S)""",
    re.IGNORECASE | re.VERBOSE,
)


def vqa_accuracy_lemmatised(prediction: str, answers: Sequence[str]) -> float:
    """The accuracy in [0, 1] as `lavit.metrics.vqa.vqa_accuracy` has it, of the lemmas of everything.

    Errors: ValueError for no answers, or answers that are one string.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"answers are {answers!r}: give a list of at least one answer")
    return agreement(lemmatise(without_leading(prediction)), [lemmatise(answer) for answer in answers])


def without_leading(answer: str) -> str:
    """An answer without what leads up to it, once or more: "The answer is: it is a dog" is "a dog"."""
    while found := LEADING.match(answer):
        answer = answer[found.end() :]
    return answer


@functools.lru_cache(maxsize=1 << 16)
def lemmatise(answer: str) -> str:
    """The official normal form of an answer, its nouns in the singular and its verbs in the infinitive."""
    return " ".join(map(_lemma, normalize_answer(answer).split()))


@functools.lru_cache(maxsize=1 << 16)
def _lemma(word: str) -> str:
    """A word's lemma without its sentence: a form in -ing is a verb's where it can be; else a noun goes before an
    adjective and an adverb, which stay as they are, and these before a verb."""
    known = getAllLemmas(word)
    kinds = ("VERB", "NOUN") if word.endswith("ing") else ("NOUN", "ADJ", "ADV", "AUX", "VERB")
    for kind in kinds:
        if kind in known:
            return known[kind][0] if kind in ("NOUN", "VERB") else word
    return word
