"""Opening a picture, whatever file it is in, as RGB; and storing it."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# Pillow would try its other decoders too on a file that names itself so, down to one that starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class ImageError(ValueError):
    """A picture that cannot be read; the message names it and says why."""


def open_image(source: bytes | Path, name: str) -> Image.Image:
    """Decode a picture.

    The first frame of an animation, turned upright by its EXIF orientation, transparency put on white.

    Args:
        source: the file's bytes or its path.
        name: what to call it in an error.

    Returns:
        A loaded image of mode RGB, 8 bits a channel.

    Raises:
        ImageError: missing, empty, truncated, corrupt, not a picture, or over Pillow's pixel limit.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ImageError(f"image '{name}' cannot be read: {error.strerror or error}") from None
    if not data:
        raise ImageError(f"image '{name}' is empty (0 bytes)")
    try:
        with warnings.catch_warnings():  # what it would warn of is an error below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        with image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # Pillow only warns up to twice as many
                raise Image.DecompressionBombError
            image.seek(0)
            image.load()
            return _on_white(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        limit = f"more than Pillow's {Image.MAX_IMAGE_PIXELS // 10**6} megapixels"
        raise ImageError(f"image '{name}' is too large: {limit}; make it smaller") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        reason = f"it is none of {', '.join(FORMATS)}" if "cannot identify" in str(error) else error
        raise ImageError(f"image '{name}' cannot be decoded: {reason}; get it again") from None


def as_image(value: Any, name: str = "image") -> Image.Image:
    """A picture in any of the forms that users have it in, as RGB.

    Args:
        value: a path (str or Path), a file's bytes, a PIL image, an array (H, W), (H, W, 3) or (H, W, 4), or a tensor
            (1, H, W), (3, H, W) or (4, H, W); arrays and tensors hold uint8, or floats in [0, 1].
        name: what to call it in an error, if it is no path.

    Raises:
        ImageError: see :func:`open_image`; also another type, shape or range.
    """
    if isinstance(value, str | Path):
        return open_image(Path(value), str(value))
    if isinstance(value, bytes):
        return open_image(value, name)
    if isinstance(value, Image.Image):
        if 0 in value.size:
            raise ImageError(f"image '{name}' is {value.width}×{value.height} pixels; there is nothing to see")
        try:
            return _on_white(ImageOps.exif_transpose(value))
        except Exception as error:
            raise ImageError(f"image '{name}' cannot be decoded: {error}") from None
    if isinstance(value, Tensor):
        if value.dim() != 3:
            raise ImageError(f"image '{name}' is a tensor {tuple(value.shape)}; give (3, H, W)")
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.cpu().numpy()
        value = value.transpose(1, 2, 0)
    if not isinstance(value, np.ndarray):
        raise ImageError(f"image '{name}' is a {type(value).__name__}; give a path, PIL image, array or tensor")
    return _of_array(value, name)


def _of_array(value: np.ndarray, name: str) -> Image.Image:
    value = value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value
    if not (value.ndim == 2 or value.ndim == 3 and value.shape[2] in (3, 4)) or 0 in value.shape:
        raise ImageError(f"image '{name}' is an array {value.shape}; give (H, W), (H, W, 3) or (H, W, 4)")
    if np.issubdtype(value.dtype, np.floating):
        if not (np.isfinite(value).all() and value.min() >= 0 and value.max() <= 1):
            raise ImageError(f"image '{name}' has floats outside of [0, 1]; scale them, or give uint8")
        value = (value * 255).round().astype(np.uint8)
    if value.dtype != np.uint8:
        raise ImageError(f"image '{name}' holds {value.dtype}; give uint8, or floats in [0, 1]")
    return _on_white(Image.fromarray(value))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a channel, whose range is unknown; convert it to 8 bits")
    if image.mode.startswith("I;16"):  # convert("RGB") clips 16 bits instead of scaling them
        image = image.point(lambda value: value / 257).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def shrink(image: Image.Image, longest: int) -> Image.Image:
    """The image with its longer side at most ``longest`` pixels, aspect kept; never enlarged."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def moved(image: Image.Image, chances: tuple[float, float, float, float]) -> Image.Image:
    """A copy of a picture, turned by up to 10°, at 0.8 to 1.05 times its size, and up to a tenth of it aside.

    What comes into view beside it is white. ``chances`` are four numbers in [0, 1): angle, size, right, down.
    """
    angle = math.radians(20 * chances[0] - 10)
    inverse = 1 / (0.8 + 0.25 * chances[1])
    width, height = image.size
    a, b = inverse * math.cos(angle), inverse * math.sin(angle)
    x, y = (width * (0.5 + 0.2 * (chances[2] - 0.5)), height * (0.5 + 0.2 * (chances[3] - 0.5)))
    affine = (a, b, width / 2 - a * x - b * y, -b, a, height / 2 + b * x - a * y)  # from the copy's places to its
    return image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC, fillcolor="white")


def to_webp(image: Image.Image, quality: int) -> bytes:
    """The image as WebP: lossless at ``quality`` 100, lossy below."""
    stream = io.BytesIO()
    lossless = quality == 100
    # Lossless method 0 is over ten times as fast as the default; its files are 10 to 30 % larger.
    image.save(stream, "WEBP", lossless=lossless, quality=quality, method=0 if lossless else 4)
    return stream.getvalue()
