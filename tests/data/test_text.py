from __future__ import annotations

import pytest

from lavit.data.text import BEGIN, END, TrainedTextConfig, open_text_tokenizer, train_text_tokenizer

TEXTS = ["animals: a cat", "animals: a dog", "objects: a red hat", "Question: what colour is it? Answer:"] * 4


@pytest.fixture(scope="module")
def text():
    return train_text_tokenizer(TEXTS, TrainedTextConfig(vocabulary=300))


@pytest.mark.parametrize("said", ["animals: a cat", "never seen: Ωmega 猫 🐈", "  two  spaces "])
def test_every_string_can_be_written_and_read_back(text, said):
    ids = text(said, add_special_tokens=False)["input_ids"]
    assert ids and max(ids) < len(text)
    assert text.decode(ids).strip() == said.strip()


def test_size_and_special_tokens(text):
    assert len(text) <= 300
    assert (text.bos_token, text.eos_token) == (BEGIN, END)
    assert (text.bos_token_id, text.eos_token_id) == (0, 1)
    assert text.decode([0, *text("a cat")["input_ids"], 1], skip_special_tokens=True).strip() == "a cat"


def test_the_texts_are_compressed_and_training_is_deterministic(text):
    assert len(text("animals: a cat")["input_ids"]) < len("animals: a cat") / 2
    again = train_text_tokenizer(TEXTS, TrainedTextConfig(vocabulary=300))
    assert again.get_vocab() == text.get_vocab()


def test_vocabulary_without_room_for_the_bytes():
    with pytest.raises(ValueError, match="vocabulary 257 is too small: the bytes alone take 258"):
        train_text_tokenizer(TEXTS, TrainedTextConfig(vocabulary=257))


def test_save_and_open(text, tmp_path):
    text.save_pretrained(tmp_path / "text")
    opened = open_text_tokenizer(tmp_path / "text")
    assert opened.get_vocab() == text.get_vocab()
    assert opened("animals: a cat")["input_ids"] == text("animals: a cat")["input_ids"]


def test_folders_that_do_not_do(text, tmp_path):
    with pytest.raises(ValueError, match="no text tokenizer folder .*gone"):
        open_text_tokenizer(tmp_path / "gone")
    text.eos_token = None
    text.save_pretrained(tmp_path / "endless")
    text.eos_token = END
    with pytest.raises(ValueError, match="has no begin or no end token"):
        open_text_tokenizer(tmp_path / "endless")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no text tokenizer"):
        open_text_tokenizer(tmp_path / "empty")
