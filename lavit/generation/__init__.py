"""Constrained generation from the language model: batched, with a KV cache and classifier-free guidance."""

from lavit.generation.images import draw_codes
from lavit.generation.interleaved import write_interleaved
from lavit.generation.likelihood import continuation_likelihood, log_likelihood
from lavit.generation.plans import ImagePlan, TextPlan
from lavit.generation.text import write_text

__all__ = [
    "ImagePlan",
    "TextPlan",
    "continuation_likelihood",
    "draw_codes",
    "log_likelihood",
    "write_interleaved",
    "write_text",
]
