"""A vocabulary of whole words, with what a sentence encoder knows of each.

A small language model that is trained from nothing on a few thousand captions has never read most words that a user
may write. Whole words with the vectors of a sentence encoder let it draw what is meant like something that it knows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lavit.data.sentences import encoder_folder, sentence_vectors

BEGIN, END, SPACE = "<s>", "</s>", "▁"
PIECES = 600  # of two and three letters, for words that are not among the whole ones
_WORD = re.compile(r"[a-z]{2,}")


@dataclass
class WordsConfig:
    """``vocabulary`` tokens: bytes, pieces, the words of the training texts, and the commonest of the encoder's."""

    vocabulary: int = 12000


def train_word_tokenizer(texts: Iterable[str], config: WordsConfig) -> PreTrainedTokenizerFast:
    """Whole lower-case words as one id each; everything else is spelled in short pieces, letters and bytes.

    Raises:
        ValueError: a vocabulary that does not hold the training texts' words.
        AssetError: the sentence encoder's vocabulary cannot be fetched.
    """
    lines = (_encoder_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    known = [word for word in lines if _WORD.fullmatch(word)]
    own = sorted({word for text in texts for word in re.findall(r"[A-Za-z]{2,}", text)})
    inside = Counter(word[i : i + n] for word in known for n in (2, 3) for i in range(1, len(word) - n + 1))
    letters = [chr(code) for code in range(33, 127)]
    # A whole word is likelier than any two pieces, and a longer piece than two shorter ones.
    scored = {BEGIN: 0.0, END: 0.0} | {f"<0x{byte:02X}>": -30.0 for byte in range(256)} | {SPACE: -14.0}
    scored |= dict.fromkeys(letters, -14.0) | dict.fromkeys((SPACE + letter for letter in letters), -12.0)
    scored |= {piece: -13.0 for piece, _ in inside.most_common(PIECES)}
    room = config.vocabulary - len(scored)
    if len(own) > room:
        raise ValueError(f"text.words.vocabulary {config.vocabulary} is too small: the texts have {len(own)} words "
                         f"besides {len(scored)} pieces")  # fmt: skip
    words = list(dict.fromkeys([*own, *known]))[:room]
    scored |= {SPACE + word: -10.0 for word in words}
    tokenizer = Tokenizer(models.Unigram(list(scored.items()), unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END)


@torch.no_grad()
def word_vectors(tokenizer: PreTrainedTokenizerBase, width: int, std: float) -> tuple[Tensor, Tensor]:
    """Vectors of the whole words of a vocabulary: the sentence encoder's, turned at random and cut to ``width``.

    The first ``width`` principal components are kept, 95 % of the variance at 256 of 384.

    Returns:
        ids (n,) int64 of the whole words, and their vectors (n, width) float32 of the standard deviation ``std``.

    Raises:
        ValueError: more dimensions than the encoder's vectors have.
        AssetError: the sentence encoder cannot be fetched.
    """
    folder = _encoder_folder()
    most = AutoConfig.from_pretrained(folder).hidden_size
    if width > most:
        raise ValueError(f"pretrain.model.llm has width {width}, wider than the words' vectors; {most} is the most")
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    ids = [i for i, piece in enumerate(pieces) if piece.startswith(SPACE) and len(piece) > 2]
    vectors = sentence_vectors([pieces[i][1:] for i in ids], folder)
    vectors = vectors - vectors.mean(0)
    axes = torch.linalg.svd(vectors, full_matrices=False).Vh[:width]
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0))).Q
    vectors = vectors @ axes.T @ turn[: len(axes)]
    return torch.tensor(ids), vectors * (std / vectors.std())


def _encoder_folder() -> Path:
    return encoder_folder()
