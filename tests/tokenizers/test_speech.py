from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import WhisperConfig, WhisperModel

from lavit.tokenizers.speech import HOP, SpeechConfig, SpeechTokenizer, open_encoder

CONFIG = SpeechConfig(layer=2, pool=2, codes=8, iterations=5)
SPAN = 2 * 2 * HOP


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=30, d_model=16, num_mel_bins=80, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0,
    )  # fmt: skip
    return WhisperModel(config).encoder


@pytest.fixture
def tokenizer(encoder):
    return SpeechTokenizer(CONFIG, encoder)


def sounds(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) * 0.1 for length in lengths]


def test_features_of_thirty_seconds_are_those_of_the_library(encoder, tokenizer):
    (sound,) = sounds(480000)
    mel = tokenizer.mel([sound.numpy()], sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        hidden = encoder(mel, output_hidden_states=True).hidden_states
    layer = SpeechTokenizer(SpeechConfig(layer=1, pool=2, codes=8), encoder)
    expected = hidden[1][0].unflatten(0, (-1, 2)).mean(1)
    torch.testing.assert_close(layer.features([sound])[0], expected, atol=1e-5, rtol=1e-5)


def test_a_sound_has_a_feature_every_forty_milliseconds(tokenizer):
    found = tokenizer.features(sounds(10 * SPAN, 3 * SPAN, SPAN // 4))
    assert [tuple(one.shape) for one in found] == [(10, 16), (3, 16), (1, 16)]


def test_a_sound_has_its_features_whatever_is_beside_it(tokenizer):
    heard = sounds(3 * SPAN, 60 * SPAN, 10 * SPAN, 200 * SPAN, 26 * SPAN)
    for alone, beside in zip(heard, tokenizer.features(heard), strict=True):
        torch.testing.assert_close(tokenizer.features([alone])[0], beside)


def test_a_pool_that_does_not_divide_thirty_seconds(encoder):
    tokenizer = SpeechTokenizer(SpeechConfig(layer=1, pool=7, codes=8), encoder)
    assert [len(one) for one in tokenizer.features(sounds(480000, 479000, 16000))] == [214, 214, 7]


def test_codes_are_the_nearest_centres(tokenizer):
    heard = sounds(*[12 * SPAN] * 6)
    features = torch.cat(tokenizer.features(heard))
    tokenizer.start_from(features)
    torch.testing.assert_close(tokenizer.codebook.norm(dim=-1), torch.ones(8))
    tokens = tokenizer.encode([*heard[:1], heard[1][: 5 * SPAN]])
    assert tokens.codes.shape == tokens.keep.shape == (2, 12) and tokens.keep.sum(1).tolist() == [12, 5]
    unit = F.normalize(tokens.features[0] - tokenizer.mean, dim=-1)
    assert torch.equal(tokens.codes[0], (unit @ tokenizer.codebook.T).argmax(-1))
    assert len(tokens.codes[0].unique()) > 2


def test_more_codes_are_nearer(encoder):
    heard = sounds(*[12 * SPAN] * 6)
    near = []
    for codes in (2, 8, 32):
        tokenizer = SpeechTokenizer(SpeechConfig(layer=2, pool=2, codes=codes), encoder)
        features = torch.cat(tokenizer.features(heard))
        tokenizer.start_from(features)
        unit = F.normalize(features - tokenizer.mean, dim=-1)
        near.append(float((unit @ tokenizer.codebook.T).max(-1).values.mean()))
    assert near == sorted(near) and near[2] > near[0] + 0.05


def test_the_encoder_is_frozen_and_centres_are_saved(tokenizer):
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert {"mean", "codebook"} <= tokenizer.state_dict().keys()


def test_what_cannot_be_is_said(encoder, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="speech.layer is 3 and pool 2; the encoder has 2 layers"):
        SpeechTokenizer(SpeechConfig(layer=3), encoder)
    with pytest.raises(ValueError, match="speech.codes is 8, but there are only 5 features"):
        tokenizer.start_from(torch.randn(5, 16))
    with pytest.raises(ValueError, match="does not exist; give a Hugging Face folder"):
        open_encoder(str(tmp_path / "gone"))
