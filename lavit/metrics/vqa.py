"""VQA accuracy with the official normalisation of answers (arXiv 1505.00468; visualqa.org/evaluation.html), which VQAv2
and OK-VQA share, and the variants of TextVQA, VizWiz and GQA.

An answer is right to the degree that three of the other people gave it: the mean, over the subsets that leave one of
the ten answers out, of min(matches / 3, 1). One match of ten is .3, two .6, three .9, four and more 1.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # neither the colon nor the apostrophe
COMMA_IN_NUMBER = re.compile(r"\d,\d")
FULL_STOP = re.compile(r"\.(?!\d)")

# Contractions that people type without their apostrophe. The official list has also I'm, I've and I'd've, in capitals,
# which no answer in lower case can match; and it leaves alone what is another word without its apostrophe (its, well).
CONTRACTIONS_SINGLE = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's
    how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't
    should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd
    there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll
    you're you've"""
# Those of two or three apostrophes, of which one was left out.
CONTRACTIONS_DOUBLE = """couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
    someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
    'ow's'at"""


def _contractions() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in CONTRACTIONS_SINGLE.split()}
    for word in CONTRACTIONS_DOUBLE.split():
        places = [place for place, sign in enumerate(word) if sign == "'"]
        table |= {word[:place] + word[place + 1 :]: word for place in places}
    return table | {"somebody'd": "somebodyd"}  # the official list turns this one about


CONTRACTIONS = _contractions()


def _contractions_of_vizwiz() -> dict[str, str]:
    """VizWiz' copy of the list, in which an editor has curled the apostrophes of all but these."""
    plain = {"aint", "arent", "cant", "couldve", "couldnt", "weve", "wheres", "whove"}
    keys = {"couldn'tve", "hadn'tve"}
    return {
        key if key in keys else key.replace("'", "’"): value if key in plain else value.replace("'", "’")
        for key, value in CONTRACTIONS.items()
    }


CONTRACTIONS_VIZWIZ = _contractions_of_vizwiz()


@functools.lru_cache(maxsize=1 << 16)  # people's answers are a few words that come again and again
def normalize_answer(answer: str, vizwiz: bool = False) -> str:
    """An answer as the official evaluation compares it, or that of VizWiz with its own contractions.

    Punctuation becomes a space, or nothing where that sign touches a space somewhere in the answer or where a digit,
    a comma and a digit stand together; a full stop goes unless a digit follows. Then lower case; number words up to
    ten and "none" become digits, articles go, missing apostrophes of contractions come back.
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    joined = COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for sign in PUNCTUATION:
        beside_space = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if joined or beside_space else " ")
    text = FULL_STOP.sub("", text, count=32)  # the official code gives a flag, of value 32, where the count stands
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    contractions = CONTRACTIONS_VIZWIZ if vizwiz else CONTRACTIONS
    return " ".join(contractions.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The accuracy in [0, 1] of a prediction against the answers of (usually ten) people.

    As the official evaluation does it, nothing is normalised where all ten answers are equal: a prediction then has to
    be the same string ("Yes" is not "yes"). With fewer than ten answers the official rule (three matches) would put 1
    out of reach; there a third of the others must agree, min(3 matches / others, 1), everything is normalised, and a
    single answer has to be matched.
    Errors: ValueError for no answers, or answers that are one string.
    """
    _check_answers(answers)
    prediction, *answers = (text.replace("\n", " ").replace("\t", " ").strip() for text in (prediction, *answers))
    if len(answers) < 10 or len(set(answers)) > 1:
        prediction, *answers = (normalize_answer(text) for text in (prediction, *answers))
    return agreement(prediction, answers)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """TextVQA's accuracy in [0, 1] (arXiv 1904.08920; the evaluator of M4C and of the set's server).

    As `vqa_accuracy`, but everything is always normalised, after commas and question marks went and "'s" became a word
    of its own, so that "1,000" and "1000" are equal, and "man's" is "man 's". Errors: as `vqa_accuracy`.
    """
    _check_answers(answers)
    prediction, *answers = (normalize_text_answer(text) for text in (prediction, *answers))
    return agreement(prediction, answers)


def normalize_text_answer(answer: str) -> str:
    """An answer as TextVQA's evaluation compares it."""
    return normalize_answer(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def vizwiz_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VizWiz' accuracy in [0, 1] (arXiv 1802.08218; vizwiz.org/tasks-and-datasets/vqa).

    The prediction alone is normalised: the people's answers were cleaned before they were published. So one that holds
    an article, a sign or a number word cannot be matched. Errors: as `vqa_accuracy`.
    """
    _check_answers(answers)
    return agreement(normalize_answer(prediction, vizwiz=True), answers)


def exact_match(prediction: str, answer: str) -> float:
    """GQA's accuracy (arXiv 1902.09506): 1 where the two strings are equal but for space around them, else 0."""
    return float(prediction.strip() == answer.strip())


def plain_match(prediction: str, answer: str) -> float:
    """As `exact_match`, where case and a final full stop do not count: what a language model's answers are often freed
    of before they are sent in."""
    return exact_match(prediction.strip().removesuffix(".").lower(), answer.strip().removesuffix(".").lower())


def agreement(prediction: str, answers: Sequence[str]) -> float:
    """The mean of min(matches / 3, 1) over the answers less one; see `vqa_accuracy` for fewer than ten."""
    same, others = sum(answer == prediction for answer in answers), len(answers) - 1
    if not others:
        return float(same)
    needed = min(3.0, others / 3)
    # Left out is one of the equal answers as often as there are such, and another one the other times.
    total = same * max(0.0, min((same - 1) / needed, 1.0)) + (len(answers) - same) * min(same / needed, 1.0)
    return total / len(answers)


def _check_answers(answers: Sequence[str]) -> None:
    if isinstance(answers, str) or not answers:
        raise ValueError(f"answers are {answers!r}: give a list of at least one answer")
