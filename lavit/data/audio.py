"""Opening a sound, whatever file it is in, as one channel at one rate."""

from __future__ import annotations

import io
import math
import numbers
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from lavit.data.shards import Shards

RATE = 16000  # samples a second, of Whisper
SHORTEST, LONGEST = 0.05, 30.0  # seconds
SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")  # what a folder of sounds is searched for


class AudioError(ValueError):
    """A sound that cannot be read; the message names it and says why."""


def as_audio(value: Any, name: str = "audio", rate: int | None = None) -> Tensor:
    """A sound in any of the forms that users have it in.

    Args:
        value: a path (str or Path) or a file's bytes, of WAV, FLAC, OGG, MP3 and what else libsndfile reads; or samples
            (n,) or (channels, n) of floats in [-1, 1] or of int16, an array or a tensor, with their ``rate``.
        name: what to call it in an error, if it is no path.
        rate: samples a second of an array; files say their own.

    Returns:
        (n,) float32 at 16,000 samples a second, the mean of all channels.

    Raises:
        AudioError: missing, not a sound, too short or too long, samples without a rate, or another shape or type.
    """
    if isinstance(value, str | Path | bytes):
        name = name if isinstance(value, bytes) else str(value)
        try:
            data = value if isinstance(value, bytes) else Path(value).read_bytes()
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        except OSError as error:
            raise AudioError(f"sound '{name}' cannot be read: {error.strerror or error}") from None
        except soundfile.LibsndfileError as error:
            raise AudioError(f"sound '{name}' cannot be decoded: {error.error_string.rstrip('.')}") from None
        samples = samples.mean(1)
    else:
        samples = _mono(value, name)
    if not (isinstance(rate, numbers.Real) and rate > 0):
        raise AudioError(f"sound '{name}' is samples without a rate; give rate=, samples a second")
    seconds = len(samples) / rate
    if not SHORTEST <= seconds <= LONGEST:
        raise AudioError(f"sound '{name}' lasts {seconds:.2f} s; give one of {SHORTEST} to {LONGEST:.0f} s")
    return torch.from_numpy(soxr.resample(samples, rate, RATE) if rate != RATE else samples).contiguous()


def read_sounds(shards: Shards, numbers: Iterable[int]) -> list[Tensor]:
    """The sounds of shards with these numbers, (n,) float32 each; see :func:`as_audio`."""
    return [as_audio(shards.file(n), shards.keys[n]) for n in numbers]


def to_flac(samples: Tensor) -> bytes:
    """A FLAC file of samples (n,) in [-1, 1] at 16,000 a second, which has 16 bits of each."""
    stream = io.BytesIO()
    soundfile.write(stream, samples.numpy(), RATE, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def _mono(value: Any, name: str) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray) or value.ndim not in (1, 2) or not value.size:
        what = f"an array {value.shape}" if isinstance(value, np.ndarray) else f"of type {type(value).__name__}"
        raise AudioError(f"sound '{name}' is {what}; give a path, bytes, or samples (n,) or (channels, n)")
    if value.dtype == np.int16:
        value = value / 2.0**15
    elif not np.issubdtype(value.dtype, np.floating):
        raise AudioError(f"sound '{name}' holds {value.dtype}; give floats in [-1, 1] or int16")
    most = float(np.abs(value).max())
    if not math.isfinite(most):
        raise AudioError(f"sound '{name}' has samples that are not finite")
    if most > 1:
        raise AudioError(f"sound '{name}' has samples outside of [-1, 1]; scale them, or give int16")
    return (value.mean(0) if value.ndim == 2 else value).astype(np.float32)
