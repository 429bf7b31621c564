from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
import torch

from lavit.data.audio import RATE, AudioError, as_audio


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def file_of(samples: np.ndarray, rate: int, form: str = "WAV") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=form)
    return out.getvalue()


@pytest.mark.parametrize("form, error", [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.1)])
def test_a_file_becomes_one_channel_at_one_rate(tmp_path, form, error):
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(file_of(np.stack([tone(44100), tone(44100)], 1), 44100, form))
    found = as_audio(path)
    assert found.dtype == torch.float32 and found.shape == (RATE // 2,)
    inner = slice(1000, -1000)  # filters ring at the ends
    assert float((found[inner] - torch.from_numpy(tone(RATE))[inner]).abs().max()) < max(error, 2e-3)
    assert torch.equal(as_audio(str(path)), found) and torch.equal(as_audio(path.read_bytes()), found)


def test_arrays_and_tensors_have_a_rate():
    samples = tone(RATE)
    assert torch.equal(as_audio(samples, rate=RATE), torch.from_numpy(samples))
    assert torch.equal(as_audio(torch.from_numpy(samples), rate=RATE), torch.from_numpy(samples))
    both = np.stack([samples, -samples])
    assert not as_audio(both, rate=RATE).any(), "channels are averaged"
    whole = as_audio((samples * 2**15).astype(np.int16), rate=RATE)
    assert float((whole - torch.from_numpy(samples)).abs().max()) < 1e-4


@pytest.mark.parametrize(
    "value, rate, said",
    [
        (b"", None, "cannot be decoded"),
        (b"this is a text", None, "cannot be decoded"),
        (file_of(tone(RATE), RATE)[:30], None, "cannot be decoded|lasts 0.00 s"),
        (file_of(tone(RATE, 0.01), RATE), None, "lasts 0.01 s; give one of 0.05 to 30 s"),
        (file_of(tone(RATE, 31.0), RATE), None, "lasts 31.00 s"),
        ("gone.wav", None, "'gone.wav' cannot be read: No such file"),
        (tone(RATE), None, "samples without a rate"),
        *((tone(RATE), rate, "samples without a rate") for rate in (0, -16000, float("nan"), "16000")),
        (tone(RATE) * 3, RATE, r"outside of \[-1, 1\]"),
        (np.full(RATE, np.nan, np.float32), RATE, "samples that are not finite"),
        (np.zeros((2, 3, 4), np.float32), RATE, r"is an array \(2, 3, 4\)"),
        (np.zeros(0, np.float32), RATE, r"is an array \(0,\)"),
        (np.zeros(RATE, np.int64), RATE, "holds int64"),
        (3, RATE, "is of type int"),
    ],
)
def test_what_is_no_sound_is_said(value, rate, said):
    with pytest.raises(AudioError, match=said):
        as_audio(value, rate=rate)
