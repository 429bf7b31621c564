from __future__ import annotations

import pytest

from lavit.metrics.vqa import (
    CONTRACTIONS,
    agreement,
    exact_match,
    normalize_answer,
    normalize_text_answer,
    plain_match,
    textvqa_accuracy,
    vizwiz_accuracy,
    vqa_accuracy,
)


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


def test_agreement_is_the_mean_over_subsets():
    for count in range(2, 13):
        for matches in range(count + 1):
            answers = ["red"] * matches + ["blue"] * (count - matches)
            needed = min(3, (count - 1) / 3)
            subsets = [answers[:n] + answers[n + 1 :] for n in range(count)]
            expected = sum(min(subset.count("red") / needed, 1) for subset in subsets) / count
            assert agreement("red", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("1,000", "1000"),
        ("Red, white?", "red white"),
        ("red,white", "redwhite"),  # in VQAv2 "red white"
        ("man's", "man 's"),  # in VQAv2 "man's"
        ("The U.S.", "us"),
        ("coca-cola", "coca cola"),
        ("two", "2"),
        ("ПИВО", "пиво"),
    ],
)
def test_normal_answers_of_textvqa(answer, normal):
    assert normalize_text_answer(answer) == normal


def test_textvqa_always_normalises():
    assert textvqa_accuracy("Coca Cola", ["coca-cola"] * 10) == 1
    assert vqa_accuracy("Coca Cola", ["coca-cola"] * 10) == 0
    assert textvqa_accuracy("yes", ["Yes"] * 2 + ["no"] * 8) == pytest.approx(0.6)
    assert textvqa_accuracy("", ["yes"] * 10) == 0


def test_vizwiz_normalises_predictions_alone():
    assert vizwiz_accuracy("Unanswerable.", ["unanswerable"] * 2 + ["food"] * 8) == pytest.approx(0.6)
    assert vizwiz_accuracy("two", ["two"] * 10) == 0 and vizwiz_accuracy("two", ["2"] * 10) == 1
    assert vizwiz_accuracy("dont", ["don’t"] * 10) == 1 and vizwiz_accuracy("dont", ["don't"] * 10) == 0
    assert vizwiz_accuracy("weve", ["we've"] * 10) == 1


def test_gqas_answers_are_equal_or_wrong():
    assert exact_match(" left ", "left") == 1
    assert exact_match("Left.", "left") == 0 and plain_match("Left.", "left") == 1
    assert plain_match("to the left", "left") == 0


@pytest.mark.parametrize("rule", [textvqa_accuracy, vizwiz_accuracy])
def test_no_answers(rule):
    with pytest.raises(ValueError, match="at least one answer"):
        rule("yes", "yes")
