from __future__ import annotations

import pytest

from lavit.metrics.vqa import CONTRACTIONS, normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("  The Red\tcar\n", "red car"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("a an the", ""),
        ("dont", "don't"),
        ("don't", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("twas", "'twas"),
        ("its", "its"),
        ("yes.", "yes"),
        ("U.S.", "us"),
        ("3.5", "3.5"),
        ("3.", "3"),
        (".5", ".5"),
        ("t-shirt", "t shirt"),  # a sign between letters becomes a space,
        ("t -shirt", "t shirt"),  # and vanishes where it touches one
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("1,000", "1000"),  # a comma between digits,
        ("1,000-mile", "1000mile"),  # and then every sign vanishes
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("10:30", "10:30"),  # a colon stays
        ("man's", "man's"),
        ("what?!", "what"),
        ('"stop"', "stop"),
    ],
)
def test_normalize_answer(answer, normal):
    assert normalize_answer(answer) == normal


def test_contractions():
    assert CONTRACTIONS["'ow'sat"] == "'ow's'at" and CONTRACTIONS["yall'd've"] == "y'all'd've"
    assert not CONTRACTIONS.keys() & {"its", "ill", "well", "were", "shell", "wed", "id"}  # words of their own
    assert len(CONTRACTIONS) == 114  # the official list, less what changes nothing and what only capitals match


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_accuracy_by_hand(matches, accuracy):
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert vqa_accuracy("red", answers) == pytest.approx(accuracy)


def test_everything_is_normalised_when_people_differ():
    assert vqa_accuracy("A dog.", ["dog", "the dog", "Dog"] + ["cat"] * 7) == pytest.approx(0.9)


def test_nothing_is_normalised_when_ten_people_agree():
    assert vqa_accuracy("yes", ["yes"] * 10) == 1
    assert vqa_accuracy(" yes\n", ["yes"] * 10) == 1
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1


def test_fewer_answers():
    assert vqa_accuracy("The Circle.", ["circle"]) == 1 and vqa_accuracy("square", ["circle"]) == 0
    assert vqa_accuracy("Red", ["red", "red"]) == 1
    assert vqa_accuracy("red", ["red", "blue"]) == 0.5
    # Of four, one agrees: left out 0, else one of the one needed.
    assert vqa_accuracy("red", ["red", "blue", "blue", "blue"]) == 0.75
    # Of seven, one agrees: left out 0, else one of the two needed.
    assert vqa_accuracy("red", ["red"] + ["blue"] * 6) == pytest.approx(6 / 7 / 2)


@pytest.mark.parametrize("answers", [[], "yes"])
def test_answers_that_are_none(answers):
    with pytest.raises(ValueError, match="at least one answer"):
        vqa_accuracy("yes", answers)
