from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lavit.layers.transformer import Attention, Block, init_weights, sequence_positions
from lavit.tokens import Rows


def seeded(make):
    torch.manual_seed(0)
    return make()


@pytest.fixture
def block():
    return seeded(lambda: Block(8, 2, 16)).double()


def written_out(part: Attention, x, context, mask):
    heads = lambda t: t.unflatten(-1, (part.heads, -1)).transpose(-3, -2)  # noqa: E731
    query, key, value = heads(part.query(x)), heads(part.key(context)), heads(part.value(context))
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    weight = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return part.proj((weight @ value).transpose(-3, -2).flatten(-2))


def test_block_is_prenorm_self_cross_mlp(block):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, generator=generator).double()
    context = torch.randn(2, 3, 8, generator=generator).double()
    causal = torch.ones(4, 4).bool().tril()
    seen = torch.tensor([[True, False, True], [True, True, True]])[:, None, None]
    expected = x + written_out(block.self_attn, block.norm0(x), block.norm0(x), causal)
    expected = expected + written_out(block.cross_attn, block.norm1(expected), context, seen)
    hidden = F.gelu(block.mlp[0](block.norm2(expected)))
    expected = expected + block.mlp[2](hidden)
    assert block(x, context).shape == (2, 4, 8)
    torch.testing.assert_close(block(x, context, causal, seen), expected)


def test_no_context_adds_the_projection_bias_alone(block):
    x = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(2)).double()
    nn.init.constant_(block.cross_attn.proj.bias, 0.5)
    out = block.cross_attn(x, torch.zeros(1, 0, 8).double(), torch.zeros(1, 1, 1, 0).bool())
    assert torch.equal(out, torch.full_like(x, 0.5))


def test_packed_rows_give_what_padded_ones_give(block):
    generator = torch.Generator().manual_seed(3)
    x, context = (torch.randn(3, n, 8, generator=generator).double() for n in (5, 4))
    rows = Rows.of(torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]]).bool())
    rest = Rows.of(torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool())
    padded, seen = rows.pad(rows.take(x)), rest.pad(rest.take(context))
    masks = (rows.real[:, None, None, :], rest.real[:, None, None, :])
    expected = rows.pack(block(padded, seen, *masks))
    torch.testing.assert_close(block(rows.take(x), rest.take(context), *masks, rows, rest), expected)


def test_width_must_divide_into_heads():
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
        Attention(10, 4)


def test_sequence_positions_are_learned_and_have_the_wanted_size():
    table = seeded(lambda: sequence_positions(64, 64, std=0.3))
    assert isinstance(table, nn.Parameter) and table.shape == (64, 64)
    assert table.std().item() == pytest.approx(0.3, rel=0.05)


def test_init_weights_has_variance_one_over_fan_in_and_keeps_norms():
    model = seeded(lambda: nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.Sequential(nn.Linear(256, 16))))
    nn.init.constant_(model[1].weight, 3.0)
    init_weights(model)
    assert not model[0].bias.any() and not model[2][0].bias.any() and (model[1].weight == 3).all()
    assert model[0].weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert model[2][0].weight.std().item() == pytest.approx(1 / 16, rel=0.05)
