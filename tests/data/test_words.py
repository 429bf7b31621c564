from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lavit.data import words
from lavit.data.words import WordsConfig, train_word_tokenizer, word_vectors

KNOWN = ["[UNK]", "[PAD]", "##s", "the", "of", "cat", "otter", "beaver", "Paris", "x", "zebra"]
KNOWN += [f"{first}{last}ing" for first in "bcdfgh" for last in ("an", "ell", "ost", "ump", "irt")]
TEXTS = ["animals: red panda", "Question: what is it? Answer: cat"]


@pytest.fixture(autouse=True)
def encoder(tmp_path, monkeypatch):
    """A sentence encoder of random weights that knows a few words."""
    (tmp_path / "vocab.txt").write_text("\n".join(KNOWN))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = BertConfig(vocab_size=len(KNOWN), hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=8)  # fmt: skip
        BertModel(shape).save_pretrained(tmp_path)
    text = Tokenizer(models.WordLevel({word: i for i, word in enumerate(KNOWN)}, unk_token="[UNK]"))
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=text, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    monkeypatch.setattr(words, "_encoder_folder", lambda: tmp_path)
    return SimpleNamespace(width=24)


def pieces(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_words_are_one_token_and_everything_else_can_be_spelled():
    tokenizer = train_word_tokenizer(TEXTS, WordsConfig(600))
    assert pieces(tokenizer, "red otter of panda") == ["▁red", "▁otter", "▁of", "▁panda"]
    assert pieces(tokenizer, "Question: cat") == ["▁Question", ":", "▁cat"]
    for text in ("a wombat", "naïve 42 ✈", "zebras", "UPPER-case"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_the_vocabulary_is_as_large_as_asked_for_and_begins_with_the_texts_words():
    small, large = (train_word_tokenizer(TEXTS, WordsConfig(size)) for size in (530, 531))
    assert len(small) == 530 and len(large) == 531
    known = [set(tokenizer.get_vocab()) for tokenizer in (small, large)]
    assert "▁panda" in known[0] and len(known[1] - known[0]) == 1
    with pytest.raises(ValueError, match="vocabulary 400 is too small"):
        train_word_tokenizer(TEXTS, WordsConfig(400))


def test_vectors_keep_the_encoders_angles_and_have_the_size_asked_for(encoder):
    tokenizer = train_word_tokenizer(TEXTS, WordsConfig(600))
    ids, vectors = word_vectors(tokenizer, encoder.width, std=0.1)
    names = tokenizer.convert_ids_to_tokens(ids.tolist())
    assert vectors.shape == (len(ids), encoder.width) and "▁otter" in names and "▁o" not in names
    assert vectors.std() == pytest.approx(0.1)
    torch.testing.assert_close(vectors.mean(0), torch.zeros(encoder.width), atol=1e-5, rtol=0)
    narrow = word_vectors(tokenizer, 8, std=0.1)[1]
    ours, theirs = (v @ v.T / v.square().sum() for v in (vectors, narrow))
    assert narrow.shape == (len(ids), 8) and torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.8
    again = word_vectors(tokenizer, encoder.width, std=0.1)[1]
    assert torch.equal(vectors, again)
    with pytest.raises(ValueError, match="wider"):
        word_vectors(tokenizer, 25, std=0.1)
