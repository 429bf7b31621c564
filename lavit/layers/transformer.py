"""Pre-norm transformer blocks with an optional cross-attention, shared by the merger and the feature decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lavit.layers.attention import attention, soft_masked_attention
from lavit.tokens import Rows


class Attention(nn.Module):
    """Multi-head attention of ``x`` (B, N, D) over ``context`` (B, M, D), or over itself.

    A boolean mask broadcastable to (B, 1, N, M) says what may be attended (True); a float one is a factor of the
    weights (:func:`~lavit.layers.attention.soft_masked_attention`). Rows and context may come packed, (T, D) with their
    ``Rows``: the projections then run on real rows alone, and only the attention itself sees padding.
    """

    def __init__(self, width: int, heads: int, backend: str = "sdpa"):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads, self.backend = heads, backend
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        rows: Rows | None = None,
        context_rows: Rows | None = None,
    ) -> Tensor:
        if context is None:
            context, context_rows = x, rows
        query, key, value = self.query(x), self.key(context), self.value(context)
        if rows is None:
            out = self._attend(query, key, value, mask)
        elif torch.is_grad_enabled():
            # Padding and weights are made again in the backward pass: little work, and nothing padded is kept for it.
            out = checkpoint(
                self._attend_packed, query, key, value, mask, rows, context_rows,
                use_reentrant=True, preserve_rng_state=False,
            )  # fmt: skip
        else:
            out = self._attend_packed(query, key, value, mask, rows, context_rows)
        return self.proj(out)

    def _attend_packed(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rows: Rows, context_rows: Rows
    ) -> Tensor:
        return rows.pack(self._attend(rows.pad(query), context_rows.pad(key), context_rows.pad(value), mask))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        if mask is not None and mask.is_floating_point():
            out = soft_masked_attention(query, key, value, mask)
        else:
            out = attention(query, key, value, mask, self.backend)
        return out.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """``x += self(norm0 x); x += cross(norm1 x, context); x += mlp(norm2 x)`` (LaVIT's merger and decoder block)."""

    def __init__(self, width: int, heads: int, mlp: int, backend: str = "sdpa"):
        super().__init__()
        self.norm0, self.norm1, self.norm2 = (nn.LayerNorm(width) for _ in range(3))
        self.self_attn = Attention(width, heads, backend)
        self.cross_attn = Attention(width, heads, backend)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        self_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        rows: Rows | None = None,
        context_rows: Rows | None = None,
    ) -> Tensor:
        """x (B, N, D), context (B, M, D), or both packed with their Rows; masks broadcastable to (B, 1, N, N) and
        (B, 1, N, M)."""
        x = x + self.self_attn(self.norm0(x), mask=self_mask, rows=rows)
        x = x + self.cross_attn(self.norm1(x), context, context_mask, rows, context_rows)
        return x + self.mlp(self.norm2(x))


def init_weights(module: nn.Module) -> None:
    """Truncated-normal weights of variance 1/fan-in and zero biases, in place, for every Linear below ``module``.

    At the paper's width of 1408 that is a std of 0.027, near the usual 0.02; narrow models would start too quiet.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=part.in_features**-0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def sequence_positions(length: int, width: int, std: float) -> nn.Parameter:
    """A learned (length, width) table of places, truncated-normal; ``std`` is that of what it is added to."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(length, width), std=std))


def grid_positions(grid: int, width: int) -> Tensor:
    """(grid², width) float32 waves of row and column, entries of root mean square √½, in raster order.

    The longest wave takes two grids and the shortest two patches.

    Raises:
        ValueError: a width that is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"places on a grid need a width that is a multiple of 4, not {width}")
    frequency = math.pi / grid * torch.logspace(0, math.log10(grid), width // 4)
    rows = torch.arange(grid).repeat_interleave(grid)
    columns = torch.arange(grid).repeat(grid)
    angles = [place[:, None] * frequency for place in (rows, columns)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
