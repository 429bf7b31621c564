"""Speech to text by a Whisper of its own: what judges whether speech that was made can be understood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from lavit.data.audio import RATE
from lavit.tokenizers.speech import STEPS, encoded

BATCH, MOST = 16, 48  # sounds at a time; tokens of a transcript


class Recogniser:
    """A Whisper of a Hugging Face folder, which writes down what is said in a language, token by likeliest token.

    Whisper was trained on 30 s, mostly silence. Here it reads ``seconds`` at least; of much less it repeats itself.

    Raises:
        ValueError: no such folder, or a language that it does not know.
    """

    def __init__(self, folder: str | Path, language: str, seconds: int = 10):
        self.seconds = seconds
        if not Path(folder).is_dir():
            raise ValueError(f"evaluation.recogniser {folder} does not exist; give a Hugging Face folder of a Whisper")
        self.model = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
        self.mel = WhisperFeatureExtractor(feature_size=self.model.config.num_mel_bins)
        self.text = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        names = ("<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>")
        self.start = [self.text.convert_tokens_to_ids(name) for name in names]
        known = self.text.get_vocab()
        if names[1] not in known:
            raise ValueError(f"evaluation.language '{language}' is unknown to {folder}; give a code such as es")
        self.end = known["<|endoftext|>"]

    @torch.no_grad()
    def transcribe(self, sounds: Sequence[Tensor]) -> list[str]:
        """What is said in sounds (n,) float32 at 16,000 samples a second; nothing in one of no samples."""
        out = [""] * len(sounds)
        order = sorted((n for n in range(len(sounds)) if len(sounds[n])), key=lambda n: len(sounds[n]))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            for number, text in zip(part, self._batch([sounds[n] for n in part]), strict=True):
                out[number] = text
        return out

    def _batch(self, sounds: list[Tensor]) -> list[str]:
        longest = min(max(RATE * self.seconds, *map(len, sounds)), 30 * RATE)
        mel = self.mel(
            [sound.numpy() for sound in sounds], sampling_rate=RATE, padding="max_length",
            max_length=-(-longest // STEPS) * STEPS, truncation=True, return_tensors="pt",
        ).input_features  # fmt: skip
        encoder = self.model.model.encoder
        states = encoder.layer_norm(encoded(encoder, mel))
        ids, written = torch.tensor([self.start] * len(sounds)), [[] for _ in sounds]
        cache, done = EncoderDecoderCache(DynamicCache(), DynamicCache()), [False] * len(sounds)
        for _ in range(MOST):
            hidden = self.model.model.decoder(
                input_ids=ids, encoder_hidden_states=states, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            logits = self.model.proj_out(hidden)
            logits[:, self.end + 1 :] = -torch.inf  # languages, tasks and times
            ids = logits.argmax(-1, keepdim=True)
            for row, number in enumerate(ids[:, 0].tolist()):
                done[row] |= number == self.end
                if not done[row]:
                    written[row].append(number)
            if all(done):
                break
        return [self.text.decode(row).strip() for row in written]
