from __future__ import annotations

import pytest
import torch

from lavit.vocabulary import Vocabulary

LLAMA = Vocabulary(32000, 16384)


def test_sizes_are_those_of_the_paper():
    assert (LLAMA.image_begin, LLAMA.image_end, LLAMA.first_code) == (32000, 32001, 32002)
    assert LLAMA.words == 16384 and LLAMA.size == 48386


def test_round_trip():
    codes = torch.tensor([[0, 16383], [7, 7]])
    ids = LLAMA.to_ids(codes)
    assert ids.dtype == torch.int64 and ids.tolist() == [[32002, 48385], [32009, 32009]]
    assert torch.equal(LLAMA.to_codes(ids), codes)
    empty = torch.tensor([], dtype=torch.int64)
    assert LLAMA.to_codes(LLAMA.to_ids(empty)).shape == (0,)


@pytest.mark.parametrize("code", [-1, 16384])
def test_codes_out_of_range(code):
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 16384\)"):
        LLAMA.to_ids(torch.tensor([3, code]))


@pytest.mark.parametrize("number", [0, 32000, 32001, 48386])
def test_ids_that_are_no_visual_words(number):
    with pytest.raises(ValueError, match=r"ids must lie in \[32002, 48386\)"):
        LLAMA.to_codes(torch.tensor([32002, number]))


def test_masks_say_what_may_be_written():
    v = Vocabulary(3, 2)
    assert v.text_mask().tolist() == [True] * 3 + [False] * 4
    assert v.image_mask(may_end=False).tolist() == [False] * 5 + [True] * 2
    assert v.image_mask(may_end=True).tolist() == [False] * 4 + [True] * 3


def test_words_that_are_pairs():
    v = Vocabulary(10, 4, gaps=3)
    assert v.words == 12 and v.first_code == 12 and v.size == 24
    assert v.to_ids(torch.tensor([11])).tolist() == [23] and int(v.image_mask(may_end=False).sum()) == 12


def test_speech_stands_after_the_visual_words():
    v = Vocabulary(10, 4, sounds=3)
    assert v.audio == (16, 3) and (v.audio.end, v.audio.first, v.size, v.rows) == (17, 18, 21, 11)
    assert v.audio.to_ids(torch.tensor([0, 2])).tolist() == [18, 20] and v.image.stop == 16
    assert v.image_mask(may_end=True).nonzero().flatten().tolist() == [11, 12, 13, 14, 15]
    masks = v.by_modality(torch.tensor([-100, 0, 9, 10, 15, 16, 20]))
    assert {name: mask.nonzero().flatten().tolist() for name, mask in masks.items()} == {
        "text": [1, 2], "image": [3, 4], "audio": [5, 6]
    }  # fmt: skip
    assert "audio" not in Vocabulary(10, 4).by_modality(torch.tensor([3]))
    with pytest.raises(ValueError, match=r"ids must lie in \[18, 21\)"):
        v.audio.to_codes(torch.tensor([17]))
    with pytest.raises(ValueError, match="set tokenizer.model.places to null"):
        Vocabulary(10, 4, gaps=2, sounds=3)
