"""Causal attention of packed rows, document by document: what is of another document is not even computed.

Documents are taken out of their rows, padded to the longest of them and attended causally, so that isolation needs no
mask; on a GPU xFormers' block-diagonal kernels do the same without padding.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lavit.layers.attention import require_xformers
from lavit.tokens import Rows

NAME = "documents"  # what transformers calls this attention


def attend_by_document(blocks: nn.Module) -> None:
    """Let a transformers model attend within the ``documents`` (Rows) that its forward gets; without, as SDPA does."""
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
    documents: Rows | None = None,
    block_diagonal: Any = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: (B, H, T, d) queries, (B, G, T, d) keys and values to (B, T, H, d)."""
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return document_attention(query, key, value, documents, scaling, block_diagonal), None


def document_attention(
    query: Tensor, key: Tensor, value: Tensor, documents: Rows, scale: float | None = None, block_diagonal: Any = None
) -> Tensor:
    """Attend causally within documents.

    Args:
        query: (B, H, T, d).
        key, value: (B, G, T, d); H is a multiple of G.
        documents: of the rows, see :meth:`lavit.tokens.Rows.of_documents`.
        scale: of the scores, by default 1 / √d.
        block_diagonal: xFormers' mask of :func:`block_diagonal_mask`; by default PyTorch's SDPA.

    Returns:
        (B, T, H, d), zero where no document is.
    """
    batch, heads, length, width = query.shape
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    rows = [documents.take(x.transpose(1, 2).flatten(2)) for x in (query, key, value)]
    if block_diagonal is None:
        split = [documents.pad(x).unflatten(-1, (heads, width)).transpose(1, 2) for x in rows]
        out = F.scaled_dot_product_attention(*split, is_causal=True, scale=scale)
        attended = documents.pack(out.transpose(1, 2).flatten(2))
    else:
        from xformers.ops import memory_efficient_attention

        split = [x.unflatten(-1, (heads, width))[None] for x in rows]
        attended = memory_efficient_attention(*split, attn_bias=block_diagonal, scale=scale)[0].flatten(1)
    whole = attended.new_zeros(batch * length, heads * width).index_copy(0, documents.source, attended)
    return whole.view(batch, length, heads, width)


def block_diagonal_mask(documents: Rows) -> Any:
    """xFormers' causal mask of documents one after another.

    Raises:
        ValueError: no GPU, or an xFormers without its kernels.
    """
    require_xformers(documents.place.device)
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    return BlockDiagonalCausalMask.from_seqlens(documents.real.sum(1).tolist(), device=documents.place.device)
