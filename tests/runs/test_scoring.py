"""Figures of small sets written by hand; the metrics themselves are tested beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.scoring import score
from lavit.benchmarks.items import Benchmark, Item
from lavit.metrics import captions, meteor, spice
from lavit.metrics.captions import caption_scores
from lavit.metrics.coco import FIGURES

TEN = ("red",) * 3 + ("blue",) * 7


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    for module in (captions, meteor, spice):
        monkeypatch.setattr(module, "java_runs", lambda: False)


def item(number: int | str, references=TEN, question="What colour?", image: str | None = "a.jpg", **about) -> Item:
    return Item(number, Path(image) if image else None, question, tuple(references), about)


def benchmark(name: str, *items: Item, split: str = "val") -> Benchmark:
    return Benchmark(name, "caption" if items and items[0].question is None else "question", split, items, "0" * 64)


def captioned(domains: bool) -> Benchmark:
    texts = ["a brown dog runs over green grass", "two red apples lie in a white bowl",
             "the old train leaves its small station", "seven gulls above an angry grey sea"]  # fmt: skip
    about = [{"domain": name} for name in ("in-domain", "in-domain", "out-domain", "out-domain")]
    items = [item(n, [text], None, **(about[n] if domains else {})) for n, text in enumerate(texts)]
    return benchmark("nocaps" if domains else "coco_captions", *items)


def test_captions():
    of = captioned(domains=False)
    written = {0: "a brown dog runs over grass", 1: "two apples", 2: "", 3: "seven gulls above an angry grey sea"}
    figures = score(of, written, seed=0)
    alone = caption_scores({str(i.id): list(i.references) for i in of.items}, {str(k): v for k, v in written.items()})
    for name in ("cider", "bleu1", "bleu4"):
        assert figures[name] == pytest.approx(alone[name])
        low, high = figures[f"{name}_interval"]
        assert low <= figures[name] <= high
    assert 0 < figures["rouge_l"] < 1 and figures["n"] == 4 and figures["tokenization"] == "ptb-python"
    assert figures["meteor"] is None and "meteor" in figures["reasons"] and "meteor_interval" not in figures
    assert set(figures["libraries"]) == {"pycocoevalcap", "numpy"}
    assert score(of, written, seed=0) == figures


def test_captions_by_domain():
    of = captioned(domains=True)
    written = {i.id: i.references[0] for i in of.items[:2]} | {2: "a cat", 3: ""}
    figures = score(of, written, seed=0)
    assert figures["cider_in_domain"] == pytest.approx(10) and figures["bleu4_in_domain"] == pytest.approx(1)
    assert figures["cider_out_domain"] == 0 and figures["cider"] == pytest.approx(5)
    assert "cider_near_domain" not in figures
    assert {f"{name}_out_domain" for name in FIGURES} <= figures.keys()
    assert "spice_in_domain" in figures["reasons"]


def test_vqa_by_type_of_answer():
    of = benchmark("vqav2", item(1, answer_type="other"), item(2, ["да"] * 10, answer_type="yes/no"))
    figures = score(of, {1: "The Red.", 2: "да"}, seed=0)
    assert figures["accuracy"] == pytest.approx(0.95) and figures["n"] == 2
    assert figures["accuracy_other"] == pytest.approx(0.9) and figures["accuracy_yes_no"] == 1
    assert figures["accuracy_yes_no_interval"] == [1, 1]
    assert figures["lemmatizer"].startswith("lemminflect")


def test_the_lemmatised_accuracy_is_the_milder_one():
    figures = score(benchmark("okvqa", item(1, ["dogs"] * 10)), {1: "It is a dog."}, seed=0)
    assert figures["accuracy"] == 0 and figures["accuracy_lemmatised"] == 1


def test_textvqa_has_its_own_rule():
    items = [item(1, ["coca-cola"] * 10)]
    assert score(benchmark("textvqa", *items), {1: "Coca Cola"}, seed=0)["accuracy"] == 1
    assert score(benchmark("vqav2", *items), {1: "Coca Cola"}, seed=0)["accuracy"] == 0


def test_gqa_by_type_of_question():
    of = benchmark(
        "gqa",
        item("1", ["left"], structural="query", semantic="rel"),
        item("2", ["yes"], structural="verify", semantic="obj"),
    )
    figures = score(of, {"1": "left", "2": "Yes."}, seed=0)
    assert figures["accuracy"] == 0.5 and figures["accuracy_plain"] == 1
    assert figures["accuracy_open"] == figures["accuracy_structural_query"] == figures["accuracy_semantic_rel"] == 1
    assert figures["accuracy_binary"] == figures["accuracy_structural_verify"] == 0


def test_vizwiz():
    of = benchmark(
        "vizwiz",
        item("1.jpg", ["unanswerable"] * 10, answer_type="unanswerable", answerable=0),
        item("2.jpg", ["soup"] * 10, answer_type="other", answerable=1),
        item("3.jpg", ["soup"] * 10, answer_type="other", answerable=1),
    )
    written = {"1.jpg": "unanswerable", "2.jpg": "Soup.", "3.jpg": "unanswerable"}
    figures = score(of, written, 0, {"1.jpg": 0.3, "2.jpg": 0.9, "3.jpg": 0.2})
    assert figures["accuracy"] == pytest.approx(2 / 3) and figures["accuracy_other"] == 0.5
    assert figures["answerability_ap"] == 0.5 and figures["answerability_f1"] == pytest.approx(2 / 3)
    assert figures["answerability_ap_interval"][1] <= 1
    unasked = score(of, written, 0)
    assert unasked["answerability_ap"] is None and "not asked" in unasked["reasons"]["answerability_f1"]
    clear = score(
        benchmark("vizwiz", *of.items[1:]), {k: written[k] for k in ("2.jpg", "3.jpg")}, 0, {"2.jpg": 1.0, "3.jpg": 1.0}
    )
    assert "has an answer" in clear["reasons"]["answerability_ap"]


def test_scienceqa_by_subject_context_and_grade():
    choices = ("a whale", "a shark", "Paris")
    of = benchmark(
        "scienceqa",
        item("1", choices[1:2], "?", None, choices=choices, answer=1, subject="natural science", grade="grade2"),
        item("2", ["Paris"], choices=choices, answer=2, hint="Of France", subject="social science", grade="grade11"),
        item("3", ["Paris"], choices=choices, answer=2, hint="", subject="social science", grade="grade6"),
    )  # fmt: skip
    figures = score(of, {"1": "(B)", "2": "The answer is C.", "3": "I do not know"}, seed=0)
    assert figures["accuracy"] == pytest.approx(2 / 3) and figures["unparsed"] == pytest.approx(1 / 3)
    assert figures["accuracy_subject_natural_science"] == 1 and figures["accuracy_subject_social_science"] == 0.5
    assert figures["accuracy_context_none"] == figures["accuracy_context_text"] == 1
    assert figures["accuracy_context_image"] == 0.5
    assert figures["accuracy_grades_1_6"] == 0.5 and figures["accuracy_grades_7_12"] == 1
    assert "accuracy_lemmatised" not in figures


def test_empty_answers_are_scored():
    figures = score(benchmark("vqav2", item(1), item(2, [""] * 10)), {1: "", 2: ""}, seed=0)
    assert figures["accuracy"] == 0.5
    assert score(captioned(domains=False), dict.fromkeys(range(4), ""), seed=0)["cider"] == 0


@pytest.mark.parametrize(
    ("of", "written", "message"),
    [
        (benchmark("vqav2"), {}, "no items"),
        (benchmark("vqa", item(1)), {1: ""}, "no set is called 'vqa'"),
        (benchmark("vqav2", item(1), item(1)), {1: ""}, r"1 of 2 items are there twice \(1\)"),
        (benchmark("vqav2", item(1, ())), {1: ""}, "without references"),
        (benchmark("vqav2", item(1), item(2)), {1: ""}, r"without a prediction \(2\)"),
        (benchmark("vqav2", item(1)), {1: "", 7: "red"}, r"not in the set \(7\)"),
        (benchmark("vqav2", item(1)), {"1": "red"}, "without a prediction"),
        (benchmark("vqav2", item(1)), {1: None}, "what is no text"),
    ],
)
def test_what_cannot_be_scored(of, written, message):
    with pytest.raises(ValueError, match=message):
        score(of, written, seed=0)


@pytest.mark.parametrize(
    "shares, message", [({}, "without a share"), ({1: 1.5}, "no share in"), ({1: float("nan")}, "no share in")]
)
def test_shares_of_answerability(shares, message):
    with pytest.raises(ValueError, match=message):
        score(benchmark("vizwiz", item(1, answerable=0)), {1: "red"}, 0, shares)
