from __future__ import annotations

import pytest
import torch

from lavit.tokenizers.recogniser import Recogniser
from tests.runs.test_teal_speech import write_whisper


def test_a_recogniser_writes_what_the_library_would(tmp_path):
    judge = Recogniser(write_whisper(tmp_path / "whisper"), "es")
    sounds = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.1 for n in (9000, 16000)]
    found = judge.transcribe([*sounds, torch.zeros(0)])
    assert found[2] == "" and len(found) == 3
    judge.seconds = 30
    mel = judge.mel([s.numpy() for s in sounds], sampling_rate=16000, return_tensors="pt").input_features
    ids = torch.tensor([judge.start] * 2)
    with torch.no_grad():
        for _ in range(8):
            logits = judge.model(input_features=mel, decoder_input_ids=ids).logits[:, -1]
            logits[:, judge.end + 1 :] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    for text, row in zip(judge.transcribe(sounds), ids[:, 4:].tolist(), strict=True):
        said = row[: row.index(judge.end)] if judge.end in row else row
        assert text.startswith(judge.text.decode(said).strip()) and (said or not text)


def test_an_unknown_language_or_folder(tmp_path):
    folder = write_whisper(tmp_path / "whisper")
    with pytest.raises(ValueError, match="'xx' is unknown"):
        Recogniser(folder, "xx")
    with pytest.raises(ValueError, match="does not exist"):
        Recogniser(tmp_path / "gone", "es")
