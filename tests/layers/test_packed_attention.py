from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaModel

from lavit.layers import packed_attention
from lavit.layers.packed_attention import (
    attend_by_document,
    block_diagonal_mask,
    document_attention,
    documents_by_length,
)
from lavit.tokens import Rows

# Two rows: documents of 3 and 2 tokens with a place left, then one of 6.
DOCUMENT = torch.tensor([[0, 0, 0, 1, 1, -1], [2, 2, 2, 2, 2, 2]])
POSITION = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])


@pytest.fixture(params=[1, 5])
def documents(request, monkeypatch) -> tuple[Rows, ...]:
    """Of up to two tokens and of more, or all in one group."""
    monkeypatch.setattr(packed_attention, "SHORT", request.param)
    return documents_by_length(DOCUMENT, POSITION)


def heads(count: int, seed: int) -> torch.Tensor:
    return torch.randn(2, count, 6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("short", "padded"),
    [
        (5, [[[0, 1, 2, 0, 0, 0], [3, 4, 0, 0, 0, 0], [6, 7, 8, 9, 10, 11]]]),
        (2, [[[0, 1, 2], [3, 4, 0]], [[6, 7, 8, 9, 10, 11]]]),
        (1, [[[3, 4]], [[0, 1, 2]], [[6, 7, 8, 9, 10, 11]]]),
    ],
)
def test_documents_are_padded_beside_those_of_about_their_length(short, padded, monkeypatch):
    monkeypatch.setattr(packed_attention, "SHORT", short)
    documents = documents_by_length(DOCUMENT, POSITION)
    x = torch.arange(12.0).view(2, 6, 1)
    assert [group.pad(group.take(x))[..., 0].tolist() for group in documents] == padded
    again = torch.cat([group.pack(group.pad(group.take(x))) for group in documents]).flatten().tolist()
    assert sorted(again) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert len(documents_by_length(DOCUMENT, POSITION, padded=False)) == 1


@pytest.mark.parametrize("groups", [2, 1])
def test_each_document_is_attended_causally_by_itself(documents, groups):
    query, key, value = heads(2, 0), heads(groups, 1), heads(groups, 2)
    out = document_attention(query, key, value, documents, scale=0.3)
    assert out.shape == (2, 6, 2, 4) and not out[0, 5].any()
    for row, where in ((0, slice(0, 3)), (0, slice(3, 5)), (1, slice(0, 6))):
        q, k, v = (x[row, :, where] for x in (query, key.expand(2, 2, 6, 4), value.expand(2, 2, 6, 4)))
        scores = (0.3 * q @ k.transpose(-1, -2)).masked_fill(
            ~torch.ones(len(q[0]), len(q[0])).tril().bool(), -torch.inf
        )
        torch.testing.assert_close(out[row, where].transpose(0, 1), F.softmax(scores, -1) @ v)


def test_a_language_model_attends_by_document_or_as_it_did():
    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32))
    x = torch.randn(2, 6, 16)
    plain = model.eval()(inputs_embeds=x).last_hidden_state
    attend_by_document(model)
    torch.testing.assert_close(model(inputs_embeds=x).last_hidden_state, plain)
    documents = documents_by_length(torch.tensor([[0] * 6, [1] * 6]), torch.arange(6).expand(2, 6))
    torch.testing.assert_close(
        model(inputs_embeds=x, attention_mask=x.new_zeros(1, 1, 1, 1), documents=documents).last_hidden_state, plain
    )


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [2, 1])
def test_xformers_gives_the_same_on_a_gpu(groups, monkeypatch):
    monkeypatch.setattr(packed_attention, "SHORT", 1)
    documents = documents_by_length(DOCUMENT.cuda(), POSITION.cuda())
    parts = [
        torch.randn(2, n, 6, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in (2, groups, groups)
    ]
    expected = document_attention(*parts, documents)
    found = document_attention(*parts, documents, block_diagonal=block_diagonal_mask(documents))
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    for one, two in zip(*(torch.autograd.grad(out.sum(), parts) for out in (expected, found)), strict=True):
        torch.testing.assert_close(two, one, atol=3e-2, rtol=3e-2)
