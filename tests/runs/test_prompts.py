"""Which text goes with which picture; the drawings themselves are made in the toy run."""

from __future__ import annotations

import pytest

from eval.prompts import partners


def test_the_next_of_its_category_with_another_concept():
    captions = ["food: apple", "animals: cat", "food: green apple", "animals: dog", "food: pear", "flags: Spain"]
    concepts = ["apple", "cat", "apple", "dog", "pear", "spain"]
    assert partners(captions, concepts).tolist() == [4, 3, 4, 1, 0, 0], "Spain has no other flag, and takes the next"


def test_without_categories_all_are_of_one():
    assert partners(["a cat", "a dog", "a fox"], ["cat", "dog", "fox"]).tolist() == [1, 2, 0]


def test_of_one_thing_alone_there_is_still_another_picture():
    assert partners(["a cat", "the cat"], ["cat", "cat"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="1 held-out pictures"):
        partners(["a cat"], ["cat"])
