"""What captions are compared with."""

from types import SimpleNamespace

import pytest

from eval import caption
from eval.caption import compare

TRUTH = ["animal: grey cat", "animal: small dog", "animal: old owl", "tool: hand saw"]
TRAIN = ["tool: hand saw"] * 3 + ["animal: grey cat", "tool: red drill"]
VALIDATION = ["long axe", "long axe", "grey cat"]
SETTINGS = SimpleNamespace(evaluation=SimpleNamespace(derangements=6), seed=0)


def compared(written: list[str]) -> dict:
    return compare(TRUTH, written, TRUTH[::-1], TRAIN, VALIDATION, SETTINGS)


def test_right_captions_beside_their_baselines():
    figures = compared(TRUTH)
    assert figures["category_accuracy"] == figures["exact"] == 1 and figures["bleu1"] == pytest.approx(1)
    assert figures["category_majority"] == 0.25, "the majority of the training captions are tools"
    assert figures["category_nearest"] == 0.5 and figures["cider_nearest"] == pytest.approx(0), "in reverse order"
    assert figures["category_shuffled"] == 0.5, "the tool's place and another one are wrong in every derangement"
    assert figures["cider_shuffled"] == pytest.approx(0)
    assert figures["cider"] > figures["cider_constant"] > 0


def test_wrong_captions_score_as_what_they_are_like():
    figures = compared([*TRUTH[:2], "animal: hand saw", "a hand saw"])
    assert figures["category_accuracy"] == 0.75 and figures["exact"] == 0.5
    assert compared(TRUTH)["cider"] > figures["cider"] > compared(TRUTH[:2] + ["", ""])["cider"] > 0


def test_the_constant_is_what_scores_best_on_validation_among_the_commonest_of_training(monkeypatch):
    assert compared(TRUTH)["constant"] == "grey cat", "neither the commonest label of training nor of validation"
    monkeypatch.setattr(caption, "CONSTANTS", 1)
    assert compared(TRUTH)["constant"] == "hand saw"


def test_captions_without_categories_have_reasons_instead():
    figures = compare([t.split(": ")[1] for t in TRUTH], TRUTH, TRUTH, TRAIN, ["grey cat"], SETTINGS)
    assert figures["category_accuracy"] is None
    assert figures["reasons"]["category_nearest"] == "the captions have no category"
