"""Frozen timm encoders: pixels to a grid of standardized patch features.

LaVIT reads the last block of EVA-CLIP ViT-g/14 before its final norm (arXiv 2309.04669, section 4); here that is
``layers: [{name: blocks.39}]``. A convolutional encoder may read several layers, each resampled to one grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lavit.config import OneOf
from lavit.data.assets import fetch
from lavit.data.images import shrink
from lavit.weights import fill

LARGEST = 4096  # pixels of the longer side before a picture is padded: one of 60,000 × 1 would take 10 GiB
FITS = ("pad", "stretch")


@dataclass
class LayerConfig:
    """One layer to read: the module's name inside the timm model, its width, and its weight in the tokenizer's loss."""

    name: str
    width: int
    weight: float = 1.0


@dataclass
class WeightsConfig(OneOf):
    """Where the encoder's weights come from: an asset of this project, a local file, or a seeded random start."""

    asset: str | None = None
    file: str | None = None
    random: int | None = None


@dataclass
class EncoderConfig:
    """A frozen timm encoder.

    ``mean`` and ``std`` are in pixel values of [0, 1]. ``clip`` bounds standardized features; 0 leaves them raw
    (no standardization), which is what the paper does. ``fit`` makes a picture square: "pad" with white, or "stretch"
    as the published code does.
    """

    model: str = "tf_efficientnet_lite0"
    weights: WeightsConfig = field(default_factory=lambda: WeightsConfig(asset="lite0-weights"))
    image_size: int = 128
    grid: int = 8
    layers: list[LayerConfig] = field(default_factory=list)
    mean: list[float] = field(default_factory=lambda: [127 / 255] * 3)
    std: list[float] = field(default_factory=lambda: [128 / 255] * 3)
    clip: float = 6.0
    fit: str = "pad"

    @property
    def width(self) -> int:
        return sum(layer.width for layer in self.layers)

    @property
    def patches(self) -> int:
        return self.grid**2


class Encoder(nn.Module):
    """Images (B, 3, S, S) in [0, 1] to features (B, P, D), P = grid², D = the sum of the layers' widths.

    The backbone is frozen and always in evaluation mode. ``standardize_by`` sets the statistics of the features.
    Without ``pretrained`` its weights are left as timm draws them, to be filled from a checkpoint.
    """

    def __init__(self, config: EncoderConfig, pretrained: bool = True):
        super().__init__()
        if not config.layers:
            raise ValueError("tokenizer.encoder.layers is empty; name at least one, e.g. {name: blocks.4, width: 112}")
        if config.fit not in FITS:
            raise ValueError(f"tokenizer.encoder.fit '{config.fit}' is unknown; choose {' or '.join(FITS)}")
        self.config = config
        with torch.random.fork_rng(devices=[]):  # timm draws weights, all of which are replaced
            self.backbone = new_backbone(config)
        if pretrained:
            start_weights(self.backbone, config.weights)
        self.backbone.eval().requires_grad_(False)
        self.register_buffer("pixel_mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("std", torch.ones(config.width))

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Standardized features (B, P, D) float32 of images (B, 3, S, S) in [0, 1]."""
        return self.standardize(self.raw(images))

    @torch.no_grad()
    def raw(self, images: Tensor) -> Tensor:
        """Features (B, P, D) float32 as the backbone gives them, layers concatenated."""
        return self.raw_and_head(images)[0]

    @torch.no_grad()
    def raw_and_head(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw features (B, P, D) and the pooled pre-classifier features (B, C) of retrieval metrics, in one pass."""
        size = self.config.image_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images must be (B, 3, {size}, {size}), tokenizer.encoder.image_size; got {tuple(images.shape)}"
            )
        features, last = self._features_and_last(images)
        return features, self.backbone.forward_head(last, pre_logits=True).float()

    def differentiable(self, images: Tensor) -> Tensor:
        """Raw features (B, P, D) float32 of images (B, 3, S, S), through which gradients reach the images."""
        return self._features_and_last(images)[0]

    def _features_and_last(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs, last = self._layer_outputs((images - self.pixel_mean) / self.pixel_std)
        maps = [self._to_grid(outputs[layer.name], layer) for layer in self.config.layers]
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2).float().contiguous(), last

    def standardize(self, raw: Tensor) -> Tensor:
        """Raw features (..., D) to zero mean and unit variance by training statistics, clipped."""
        if self.config.clip:
            raw = ((raw.float() - self.mean) / self.std).clamp(-self.config.clip, self.config.clip)
        return raw

    def drop_classifier(self) -> None:
        """Leave out the layer that names the classes it was trained on, which nothing here asks for."""
        self.backbone.reset_classifier(0)

    def standardize_by(self, mean: Tensor, std: Tensor) -> None:
        """Set the training statistics, both (D,) float32 of raw features."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(1e-6))

    def _layer_outputs(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        outputs: dict[str, Tensor] = {}
        modules = dict(self.backbone.named_modules())
        hooks = []
        for layer in self.config.layers:
            if layer.name not in modules:
                raise ValueError(f"encoder layer '{layer.name}' is not in timm's {self.config.model}")
            keep = lambda _m, _i, out, name=layer.name: outputs.__setitem__(name, out)  # noqa: E731
            hooks.append(modules[layer.name].register_forward_hook(keep))
        try:
            last = self.backbone.forward_features(pixels)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs, last

    def _to_grid(self, out: Tensor, layer: LayerConfig) -> Tensor:
        grid = self.config.grid
        if out.dim() == 3:  # a transformer's (B, prefix + P, D)
            out = out[:, self.backbone.num_prefix_tokens :]
            if out.shape[1] != grid**2:
                raise ValueError(
                    f"tokenizer.encoder.grid {grid} means {grid**2} patches but {self.config.model} gives "
                    f"{out.shape[1]} patches at image_size {self.config.image_size}"
                )
            out = out.transpose(1, 2).unflatten(2, (grid, grid))
        if out.shape[1] != layer.width:
            raise ValueError(f"encoder layer '{layer.name}' has width {out.shape[1]}, the config says {layer.width}")
        if out.shape[-1] > grid:
            return F.adaptive_avg_pool2d(out, grid)
        if out.shape[-1] < grid:
            return F.interpolate(out, size=(grid, grid), mode="bilinear", align_corners=False)
        return out


def check_encoder(config: EncoderConfig) -> None:
    """Check that model, layers, input size and grid go together, without weights and memory.

    Raises:
        ValueError: they do not; the message names the setting.
    """
    with torch.device("meta"):
        images = torch.empty(1, 3, config.image_size, config.image_size)
        Encoder(config, pretrained=False).raw(images)


def new_backbone(config: EncoderConfig) -> nn.Module:
    """timm's model. Transformers need to be told the input size; convolutional networks refuse the argument.

    Raises:
        ValueError: timm has no such model, or not for this size.
    """
    if not timm.is_model(config.model):
        near = timm.list_models(f"*{config.model[:6]}*")[:5]
        raise ValueError(f"tokenizer.encoder.model '{config.model}' is not one of timm's; near: {', '.join(near)}")
    entry = timm.model_entrypoint(config.model)
    sized = "vision_transformer" in entry.__module__ or entry.__module__.endswith(("eva", "beit", "deit"))
    try:
        return timm.create_model(config.model, **({"img_size": config.image_size} if sized else {}))
    except (AssertionError, TypeError, RuntimeError) as error:
        raise ValueError(f"tokenizer.encoder.model {config.model} at image_size {config.image_size}: {error}") from None


def read_saved(path: Path) -> Any:
    """What torch saved of tensors and plain values, read without running pickled code.

    Raises:
        ValueError: no such file, or one that holds something else.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a cut or foreign file: zip, unpickling and key errors of every kind
        raise ValueError(f"{path} cannot be read as weights ({type(error).__name__}); get it again") from None


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict, also one inside of ``{"model": …}``, read without running pickled code.

    Raises:
        ValueError: no such file, or one that is something else than a dictionary of tensors.
    """
    state = read_saved(path)
    for inner in ("model", "state_dict", "module"):
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds something else than a dictionary of tensors")
    return state


def start_weights(backbone: nn.Module, weights: WeightsConfig) -> None:
    """Fill ``backbone`` in place from an asset, a local state dict, or a seed.

    Raises:
        ValueError: missing, unexpected or differently shaped entries, by name.
    """
    kind, value = weights.chosen()
    if kind == "random":
        generator = torch.Generator().manual_seed(value)
        with torch.no_grad():
            for parameter in backbone.parameters():
                if parameter.dim() > 1:
                    fan_in = parameter[0].numel()
                    parameter.normal_(0, fan_in**-0.5, generator=generator)
        return
    path = next(iter(sorted(Path(fetch(value)).rglob("*.pth"))), None) if kind == "asset" else Path(value)
    if path is None or not path.is_file():
        raise ValueError(f"no encoder weights at {path or value}; set tokenizer.encoder.weights.file to a state dict")
    state = read_state(path)
    if kind == "asset":
        # The package names its layers in its own way, but lists the same tensors in the same order as timm.
        state = dict(zip(backbone.state_dict(), state.values(), strict=True))
    fill(backbone, state, path)


def scaled(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] to (B, 3, size, size), as they are where they have that size."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def to_pixels(image: Image.Image, size: int, fit: str = "pad") -> Tensor:
    """An RGB image as (3, size, size) float32 in [0, 1], bicubic; padded with white to a square, or stretched to it."""
    if fit == "pad" and image.width != image.height:
        image = shrink(image, LARGEST)
        square = Image.new("RGB", (max(image.size),) * 2, (255, 255, 255))
        square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
        image = square
    resized = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized, dtype=np.float32) / 255).permute(2, 0, 1)
