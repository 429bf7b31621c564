"""SPAE's autoencoder: pixels to words of a frozen language model, layer by layer, and any prefix of them to pixels.

Source: arXiv 2306.17842, section 3. Encoder and decoder are those of diffusers' VAEs, which are VQGAN's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

from lavit.tokenizers.encoders import scaled
from lavit.tokenizers.pyramid import RULES, Named, PyramidLayers, PyramidQuantizer
from lavit.tokens import Tokens


@dataclass
class PyramidConfig:
    """Shape of the autoencoder.

    ``sides`` are the places a side of each layer. An entry of ``channels`` is a resolution, halved between them;
    ``fold`` brings squares of so many pixels a side into channels before, for small machines. With ``pooled`` the
    latents also get what the tokenizer's frozen encoder knows of the whole picture, by a linear map and with a weight a
    place: ours, for training of minutes; the paper's encoder has pixels alone and 450,000 steps.
    """

    image_size: int = 128
    sides: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 16])
    quantizer: str = "average"
    channels: list[int] = field(default_factory=lambda: [128, 256, 256, 512])
    layers: int = 2
    groups: int = 32
    fold: int = 1
    pooled: bool = False


def check_pyramid(config: PyramidConfig, key: str) -> PyramidLayers:
    """The geometry of a configuration.

    Raises:
        ValueError: layers, sizes or a quantizer that do not go together.
    """
    layers = PyramidLayers(config.sides)
    if config.quantizer not in RULES:
        raise ValueError(f"{key}.quantizer '{config.quantizer}' is unknown; choose {', '.join(RULES)}")
    factor = config.fold * 2 ** (len(config.channels) - 1)
    if config.fold < 1 or config.image_size != layers.side * factor:
        raise ValueError(
            f"{key}: image_size {config.image_size} must be the last side {layers.side} × {factor}, of fold "
            f"{config.fold} and {len(config.channels)} channels; change one of them"
        )
    if any(width % config.groups for width in config.channels):
        raise ValueError(f"{key}.groups {config.groups} must divide channels {config.channels}")
    return layers


class WholePicture(nn.Module):
    """Adds a picture's pooled features (B, F) to its latents (B, C, h, h), each with weights by place and channel.

    They begin at the places of the layers that are coarser than the grid, which are to say what there is. At all places
    they would take the room of what is to be seen there.
    """

    def __init__(self, features: int, width: int, layers: PyramidLayers):
        super().__init__()
        coarse = sum(count for count, side in zip(layers.counts, layers.sides, strict=True) if side < layers.side)
        upper = (layers.held(coarse) > 0).float().view(layers.side, layers.side)
        self.norm, self.proj = nn.LayerNorm(features), nn.Linear(features, width)
        self.of_place = nn.Parameter(torch.ones(width, *upper.shape))
        self.of_picture = nn.Parameter(upper.expand(width, -1, -1).clone())

    def forward(self, latents: Tensor, pooled: Tensor) -> Tensor:
        return latents * self.of_place + self.proj(self.norm(pooled))[..., None, None] * self.of_picture


class PyramidTokenizer(nn.Module):
    """Pictures to words and back.

    Args:
        config: the shape.
        codebook: (K, C) float32, frozen; kept with the weights.
        pooled: F, the width of pooled features; needed where ``config.pooled``.
        seed: of the weights.
        frozen: the image encoder that makes pooled features, for :meth:`encode`; no part of this module.
    """

    def __init__(
        self, config: PyramidConfig, codebook: Tensor, pooled: int = 0, seed: int = 0, frozen: nn.Module | None = None
    ):
        super().__init__()
        self.config = config
        self.geometry = check_pyramid(config, "pyramid.model")
        width, levels = codebook.shape[1], len(config.channels)
        shape = {
            "block_out_channels": tuple(config.channels),
            "layers_per_block": config.layers,
            "norm_num_groups": config.groups,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            colours = 3 * config.fold**2
            down = ("DownEncoderBlock2D",) * levels
            self.encoder = Encoder(colours, width, down, **shape, double_z=False)
            self.decoder = Decoder(width, colours, ("UpDecoderBlock2D",) * levels, **shape)
            self.whole = WholePicture(pooled, width, self.geometry) if config.pooled else None
        self.quantizer = PyramidQuantizer(self.geometry, codebook, config.quantizer)
        self._beside = (frozen,)

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(h, w) of each layer."""
        return [(side, side) for side in self.geometry.sides]

    @property
    def counts(self) -> list[int]:
        """Tokens of each layer."""
        return self.geometry.counts

    def latents(self, images: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1], with pooled features (B, F) where they are read, to (B, C, side, side)."""
        latents = self.encoder(F.pixel_unshuffle(images, self.config.fold))
        return latents if self.whole is None else self.whole(latents, pooled)

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents (B, C, side, side), quantized, to images (B, 3, S, S), about [-1, 1]."""
        return F.pixel_shuffle(self.decoder(latents), self.config.fold)

    def name(self, images: Tensor, pooled: Tensor | None = None) -> Named:
        """The words of images (B, 3, S, S) in [-1, 1], with all that :class:`Named` tells."""
        return self.quantizer(self.latents(images, pooled))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tokens:
        """Images (B, 3, H, H) in [0, 1] of any size to tokens: codes (B, N) layer by layer, each layer row by row.

        Raises:
            ValueError: the frozen encoder is needed and was not given.
        """
        pooled = None
        if self.whole is not None:
            if self._beside[0] is None:
                raise ValueError("pyramid.model.pooled is set and the image encoder was not given: it cannot encode")
            encoder = self._beside[0].eval().to(images.device)
            pooled = encoder.raw_and_head(scaled(images, encoder.config.image_size))[1]
        return self.quantizer.tokens(self.name(scaled(images, self.config.image_size) * 2 - 1, pooled))

    @torch.no_grad()
    def decode_prefix(self, codes: Tensor) -> Tensor:
        """(B, n) int64 codes of the first n tokens, 1 ≤ n ≤ N, to pixels (B, 3, S, S) float32 in [0, 1].

        Raises:
            ValueError: see :meth:`PyramidQuantizer.latents`.
        """
        return (self.pixels(self.quantizer.latents(codes)).float().clamp(-1, 1) + 1) / 2
