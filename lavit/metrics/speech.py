"""Speech: error rates of what was written down of it."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer

_SAID = jiwer.Compose([
    jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()
])  # fmt: skip


def plain_text(text: str) -> str:
    """What is compared: lower case, no punctuation, single blanks."""
    return _SAID(text.replace("¡", "").replace("¿", ""))


def error_rates(written: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """Character and word error rate, ``cer`` and ``wer``, ≥ 0: edits of all texts by the length of the true ones.

    Raises:
        ValueError: no texts, another number of true ones, or true ones with nothing to compare.
    """
    if not truth or len(written) != len(truth):
        raise ValueError(f"{len(written)} texts and {len(truth)} true ones; give one of each for every sound")
    right, said = [plain_text(text) for text in truth], [plain_text(text) for text in written]
    if empty := [text for text, plain in zip(truth, right, strict=True) if not plain]:
        raise ValueError(f"the true text {empty[0]!r} has no letters to compare; leave it out")
    return {"cer": jiwer.cer(right, said), "wer": jiwer.wer(right, said)}
