"""VQA accuracy with the official normalisation of answers (arXiv 1505.00468; visualqa.org/evaluation.html).

An answer is right to the degree that three of the other people gave it: the mean, over the subsets that leave one of
the ten answers out, of min(matches / 3, 1). One match of ten is .3, two .6, three .9, four and more 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

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


def normalize_answer(answer: str) -> str:
    """An answer as the official evaluation compares it.

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
    words = (NUMBERS.get(word, word) for word in FULL_STOP.sub("", text).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The accuracy in [0, 1] of a prediction against the answers of (usually ten) people.

    As the official evaluation does it, nothing is normalised where all ten answers are equal: a prediction then has to
    be the same string ("Yes" is not "yes"). With fewer than ten answers the official rule (three matches) would put 1
    out of reach; there a third of the others must agree, min(3 matches / others, 1), everything is normalised, and a
    single answer has to be matched.
    Errors: ValueError for no answers, or answers that are one string.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"answers are {answers!r}: give a list of at least one answer")
    prediction, *answers = (text.replace("\n", " ").replace("\t", " ").strip() for text in (prediction, *answers))
    if len(answers) < 10 or len(set(answers)) > 1:
        prediction, *answers = (normalize_answer(text) for text in (prediction, *answers))
    if len(answers) == 1:
        return float(prediction == answers[0])
    others = len(answers) - 1
    needed = min(3.0, others / 3)
    matches = [sum(answer == prediction for answer in subset) for subset in combinations(answers, others)]
    return sum(min(found / needed, 1.0) for found in matches) / len(matches)
