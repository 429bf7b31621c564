from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from lavit.metrics.geneval import counted, judge, relations, summary


class Box(NamedTuple):
    box: tuple[float, float, float, float]
    score: float = 0.95
    colour: str = "red"


def colours(name, objects):
    return [one.colour for one in objects]


def asked(name, count=1, **more):
    return {"class": name, "count": count, **more}


def at(x, y, size=10, **more):
    return Box((x, y, x + size, y + size), **more)


def test_what_counts_is_above_the_threshold_of_its_kind_surest_first_and_no_more_than_16():
    found = {"cat": [at(0, 0, score=s) for s in (0.3, 0.31, 0.89, 0.95)], "dog": [at(0, 0, score=0.2)]}
    assert [one.score for one in counted(found, "single_object")["cat"]] == [0.95, 0.89, 0.31]
    assert counted(found, "counting") == {"cat": [at(0, 0, score=0.95)]}
    assert len(counted({"cat": [at(0, 0)] * 20}, "colors")["cat"]) == 16


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (at(0, 0), at(50, 0), {"left of"}),
        (at(50, 0), at(0, 0), {"right of"}),
        (at(0, 0), at(0, 50), {"above"}),
        (at(0, 50), at(0, 0), {"below"}),
        (at(0, 50), at(50, 0), {"left of", "below"}),  # (-48, 48) of a distance of 70.7: both above a half
        (at(0, 0), at(2, 0), set()),  # two pixels, and a tenth of both sizes is two
        (at(0, 0), at(3.9, 0), set()),  # 1.9 of 3.9 is less than a half
        (at(0, 0), at(4.1, 0), {"left of"}),
        (at(0, 0), at(60, 20), {"left of"}),  # 18 of 63.2 down
        (at(0, 0), at(0, 0), set()),
    ],
)
def test_relations(a, b, said):
    assert relations(a, b) == said


OBJECT = {"tag": "single_object", "include": [asked("cat")]}
COUNT = {"tag": "counting", "include": [asked("cat", 2)], "exclude": [asked("cat", 3)]}
COLOUR = {"tag": "colors", "include": [asked("cat", color="blue")]}
BOUND = {"tag": "color_attr", "include": [asked("cat", color="blue"), asked("dog", color="red")]}
PLACED = {"tag": "position", "include": [asked("dog"), asked("cat", position=["left of", 0])]}


@pytest.mark.parametrize(
    ("prompt", "objects", "right", "why"),
    [
        (OBJECT, {"cat": [at(0, 0)]}, True, ""),
        (OBJECT, {"dog": [at(0, 0)]}, False, "0 of 1 cat"),
        (COUNT, {"cat": [at(0, 0)]}, False, "1 of 2 cat"),
        (COUNT, {"cat": [at(0, 0)] * 2}, True, ""),
        (COUNT, {"cat": [at(0, 0)] * 3}, False, "3 cat, which is 3 or more"),
        (COLOUR, {"cat": [at(0, 0, colour="blue")]}, True, ""),
        (COLOUR, {"cat": [at(0, 0)]}, False, "cat is red and not blue"),
        # Only as many as are asked for are looked at, the surest.
        (COLOUR, {"cat": [at(0, 0), at(9, 9, colour="blue")]}, False, "cat is red and not blue"),
        (BOUND, {"cat": [at(0, 0, colour="blue")], "dog": [at(9, 9)]}, True, ""),
        (BOUND, {"cat": [at(0, 0)], "dog": [at(9, 9, colour="blue")]}, False, "cat is red.*dog is blue"),
        (PLACED, {"dog": [at(50, 0)], "cat": [at(0, 0)]}, True, ""),
        (PLACED, {"dog": [at(0, 0)], "cat": [at(50, 0)]}, False, "cat is right of and not left of"),
        (PLACED, {"cat": [at(0, 0)]}, False, "0 of 1 dog; nothing for cat to be left of"),
        (PLACED, {"dog": [at(0, 0)], "cat": [at(0, 0)]}, False, "nowhere clear"),
    ],
)
def test_judgements(prompt, objects, right, why):
    correct, reason = judge(prompt, objects, colours)
    assert correct is right and re.fullmatch(f".*{why}.*" if why else "", reason)


def test_every_pair_must_be_placed_so():
    prompt = {"include": [asked("dog", 2), asked("cat", position=["above", 0])]}
    assert judge(prompt, {"dog": [at(0, 50), at(5, 90)], "cat": [at(0, 0)]}, colours)[0]
    assert not judge(prompt, {"dog": [at(0, 50), at(90, 0)], "cat": [at(0, 0)]}, colours)[0]


def test_a_summary_weighs_kinds_alike():
    rows = [
        ("colors", 0, True),
        ("colors", 0, False),
        ("colors", 1, False),
        ("colors", 1, False),
        ("position", 2, True),
    ]
    found = summary([{"tag": tag, "prompt": prompt, "correct": right} for tag, prompt, right in rows], 3)
    assert found == {
        "overall": (0.25 + 1) / 2,
        "colors": 0.25,
        "position": 1.0,
        "images_correct": 0.4,
        "prompts_correct": pytest.approx(2 / 3),
    }
    with pytest.raises(ValueError, match="of 3 prompts and not of 4"):
        summary([{"tag": tag, "prompt": prompt, "correct": right} for tag, prompt, right in rows], 4)
    with pytest.raises(ValueError, match="of 0 prompts"):
        summary([])
