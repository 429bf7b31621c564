from __future__ import annotations

import pytest

from lavit.metrics.lemmas import LEMMATIZER, lemmatise, vqa_accuracy_lemmatised, without_leading


@pytest.mark.parametrize(
    ("answer", "lemmas"),
    [
        ("Two dogs.", "2 dog"),
        ("the children", "child"),
        ("riding bikes", "ride bike"),
        ("sitting", "sit"),
        ("left", "left"),  # a direction, not what leave was
        ("bigger", "bigger"),  # neither a noun nor a verb
        ("is", "is"),
        ("glasses", "glass"),
        ("tennis", "tennis"),
        ("собаки 犬", "собаки 犬"),
        ("", ""),
    ],
)
def test_lemmatise(answer, lemmas):
    assert lemmatise(answer) == lemmas


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ("The answer is: it is a dog", "a dog"),
        ("Answer: 3", "3"),
        ("it's raining", "raining"),
        ("There are two", "two"),
        ("a photo of the sea", "the sea"),
        ("answer", "answer"),
        ("italy", "italy"),
        ("it is", "it is"),
    ],
)
def test_without_leading(answer, rest):
    assert without_leading(answer) == rest


def test_accuracy_by_hand():
    answers = ["dogs"] * 2 + ["dog", "the dog"] + ["cat"] * 6
    assert vqa_accuracy_lemmatised("It is a dog.", answers) == 1
    assert vqa_accuracy_lemmatised("dogs", ["dog"] * 3 + ["cat"] * 7) == pytest.approx(0.9)
    assert vqa_accuracy_lemmatised("", answers) == 0
    assert LEMMATIZER.startswith("lemminflect ")
    with pytest.raises(ValueError, match="at least one answer"):
        vqa_accuracy_lemmatised("dog", [])
