from __future__ import annotations

import pytest
import torch

from lavit.tokenizers.places import Places, PlacesConfig

CODES = 5


@pytest.fixture
def places():
    return Places(4, CODES, PlacesConfig(every=2))


def sequence(*kept: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, positions and keep of two images, the second of the anchors alone."""
    rows = [sorted({0, 2, 5, 7, 8, 10, 13, 15} | set(kept)), [0, 2, 5, 7, 8, 10, 13, 15]]
    length = len(rows[0])
    position = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    keep = torch.tensor([[i < len(row) for i in range(length)] for row in rows])
    codes = torch.randint(CODES, position.shape, generator=torch.Generator().manual_seed(0)) * keep
    return codes, position, keep


def test_anchors_are_a_lattice_that_shifts_from_row_to_row(places):
    assert places.anchors.view(4, 4).int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    assert places.gaps == 3 and places.words == 3 * CODES
    wide = Places(8, 10, PlacesConfig(every=4))
    assert wide.anchors.view(8, 8)[:2].nonzero().tolist() == [[0, 0], [0, 4], [1, 2], [1, 6]]
    assert int(wide.anchors.sum()) == 16 and wide.gaps == 6


@pytest.mark.parametrize("kept", [(), (1,), (1, 3, 4, 6, 9, 11, 12, 14), (14,), (3, 4)])
def test_words_give_codes_and_places_back(places, kept):
    codes, position, keep = sequence(*kept)
    words = places.write(codes, position, keep)
    assert words.dtype == torch.int64 and 0 <= words.min() and words.max() < places.words and not words[~keep].any()
    again, where = places.read(words, keep)
    assert torch.equal(again, codes) and torch.equal(where, position)


def test_a_word_is_a_code_and_a_gap(places):
    codes, position, keep = torch.tensor([[3, 4]]), torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool)
    assert places.write(codes, position, keep).tolist() == [[3, 4 + CODES]]


def test_a_gap_that_no_word_can_say_is_an_error(places):
    with pytest.raises(ValueError, match="up to 7 apart and a word can say 3: keep at least the 8 anchors"):
        places.write(torch.zeros(1, 2).long(), torch.tensor([[0, 7]]), torch.ones(1, 2, dtype=torch.bool))


def test_what_words_can_say_is_known_of_every_image(places):
    position, keep = torch.tensor([[0, 7, 0], [1, 4, 7], [2, 9, 0]]), torch.ones(3, 3, dtype=torch.bool)
    keep[0, 1:] = False
    assert places.bridged(position, keep).tolist() == [True, True, False]
    assert places.write(torch.ones(2, 3).long(), position[:2], keep[:2]).tolist() == [[1, 0, 0], [6, 11, 11]]


def test_drawn_words_that_run_over_the_grid_end_at_its_last_patch(places):
    words = torch.full((1, 9), 2 * CODES)
    assert places.read(words, torch.ones(1, 9, dtype=torch.bool))[1].tolist() == [[2, 5, 8, 11, 14, 15, 15, 15, 15]]


@pytest.mark.parametrize("every", [1, 5])
def test_a_lattice_that_does_not_fit(every):
    with pytest.raises(ValueError, match=f"tokenizer.places.every is {every}; it must be from 2 to the grid's 4"):
        Places(4, CODES, PlacesConfig(every))


def test_what_may_follow_is_what_the_tokenizer_could_have_written(places):
    """Every sequence of kept patches that holds the anchors, word by word, and no other next patch."""
    anchors = set(places.anchors.nonzero().flatten().tolist())
    for position in range(-1, 16):
        gaps, end = places.allowed(torch.tensor([position]))
        assert gaps.shape == (1, places.gaps) and end.shape == (1,)
        after = {position + 1 + int(i) for i in gaps[0].nonzero()}
        beyond = [n for n in range(position + 1, 16) if not anchors & set(range(position + 1, n))]
        assert after == set(beyond) and bool(end) == (position >= max(anchors))
