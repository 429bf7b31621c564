"""Captions, questions, visual tokens and codes of speech as documents: lists of spans that the language model reads.

``[image, text]`` feeds continuous merged features and learns the text; ``[text, image]`` is ids throughout and learns
both (LaVIT, arXiv 2309.04669, section 3.2). Prompts are documents that end where the model is to go on.
"""

from __future__ import annotations

import logging
import os

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lavit.tokens import Feed, Learn, Picture, Span
from lavit.vocabulary import SILENT, UNDERSTANDS, Stretch, Vocabulary

log = logging.getLogger(__name__)
Document = list[Span]
READ = ("features", "ids", "nothing")
QUESTION = "Question: {} Answer:"  # of LaVIT's VQA evaluation


class DocumentMaker:
    """Writes documents for one vocabulary and one text tokenizer; codes are (n,) int64.

    Documents hold at most ``row`` tokens: a longer text is cut at the end. ``read`` is how an image that is there to be
    understood enters, as "features" (LaVIT's way), as "ids", or as "nothing": a model that is to do without pictures.
    One that is drawn always is ids.
    """

    def __init__(self, vocabulary: Vocabulary, text: PreTrainedTokenizerBase, row: int, read: str = "features"):
        if read not in READ:
            raise ValueError(f"pretrain.read '{read}' is unknown; choose {', '.join(READ)}")
        self.vocabulary, self.text, self.row, self.read = vocabulary, text, row, read
        self.cut = 0  # tokens that were cut off so far

    def image_text(self, picture: Picture, caption: str) -> Document:
        """``[IMG] features [/IMG] caption </s>``; the caption is learned."""
        return self._fit([self._read_image(picture), self._text(caption, begin=False)])

    def text_image(self, caption: str, codes: Tensor) -> Document:
        """``<s> caption [IMG] codes [/IMG]``; everything is learned."""
        return self._fit([self._text(caption, end=False), self._image_ids(codes)])

    def image_only(self, codes: Tensor) -> Document:
        """``[IMG] codes [/IMG]``: what guidance takes as the unconditional case (eq. 7)."""
        return [self._image_ids(codes)]

    def audio_text(self, codes: Tensor, said: str) -> Document:
        """``[AUD] codes [/AUD] said </s>``; what is said is learned."""
        return self._fit([self._audio_ids(codes)._replace(learn=Learn.NONE), self._text(said, begin=False)])

    def text_audio(self, said: str, codes: Tensor) -> Document:
        """``<s> said [AUD] codes [/AUD]``; everything is learned."""
        return self._fit([self._text(said, end=False), self._audio_ids(codes)])

    def audio_only(self, codes: Tensor) -> Document:
        """``[AUD] codes [/AUD]``, learned: the unconditional case of speech."""
        return [self._audio_ids(codes)]

    def text_only(self, text: str) -> Document:
        """``<s> text </s>``."""
        return self._fit([self._text(text)])

    def passage(self, text: str, generator: torch.Generator) -> Document:
        """``<s> text </s>``, or of a text that is longer than a row as much as a row holds, from anywhere in it."""
        document = [self._text(text)]
        ids = document[0].ids
        if len(ids) <= self.row:
            return document
        inner = self.row - 1  # beside <s>; the end counts as a token of the text
        start = int(torch.randint(1, len(ids) - inner + 1, (), generator=generator))
        return [document[0]._replace(ids=torch.cat([ids[:1], ids[start : start + inner]]))]

    def interleaved(self, pictures: list[tuple[str, Tensor]]) -> Document:
        """``<s> caption [IMG] codes [/IMG] caption [IMG] codes [/IMG] … </s>`` of (caption, codes); all is learned.

        As many of the pictures as fit into a row, from the first on.
        """
        document: Document = []
        for caption, codes in pictures:
            more = [*document, self._text(caption, begin=not document, end=False), self._image_ids(codes)]
            if document and sum(len(span.ids) for span in more) >= self.row:
                break
            document = more
        return self._fit([*document, self._text("", begin=False)])

    def question_answer(self, picture: Picture, question: str, answer: str) -> Document:
        """``[IMG] features [/IMG] Question: … Answer: … </s>``; only the answer is learned."""
        asked = self._text(question_text(question), begin=False, end=False)._replace(learn=Learn.NONE)
        return self._fit([self._read_image(picture), asked, self._text(answer, begin=False)])

    def heard(self, codes: Tensor) -> Document:
        """``[AUD] codes [/AUD]``, after which what is said is to follow."""
        return [self._audio_ids(codes)._replace(learn=Learn.NONE)]

    def speech_prompt(self, said: str | None) -> Document:
        """``<s> said [AUD]``, after which codes of speech are to follow; of None ``[AUD]`` alone."""
        opened = [] if said is None else [self._text(said, end=False)]
        opened.append(Span("audio", torch.tensor([self._speech.begin])))
        return [span._replace(learn=Learn.NONE) for span in opened]

    def prompt(self, parts: list[str | Picture], then: str) -> Document:
        """Texts and pictures in any order, after which a "text" or an "image" is to follow; nothing of them is learned.

        Before a text, pictures are read as any that is to be understood. Before an image they are ids, and ``[IMG]``
        ends the prompt. ``<s>`` begins a prompt that begins with text.

        Raises:
            ValueError: something else is to follow, a text on nothing, or an image of a model that draws none.
        """
        if then not in ("text", "image"):
            raise ValueError(f"a prompt for '{then}' is unknown; choose text or image")
        if then == "image" and not self.vocabulary.words:
            raise ValueError(UNDERSTANDS)
        if then == "text" and not parts:
            raise ValueError("a prompt of no parts leaves nothing to continue; give it a text or a picture")
        document: Document = []
        for part in parts:
            if isinstance(part, str):
                document.append(self._text(part, begin=not document, end=False))
            elif then == "image":
                document.append(self._image_ids(part.codes))
            elif self.read != "nothing" or not document:
                document.append(self._read_image(part))
        if then == "image":
            document.append(Span("image", torch.tensor([self.vocabulary.image_begin])))
        return [span._replace(learn=Learn.NONE) for span in document]

    def question_prompt(self, picture: Picture | None, question: str, form: str = QUESTION) -> Document:
        """``[IMG] features [/IMG] Question: … Answer:``, or the question in another form; None is no picture."""
        return self.prompt([*([picture] if picture else []), question_text(question, form)], then="text")

    def continuation(self, text: str) -> Tensor:
        """(n,) int64 a text and its end, as they follow a prompt."""
        return self._text(text, begin=False).ids

    def _fit(self, document: Document) -> Document:
        """The document with the end of its longest text cut off if it is longer than a row."""
        excess = sum(len(span.ids) for span in document) - self.row
        if excess <= 0:
            return document
        place = max((i for i, s in enumerate(document) if s.modality == "text"), key=lambda i: len(document[i].ids))
        ids = document[place].ids
        if excess >= len(ids):
            raise ValueError(f"an image or speech and a text do not fit into {self.row} tokens; raise pretrain.row")
        if not self.cut and os.environ.get("RANK", "0") == "0":
            words = self.text.decode(ids[:16].tolist())
            log.warning(
                "a document is %d tokens longer than pretrain.row %d and is cut: '%s…'; how many are cut stands in the "
                "log as cut_tokens",
                excess,
                self.row,
                words,
            )
        self.cut += excess
        return [*document[:place], document[place]._replace(ids=ids[: len(ids) - excess]), *document[place + 1 :]]

    def _text(self, text: str, begin: bool = True, end: bool = True) -> Span:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the text {text!r} is not valid Unicode; write it in UTF-8") from None
        ids = self.text(text, add_special_tokens=False)["input_ids"]
        first = [self.text.bos_token_id] if begin else []
        last = [self.text.eos_token_id] if end else []
        return Span("text", torch.tensor(first + ids + last, dtype=torch.int64))

    def _image_ids(self, codes: Tensor) -> Span:
        v = self.vocabulary
        words = v.to_ids(codes) if v.words else torch.full_like(codes, v.image_begin)
        return Span("image", torch.cat([torch.tensor([v.image_begin]), words, torch.tensor([v.image_end])]))

    @property
    def _speech(self) -> Stretch:
        if not self.vocabulary.sounds:
            raise ValueError(SILENT)
        return self.vocabulary.audio

    def _audio_ids(self, codes: Tensor) -> Span:
        speech = self._speech
        marks = torch.tensor([speech.begin, speech.end])
        return Span("audio", torch.cat([marks[:1], speech.to_ids(codes), marks[1:]]))

    def _read_image(self, picture: Picture) -> Span:
        """A picture that is to be understood; the beginning of a text in place of one that is not to be seen."""
        if self.read == "nothing":
            return self._text("", end=False)._replace(learn=Learn.NONE)
        codes, features, keep = picture
        span = self._image_ids(codes)._replace(learn=Learn.NONE)
        return span if self.read == "ids" else span._replace(features=features, feed=Feed.FEATURES, keep=keep)


def question_text(question: str, form: str = QUESTION) -> str:
    """A question in the form that it is asked in."""
    return form.replace("{}", question)
