from __future__ import annotations

from collections import Counter

import pytest
import torch

from lavit.data.documents import DocumentMaker
from lavit.data.mixture import Mixture, MixtureConfig
from lavit.data.packing import pack
from lavit.tokens import Feed, Learn, Picture
from lavit.vocabulary import Vocabulary

QUESTIONS = [
    {"questions": [{"question": "30", "answers": ["31", "32"]}, {"question": "33", "answers": ["34"]}]},
    {"questions": [{"question": "35", "answers": ["36"]}]},
]


class Numbers:
    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        return {"input_ids": [int(word) for word in text.split() if word.isdigit()]}

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


class Codes:
    """Picture n of three has the one code n."""

    def __init__(self, count: int = 3):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def codes(self, number: int) -> torch.Tensor:
        return torch.tensor([number])

    def features(self, number: int) -> torch.Tensor:
        return torch.full((1, 2), float(number))

    def picture(self, number: int) -> Picture:
        return Picture(self.codes(number), lambda: self.features(number))


def mixture(asked: bool = True, **shares) -> Mixture:
    config = MixtureConfig(**{"image_text": 0, "text_image": 0, "text_only": 0, "question_answer": 0, **shares})
    maker = DocumentMaker(Vocabulary(40, 8), Numbers(), 64)
    questions = (Codes(2), lambda number: ("", QUESTIONS[number])) if asked else None
    captions = [("10", {"group": "a"}), ("11", {"group": "b"}), ("12", {"group": "a"})]
    return Mixture(maker, (Codes(), captions.__getitem__), questions, config)


def drawn(made: Mixture, n: int, seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [made.draw((i % 3, i % 2, i % 3, i % 2), generator).document for i in range(n)]


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
    assert torch.equal(made[1][0].features(), torch.ones(1, 2))


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
        assert torch.equal(document[0].features(), torch.stack([2.0 * codes, 2.0 * codes + 1], dim=1))
        counts.append(len(codes))
    # Eight at a quarter, and one that always stays: 8 * (1/4 + 3/4 / 8).
    assert min(counts) == 1 and sum(counts) / 500 == pytest.approx(2.75, abs=0.25)
    whole = drawn(mixture(text_image=1.0, unconditional=0.0, drop_tokens=0.75), 5)
    assert all(len(document[1].ids) == 10 for document in whole), "drawn images are learned whole"
    assert {len(d[0].ids) for d in drawn(mixture(**{name: 1.0}, drop_tokens=1.0), 20)} == {3}


def test_tokens_of_a_picture_of_patches_are_dropped_from_what_is_kept(monkeypatch):
    keep = torch.tensor([True, False, True, True, False, True])
    shown = Picture(torch.tensor([0, 1, 2, 3]), torch.ones(6, 2), keep)
    monkeypatch.setattr(Codes, "picture", lambda self, number: shown)
    seen = set()
    for document in drawn(mixture(image_text=1.0, drop_tokens=0.5), 50):
        left = document[0].ids[1:-1] - 42
        assert document[0].keep.nonzero().flatten().tolist() == keep.nonzero().flatten()[left].tolist()
        assert document[0].features.shape == (6, 2)
        seen.add(tuple(left.tolist()))
    assert len(seen) > 8 and keep.sum() == 4, "the picture itself stays as it is"


def test_text_before_an_image_loses_tokens_at_its_chance_but_not_its_beginning():
    made = mixture(text_image=1.0, unconditional=0.0, drop_text=0.5)
    made.caption = lambda number: ("10 11 12 13", {})
    texts = [document[0].ids.tolist() for document in drawn(made, 400)]
    assert all(ids[0] == 0 and ids[1:] == sorted(ids[1:]) for ids in texts)
    assert sum(len(ids) for ids in texts) / 400 == pytest.approx(3.0, abs=0.15)
    assert len({tuple(ids) for ids in texts}) == 16
    whole = mixture(image_text=1.0, drop_text=1.0)
    assert drawn(whole, 1)[0][1].ids.tolist() == [10, 1], "captions that are written are learned whole"


def test_text_before_an_image_is_its_label_or_tags_at_its_chance():
    made = mixture(text_image=1.0, unconditional=0.0, reword=0.8)
    made.caption = lambda number: ("10: 11", {"tags": ["21", "word", "24", "25"]})
    texts = Counter(tuple(document[0].ids.tolist()[1:]) for document in drawn(made, 600))
    # The caption, a chance of .2, and the label, .4, both read 11 here: a word with a colon is no number.
    assert texts.pop((11,)) == pytest.approx(360, abs=45)
    assert all(len(ids) == 3 and set(ids) <= {21, 24, 25} or len(ids) == 2 for ids in texts), "tags in any order"
    assert len(texts) == 12
    made.caption = lambda number: ("10", {})
    assert {tuple(d[0].ids.tolist()[1:]) for d in drawn(made, 50)} == {(10,)}, "there is nothing else to say"
    read = mixture(image_text=1.0, reword=1.0)
    read.caption = lambda number: ("10", {"tags": ["21"]})
    assert drawn(read, 1)[0][1].ids.tolist() == [10, 1], "captions that are written stay"


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


def test_an_interleaved_document_has_the_pictures_of_a_page_in_their_order():
    made = mixture(interleaved=1.0, pictures=2)
    pages = [("10", {"group": "a", "page": "p"}), ("11", {"group": "a", "page": "p"}), ("12", {"group": "a"})]
    made.caption = pages.__getitem__
    made.together = made._pages_and_groups()
    documents = drawn(made, 60)
    seen = {tuple(int(span.ids[1]) - 42 for span in d if span.modality == "image") for d in documents}
    assert {codes for codes in seen if codes[0] < 2} == {(0, 1), (1,)}, "from the picture on, to the page's end"
    assert {codes[0] for codes in seen} == {0, 1, 2}
    made.config.pictures = 1
    assert all(len([s for s in d if s.modality == "image"]) == 1 for d in drawn(made, 9))


def test_vectors_are_read_when_they_are_packed_and_not_before(monkeypatch):
    read = []
    monkeypatch.setattr(Codes, "features", lambda self, number: read.append(number) or torch.ones(1, 2))
    documents = drawn(mixture(image_text=1.0, unconditional=0.0, drop_tokens=0.5), 3)
    assert not read
    assert pack(documents, rows=[[2]]).slots["image"].features.shape == (1, 2) and read == [2]


def test_an_interleaved_document_has_pictures_of_one_group():
    """Pictures 0 and 2 are of one group, picture 1 is alone; all is learned, and no picture stands twice."""
    made = mixture(interleaved=1.0)
    flat = {tuple(torch.cat([span.ids for span in document]).tolist()) for document in drawn(made, 200)}
    first, second, third = [(10 + n, 40, 42 + n, 41) for n in range(3)]
    assert flat == {(0, *first, 1), (0, *second, 1), (0, *third, 1), (0, *first, *third, 1), (0, *third, *first, 1)}


@pytest.mark.parametrize("name", ["image_text", "question_answer"])
def test_ids_of_images_that_are_read_are_learned_where_eq_6_asks_for_it(name):
    feature_in = [(Feed.FEATURES, Learn.NONE), (Feed.FEATURES, Learn.IDS)]
    for learn_read, expected in zip((False, True), feature_in, strict=True):
        image = drawn(mixture(**{name: 1.0}, learn_read=learn_read), 1)[0][0]
        assert (image.feed, image.learn) == expected and image.features is not None


def test_tokens_by_kind_and_epochs_are_counted():
    made = mixture(image_text=1.0, question_answer=1.0, interleaved=1.0)
    steps = [made.step(step, 6, seed=0) for step in range(2)]
    assert sorted({d.kind for d in steps[0] + steps[1]}) == ["image_text", "interleaved", "question_answer"]
    for step in steps:
        counts = made.counts(step)
        for name in made.kinds:
            of_kind = [d.document for d in step if d.kind == name]
            assert counts[f"tokens_{name}"] == sum(len(span.ids) for document in of_kind for span in document)
        images = [(d.kind, sum(span.modality == "image" for span in d.document)) for d in step]
        assert counts["epochs_captions"] == sum(n for name, n in images if name != "question_answer") / 3
        assert counts["epochs_questions"] == sum(n for name, n in images if name == "question_answer") / 2
    assert "epochs_questions" not in mixture(asked=False, text_image=1.0).counts([])


def test_tokens_that_are_cut_off_are_counted_and_the_first_text_is_named(caplog):
    made = mixture(image_text=1.0)
    made.caption = lambda number: (" ".join(["10", "11"] * 40) if number else "10", {})
    step = made.step(0, 3, seed=0)
    cut = [one.cut for one in step]
    assert sorted(cut) == [0, 20, 20], "an image of three, the text of eighty and its end in a row of 64"
    assert made.counts(step)["cut_tokens"] == 40
    assert [r.getMessage() for r in caplog.records] == [
        "a document is 20 tokens longer than pretrain.row 64 and is cut: '10 11 10 11 10 11 10 11 10 11 10 11 10 11 10 "
        "11…'; how many are cut stands in the log as cut_tokens"
    ]


def test_a_group_of_no_pictures_is_refused():
    with pytest.raises(ValueError, match="pretrain.mixture.pictures is 0; it must be at least 1"):
        mixture(interleaved=1.0, pictures=0)


class Texts:
    """Two texts, one of which is longer than a row of 64 tokens can hold."""

    def __len__(self) -> int:
        return 2

    def text(self, number: int) -> str:
        return " ".join(str(10 + n % 30) for n in range((3, 400)[number]))


def test_text_without_pictures_is_read_where_there_is_some():
    made = mixture(text_only=1.0)
    made.texts = Texts()
    steps = [made.step(step, 8, seed=1) for step in range(100)]
    flat = [d.document[0].ids.tolist() for step in steps for d in step]
    short = [ids for ids in flat if len(ids) < 64]
    assert len(short) == 400 and all(ids == [0, 10, 11, 12, 1] for ids in short), "every text as often as the other"
    long = [ids for ids in flat if len(ids) == 64]
    assert len(long) == 400 and all(ids[0] == 0 for ids in long)
    whole = [10 + n % 30 for n in range(400)] + [1]
    starts = {next(s for s in range(339) if whole[s : s + 63] == ids[1:]) for ids in long}
    assert any(ids[-1] == 1 for ids in long), "also its end"
    assert len({ids[1] for ids in long}) == 30 and starts, "a passage of the long one, from anywhere"
    assert made.counts(steps[0])["epochs_text"] == 4
    assert made.every_kind(4, seed=0)["text_only"][0][0].modality == "text"


def spoken(**shares) -> Mixture:
    config = MixtureConfig(image_text=0, text_image=0, **shares)
    maker = DocumentMaker(Vocabulary(40, 8, sounds=4), Numbers(), 64)
    captions = [("10", {"group": "a"}), ("11", {"group": "b"}), ("12", {"group": "a"})]
    said = (Codes(2), [("20", {}), ("21", {})].__getitem__)
    return Mixture(maker, (Codes(), captions.__getitem__), None, config, speech=said)


def test_speech_before_and_after_what_is_said():
    heard = [one for one in drawn(spoken(audio_text=1.0, unconditional=0.0), 4)]
    assert [[span.ids.tolist() for span in one] for one in heard[:2]] == [
        [[50, 52, 51], [20, 1]],
        [[50, 53, 51], [21, 1]],
    ]
    assert [span.learn for span in heard[0]] == [Learn.NONE, Learn.IDS]
    said = drawn(spoken(text_audio=1.0, unconditional=0.0), 2)
    assert [[span.ids.tolist() for span in one] for one in said] == [[[0, 20], [50, 52, 51]], [[0, 21], [50, 53, 51]]]
    assert all(span.learn == Learn.IDS for one in said for span in one)
    alone = drawn(spoken(text_audio=1.0, unconditional=0.5), 60)
    assert {len(one) for one in alone} == {1, 2} and 15 < sum(len(one) == 1 for one in alone) < 45


def test_clips_are_drawn_evenly_and_counted():
    made = spoken(audio_text=0.5, text_audio=0.5)
    steps = [made.step(step, 8, seed=0) for step in range(10)]
    clips = Counter(
        int(span.ids[1]) for step in steps for one in step for span in one.document if span.modality == "audio"
    )
    assert clips == {52: 40, 53: 40}
    assert made.counts(steps[0])["epochs_speech"] == 4
    assert set(made.every_kind(3, seed=0)) == {"audio_text", "text_audio"}


def test_speech_where_there_is_none():
    with pytest.raises(ValueError, match="audio_text or text_audio is above 0 but data.speech is not set"):
        mixture(audio_text=0.5)
    with pytest.raises(ValueError, match="this model has no codes of speech"):
        DocumentMaker(Vocabulary(40, 8), Numbers(), 64).speech_prompt("20")
