"""Causal attention of packed rows, document by document: what is of another document is not even computed.

Documents are taken out of their rows, padded to the longest of about their length and attended causally, so that
isolation needs no mask; on a GPU xFormers' block-diagonal kernels do the same without padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lavit.layers.attention import require_xformers
from lavit.tokens import Rows

NAME = "documents"  # what transformers calls this attention
SHORT = 5  # documents of up to 2^5 tokens are padded together: less is gained by more groups than these cost


def documents_by_length(document: Tensor, position: Tensor, padded: bool = True) -> tuple[Rows, ...]:
    """The documents of packed rows, each of them an item, in groups whose lengths lie between two powers of two.

    One long clip among captions would else make each of them as long as itself.

    Args:
        document, position: (B, T) int64 as in a :class:`lavit.tokens.PackedBatch`.
        padded: whether they will be; else they are one group.
    """
    source = (document >= 0).flatten().nonzero().flatten()
    number = (position.flatten()[source] == 0).cumsum(0) - 1
    counts = number.bincount()
    group = torch.bucketize(counts, 2 ** torch.arange(SHORT if padded else 40, 41, device=counts.device))
    return tuple(_group(source[(group == one)[number]], counts[group == one]) for one in group.unique().tolist())


def _group(source: Tensor, counts: Tensor) -> Rows:
    """Rows of documents that stand one after another in ``source``, with so many tokens each."""
    real = torch.arange(int(counts.max()), device=counts.device)[None] < counts[:, None]
    return Rows(real.flatten().nonzero().flatten(), source, real)


def attend_by_document(blocks: nn.Module) -> None:
    """Let a transformers model attend within the ``documents`` that its forward gets; without, as SDPA does.

    They are those of :func:`documents_by_length`.
    """
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    blocks.set_attn_implementation(NAME)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    documents: tuple[Rows, ...] | None = None,
    block_diagonal: Any = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: (B, H, T, d) queries, (B, G, T, d) keys and values to (B, T, H, d)."""
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return document_attention(query, key, value, documents, scaling, block_diagonal), None


def document_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: tuple[Rows, ...],
    scale: float | None = None,
    block_diagonal: Any = None,
) -> Tensor:
    """Attend causally within documents.

    Args:
        query: (B, H, T, d).
        key, value: (B, G, T, d); H is a multiple of G.
        documents: of the rows, see :func:`documents_by_length`.
        scale: of the scores, by default 1 / √d.
        block_diagonal: xFormers' mask of :func:`block_diagonal_mask`; by default PyTorch's SDPA.

    Returns:
        (B, T, H, d), zero where no document is.
    """
    batch, heads, length, width = query.shape
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    source = torch.cat([group.source for group in documents])
    rows = [x.transpose(1, 2).flatten(2).flatten(0, 1)[source] for x in (query, key, value)]
    if block_diagonal is None:
        parts = zip(*(x.split([len(group.source) for group in documents]) for x in rows), strict=True)
        attended = torch.cat([_attend(group, part, heads, scale) for group, part in zip(documents, parts, strict=True)])
    else:
        from xformers.ops import memory_efficient_attention

        split = [x.unflatten(-1, (heads, width))[None] for x in rows]
        attended = memory_efficient_attention(*split, attn_bias=block_diagonal, scale=scale)[0].flatten(1)
    whole = attended.new_zeros(batch * length, heads * width).index_copy(0, source, attended)
    return whole.view(batch, length, heads, width)


def _attend(group: Rows, parts: tuple[Tensor, ...], heads: int, scale: float | None) -> Tensor:
    """Queries, keys and values (T, H * d) of a group's documents to (T, H * d)."""
    query, key, value = (group.pad(x).unflatten(-1, (heads, -1)).transpose(1, 2) for x in parts)
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    return group.pack(out.transpose(1, 2).flatten(2))


def block_diagonal_mask(documents: tuple[Rows, ...]) -> Any:
    """xFormers' causal mask of documents one after another, in the order of their groups.

    Raises:
        ValueError: no GPU, or an xFormers without its kernels.
    """
    device = documents[0].place.device
    require_xformers(device)
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    lengths = torch.cat([group.real.sum(1) for group in documents])
    return BlockDiagonalCausalMask.from_seqlens(lengths.tolist(), device=device)
