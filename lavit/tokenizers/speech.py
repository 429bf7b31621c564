"""Speech as ids: features of Whisper's encoder, and the nearest of K centres of theirs (TEAL, arXiv 2311.04589)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lavit.data.audio import RATE
from lavit.data.whisper import whisper_folder
from lavit.tokenizers.quantizer import nearest_centres, spherical_kmeans
from lavit.tokens import Tokens
from lavit.weights import fill, read_tensors, write_tensors

HOP = 160  # samples of a frame of the spectrogram; the encoder halves their number
STEPS = 2 * HOP
ROOM = 25  # codes: a sound is padded to a multiple of them, one second with pool 2


@dataclass
class SpeechConfig:
    """Whisper from a Hugging Face ``folder``, by default the packaged base model.

    Features are those after ``layer`` blocks (the paper: 11 of Whisper-small's 12), the mean of every ``pool`` of them,
    20 ms each; ``codes`` centres are found among ``vectors`` of them.
    """

    folder: str | None = None
    layer: int = 5
    pool: int = 2
    codes: int = 512
    vectors: int = 40000
    iterations: int = 20
    batch: int = 16

    @property
    def frames(self) -> int:
        """Frames of 10 ms that a code lasts: the encoder makes one feature of two."""
        return 2 * self.pool


class SpeechTokenizer(nn.Module):
    """Sounds (n,) float32 at 16 kHz to codes. The encoder is frozen; centres are unit vectors of centred features.

    Whisper pads everything to 30 s; here a sound is padded to the next ``ROOM`` codes, which costs a fifteenth for two
    seconds. The encoder attends to what is padded: sounds are padded alike, whatever is beside them in a batch.

    Raises:
        ValueError: a layer that the encoder has not, or a pool below 1 or above what the encoder reads.
    """

    def __init__(self, config: SpeechConfig, encoder: WhisperEncoder | None = None):
        super().__init__()
        self.config = config
        self.encoder = (encoder or open_encoder(config.folder)).eval().requires_grad_(False)
        settings: WhisperConfig = self.encoder.config
        self.longest = settings.max_source_positions // max(1, config.pool)  # codes
        if not 1 <= config.layer <= settings.encoder_layers or config.pool < 1 or not self.longest:
            raise ValueError(
                f"speech.layer is {config.layer} and pool {config.pool}; the encoder has {settings.encoder_layers} "
                f"layers and {settings.max_source_positions} features, of which pool takes at least 1"
            )
        self.mel = WhisperFeatureExtractor(feature_size=settings.num_mel_bins)
        self.register_buffer("mean", torch.zeros(settings.d_model))
        self.register_buffer("codebook", torch.zeros(config.codes, settings.d_model))

    @torch.no_grad()
    def features(self, sounds: Sequence[Tensor]) -> list[Tensor]:
        """(n, D) float32 features of each sound, one for every ``pool`` × 20 ms that it lasts, at least one."""
        span = self.config.pool * STEPS
        found: dict[int, Tensor] = {}
        for codes, numbers in self.by_room([len(sound) for sound in sounds]).items():
            whole = codes * span
            mel = self.mel(
                [sounds[n][:whole].numpy() for n in numbers], sampling_rate=RATE, padding="max_length",
                max_length=whole, truncation=False, return_tensors="pt",
            ).input_features  # fmt: skip
            rows = encoded(self.encoder, mel.to(self.codebook), self.config.layer).float()
            rows = rows.unflatten(1, (codes, self.config.pool)).mean(2)
            found |= {n: row[: max(1, round(len(sounds[n]) / span))] for n, row in zip(numbers, rows, strict=True)}
        return [found[n] for n in range(len(sounds))]

    def by_room(self, lengths: Sequence[int]) -> dict[int, list[int]]:
        """To how many codes sounds of so many samples are padded, and which."""
        rooms: dict[int, list[int]] = {}
        for n, length in enumerate(lengths):
            room = -(-length // (ROOM * self.config.pool * STEPS)) * ROOM
            rooms.setdefault(min(max(room, ROOM), self.longest), []).append(n)
        return rooms

    @torch.no_grad()
    def start_from(self, features: Tensor, seed: int = 0) -> None:
        """Find the centres of features (n, D).

        Raises:
            ValueError: fewer features than codes.
        """
        if len(features) < self.config.codes:
            raise ValueError(
                f"speech.codes is {self.config.codes}, but there are only {len(features)} features; use more sounds or "
                "fewer codes"
            )
        generator = torch.Generator().manual_seed(seed)
        picked = features[torch.randperm(len(features), generator=generator)[: self.config.vectors]]
        self.mean.copy_(picked.mean(0))
        unit = F.normalize(picked - self.mean.cpu(), dim=-1)
        self.codebook.copy_(spherical_kmeans(unit, self.config.codes, self.config.iterations, generator)[0])

    @torch.no_grad()
    def fit(self, features: Tensor) -> dict[str, float]:
        """How well the centres stand for features (n, D): mean cosine, codes in use and their perplexity."""
        near, codes = nearest_centres(F.normalize(features.to(self.mean) - self.mean, dim=-1), self.codebook)
        share = codes.bincount(minlength=len(self.codebook)) / len(codes)
        perplexity = float(torch.exp(torch.special.entr(share).sum()))
        return {"cosine": float(near.mean()), "codes_used": int((share > 0).sum()), "perplexity": perplexity}

    @torch.no_grad()
    def encode(self, sounds: Sequence[Tensor]) -> Tokens:
        """Tokens of sounds: codes (B, N) int64, which are real, features (B, N, D) and positions, in steps of time."""
        found = self.features(sounds)
        features = nn.utils.rnn.pad_sequence(found, batch_first=True)
        position = torch.arange(features.shape[1], device=features.device).expand(len(found), -1)
        keep = position < torch.tensor([len(one) for one in found], device=features.device)[:, None]
        _, codes = nearest_centres(F.normalize(features - self.mean, dim=-1).flatten(0, 1), self.codebook)
        return Tokens(codes.view(keep.shape) * keep, keep, features, position)

    def save(self, path: Path) -> None:
        """Write what was found, the mean and the centres; the encoder stays where it came from."""
        write_tensors({"mean": self.mean, "codebook": self.codebook}, path)

    def load(self, path: Path) -> SpeechTokenizer:
        """Take what :meth:`save` wrote, and return this in evaluation mode.

        Raises:
            ValueError: no such file, a broken one, or centres of another number or width.
        """
        return fill(self, read_centres(path), path, beside="encoder.")


def encoded(encoder: WhisperEncoder, mel: Tensor, layers: int | None = None) -> Tensor:
    """(B, T / 2, D) after so many blocks, by default all, of a spectrogram (B, M, T).

    transformers' own forward asks for the T of 30 s.
    """
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    for block in encoder.layers[:layers]:
        out = block(x, attention_mask=None)
        x = out[0] if isinstance(out, tuple) else out
    return x


def read_centres(path: Path) -> dict[str, Tensor]:
    """What :meth:`SpeechTokenizer.save` wrote: mean (D,) and codebook (K, D).

    Raises:
        ValueError: no such file, or a broken one.
    """
    if not path.is_file():
        raise ValueError(f"no speech tokenizer at {path}; run tokenizer.train_speech first")
    return read_tensors(path, f"remove {path.parent} and run its stage again")


def open_encoder(folder: str | None = None) -> WhisperEncoder:
    """The encoder of a Whisper in a Hugging Face folder, by default the packaged base model.

    Raises:
        ValueError: no such folder.
    """
    path = Path(folder) if folder else whisper_folder()
    if not path.is_dir():
        raise ValueError(f"speech.folder {folder} does not exist; give a Hugging Face folder with a Whisper")
    return WhisperModel.from_pretrained(path, local_files_only=True, dtype=torch.float32).encoder
