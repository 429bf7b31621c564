from __future__ import annotations

import pytest
import torch

from lavit.data.audio import RATE as HEARD
from lavit.renderers import vocoder as module
from lavit.renderers.vocoder import Spectrogram, Vocoder, VocoderConfig, VocoderObjective, vocoder_batch
from lavit.tokenizers.speech import HOP, SpeechConfig

CONFIG = VocoderConfig(width=16, blocks=2, mels=20, window=512, iterations=8)
CENTRES = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=-1)


def tone(pitch: float, count: int = 8000) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * pitch * torch.arange(count) / HEARD)


@pytest.fixture
def vocoder() -> Vocoder:
    return Vocoder(CONFIG, CENTRES, frames=4)


def test_a_frame_is_that_of_the_speech_tokenizer():
    assert (module.RATE, module.HOP) == (HEARD, HOP) and SpeechConfig(pool=3).frames == 6


def test_the_loudest_band_of_a_tone_is_that_of_its_pitch():
    spectrogram = Spectrogram(40, 1024)
    loudest = [int(spectrogram(tone(pitch)).mean(1).argmax()) for pitch in (200.0, 800.0, 3200.0)]
    assert loudest == sorted(set(loudest))
    centre = torch.arange(spectrogram.bank.shape[1]) * HEARD / 1024
    for pitch, band in zip((200.0, 800.0, 3200.0), loudest, strict=True):
        row = spectrogram.bank[band]
        assert abs(float((row * centre).sum() / row.sum()) - pitch) < 0.2 * pitch


def test_griffin_lim_gives_a_sound_of_the_same_spectrogram():
    spectrogram = Spectrogram(80, 1024)
    sound = tone(440.0) + 0.3 * tone(1760.0)
    logs = spectrogram(sound)
    rebuilt = spectrogram.sound(logs, 64)
    assert len(rebuilt) == logs.shape[1] * HOP
    loud = logs > logs.max() - 6
    error = (spectrogram(rebuilt)[:, : logs.shape[1]] - logs).abs()[loud].mean()
    noise = (spectrogram(torch.randn(len(sound)) * sound.std())[:, : logs.shape[1]] - logs).abs()[loud].mean()
    assert error < 0.35 and error < noise / 3
    assert torch.equal(spectrogram.sound(logs, 4, 1), spectrogram.sound(logs, 4, 1))


def test_magnitudes_come_near_to_the_mel_bands():
    spectrogram = Spectrogram(40, 1024)
    mels = spectrogram(tone(500.0)).exp()
    found = spectrogram.magnitude(mels)
    assert float(found.min()) >= 0
    assert float((spectrogram.bank @ found - mels).norm() / mels.norm()) < 0.05


def test_codes_become_so_many_frames_and_what_is_not_kept_says_nothing(vocoder):
    codes, keep = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    assert vocoder(codes, keep).shape == (2, 20, 12)
    other = codes.clone()
    other[1, 2] = 3
    assert torch.equal(vocoder(codes, keep), vocoder(other, keep))
    sounds = vocoder.sounds([torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)], [0, 1])
    assert [len(sound) for sound in sounds] == [2 * 4 * HOP, 0]


def test_the_error_is_the_mean_over_real_frames(vocoder):
    codes, keep = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[True] * 3, [True, False, False]])
    sounds = [tone(300.0, 12 * HOP), tone(600.0, 4 * HOP)]
    batch = vocoder_batch(vocoder, codes, keep, sounds)
    assert batch.real.sum(1).tolist() == [12, 4] and batch.wanted.shape == (2, 20, 12)
    torch.testing.assert_close(batch.wanted[1, :, :4], vocoder.spectrogram(sounds[1])[:, :4])
    found = VocoderObjective(vocoder)(batch).loss
    with torch.no_grad():
        made = vocoder(codes, keep)
    one, two = (made[0] - batch.wanted[0]).abs().mean(0), (made[1] - batch.wanted[1]).abs().mean(0)[:4]
    torch.testing.assert_close(found, torch.cat([one, two]).mean())


def test_it_learns_which_code_is_which_tone(vocoder):
    codes, keep = torch.tensor([[n] * 6 for n in range(3)]), torch.ones(3, 6, dtype=torch.bool)
    batch = vocoder_batch(vocoder, codes, keep, [tone(200.0 * 3**n, 24 * HOP) for n in range(3)])
    objective = VocoderObjective(vocoder)
    optimizer = torch.optim.Adam(vocoder.parameters(), 0.01)
    first = objective(batch).loss.item()
    for _ in range(60):
        optimizer.zero_grad()
        objective(batch).loss.backward()
        optimizer.step()
    assert objective(batch).loss.item() < first / 4
    wrong = batch._replace(codes=codes.roll(1, 0))
    assert objective(wrong).loss > 2 * objective(batch).loss
    assert torch.equal(vocoder.centres, CENTRES)
