from __future__ import annotations

import pytest
import torch

from lavit.data.documents import DocumentMaker, question_text
from lavit.data.packing import fed_places, next_ids, pack
from lavit.tokens import Feed, Learn, Picture
from lavit.vocabulary import Vocabulary

# Ten text ids, then [IMG] = 10, [/IMG] = 11 and four visual words 12 to 15.
WORDS = {"<s>": 0, "</s>": 1, "a": 2, "cat": 3, "Question:": 4, "what": 5, "Answer:": 6, "sits": 7}
VOCABULARY = Vocabulary(10, 4)
CODES, FEATURES = torch.tensor([3, 0]), torch.arange(6.0).view(2, 3)
SEEN = Picture(CODES, FEATURES)


class Words:
    """A text tokenizer of whole words."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        assert not add_special_tokens
        return {"input_ids": [WORDS[word] for word in text.split()]}

    def decode(self, ids: list[int]) -> str:
        return " ".join(word for i in ids for word, number in WORDS.items() if number == i)


@pytest.fixture
def maker():
    return DocumentMaker(VOCABULARY, Words(), 64)


def flat(document) -> list[int]:
    return torch.cat([span.ids for span in document]).tolist()


def labels(document) -> list[int]:
    return next_ids(document).tolist()


def places(document) -> list[int]:
    return [place for where, _ in fed_places(document) for place in where.tolist()]


def test_image_text_feeds_features_and_learns_the_caption(maker):
    document = maker.image_text(SEEN, "a cat")
    assert flat(document) == [10, 15, 12, 11, 2, 3, 1]
    assert labels(document) == [-100, -100, -100, 2, 3, 1, -100]
    assert places(document) == [1, 2]
    assert document[0].feed == Feed.FEATURES and document[0].learn == Learn.NONE
    assert torch.equal(document[0].features, FEATURES) and document[0].ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("read", "learn", "fed", "learned"),
    [
        ("features", Learn.NONE, [1, 2], [-100, -100, -100, 2, 3, 1, -100]),
        ("features", Learn.IDS, [1, 2], [15, 12, 11, 2, 3, 1, -100]),  # eq. 6 to the letter
        ("ids", Learn.NONE, [], [-100, -100, -100, 2, 3, 1, -100]),
        ("ids", Learn.IDS, [], [15, 12, 11, 2, 3, 1, -100]),
    ],
)
def test_labels_of_each_way_to_read_an_image(read, learn, fed, learned):
    image, text = DocumentMaker(VOCABULARY, Words(), 64, read).image_text(SEEN, "a cat")
    document = [image._replace(learn=learn), text]
    assert flat(document) == [10, 15, 12, 11, 2, 3, 1]
    assert places(document) == fed and labels(document) == learned


def test_a_text_that_is_too_long_for_its_row_is_cut_at_the_end():
    maker = DocumentMaker(VOCABULARY, Words(), 7)
    assert flat(maker.image_text(SEEN, "a cat")) == [10, 15, 12, 11, 2, 3, 1], "it just fits"
    assert flat(maker.image_text(SEEN, "a cat a cat a")) == [10, 15, 12, 11, 2, 3, 2]
    assert flat(maker.text_image("a cat a cat", CODES)) == [0, 2, 3, 10, 15, 12, 11]
    assert flat(maker.text_only("a cat a cat a cat a cat")) == [0, 2, 3, 2, 3, 2, 3]
    with pytest.raises(ValueError, match="an image or speech and a text do not fit into 4 tokens; raise pretrain.row"):
        DocumentMaker(VOCABULARY, Words(), 4).image_text(SEEN, "a cat")


def test_text_image_is_ids_and_learns_both(maker):
    document = maker.text_image("a cat", CODES)
    assert flat(document) == [0, 2, 3, 10, 15, 12, 11]
    assert labels(document) == [2, 3, 10, 15, 12, 11, -100]
    assert places(document) == [] and all(span.feed == Feed.IDS for span in document)


def test_image_only_is_the_unconditional_case(maker):
    document = maker.image_only(CODES)
    assert flat(document) == [10, 15, 12, 11]
    assert labels(document) == [15, 12, 11, -100]


def test_text_only(maker):
    document = maker.text_only("a cat sits")
    assert flat(document) == [0, 2, 3, 7, 1]
    assert labels(document) == [2, 3, 7, 1, -100]


def test_question_answer_learns_the_answer_alone(maker):
    document = maker.question_answer(SEEN, "what sits", "a cat")
    assert flat(document) == [10, 15, 12, 11, 4, 5, 7, 6, 2, 3, 1]
    assert labels(document) == [-100] * 7 + [2, 3, 1, -100]
    assert places(document) == [1, 2]


def test_prompts_are_documents_that_end_where_the_model_goes_on(maker):
    assert flat(maker.prompt([SEEN], then="text")) == [10, 15, 12, 11]
    assert places(maker.prompt([SEEN], then="text")) == [1, 2]
    assert flat(maker.question_prompt(SEEN, "what sits")) == [10, 15, 12, 11, 4, 5, 7, 6]
    assert flat(maker.prompt(["a cat"], then="image")) == [0, 2, 3, 10]
    assert flat(maker.prompt([], then="image")) == [10]


@pytest.mark.parametrize("kind", ["image_text", "question_answer", "text_image"])
def test_prompts_are_how_training_documents_begin(maker, kind):
    prompt, document = {
        "image_text": (maker.prompt([SEEN], then="text"), maker.image_text(SEEN, "a")),
        "question_answer": (
            maker.question_prompt(SEEN, "what"),
            maker.question_answer(SEEN, "what", "a"),
        ),
        "text_image": (maker.prompt(["a"], then="image"), maker.text_image("a", CODES)),
    }[kind]
    assert flat(prompt) == flat(document)[: len(flat(prompt))]
    assert places(prompt) == places(document)


def test_a_prompt_of_several_parts(maker):
    parts = ["a", SEEN, "cat", SEEN]
    read = maker.prompt(parts, then="text")
    assert flat(read) == [0, 2, 10, 15, 12, 11, 3, 10, 15, 12, 11] and places(read) == [3, 4, 8, 9]
    drawn = maker.prompt(parts, then="image")
    assert flat(drawn) == [*flat(read), 10] and not places(drawn), "what is drawn from is ids"
    assert set(labels(read) + labels(drawn)) == {-100}, "nothing of a prompt is learned"
    assert flat(maker.prompt([SEEN, "a"], then="text")) == [10, 15, 12, 11, 2], "<s> begins what begins with text"
    assert flat(maker.prompt([SEEN], then="image")) == [10, 15, 12, 11, 10]
    blind = DocumentMaker(VOCABULARY, Words(), 64, read="nothing")
    assert flat(blind.prompt(parts, then="text")) == flat(blind.prompt(["a", "cat"], then="text")) == [0, 2, 3]
    assert flat(blind.prompt([SEEN, "a"], then="text")) == [0, 2] and flat(blind.prompt([SEEN], then="text")) == [0]
    assert places(DocumentMaker(VOCABULARY, Words(), 64, read="ids").prompt(parts, then="text")) == []


def test_prompts_that_leave_nothing_to_go_on_from(maker):
    with pytest.raises(ValueError, match="a prompt of no parts leaves nothing to continue"):
        maker.prompt([], then="text")
    with pytest.raises(ValueError, match="a prompt for 'audio' is unknown; choose text or image"):
        maker.prompt(["a"], then="audio")


def test_codes_and_features_must_agree(maker):
    with pytest.raises(ValueError, match="an image has 2 places but 1 feature vectors"):
        pack([maker.image_text(Picture(CODES, FEATURES[:1]), "a")])
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 4\)"):
        maker.text_image("a", torch.tensor([4]))


def test_question_text():
    assert question_text("Is it red?") == "Question: Is it red? Answer:"


def test_an_interleaved_document_ends_before_the_picture_that_does_not_fit():
    pictures = [("a cat", CODES), ("a", CODES[:1]), ("a cat", CODES)]
    two = [0, 2, 3, 10, 15, 12, 11, 2, 10, 15, 11]
    assert flat(DocumentMaker(VOCABULARY, Words(), 18).interleaved(pictures)) == [*two, 2, 3, 10, 15, 12, 11, 1]
    assert flat(DocumentMaker(VOCABULARY, Words(), 17).interleaved(pictures)) == [*two, 1]
    document = DocumentMaker(VOCABULARY, Words(), 18).interleaved(pictures)
    assert all(span.learn == Learn.IDS and span.feed == Feed.IDS for span in document)


def test_an_image_may_be_read_as_ids():
    maker = DocumentMaker(VOCABULARY, Words(), 64, read="ids")
    for document in (maker.image_text(SEEN, "a"), maker.prompt([SEEN], then="text")):
        assert document[0].feed == Feed.IDS and document[0].learn == Learn.NONE and document[0].features is None
        assert document[0].ids.tolist() == [10, 15, 12, 11]


def test_a_picture_that_is_not_to_be_seen_leaves_the_beginning_of_a_text():
    maker = DocumentMaker(VOCABULARY, Words(), 64, read="nothing")
    document = maker.question_answer(SEEN, "what sits", "a cat")
    assert flat(document) == [0, 4, 5, 7, 6, 2, 3, 1] and not places(document)
    assert labels(document) == [-100, -100, -100, -100, 2, 3, 1, -100]
    assert flat(maker.question_prompt(SEEN, "what sits")) == [0, 4, 5, 7, 6] and flat(
        maker.prompt([SEEN], then="text")
    ) == [0]
    assert flat(maker.text_image("a", CODES)) == [0, 2, 10, 15, 12, 11], "what is drawn stays"


def test_another_way_to_read():
    with pytest.raises(ValueError, match="pretrain.read 'pixels' is unknown; choose features, ids, nothing"):
        DocumentMaker(VOCABULARY, Words(), 64, read="pixels")
