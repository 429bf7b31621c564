"""Which documents a training step reads: kinds of documents with shares, in an order that one seed decides."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from lavit.data.documents import Document, DocumentMaker
from lavit.data.order import Place, generator_for, items_at
from lavit.data.texts import TextSet
from lavit.tokens import Learn, Picture, Span, read_vectors

# Pictures as :class:`lavit.tokenizers.codes.CodeSet` has them, and what gives caption and meta of the one of a number.
Described = tuple[Any, Callable[[int], tuple[str, dict]]]


@dataclass
class MixtureConfig:
    """Shares of the kinds of documents in a pretraining batch; they are normalised.

    ``unconditional`` is the chance that an image or speech after a text loses this, for guidance (eq. 7).
    ``drop_tokens`` is the chance that a fed visual token is left out, ``drop_text`` that a token of the text before an
    image is: both keep small sets from being memorised. ``reword`` is the chance that the text before an image is its
    caption's label alone or a few of its tags: what users write. ``learn_read`` also predicts the ids of images that
    are read as features, which eq. 6 asks for word by word. An interleaved document has up to ``pictures`` of a group.
    ``audio_text`` is speech before what is said, ``text_audio`` the reverse.
    """

    image_text: float = 0.5
    text_image: float = 0.4
    text_only: float = 0.0
    question_answer: float = 0.0
    interleaved: float = 0.0
    audio_text: float = 0.0
    text_audio: float = 0.0
    pictures: int = 3
    learn_read: bool = False
    unconditional: float = 0.1
    drop_tokens: float = 0.0
    drop_text: float = 0.0
    reword: float = 0.0


KINDS = ("image_text", "text_image", "text_only", "question_answer", "interleaved", "audio_text", "text_audio")


class Numbers(NamedTuple):
    """Which captioned picture, picture with questions, text and clip of speech a document may be of."""

    caption: int
    question: int
    text: int
    clip: int


class Drawn(NamedTuple):
    """A document, the kind that it was drawn as, and how many of its tokens were cut off to fit into a row."""

    kind: str
    document: Document
    cut: int


class Mixture:
    """Documents of captions and questions, drawn by kind.

    Args:
        maker: writes the documents.
        captions: the codes of the captioned pictures, and what gives caption and meta of the picture with a number.
        questions: the same of the pictures with questions, or None.
        config: the shares.
        texts: documents of text alone; without them the captions are that.
        speech: the same as ``captions`` of clips, with what is said, or None.

    Raises:
        ValueError: a share for question–answer documents where there are no questions, or for speech where there is
            none, no share at all, or a chance outside of [0, 1].
    """

    def __init__(
        self,
        maker: DocumentMaker,
        captions: Described,
        questions: Described | None,
        config: MixtureConfig,
        texts: TextSet | None = None,
        speech: Described | None = None,
    ):
        self.maker, self.config, self.texts, self.spoken = maker, config, texts, speech
        (self.captioned, self.caption), self.asked = captions, questions
        shares = torch.tensor([getattr(config, kind) for kind in KINDS])
        if questions is None and config.question_answer:
            raise ValueError("pretrain.mixture.question_answer is above 0 but data.vqa is not set; set it to 0")
        if speech is None and config.audio_text + config.text_audio:
            raise ValueError(
                "pretrain.mixture: audio_text or text_audio is above 0 but data.speech is not set; set both to 0"
            )
        if not (shares >= 0).all() or shares.sum() <= 0:
            raise ValueError("pretrain.mixture: shares must not be negative and one must be above 0")
        for name in ("unconditional", "drop_tokens", "drop_text", "reword"):
            if not 0 <= getattr(config, name) <= 1:
                raise ValueError(f"pretrain.mixture.{name} is a chance, from 0 to 1")
        if config.pictures < 1:
            raise ValueError(f"pretrain.mixture.pictures is {config.pictures}; it must be at least 1")
        self.shares = shares / shares.sum()
        self.share_of = dict(zip(KINDS, self.shares.tolist(), strict=True))
        self.kinds = [kind for kind, share in self.share_of.items() if share > 0]
        self.together = self._pages_and_groups() if config.interleaved else {}

    def _pages_and_groups(self) -> dict[int, tuple[bool, list[int]]]:
        """By its number, whether a picture is from a page, and the pictures of its page, in order, or of its group."""
        members: dict[tuple[bool, str], list[int]] = defaultdict(list)
        for number in range(len(self.captioned)):
            meta = self.caption(number)[1]
            paged = "page" in meta
            members[paged, meta["page" if paged else "group"]].append(number)
        return {number: (paged, numbers) for (paged, _), numbers in members.items() for number in numbers}

    def step(self, step: int, size: int, seed: int) -> list[Drawn]:
        """The ``size`` documents of a step, whatever ranks there are; each draws from a generator of its own."""
        numbers = self._numbers(Place(step, 0, 0, 1, size), [seed, seed + 1, seed + 2, seed + 3])
        return [self.draw(its, generator_for(seed, step, i)) for i, its in enumerate(numbers)]

    def _numbers(self, place: Place, seeds: list[int]) -> list[Numbers]:
        """Of every document of a step; where there is nothing of a kind they count for nothing."""
        sets = (self.captioned, self.asked and self.asked[0], self.texts, self.spoken and self.spoken[0])
        rows = [items_at(place, 1, len(its or sets[0]), seed).tolist() for its, seed in zip(sets, seeds, strict=True)]
        return [Numbers(*row) for row in zip(*rows, strict=True)]

    def counts(self, drawn: list[Drawn]) -> dict[str, float]:
        """Tokens by kind, those cut off, and how often the pictures, once for each image in a document, were seen."""
        tokens: Counter[str] = Counter(dict.fromkeys((f"tokens_{kind}" for kind in self.kinds), 0))
        images: Counter[bool] = Counter()
        for kind, document, _ in drawn:
            tokens[f"tokens_{kind}"] += sum(len(span.ids) for span in document)
            images[kind == "question_answer"] += sum(span.modality == "image" for span in document)
        epochs = {"cut_tokens": sum(one.cut for one in drawn), "epochs_captions": images[False] / len(self.captioned)}
        if self.texts:
            epochs["epochs_text"] = sum(one.kind == "text_only" for one in drawn) / len(self.texts)
        if self.asked:
            epochs["epochs_questions"] = images[True] / len(self.asked[0])
        if self.spoken:
            heard = sum(span.modality == "audio" for one in drawn for span in one.document)
            epochs["epochs_speech"] = heard / len(self.spoken[0])
        return {**tokens, **epochs}

    def every_kind(self, size: int, seed: int) -> dict[str, list[Document]]:
        """``size`` documents of each kind that has a share, whole and always the same: what validation reads.

        Plain texts, where there are some, are among them without a share too: what a language model may forget.
        """
        whole = copy.copy(self)
        whole.config = replace(self.config, unconditional=0.0, drop_tokens=0.0, drop_text=0.0, reword=0.0)
        place = Place(0, 0, 0, 1, size)
        generator = generator_for(seed, size)
        chances = torch.rand(size, 2, generator=generator).tolist()
        places = list(zip(self._numbers(place, [seed] * 4), chances, strict=True))
        kinds = [kind for kind in KINDS if kind in self.kinds or (kind == "text_only" and self.texts)]
        return {kind: [whole._document(kind, *numbers, generator) for numbers in places] for kind in kinds}

    def draw(self, numbers: Numbers, generator: torch.Generator) -> Drawn:
        """A document of one of the things with these numbers, of a kind that is drawn by lot."""
        kind = KINDS[int(torch.multinomial(self.shares, 1, replacement=True, generator=generator))]
        chance = torch.rand(2, generator=generator).tolist()
        before = self.maker.cut
        document = self._document(kind, numbers, chance, generator)
        return Drawn(kind, document, self.maker.cut - before)

    def _seen(self, codes, number: int, generator: torch.Generator) -> Picture:
        """A picture, at random without some tokens and never without all."""
        picture = codes.picture(number)
        if not self.config.drop_tokens:
            return picture
        stay = torch.rand(len(picture.codes), generator=generator) >= self.config.drop_tokens
        stay[int(torch.randint(len(stay), (), generator=generator))] = True
        if picture.keep is None:
            return Picture(picture.codes[stay], lambda: read_vectors(picture.features)[stay])
        return picture._replace(codes=picture.codes[stay], keep=picture.keep.masked_scatter(picture.keep, stay))

    def _document(self, kind: str, numbers: Numbers, chance: list[float], generator: torch.Generator) -> Document:
        caption, question, text, clip = numbers
        if kind in ("audio_text", "text_audio"):
            codes, describe = self.spoken
            said, heard = describe(clip)[0], codes.codes(clip)
            if kind == "audio_text":
                return self.maker.audio_text(heard, said)
            alone = chance[0] < self.config.unconditional
            return self.maker.audio_only(heard) if alone else self.maker.text_audio(said, heard)
        if kind == "question_answer":
            codes, describe = self.asked
            asked = describe(question)[1]["questions"]
            one = asked[int(chance[0] * len(asked))]
            answer = one["answers"][int(chance[1] * len(one["answers"]))]
            return self._reading(
                self.maker.question_answer(self._seen(codes, question, generator), one["question"], answer)
            )
        if kind == "text_only" and self.texts:
            return self.maker.passage(self.texts.text(text), generator)
        codes, words = self.captioned, self.caption(caption)[0]
        if kind == "image_text":
            return self._reading(self.maker.image_text(self._seen(codes, caption, generator), words))
        if kind == "text_only":
            return self.maker.passage(words, generator)
        if kind == "interleaved":
            numbers = self._pictures_with(caption, generator)
            return self.maker.interleaved([(self.caption(n)[0], codes.codes(n)) for n in numbers])
        if chance[0] < self.config.unconditional:
            return self.maker.image_only(codes.codes(caption))
        if self.config.reword:
            words = self._reworded(caption, generator)
        document = self.maker.text_image(words, codes.codes(caption))
        return [self._thinned(document[0], generator), *document[1:]] if self.config.drop_text else document

    def _pictures_with(self, number: int, generator: torch.Generator) -> list[int]:
        """The pictures of an interleaved document with the picture ``number``.

        They are those of its page from it on, in order; without a page, it and some of its group that have none.
        """
        paged, others = self.together[number]
        if paged:
            return others[others.index(number) :][: self.config.pictures]
        drawn = torch.randint(len(others), (self.config.pictures - 1,), generator=generator).tolist()
        return list(dict.fromkeys([number, *(others[i] for i in drawn)]))

    def _reworded(self, number: int, generator: torch.Generator) -> str:
        """The caption of a picture, or by chance its label or up to three of its tags."""
        words, meta = self.caption(number)
        tags = meta.get("tags", [])
        chances = torch.rand(2, generator=generator).tolist()
        order = torch.randperm(len(tags), generator=generator)[:3].tolist()
        if chances[0] >= self.config.reword:
            return words
        if tags and chances[1] < 0.5:
            return " ".join(tags[i].replace("_", " ") for i in order)
        return words.partition(": ")[2] or words

    def _reading(self, document: Document) -> Document:
        """A document that begins with an image that is read."""
        if not self.config.learn_read or document[0].modality != "image":
            return document
        return [document[0]._replace(learn=Learn.IDS), *document[1:]]

    def _thinned(self, text: Span, generator: torch.Generator) -> Span:
        """A text that begins as it began, at random without some of its later tokens."""
        keep = torch.rand(len(text.ids), generator=generator) >= self.config.drop_text
        keep[0] = True
        return text._replace(ids=text.ids[keep])
