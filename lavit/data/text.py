"""The language model's text tokenizer: one from a Hugging Face folder, or one made from the captions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lavit.config import OneOf
from lavit.data.words import BEGIN, END, WordsConfig


@dataclass
class TrainedTextConfig:
    """A byte-level BPE with at most ``vocabulary`` pieces, trained on the training texts."""

    vocabulary: int = 3000


@dataclass
class TextTokenizerConfig(OneOf):
    """One trained on the training texts, that of a Hugging Face folder, or the one of a packaged language model.

    With ``words`` whole words are tokens, and a language model from scratch begins with what a sentence encoder knows
    of them (:mod:`lavit.data.words`).
    """

    trained: TrainedTextConfig | None = None
    words: WordsConfig | None = None
    folder: str | None = None
    asset: str | None = None


def train_text_tokenizer(texts: Iterable[str], config: TrainedTextConfig) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every string can be written, so a caption is never 'unknown'.

    Raises:
        ValueError: a vocabulary that does not even hold the bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + 2
    if config.vocabulary < least:
        raise ValueError(f"text.trained.vocabulary {config.vocabulary} is too small: the bytes alone take {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[BEGIN, END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END)


def open_text_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder.

    Raises:
        ValueError: no tokenizer there, or one without begin and end tokens.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"no text tokenizer folder {folder}; give a folder that holds tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} holds no text tokenizer that can be read ({reason})") from None
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ValueError(f"the text tokenizer in {folder} has no begin or no end token")
    return tokenizer
