from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import Replace
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from lavit.data.llms import llm_folder
from lavit.data.text import TrainedTextConfig, open_text_tokenizer, train_text_tokenizer
from lavit.tokenizers.word_codebook import (
    WordCodebookConfig,
    check_word_codebook,
    codebook_digest,
    embedding_of,
    standardized,
    word_list,
    word_vectors,
)

TEXTS = ["a red hat and a red cat", "the cat sat on the hat", "two dogs and the red bird sat"] * 4


@pytest.fixture(scope="module")
def text():
    return train_text_tokenizer(TEXTS, TrainedTextConfig(340))


@pytest.fixture(scope="module")
def llm(tmp_path_factory, text):
    """A folder with an embedding, and no language model else."""
    folder = tmp_path_factory.mktemp("llm")
    table = torch.randn(len(text), 12, generator=torch.Generator().manual_seed(0))
    save_file({"model.embed_tokens.weight": table, "model.norm.weight": torch.ones(12)}, folder / "model.safetensors")
    return folder


def config(**settings) -> WordCodebookConfig:
    return WordCodebookConfig(**{"width": 4, "most": 100} | settings)


def test_words_are_whole_and_come_back_as_the_same_id(text):
    chosen = word_list(text, config())
    assert {"red", "cat", "hat", "the"} <= set(chosen.words) and len(set(chosen.ids.tolist())) == len(chosen.words)
    for i, word in zip(chosen.ids.tolist(), chosen.words, strict=True):
        assert re.fullmatch("[a-z]{3,}", word)
        assert text.decode([i]).strip() == word
        assert text(text.decode([i]), add_special_tokens=False)["input_ids"] == [i]
    assert word_list(text, config(most=3)).words == chosen.words[:3]
    with pytest.raises(ValueError, match="lower letters, or take another language model"):
        word_list(text, config(letters=30))


@pytest.mark.network
def test_all_words_of_smollm2_come_back():
    text = open_text_tokenizer(llm_folder("smollm2"))
    chosen = word_list(text, WordCodebookConfig(most=65000))
    assert len(chosen.ids) > 15000 and {"cat", "red", "house"} <= set(chosen.words)
    written = [text.decode([i]) for i in chosen.ids.tolist()]
    assert text(written, add_special_tokens=False)["input_ids"] == [[i] for i in chosen.ids.tolist()]


def test_a_list_is_saved_and_read(text, tmp_path):
    chosen = word_list(text, config())
    chosen.save(tmp_path / "words.json")
    again = type(chosen).load(tmp_path / "words.json")
    assert torch.equal(again.ids, chosen.ids) and again.words == chosen.words


def test_words_of_a_file_and_its_mistakes(text, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("red\n\n cat \nhat\n")
    chosen = word_list(text, config(file=str(path)))
    assert chosen.words == ["red", "cat", "hat"] and text.decode(chosen.ids.tolist()).split() == chosen.words
    path.write_text("red\nxylophone\n")
    with pytest.raises(ValueError, match=r"line 2: 'xylophone' is \d+ tokens .* not one; take it out"):
        word_list(text, config(file=str(path)))
    path.write_text("red\ncat\nred\n")
    with pytest.raises(ValueError, match="line 3: 'red' is there twice"):
        word_list(text, config(file=str(path)))
    path.write_text("red\n")
    with pytest.raises(ValueError, match="has 1 words; a codebook needs at least two"):
        word_list(text, config(file=str(path)))
    with pytest.raises(ValueError, match="pyramid.words.file: no file .*one a line"):
        word_list(text, config(file=str(tmp_path / "none.txt")))


def test_a_word_that_is_one_token_and_does_not_come_back_is_said(tmp_path):
    """A text tokenizer of whole words, which writes one of them as another and knows few."""
    plain = Tokenizer(WordLevel({"red": 0, "cat": 1, "hat": 2, "<unk>": 3}, unk_token="<unk>"))
    plain.pre_tokenizer, plain.decoder = Whitespace(), Replace("cat", "hat")
    text, path = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>"), tmp_path / "words.txt"
    path.write_text("red\nhat\n")
    assert word_list(text, config(file=str(path))).ids.tolist() == [0, 2]
    for word, said in (
        ("cat", "line 2: 'cat' is one token, but comes back from the text tokenizer as 'hat'"),
        ("dog", "line 2: 'dog' is unknown to the language model's text tokenizer"),
    ):
        path.write_text(f"red\n{word}\n")
        with pytest.raises(ValueError, match=said):
            word_list(text, config(file=str(path)))


def test_vectors_are_the_embeddings_on_axes_of_equal_variance(text, llm):
    chosen = word_list(text, config())
    book = word_vectors(llm, chosen, config(length=3.0))
    assert book.shape == (len(chosen.ids), 4) and book.dtype == torch.float32
    torch.testing.assert_close(book.norm(dim=-1), torch.full((len(book),), 3.0))
    rows = embedding_of(llm)[chosen.ids]
    assert torch.equal(rows, embedding_of(llm)[chosen.ids])
    everything = min(rows.shape[1], len(rows) - 1)
    # On all axes the directions are those of the whitened rows, whichever way they are turned.
    full = standardized(rows, everything, 1.0)
    centred = (rows - rows.mean(0)).double()
    white = centred @ torch.linalg.pinv(centred.T @ centred / len(rows)) @ centred.T
    angle = white / white.diagonal().sqrt()[:, None] / white.diagonal().sqrt()
    torch.testing.assert_close((full @ full.T).double(), angle, atol=1e-4, rtol=1e-4)
    assert torch.equal(book, word_vectors(llm, chosen, config(length=3.0)))


def test_vectors_of_a_file_and_its_mistakes(text, llm, tmp_path):
    chosen, path = word_list(text, config()), tmp_path / "vectors.npy"
    rows = np.random.default_rng(0).normal(size=(len(chosen.ids), 7)).astype(np.float32)
    np.save(path, rows)
    asked = config(vectors=str(path))
    torch.testing.assert_close(word_vectors(llm, chosen, asked), standardized(torch.from_numpy(rows), 4, 3.0))
    for wrong in (rows[1:], rows[:, 0], rows.astype(np.int64)):
        np.save(path, wrong)
        with pytest.raises(ValueError, match=rf"pyramid.words.vectors: .*for {len(rows)} words; give floats"):
            word_vectors(llm, chosen, asked)
    rows[2, 3] = np.nan
    np.save(path, rows)
    with pytest.raises(ValueError, match="not finite"):
        word_vectors(llm, chosen, asked)
    path.write_bytes(b"no array")
    with pytest.raises(ValueError, match="cannot be read"):
        word_vectors(llm, chosen, asked)
    with pytest.raises(ValueError, match="no file"):
        word_vectors(llm, chosen, config(vectors=str(tmp_path / "none.npy")))


def test_an_embedding_that_does_not_go_with_the_words(text, llm, tmp_path):
    chosen = word_list(text, config())
    with pytest.raises(ValueError, match="pyramid.words.width is 13, .* span at most 8 axes"):
        word_vectors(llm, chosen, config(width=13))
    save_file({"model.embed_tokens.weight": torch.zeros(5, 12)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="the embedding 5 rows; tokenizer and weights are of two models"):
        word_vectors(tmp_path, chosen, config())
    save_file({"other": torch.zeros(5, 12)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="has no …embed_tokens.weight"):
        word_vectors(tmp_path, chosen, config())
    with pytest.raises(ValueError, match="needs the language model's weights in safetensors"):
        word_vectors(tmp_path / "none", chosen, config())
    with pytest.raises(ValueError, match="span fewer axes"):
        standardized(torch.randn(20, 1) * torch.ones(1, 6), 3, 1.0)
    for wrong in ({"most": 1}, {"width": 0}, {"length": 0.0}, {"letters": 0}):
        with pytest.raises(ValueError, match="pyramid.words: most"):
            check_word_codebook(config(**wrong), "pyramid.words")


def test_a_digest_tells_any_change():
    book = torch.randn(6, 3)
    moved = book.clone()
    moved[4, 1] += 1e-6
    assert codebook_digest(book) == codebook_digest(book.clone()) != codebook_digest(moved)
