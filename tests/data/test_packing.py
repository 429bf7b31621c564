from __future__ import annotations

import itertools

import pytest
import torch

from lavit.data.documents import DocumentMaker
from lavit.data.packing import best_fit, document_length, fed_places, pack, pack_rows, rows_for, with_common_total
from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM
from lavit.tokens import IGNORE, Feed, Learn, Picture, Span
from lavit.vocabulary import Vocabulary

VOCABULARY, WIDTH = Vocabulary(20, 6), 3


class Numbers:
    """A text tokenizer whose words are their own ids; other words are left out."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        return {"input_ids": [int(word) for word in text.split() if word.isdigit()]}


MAKER = DocumentMaker(VOCABULARY, Numbers(), 256)


def documents() -> list:
    """One of each kind, of different lengths."""
    generator = torch.Generator().manual_seed(0)
    vectors = lambda n: torch.randn(n, WIDTH, generator=generator)  # noqa: E731
    return [
        MAKER.image_text(Picture(torch.tensor([1, 2, 3]), vectors(3)), "5 6"),
        MAKER.text_image("7 8 9", torch.tensor([0, 5])),
        MAKER.text_only("10 11"),
        MAKER.question_answer(Picture(torch.tensor([4]), vectors(1)), "13 14", "12"),
        MAKER.image_only(torch.tensor([2, 2, 1])),
    ]


@pytest.fixture
def model() -> UnifiedLM:
    scratch = ScratchConfig(hidden=16, layers=2, heads=2, mlp=32, max_position=64)
    return UnifiedLM(ModelConfig(LLMConfig(scratch=scratch)), VOCABULARY, WIDTH, seed=0).eval()


# ------------------------------------------------------------------------------------------------------------ best fit


def fewest_rows(lengths: list[int], row: int) -> int:
    """By trying every assignment."""
    for rows in range(1, len(lengths) + 1):
        for where in itertools.product(range(rows), repeat=len(lengths)):
            loads = [sum(n for n, w in zip(lengths, where, strict=True) if w == r) for r in range(rows)]
            if max(loads) <= row:
                return rows
    raise AssertionError("a document is longer than a row")


@pytest.mark.parametrize(
    ("lengths", "row", "rows"),
    [
        ([10], 10, [[0]]),
        ([4, 6, 3, 7], 10, [[3, 2], [1, 0]]),
        ([5, 5, 5], 10, [[0, 1], [2]]),
        ([6, 7, 3, 2, 2], 10, [[1, 2], [0, 3, 4]]),
        ([1, 1, 1], 3, [[0, 1, 2]]),
    ],
)
def test_best_fit_on_written_cases(lengths, row, rows):
    assert best_fit(lengths, row) == rows
    assert len(rows) == fewest_rows(lengths, row)


def test_best_fit_takes_the_fullest_row_that_still_has_room():
    # The 1 fits beside the 8 (2 free) and beside 6 and 3 (1 free); the first row that fits would be the other one.
    assert best_fit([8, 6, 3, 1], 10) == [[0], [1, 2, 3]]


def test_every_document_is_packed_once_and_no_row_overflows():
    lengths = torch.randint(1, 30, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    rows = best_fit(lengths, 40)
    assert sorted(number for row in rows for number in row) == list(range(200))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 40
    assert sum(lengths) / (40 * len(rows)) > 0.95


@pytest.mark.parametrize("length", [0, 11])
def test_documents_that_no_row_holds(length):
    with pytest.raises(ValueError, match=rf"document 1 has {length} tokens; a row holds 1 to 10 \(pretrain.row\)"):
        best_fit([3, length], 10)


# -------------------------------------------------------------------------------------------------------- packing rows


def test_rows_are_few_and_even():
    """Best fit fills two rows and leaves 12 places of the batch empty in the third; even rows leave 3."""
    lengths = [7, 6, 5, 5, 4, 4, 3, 2]
    assert sorted(sum(lengths[i] for i in row) for row in best_fit(lengths, 16)) == [4, 16, 16]
    assert [sum(lengths[i] for i in row) for row in pack_rows(lengths, 16)] == [11, 13, 12]


def test_rows_of_best_fit_where_even_ones_need_more():
    lengths = [3, 3, 2, 2, 2]  # two rows of 6 hold them, but the emptiest first makes 7 and 5
    assert sorted(map(sorted, pack_rows(lengths, 6))) == [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize("seed", range(20))
def test_never_more_rows_than_best_fit(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 41, (int(torch.randint(1, 60, (), generator=generator)),), generator=generator).tolist()
    rows = pack_rows(lengths, 40)
    assert len(rows) <= len(best_fit(lengths, 40))
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 40


# ------------------------------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_a_step_s_rows_are_shared_out_whole(slots):
    lengths = [7, 3, 3, 2, 6, 4]
    shares = rows_for(lengths, 10, slots)
    assert len(shares) == slots and all(shares), "no rank is left without a row"
    rows = [row for share in shares for row in share]
    assert sorted(i for row in rows for i in row) == list(range(6))
    assert all(sum(lengths[i] for i in row) <= 10 for row in rows)
    assert len(rows) == {1: 3, 2: 4, 3: 3, 5: 5}[slots], "as few as can be, but as many for every slot"


@pytest.mark.parametrize("slots", [2, 3, 4])
def test_every_rank_has_as_many_rows_as_the_others(slots):
    generator = torch.Generator().manual_seed(slots)
    for _ in range(50):
        lengths = torch.randint(1, 13, (24,), generator=generator).tolist()
        assert len({len(share) for share in rows_for(lengths, 12, slots)}) == 1


def test_fewer_documents_than_ranks():
    with pytest.raises(ValueError, match="2 documents are fewer than 3 ranks × accumulation steps; raise their number"):
        rows_for([4, 4], 10, 3)


def test_micro_batches_share_one_total():
    batches = with_common_total([pack(documents()[:1]), pack(documents()[1:])])
    learned = [int((batch.labels != IGNORE).sum()) for batch in batches]
    assert learned[0] != learned[1]
    assert [float(batch.total) for batch in batches] == [sum(learned) / 2] * 2


def test_patches_of_several_pictures_are_stacked_in_the_order_of_their_places():
    keep = torch.tensor([[True, False, True], [False, False, True]])
    shown = [Picture(torch.arange(int(k.sum())), torch.full((3, 2), float(n)), k) for n, k in enumerate(keep)]
    made = [MAKER.prompt([picture], then="text") for picture in shown]
    slots = pack(made, rows=[[1, 0]]).slots["image"]
    assert slots.index.tolist() == [1, 4, 5]
    assert torch.equal(slots.features, torch.stack([shown[1].features, shown[0].features]))
    assert torch.equal(slots.keep, keep.flip(0))


def test_packed_batch_token_by_token():
    batch = pack(documents()[:3], rows=[[2, 0], [1]])
    assert batch.ids.tolist() == [[0, 10, 11, 1, 20, 23, 24, 25, 21, 5, 6, 1], [0, 7, 8, 9, 20, 22, 27, 21, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [
        [10, 11, 1, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, 5, 6, 1, IGNORE],
        [7, 8, 9, 20, 22, 27, 21, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE],
    ]
    assert batch.position.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0]]
    assert batch.document.tolist() == [[2] * 4 + [0] * 8, [1] * 8 + [-1] * 4]
    assert all(t.dtype == torch.int64 for t in batch[:4])
    slots = batch.slots["image"]
    assert slots.index.tolist() == [5, 6, 7] and torch.equal(slots.features, documents()[0][0].features)


def test_slots_increase_and_follow_their_documents():
    made = documents()
    batch = pack(made, rows=[[3, 1], [4, 0]])
    slots = batch.slots["image"]
    assert slots.index.diff().gt(0).all()
    assert torch.equal(slots.features, torch.cat([made[3][0].features, made[0][0].features]))
    owners = batch.document.flatten()[slots.index].tolist()
    assert owners == [3, 0, 0, 0]
    assert batch.ids.flatten()[slots.index].tolist() == [26, 23, 24, 25], "the places hold the ids as placeholders"


def test_without_fed_images_there_are_no_slots():
    assert pack(documents()[1:3]).slots == {}


def test_default_is_a_row_each():
    made = documents()
    batch = pack(made)
    assert batch.ids.shape == (5, max(document_length(d) for d in made))
    assert [row.unique().tolist()[-1] for row in batch.document] == [0, 1, 2, 3, 4]


def test_vectors_must_match_the_places_of_their_own_span():
    ids = torch.tensor([20, 22, 23, 21])
    for count in (1, 3):
        short = Span("image", ids, torch.zeros(count, WIDTH), Feed.FEATURES, Learn.NONE)
        with pytest.raises(ValueError, match=f"an image has 2 places but {count} feature vectors"):
            fed_places([short])
    with pytest.raises(ValueError, match="2 places but no feature vectors"):
        fed_places([Span("image", ids, None, Feed.FEATURES, Learn.NONE)])
    # Two wrong counts must not cancel out.
    wrong = [Span("image", ids, torch.zeros(n, WIDTH), Feed.FEATURES, Learn.NONE) for n in (1, 3)]
    with pytest.raises(ValueError, match="2 places but 1 feature vectors"):
        pack([wrong])


# ------------------------------------------------------------------------------------------- packed equals unpacked


def test_packed_and_unpacked_have_one_loss_and_one_gradient(model):
    results = []
    for rows in (None, [[0, 1, 2], [3, 4]], [[4, 3, 2, 1, 0]]):
        model.zero_grad()
        out = model(pack(documents(), rows=rows))
        out.loss.backward()
        results.append((out, {name: p.grad.clone() for name, p in model.named_parameters()}))
    alone, gradient = results[0]
    for out, packed_gradient in results[1:]:
        for value, expected in zip(out[:3], alone[:3], strict=True):
            assert value.item() == pytest.approx(expected.item(), abs=1e-5)
        for name, expected in gradient.items():
            torch.testing.assert_close(packed_gradient[name], expected, atol=1e-5, rtol=0)
    assert all(g.abs().sum() > 0 for name, g in gradient.items() if "port" in name or "new" in name)


def test_a_neighbour_changes_a_document_s_likelihood_by_exactly_nothing(model):
    made = documents()
    batch = pack(made, rows=[[0, 2, 1], [3, 4]])
    other = made.copy()
    other[2] = MAKER.text_only("19 18")
    other[3] = [other[3][0]._replace(features=other[3][0].features + 5), *other[3][1:]]
    changed = pack(other, rows=[[0, 2, 1], [3, 4]])
    with torch.no_grad():
        before, after = model.token_nll(batch), model.token_nll(changed)
    owner = batch.document.flatten()
    for number in (0, 1, 4):
        assert torch.equal(before[owner == number], after[owner == number])
    for number in (2, 3):
        assert not torch.equal(before[owner == number], after[owner == number])
