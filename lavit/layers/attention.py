"""Attention behind one function: PyTorch's SDPA everywhere, xFormers' kernels where a GPU and the extension are."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("sdpa", "xformers")


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, backend: str = "sdpa") -> Tensor:
    """Scaled dot-product attention.

    Args:
        query: (B, H, N, d).
        key, value: (B, H, M, d).
        mask: broadcastable to (B, H, N, M) bool, True = attend. A row that may attend to nothing yields zeros.
        backend: "sdpa" or "xformers".

    Returns:
        (B, H, N, d).

    Raises:
        ValueError: an unknown backend, or xFormers where its extension or a GPU is missing.
    """
    bias = None
    if mask is not None:
        # -inf rows would give NaN and poison gradients; a finite floor keeps them defined and they are zeroed below.
        bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
        bias = bias.masked_fill(~mask, torch.finfo(query.dtype).min)
    if backend == "sdpa":
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    elif backend == "xformers":
        out = _xformers(query, key, value, bias)
    else:
        raise ValueError(f"attention backend '{backend}' is unknown; choose one of {', '.join(BACKENDS)}")
    if mask is not None:
        out = out * mask.any(-1, keepdim=True)
    return out


def soft_masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, eps: float = 1e-6) -> Tensor:
    """Attention whose mask is a factor: (exp(s - max s) · mask + eps / M) / (Σ exp(s - max s) · mask + eps), in fp32.

    The maximum is over all M keys, also those that the mask leaves out. These keep a tiny weight, and where nothing
    may be attended all keys count alike. LaVIT's published weights were trained with it.

    Args:
        query: (B, H, N, d); key, value: (B, H, M, d).
        mask: broadcastable to (B, H, N, M) float in [0, 1]; carries gradients.

    Returns:
        (B, H, N, d) in the query's dtype.
    """
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    weight = (scores - scores.amax(-1, keepdim=True)).exp() * mask.float()
    weight = (weight + eps / key.shape[-2]) / (weight.sum(-1, keepdim=True) + eps)
    return weight.to(value.dtype) @ value


def _xformers(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    require_xformers(query.device)
    from xformers.ops import memory_efficient_attention

    if bias is not None:
        heads, n, m = query.shape[1], query.shape[2], key.shape[2]
        # The kernels want the last stride of a bias to be a multiple of eight elements.
        padded = torch.zeros(query.shape[0], heads, n, -(-m // 8) * 8, dtype=query.dtype, device=query.device)
        padded[..., :m] = bias
        bias = padded[..., :m]
    out = memory_efficient_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_bias=bias)
    return out.transpose(1, 2)


@functools.cache
def _extension_loaded() -> str:
    """Empty when xFormers' compiled kernels are usable, else the reason."""
    try:
        from lavit.layers.cuda_runtime import preload

        preload()
        import xformers._cpp_lib as lib
    except ImportError as error:
        return f"xformers cannot be imported ({error})"
    problem = getattr(lib, "_cpp_library_load_exception", None)
    return f"its extension does not load ({problem})" if problem else ""


def require_xformers(device: torch.device) -> None:
    """Raise ValueError with the remedy unless xFormers' kernels can run on ``device``."""
    if device.type != "cuda":
        raise ValueError("attention 'xformers' needs a GPU: it has no CPU kernels; set attention: sdpa")
    reason = _extension_loaded()
    if reason:
        raise ValueError(
            f"attention 'xformers': {reason}; install requirements.txt (it pins the CUDA 12 runtime) or use sdpa"
        )
