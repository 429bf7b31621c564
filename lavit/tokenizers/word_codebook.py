"""The words of a frozen language model as a codebook: which ids of its text vocabulary, and which vectors.

SPAE (arXiv 2306.17842) quantizes pictures with the word embeddings of the language model that will read them. Only
whole words are taken that survive the text tokenizer: an id becomes text and that text the same single id again, so
that a picture's words can be written into a prompt and read back.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lavit.runs import read_json, write_json

SPACES = ("Ġ", "▁")  # with which a piece begins that begins a word: of byte-level BPE, of sentencepiece
EMBEDDING = "embed_tokens.weight"


@dataclass
class WordCodebookConfig:
    """Which words, and their vectors.

    The first ``most`` whole words of the vocabulary with ``letters`` letters or more, which in a BPE are its commonest,
    or those of ``file``, one a line. Their vectors are the language model's input embeddings, or the rows of
    ``vectors``, an .npy file (K, D) of floats in the order of the words.

    They are centred, turned to their principal axes, cut to ``width``, brought to variance one along each axis and to
    ``length`` each. The map is computed from the words and fixed: latents as wide as an embedding would be dear, the
    leading axes keep most of who is whose neighbour, and without equal variances (as without equal lengths) a few axes
    that tell how common a word is would decide every distance.
    """

    most: int = 8192
    letters: int = 3
    width: int = 64
    length: float = 3.0
    file: str | None = None
    vectors: str | None = None


class WordList(NamedTuple):
    """ids (K,) int64 of a language model's text vocabulary and words, K strings without spaces; both in the order of
    the codes."""

    ids: Tensor
    words: list[str]

    def save(self, path: Path) -> None:
        write_json(path, {"ids": self.ids.tolist(), "words": self.words})

    @classmethod
    def load(cls, path: Path) -> WordList:
        found = read_json(path)
        return cls(torch.tensor(found["ids"], dtype=torch.int64), found["words"])


def check_word_codebook(config: WordCodebookConfig, key: str) -> None:
    """Raises ValueError for sizes that cannot be."""
    if config.most < 2 or config.width < 1 or config.letters < 1 or not config.length > 0:
        raise ValueError(
            f"{key}: most {config.most} must be at least 2, width {config.width} and letters {config.letters} at least "
            f"1, length {config.length} above 0"
        )


def word_list(text: PreTrainedTokenizerBase, config: WordCodebookConfig) -> WordList:
    """The words that a configuration chooses of a text tokenizer's vocabulary.

    Raises:
        ValueError: a file that is missing, or has a line that is not one token and the same one again, with the word;
            or fewer than two words.
    """
    if config.file is not None:
        return _words_of_file(text, Path(config.file))
    pieces = text.convert_ids_to_tokens(list(range(len(text))))
    shape = re.compile(f"[a-z]{{{config.letters},}}")
    ids = [i for i, piece in enumerate(pieces) if piece.startswith(SPACES) and shape.fullmatch(piece[1:])]
    kept = [i for i, again in zip(ids, _read_back(text, ids), strict=True) if again == [i]][: config.most]
    if len(kept) < 2:
        raise ValueError(f"pyramid.words: the text vocabulary has {len(kept)} whole words of {config.letters} letters; "
                         "lower letters, or take another language model")  # fmt: skip
    return WordList(torch.tensor(kept), [pieces[i][1:] for i in kept])


def _read_back(text: PreTrainedTokenizerBase, ids: list[int]) -> list[list[int]]:
    """The ids of what each id decodes to."""
    written = [text.decode([i]) for i in ids]
    return text(written, add_special_tokens=False)["input_ids"] if written else []


def _words_of_file(text: PreTrainedTokenizerBase, path: Path) -> WordList:
    if not path.is_file():
        raise ValueError(f"pyramid.words.file: no file {path}; write the words there, one a line")
    ids: list[int] = []
    words: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"pyramid.words.file: {path} is no text in UTF-8; write it so") from None
    for number, line in enumerate(lines, start=1):
        if not (word := line.strip()):
            continue
        where = f"pyramid.words.file: {path}, line {number}: '{word}'"
        # Within a text a word begins with a space, which sentencepiece adds by itself.
        spelled = [text(form, add_special_tokens=False)["input_ids"] for form in (f" {word}", word)]
        single = [found for found in spelled if len(found) == 1]
        if [text.unk_token_id] in single:
            raise ValueError(f"{where} is unknown to the language model's text tokenizer; take it out")
        one = next((found for found in single if _read_back(text, found) == [found]), None)
        if one is None and single:
            raise ValueError(f"{where} is one token, but comes back from the text tokenizer as "
                             f"'{text.decode(single[0]).strip()}'; take it out")  # fmt: skip
        if one is None:
            raise ValueError(f"{where} is {len(spelled[0])} tokens of the language model's text vocabulary, not one; "
                             "take it out, or a word in its place that is one token")  # fmt: skip
        if one[0] in ids:
            raise ValueError(f"{where} is there twice, as '{words[ids.index(one[0])]}' before; take one of them out")
        ids.append(one[0])
        words.append(word)
    if len(ids) < 2:
        raise ValueError(f"pyramid.words.file: {path} has {len(ids)} words; a codebook needs at least two")
    return WordList(torch.tensor(ids), words)


def word_vectors(folder: Path, chosen: WordList, config: WordCodebookConfig) -> Tensor:
    """The codebook (K, width) float32 of chosen words; ``folder`` is the language model's.

    Raises:
        ValueError: a file of vectors or an embedding that does not go with the words.
    """
    if config.vectors is not None:
        rows = _vectors_of_file(Path(config.vectors), len(chosen.ids))
    else:
        table = embedding_of(folder)
        if int(chosen.ids.max()) >= len(table):
            raise ValueError(
                f"{folder}: the text vocabulary has an id {int(chosen.ids.max())} and the embedding {len(table)} rows; "
                "tokenizer and weights are of two models: set pretrain.text and pretrain.model.llm alike"
            )
        rows = table[chosen.ids].float()
    return standardized(rows, config.width, config.length)


def standardized(rows: Tensor, width: int, length: float) -> Tensor:
    """(K, D) float vectors to (K, width) float32: centred, on principal axes of equal variance, each of ``length``.

    Raises:
        ValueError: a width that the vectors do not span.
    """
    most = min(rows.shape[1], len(rows) - 1)
    if width > most:
        raise ValueError(
            f"pyramid.words.width is {width}, but {len(rows)} vectors of {rows.shape[1]} numbers span at most {most} "
            "axes; lower it, or take more words"
        )
    rows = rows.double() - rows.double().mean(0)
    spread, axes = torch.linalg.eigh(rows.T @ rows / len(rows))
    spread, axes = spread.flip(0)[:width], axes.flip(1)[:, :width]
    # An axis has no sign of its own: its largest entry is made positive, so that every machine finds the same one.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    if float(spread[-1]) <= 1e-10 * float(spread[0]):
        raise ValueError(f"pyramid.words.width is {width}, but the words' vectors span fewer axes; lower it")
    turned = rows @ axes / spread.sqrt()
    return (turned / turned.norm(dim=-1, keepdim=True).clamp_min(1e-12) * length).float()


def embedding_of(folder: Path) -> Tensor:
    """(V, D) float32 input embedding of a Hugging Face folder, of which nothing else is read.

    Raises:
        ValueError: no safetensors there, or none with an embedding by its usual name.
    """
    index = folder / "model.safetensors.index.json"
    known = read_json(index)["weight_map"] if index.is_file() else {}
    names = sorted({file for name, file in known.items() if name.endswith(EMBEDDING)}) or ["model.safetensors"]
    try:
        with safe_open(folder / names[0], "pt") as file:
            found = [name for name in file.keys() if name.endswith(EMBEDDING)]
            if found:
                return file.get_tensor(found[0]).float()
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{folder / names[0]} cannot be read ({error}); pyramid.words needs the language model's weights in "
            "safetensors, or the words' vectors in pyramid.words.vectors"
        ) from None
    raise ValueError(f"{folder} has no …{EMBEDDING}; give the words' vectors in pyramid.words.vectors")


def _vectors_of_file(path: Path, words: int) -> Tensor:
    key = "pyramid.words.vectors"
    if not path.is_file():
        raise ValueError(f"{key}: no file {path}; write an array (words, numbers) of floats there with numpy.save")
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{key}: {path} cannot be read ({error}); write it again with numpy.save") from None
    if rows.ndim != 2 or len(rows) != words or not np.issubdtype(rows.dtype, np.floating):
        raise ValueError(
            f"{key}: {path} holds {rows.dtype} {rows.shape} for {words} words; give floats ({words}, numbers), a row a "
            "word in the order of the list"
        )
    if not np.isfinite(rows).all():
        raise ValueError(f"{key}: {path} holds numbers that are not finite; take them out with their words")
    return torch.from_numpy(rows.astype(np.float32))


def codebook_digest(codebook: Tensor) -> str:
    """sha256 of a codebook's numbers: proves that training left it as it was."""
    return hashlib.sha256(codebook.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()
