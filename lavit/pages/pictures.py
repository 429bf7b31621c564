"""Pictures for the report: chosen by a fixed rule, with the kept patches lit, and small enough to be inlined."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lavit.renderers.diffusion import DiffusionRenderer
from lavit.tokenizers.tokenizer import Tokenizer

SHADE = (38, 46, 66)  # what dropped patches fade into: dark, because most pictures stand on white
FRAME = (255, 122, 26)
BLANK = 2 / 255  # standard deviation of pixels below which nothing is drawn in a patch


def data_uri(image: Image.Image | np.ndarray, lossless: bool = False) -> str:
    """A picture, or its pixels (H, W, 3) uint8, as a WebP that stands in the page itself."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=88, method=4, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def to_image(pixels: Tensor) -> Image.Image:
    """(3, S, S) float32 in [0, 1] as a picture."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def lit(image: Image.Image, keep: np.ndarray, side: int = 256) -> Image.Image:
    """The picture with kept patches at full brightness in a frame, and the dropped ones in the dark.

    Args:
        image: square.
        keep: (G, G) bool, row by row.
        side: about as many pixels, a multiple of G.
    """
    grid = len(keep)
    cell = max(4, side // grid)
    bright = np.asarray(image.resize((cell * grid, cell * grid), Image.Resampling.BICUBIC), dtype=np.float32)
    out = bright * 0.22 + np.array(SHADE, dtype=np.float32) * 0.78
    line = max(1, cell // 16)
    for row, column in np.argwhere(keep):
        y, x = row * cell, column * cell
        out[y : y + cell, x : x + cell] = FRAME
        inside = slice(y + line, y + cell - line), slice(x + line, x + cell - line)
        out[inside] = bright[inside]
    return Image.fromarray(out.round().astype(np.uint8))


@torch.no_grad()
def kept_patches(tokenizer: Tokenizer, inputs: Tensor) -> Tensor:
    """(B, P) bool: which patches of images, or of their features, became tokens, by the positions of the tokens."""
    tokens = tokenizer.encode_features(tokenizer.patch_features(inputs))
    kept = torch.zeros(len(tokens.keep), tokenizer.config.encoder.patches, dtype=torch.bool)
    rows = torch.arange(len(kept))[:, None].expand_as(tokens.keep)
    kept[rows[tokens.keep], tokens.position[tokens.keep]] = True
    return kept


def blank_patches(pixels: Tensor, grid: int) -> Tensor:
    """(B, P) bool of images (B, 3, S, S) in [0, 1]: patches of one colour throughout."""
    size = pixels.shape[-1] // grid * grid
    pixels = pixels if size == pixels.shape[-1] else F.interpolate(pixels, (size, size))
    cells = F.pixel_unshuffle(pixels, size // grid).flatten(2).transpose(1, 2)
    spread = cells.unflatten(2, (3, -1)).std(-1).amax(-1)
    return spread < BLANK


@torch.no_grad()
def linear_drafts(renderer: DiffusionRenderer, features: Tensor) -> list[Image.Image]:
    """What the renderer starts from, where it has a draft: the best linear picture of features (B, P, D)."""
    return [to_image(image) for image in renderer.draft_images(features)]
