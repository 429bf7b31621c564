"""s(I, k): how much a word says of a picture, by two encoders with a common space, and the words that say enough.

SPAE (arXiv 2306.17842) takes CLIP's encoders. Where there is no CLIP, an *alignment* stands in its place: a ridge
regression from a frozen image encoder's pooled features to a frozen sentence encoder's vectors of the training
captions. It has seen a few thousand pictures and not hundreds of millions; evaluation tells how good it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from lavit.weights import open_whole, opening

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BATCH = 256


@dataclass
class RelevanceConfig:
    """``clip``: a local folder of transformers' CLIPModel with its tokenizer; without one the alignment is fitted.

    A word's vector is the mean over ``templates``, in each of which ``{}`` stands for the word. ``ridge`` weighs the
    squared weights of the alignment, beside squared errors that are a mean over pictures.
    """

    clip: str | None = None
    templates: list[str] = field(default_factory=lambda: ["{}", "a picture of {}"])
    ridge: float = 0.3


def check_relevance(config: RelevanceConfig, key: str) -> None:
    """Raises ValueError for no templates, one without a place for the word, or a weight that cannot be."""
    if not config.templates or any(text.count("{}") != 1 for text in config.templates):
        raise ValueError(f"{key}.templates {config.templates}: give some, each with one {{}} for the word")
    if not 0 < config.ridge < math.inf:
        raise ValueError(f"{key}.ridge is {config.ridge}; it must be above 0")


class Alignment(NamedTuple):
    """A linear map of pooled features. mean, std (F,), map (F, E), all float32; centre (E,), the mean sentence."""

    mean: Tensor
    std: Tensor
    map: Tensor
    centre: Tensor

    def __call__(self, pooled: Tensor) -> Tensor:
        """(n, F) pooled features to (n, E) unit vectors: what of the mean sentence the picture is beyond."""
        return F.normalize((pooled - self.mean) / self.std @ self.map, dim=-1)


def fit_alignment(pooled: Tensor, sentences: Tensor, ridge: float) -> Alignment:
    """Ridge regression of sentence vectors (n, E) on standardized pooled features (n, F), both centred, in float64."""
    mean, std = pooled.mean(0), pooled.std(0, correction=0).clamp_min(1e-6)
    x, centre = ((pooled - mean) / std).double(), sentences.mean(0)
    gram = x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x.T @ (sentences - centre).double() / len(x))
    return Alignment(mean, std, weights.float(), centre)


def centred(vectors: Tensor) -> Tensor:
    """(n, E) vectors less their mean, of length one: what tells one text from the usual one."""
    return F.normalize(vectors - vectors.mean(0), dim=-1)


def in_templates(words: Sequence[str], templates: Sequence[str]) -> list[str]:
    """The texts whose vectors a word's is the mean of, template by template."""
    return [text.format(word) for text in templates for word in words]


def mean_over_templates(vectors: Tensor, templates: int) -> Tensor:
    """(templates · K, E) unit vectors to (K, E), their means."""
    return vectors.unflatten(0, (templates, -1)).mean(0)


class Clip:
    """CLIP of a local folder, which the setting ``key`` names; on the CPU, unless it is moved.

    Raises:
        ValueError: there is none, it holds another model, or transformers cannot open it.
    """

    def __init__(self, folder: str, key: str = "pyramid.relevance.clip"):
        with opening(folder, key, "CLIP"):
            kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            if kind != "clip":
                raise ValueError(f"its model_type is {kind}")
            self.model = open_whole(CLIPModel, folder)
            self.text = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.image_size = self.model.config.vision_config.image_size

    def to(self, device: torch.device | str) -> Self:
        """The same, moved there."""
        self.model.to(device)
        return self

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1] of RGB pictures, as CLIP is shown them: the shorter side to S by bicubic
        resampling, and of the longer one its middle."""
        size = self.image_size
        found = []
        for picture in pictures:
            scale = size / min(picture.size)
            width, height = (max(size, int(side * scale)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            left, top = (width - size) // 2, (height - size) // 2
            found.append(np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32))
        return torch.from_numpy(np.stack(found) / 255).permute(0, 3, 1, 2)

    @torch.no_grad()
    def images(self, batches: Iterable[Tensor]) -> Tensor:
        """(n, E) unit vectors, on the CPU, of batches of pictures (B, 3, S, S) in [0, 1], S its ``image_size``."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        inputs = (((pixels - mean) / std).to(self.model.device) for pixels in batches)
        found = [self.model.visual_projection(self.model.vision_model(part).pooler_output).cpu() for part in inputs]
        return F.normalize(torch.cat(found), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, E) unit vectors, on the CPU, of texts; what is longer than CLIP reads is cut."""
        found, longest = [], self.model.config.text_config.max_position_embeddings
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            read = self.text(part, return_tensors="pt", padding=True, truncation=True, max_length=longest)
            read = read.to(self.model.device)
            found.append(self.model.text_projection(self.model.text_model(**read).pooler_output).cpu())
        return F.normalize(torch.cat(found), dim=-1)


def relevance(images: Tensor, words: Tensor) -> Tensor:
    """s(I, k) (B, K) in [0, 1]: cosines of unit vectors (B, E) and (K, E), brought to [0, 1] in each picture."""
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        found = images.float() @ words.float().T
        low, high = found.amin(1, keepdim=True), found.amax(1, keepdim=True)
        return (found - low) / (high - low).clamp_min(1e-12)


def pools(scores: Tensor, thresholds: Sequence[float]) -> list[Tensor]:
    """For each threshold ρ the candidates C(I) = {k: s(I, k) ≥ ρ} as (B, K) bool; the best word is in all of them."""
    best = scores >= scores.amax(1, keepdim=True)
    return [(scores >= rho) | best for rho in thresholds]
