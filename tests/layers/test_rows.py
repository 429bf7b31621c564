from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lavit.layers.rows import FactoredConfig, SplitEmbedding, SplitHead
from lavit.tokens import IGNORE
from lavit.vocabulary import Vocabulary

TEXT, NEW, WIDTH = 11, 5, 6
VOCABULARY = Vocabulary(TEXT, NEW - 2)
PAIRS = Vocabulary(TEXT, 3, gaps=2)


@pytest.fixture
def embeddings():
    """A split embedding and the grown one that it must equal."""
    torch.manual_seed(0)
    split = SplitEmbedding(nn.Embedding(TEXT, WIDTH), VOCABULARY)
    grown = nn.Embedding(TEXT + NEW, WIDTH)
    grown.weight.data = torch.cat([split.text.weight, split.new.weight]).detach().clone()
    return split, grown


@pytest.fixture
def heads():
    torch.manual_seed(1)
    split = SplitHead(nn.Linear(WIDTH, TEXT, bias=False), VOCABULARY)
    grown = nn.Linear(WIDTH, TEXT + NEW, bias=False)
    grown.weight.data = torch.cat([split.text, split.new]).detach().clone()
    return split, grown


def gradients(split) -> torch.Tensor:
    rows = (split.text, split.new) if isinstance(split, SplitHead) else (split.text.weight, split.new.weight)
    return torch.cat([row.grad for row in rows])


def test_embedding_equals_a_grown_one_with_its_gradient(embeddings):
    split, grown = embeddings
    ids = torch.tensor([[0, TEXT - 1, TEXT, TEXT + NEW - 1], [3, TEXT, TEXT + 2, 3]])
    assert split(ids).shape == (2, 4, WIDTH)
    assert torch.equal(split(ids), grown(ids))
    weight = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(2))
    (split(ids) * weight).sum().backward()
    (grown(ids) * weight).sum().backward()
    assert torch.equal(gradients(split), grown.weight.grad)


@pytest.mark.parametrize("number", [-1, TEXT + NEW])
def test_id_out_of_range(embeddings, number):
    with pytest.raises(IndexError):
        embeddings[0](torch.tensor([2, number]))


def test_head_equals_a_grown_one_with_its_gradient(heads):
    split, grown = heads
    hidden = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(3))
    assert split(hidden).shape == (3, 4, TEXT + NEW)
    torch.testing.assert_close(split(hidden), grown(hidden), atol=1e-6, rtol=0)
    split(hidden).square().sum().backward()
    grown(hidden).square().sum().backward()
    torch.testing.assert_close(gradients(split), grown.weight.grad, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, PAIRS], ids=["codes", "pairs"])
def test_the_logits_of_text_and_of_images_are_those_of_the_whole_head(vocabulary):
    torch.manual_seed(5)
    head = SplitHead(nn.Linear(WIDTH, TEXT, bias=False), vocabulary)
    hidden = torch.randn(3, WIDTH)
    whole = head(hidden)
    torch.testing.assert_close(head.text_logits(hidden), whole[:, : vocabulary.image_begin + 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(head.image_logits(hidden), whole[:, vocabulary.image_end :], atol=1e-6, rtol=0)


def test_parts_freeze_apart(embeddings):
    split, _ = embeddings
    split.text.weight.requires_grad_(False)
    split(torch.tensor([1, TEXT + 1])).sum().backward()
    assert split.text.weight.grad is None
    assert split.new.weight.grad.sum(1).tolist() == [0, WIDTH, 0, 0, 0]


def test_loss_equals_dense_cross_entropy(heads):
    split, grown = heads
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(9, WIDTH, generator=generator)
    labels = torch.randint(TEXT + NEW, (9,), generator=generator)
    labels[[0, 4, 8]] = IGNORE
    weights = torch.rand(9, generator=generator)
    ours, dense = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss, nll = split(ours, labels, weights)
    expected = F.cross_entropy(grown(dense), labels, reduction="none", ignore_index=IGNORE)
    assert nll.shape == (9,) and nll.dtype == torch.float32 and not nll.requires_grad
    assert nll[[0, 4, 8]].tolist() == [0, 0, 0]
    torch.testing.assert_close(nll, expected.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(loss, (expected * weights).sum(), atol=1e-6, rtol=0)
    (3 * loss).backward()
    (3 * (expected * weights).sum()).backward()
    torch.testing.assert_close(ours.grad, dense.grad, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients(split), grown.weight.grad, atol=1e-6, rtol=0)


def test_labels_weigh_one_where_nothing_is_said(heads):
    hidden, labels = torch.randn(3, WIDTH), torch.tensor([2, IGNORE, TEXT])
    loss, nll = heads[0](hidden, labels)
    assert loss.item() == pytest.approx(nll.sum().item())


def test_nll_of_equal_logits_is_the_logarithm_of_the_rows(heads):
    nll = heads[0](torch.zeros(2, WIDTH), torch.tensor([0, TEXT])).nll
    torch.testing.assert_close(nll, torch.tensor([float(TEXT + NEW)] * 2).log())


def test_loss_without_labels_is_zero_and_still_has_gradients(heads):
    split, _ = heads
    hidden = torch.randn(3, WIDTH, requires_grad=True)
    loss, nll = split(hidden, torch.full((3,), IGNORE))
    assert torch.equal(nll, torch.zeros(3)) and loss.item() == 0
    loss.backward()
    assert not gradients(split).any() and not hidden.grad.any()


def test_nll_is_float32_for_half_precision_states(heads):
    split, _ = heads
    loss, nll = split.bfloat16()(torch.randn(3, WIDTH).bfloat16(), torch.tensor([1, IGNORE, 2]))
    assert nll.dtype == loss.dtype == torch.float32 and nll.isfinite().all()
    loss.backward()
    assert gradients(split).dtype == torch.bfloat16 and gradients(split).any()


def test_a_head_with_a_bias():
    with pytest.raises(ValueError, match="head has a bias"):
        SplitHead(nn.Linear(WIDTH, TEXT), VOCABULARY)


def pair_rows(text: torch.Tensor, new: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    """(size, D) rows of text, the image's ends, and every code with the first gap, then with the second."""
    return torch.cat([text, new[:2], new[2:] + gap[0], new[2:] + gap[1]])


def test_a_pair_of_code_and_gap_has_the_sum_of_their_rows():
    torch.manual_seed(2)
    embedding = SplitEmbedding(nn.Embedding(TEXT, WIDTH), PAIRS)
    head = SplitHead(nn.Linear(WIDTH, TEXT, bias=False), PAIRS)
    ids = torch.arange(PAIRS.size).view(1, -1)
    torch.testing.assert_close(
        embedding(ids)[0], pair_rows(embedding.text.weight, embedding.new.weight, embedding.gap.weight)
    )
    hidden = torch.randn(4, WIDTH)
    rows = pair_rows(head.text, head.new, head.gap_logits)
    torch.testing.assert_close(head(hidden), hidden @ rows.T)
    labels = torch.tensor([TEXT, PAIRS.size - 1, 0, PAIRS.first_code])
    expected = F.cross_entropy(hidden @ rows.T, labels, reduction="none")
    torch.testing.assert_close(head(hidden, labels).nll, expected.detach())


def test_codes_are_seen_from_each_gap():
    """After training the codes' rows meet another state for every gap."""
    torch.manual_seed(3)
    head = SplitHead(nn.Linear(WIDTH, TEXT, bias=False), PAIRS)
    nn.init.normal_(head.gap_states)
    nn.init.normal_(head.gap_bias)
    hidden = torch.randn(WIDTH)
    turned = head.gap_states @ hidden + head.gap_bias
    second = head.new[2:] @ (hidden + turned[1]) + head.gap_logits[1] @ hidden
    torch.testing.assert_close(head(hidden)[-PAIRS.codes :], second)
    torch.testing.assert_close(head(hidden)[TEXT : TEXT + 2], head.new[:2] @ hidden)


def test_a_code_learns_from_both_of_its_words():
    embedding = SplitEmbedding(nn.Embedding(TEXT, WIDTH), PAIRS)
    embedding(torch.tensor([PAIRS.first_code + 1, PAIRS.first_code + PAIRS.codes + 1])).sum().backward()
    assert embedding.new.weight.grad.sum(1).tolist() == [0, 0, 0, 2 * WIDTH, 0]
    assert embedding.gap.weight.grad.sum(1).tolist() == [WIDTH, WIDTH]


# ------------------------------------------------------------------------------------------------------ factored rows


@pytest.fixture
def factored():
    torch.manual_seed(3)
    text = nn.Embedding(TEXT, WIDTH)
    config = FactoredConfig(width=2)
    return SplitEmbedding(text, VOCABULARY, config), SplitHead(
        nn.Linear(WIDTH, TEXT, bias=False), VOCABULARY, factored=config
    )


def test_factored_rows_are_a_codebook_times_a_projection(factored):
    """h = P_in(E[id]) and logits = W P_out(y) (TEAL)."""
    embedding, head = factored
    code = torch.tensor([TEXT + 2 + 1])
    rows = embedding.new.image
    torch.testing.assert_close(embedding(code)[0], rows.codes[1] @ rows.project + rows.project_bias)
    assert torch.equal(embedding(torch.tensor([TEXT, TEXT + 1])), rows.marks + rows.project_bias)
    torch.testing.assert_close(rows.project_bias, embedding.text.weight.mean(0))
    y = torch.randn(3, WIDTH)
    logits = head(y)
    out = head.new.image
    offset = (y @ out.project_bias)[:, None]
    torch.testing.assert_close(logits[:, TEXT + 2 :], (y @ out.project.T) @ out.codes.T + offset)
    torch.testing.assert_close(logits[:, TEXT : TEXT + 2], y @ out.marks.T + offset)
    torch.testing.assert_close(head.image_logits(y), logits[:, TEXT + 1 :])
    torch.testing.assert_close(head.text_logits(y), logits[:, : TEXT + 1])


def test_the_loss_of_factored_rows_reaches_each_of_them(factored):
    _, head = factored
    hidden, labels = torch.randn(4, WIDTH), torch.tensor([2, TEXT, TEXT + 3, IGNORE])
    head(hidden, labels).loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in head.named_parameters()}
    head.zero_grad()
    F.cross_entropy(head(hidden), labels, ignore_index=IGNORE, reduction="sum").backward()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
        assert parameter.grad.any(), name


def test_factored_rows_begin_as_a_codebook(factored):
    rows, codebook = factored[0].new.image, torch.randn(3, 2)
    rows.start_from(codebook)
    assert torch.equal(rows()[2:], codebook @ rows.project + rows.project_bias)
    with pytest.raises(ValueError, match=r"the codebook is \(3, 5\) and model.factored asks for \(3, 2\)"):
        rows.start_from(torch.randn(3, 5))


def test_factored_rows_and_places_do_not_go_together():
    with pytest.raises(ValueError, match="set tokenizer.model.places to null"):
        SplitEmbedding(nn.Embedding(TEXT, WIDTH), PAIRS, FactoredConfig())


@pytest.mark.parametrize("config", [None, FactoredConfig(width=2, speech=5)])
def test_rows_of_speech_stand_after_those_of_images(config):
    vocabulary = Vocabulary(TEXT, 3, sounds=4)
    torch.manual_seed(5)
    embedding = SplitEmbedding(nn.Embedding(TEXT, WIDTH), vocabulary, config)
    head = SplitHead(nn.Linear(WIDTH, TEXT, bias=False), vocabulary, factored=config)
    y = torch.randn(3, WIDTH)
    logits = head(y)
    assert logits.shape == (3, vocabulary.size)
    torch.testing.assert_close(head.image_logits(y), logits[:, TEXT + 1 : TEXT + 5])
    torch.testing.assert_close(head.audio_logits(y), logits[:, TEXT + 6 :])
    rows = embedding.new() if config else embedding.new.weight
    assert torch.equal(embedding(torch.arange(TEXT, vocabulary.size)), rows)
    if config:
        audio = embedding.new.audio
        torch.testing.assert_close(rows[7:], audio.codes @ audio.project + audio.project_bias)
        head(y, torch.tensor([TEXT + 7, TEXT + 5, 0])).loss.backward()
        assert head.new.audio.codes.grad.any() and head.new.audio.marks.grad.any()
