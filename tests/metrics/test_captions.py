from __future__ import annotations

import numpy as np
import pytest

from lavit.metrics import captions as module
from lavit.metrics import ptb
from lavit.metrics.captions import caption_scores, category_accuracy, category_of, cider_many, label_of, tokenize

REFERENCES = {
    "a": ["a brown dog runs over green grass"],
    "b": ["two red apples lie in a white bowl"],
    "c": ["the old train leaves its small station"],
    "d": ["seven gulls above an angry grey sea"],
}
EQUAL = {key: several[0] for key, several in REFERENCES.items()}
PYTHON = "ptb-python"
needs_java = pytest.mark.skipif(not ptb.java_runs(), reason="java does not run here: nothing to compare with")


def test_equal_captions_score_full_and_shuffled_ones_nearly_nothing(capsys):
    scores = caption_scores(REFERENCES, EQUAL, PYTHON)
    assert set(scores) == {"cider", "bleu1", "bleu2", "bleu3", "bleu4", "tokenization", "n"}
    assert scores["cider"] == pytest.approx(10) and scores["bleu4"] == pytest.approx(1)
    assert scores["tokenization"] == PYTHON and scores["n"] == 4
    shuffled = dict(zip(REFERENCES, np.roll(list(EQUAL.values()), 1).tolist(), strict=True))
    assert caption_scores(REFERENCES, shuffled, PYTHON)["cider"] < 0.1
    assert capsys.readouterr() == ("", "")  # the libraries print


def test_short_captions_cannot_reach_ten():
    references = {"a": ["red apple"], "b": ["blue train"], "c": ["grass"]}
    candidates = {"a": "red apple", "b": "", "c": ""}
    assert caption_scores(references, candidates, PYTHON)["cider"] == pytest.approx(5 / 3)  # two of four n-gram sizes
    assert caption_scores(references, {"a": "", "b": "", "c": "grass"}, PYTHON)["cider"] == pytest.approx(2.5 / 3)


def test_bleu_by_hand():
    # In all, five of six words are in the references and three of four pairs; as long as they, so no penalty.
    scores = caption_scores({"a": ["a red apple"], "b": ["x y z"]}, {"a": "a red car", "b": "x y z"}, PYTHON)
    assert scores["bleu1"] == pytest.approx(5 / 6)
    assert scores["bleu2"] == pytest.approx((5 / 6 * 3 / 4) ** 0.5)


def test_empty_candidates_score_nothing():
    scores = caption_scores(REFERENCES, dict.fromkeys(REFERENCES, ""), PYTHON)
    assert scores["cider"] == 0 and all(scores[f"bleu{n}"] < 1e-6 for n in (1, 2, 3, 4))


def test_a_single_image_has_no_cider():
    assert caption_scores({"a": ["a brown dog runs"]}, {"a": "a brown dog runs"}, PYTHON)["cider"] == 0


def test_the_order_of_candidates_does_not_matter():
    backwards = dict(reversed(EQUAL.items()))
    assert caption_scores(REFERENCES, backwards, PYTHON) == caption_scores(REFERENCES, EQUAL, PYTHON)


def test_cider_many_is_cider_of_each():
    constant = dict.fromkeys(REFERENCES, "a brown train in a white bowl")
    sets = [EQUAL, constant, dict.fromkeys(REFERENCES, ""), EQUAL]
    expected = [caption_scores(REFERENCES, candidates, PYTHON)["cider"] for candidates in sets]
    assert cider_many(REFERENCES, sets, PYTHON) == expected
    assert expected[0] > expected[1] > expected[2] == 0
    assert cider_many(REFERENCES, [], PYTHON) == []


def test_tokenize():
    words, used = tokenize(["The man's hat.", "", "A (red) car!"], PYTHON)
    assert words == {"The man's hat.": "the man 's hat", "": "", "A (red) car!": "a -lrb- red -rrb- car"}
    assert used == PYTHON


@needs_java
def test_the_java_tokenization_gives_the_same_scores():
    assert tokenize(["A cat."])[1] == "ptb-java"
    candidates = EQUAL | {"b": "two apples, in a bowl"}
    java = caption_scores(REFERENCES, candidates, "ptb-java")
    assert java == caption_scores(REFERENCES, candidates, PYTHON) | {"tokenization": "ptb-java"}


def test_without_java(monkeypatch):
    monkeypatch.setattr(module, "java_runs", lambda: False)
    assert tokenize(["A cat."]) == ({"A cat.": "a cat"}, PYTHON)
    with pytest.raises(ValueError, match="needs a `java`"):
        tokenize(["A cat."], "ptb-java")


@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        ({}, {}, "no references"),
        ({"a": ["a dog"]}, {"b": "a dog"}, r"differ in 2 keys \(a, b\)"),
        ({"a": ["a dog"], "b": ["a cat"]}, {"a": "a dog"}, "differ in 1 keys"),
        ({"a": []}, {"a": "a dog"}, "list of at least one caption"),
        ({"a": "a dog"}, {"a": "a dog"}, "list of at least one caption"),
        ({"a": ["..."]}, {"a": "a dog"}, "single word"),
    ],
)
def test_what_cannot_be_scored(references, candidates, message):
    with pytest.raises(ValueError, match=message):
        caption_scores(references, candidates, PYTHON)


def test_an_unknown_tokenization():
    with pytest.raises(ValueError, match="'ptb'.*ptb-python"):
        tokenize(["A cat."], "ptb")


def test_class_words():
    assert category_of("Food : red apple") == "food" and label_of("food:  red apple ") == "red apple"
    assert category_of("person: man: bald") == "person" and label_of("person: man: bald") == "man: bald"
    assert category_of("red apple") == "" and label_of("red apple") == "red apple"


def test_category_accuracy():
    true = ["food: apple", "animal: dog", "animal: cat", "flag: Peru"]
    assert category_accuracy(["food: pear", "animal: cow", "food: fish", "flag"], true) == 0.5
    with pytest.raises(ValueError, match="1 predicted beside 4 true"):
        category_accuracy(["food: apple"], true)
    with pytest.raises(ValueError, match="no class word"):
        category_accuracy(["food: apple"], ["apple"])
