from __future__ import annotations

from collections import Counter

import pytest
import torch

from lavit.data.documents import DocumentMaker
from lavit.data.mixture import Mixture, MixtureConfig
from lavit.tokens import Feed
from lavit.vocabulary import Vocabulary

QUESTIONS = [
    {"questions": [{"question": "30", "answers": ["31", "32"]}, {"question": "33", "answers": ["34"]}]},
    {"questions": [{"question": "35", "answers": ["36"]}]},
]


class Numbers:
    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        return {"input_ids": [int(word) for word in text.split() if word.isdigit()]}


class Codes:
    """Picture n has the one code n."""

    def codes(self, number: int) -> torch.Tensor:
        return torch.tensor([number])

    def features(self, number: int) -> torch.Tensor:
        return torch.full((1, 2), float(number))


def mixture(asked: bool = True, **shares) -> Mixture:
    config = MixtureConfig(**{"image_text": 0, "text_image": 0, "text_only": 0, "question_answer": 0, **shares})
    maker = DocumentMaker(Vocabulary(40, 8), Numbers(), 64)
    questions = (Codes(), QUESTIONS) if asked else None
    return Mixture(maker, (Codes(), ["10", "11", "12"]), questions, config)


def drawn(made: Mixture, n: int, seed: int = 0) -> list:
    captions, questions = torch.arange(n) % 3, torch.arange(n) % 2
    return made.documents(captions, questions, torch.Generator().manual_seed(seed))


def kind(document) -> str:
    ids = torch.cat([span.ids for span in document]).tolist()
    if all(span.modality == "text" for span in document):
        return "text_only"
    if document[0].feed == Feed.FEATURES:
        return "question_answer" if any(30 <= i < 40 for i in ids) else "image_text"
    return "image_only" if len(document) == 1 else "text_image"


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("image_text", [[40, 42, 41, 10, 1], [40, 43, 41, 11, 1]]),
        ("text_image", [[0, 10, 40, 42, 41], [0, 11, 40, 43, 41]]),
        ("text_only", [[0, 10, 1], [0, 11, 1]]),
    ],
)
def test_one_kind_alone(name, ids):
    made = drawn(mixture(**{name: 2.0}, unconditional=0.0), 2)
    assert [torch.cat([span.ids for span in d]).tolist() for d in made] == ids


def test_every_question_and_answer_of_a_picture_is_drawn():
    made = drawn(mixture(question_answer=1.0), 400)
    seen = Counter(tuple(torch.cat([span.ids for span in d]).tolist()) for d in made)
    first, second = (40, 42, 41), (40, 43, 41)
    assert set(seen) == {(*first, 30, 31, 1), (*first, 30, 32, 1), (*first, 33, 34, 1), (*second, 35, 36, 1)}
    assert seen[*second, 35, 36, 1] == 200 and seen[*first, 33, 34, 1] == pytest.approx(100, abs=25)
    assert torch.equal(made[1][0].features, torch.ones(1, 2))


def test_shares_are_normalised_and_text_is_lost_at_its_chance():
    shares = {"image_text": 4.0, "text_image": 3.0, "text_only": 1.0, "question_answer": 2.0}
    counts = Counter(kind(d) for d in drawn(mixture(**shares, unconditional=0.5), 4000))
    assert counts["image_text"] / 4000 == pytest.approx(0.4, abs=0.03)
    assert (counts["text_image"] + counts["image_only"]) / 4000 == pytest.approx(0.3, abs=0.03)
    assert counts["text_only"] / 4000 == pytest.approx(0.1, abs=0.03)
    assert counts["question_answer"] / 4000 == pytest.approx(0.2, abs=0.03)
    assert counts["image_only"] / counts["text_image"] == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("name", ["image_text", "question_answer"])
def test_fed_tokens_are_dropped_at_their_chance_with_their_features(monkeypatch, name):
    monkeypatch.setattr(Codes, "codes", lambda self, number: torch.arange(8))
    monkeypatch.setattr(Codes, "features", lambda self, number: torch.arange(16.0).view(8, 2))
    counts = []
    for document in drawn(mixture(**{name: 1.0}, drop_tokens=0.75), 500):
        codes = document[0].ids[1:-1] - 42
        assert codes.diff().gt(0).all(), "their order stays"
        assert torch.equal(document[0].features, torch.stack([2.0 * codes, 2.0 * codes + 1], dim=1))
        counts.append(len(codes))
    # Eight at a quarter, and one that always stays: 8 * (1/4 + 3/4 / 8).
    assert min(counts) == 1 and sum(counts) / 500 == pytest.approx(2.75, abs=0.25)
    whole = drawn(mixture(text_image=1.0, unconditional=0.0, drop_tokens=0.75), 5)
    assert all(len(document[1].ids) == 10 for document in whole), "drawn images are learned whole"
    assert {len(d[0].ids) for d in drawn(mixture(**{name: 1.0}, drop_tokens=1.0), 20)} == {3}


def test_text_before_an_image_loses_tokens_at_its_chance_but_not_its_beginning():
    made = mixture(text_image=1.0, unconditional=0.0, drop_text=0.5)
    made.texts = ["10 11 12 13"] * 3
    texts = [document[0].ids.tolist() for document in drawn(made, 400)]
    assert all(ids[0] == 0 and ids[1:] == sorted(ids[1:]) for ids in texts)
    assert sum(len(ids) for ids in texts) / 400 == pytest.approx(3.0, abs=0.15)
    assert len({tuple(ids) for ids in texts}) == 16
    whole = mixture(image_text=1.0, drop_text=1.0)
    assert drawn(whole, 1)[0][1].ids.tolist() == [10, 1], "captions that are written are learned whole"


def test_the_generator_alone_decides():
    made = mixture(image_text=1.0, text_image=1.0, question_answer=1.0)
    kinds = lambda seed: [kind(d) for d in drawn(made, 50, seed)]  # noqa: E731
    assert kinds(1) == kinds(1) != kinds(2)


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({}, "one must be above 0"),
        ({"image_text": 1.0, "text_image": -0.1}, "must not be negative"),
        ({"image_text": 1.0, "unconditional": 1.5}, "unconditional is a chance, from 0 to 1"),
        ({"image_text": 1.0, "drop_tokens": -0.1}, "drop_tokens is a chance, from 0 to 1"),
        ({"image_text": 1.0, "drop_text": 1.1}, "drop_text is a chance, from 0 to 1"),
        ({"image_text": 1.0, "question_answer": 0.1, "asked": False}, "data.vqa is not set; set it to 0"),
    ],
)
def test_shares_that_make_no_mixture(shares, said):
    with pytest.raises(ValueError, match=said):
        mixture(**shares)
