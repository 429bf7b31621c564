"""Captions and answers of a frozen language model that reads pictures as words of its own, after a few examples.

SPAE (arXiv 2306.17842) trains nothing of the language model: what a trained one knows of the form of a caption this one
sees in its prompt. Evaluations of captions and questions use it as they use :class:`lavit.pipeline.LaVIT`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from lavit.arguments import batches
from lavit.data.documents import Document, question_text
from lavit.data.images import as_image
from lavit.data.order import generator_for
from lavit.generation import TextPlan
from lavit.generation.in_context import Contexts, check_word_ids, frozen_llm
from lavit.pipeline import LaVIT
from lavit.system import scores_after, texts_after
from lavit.tokenizers.encoders import to_pixels
from lavit.tokenizers.pyramid_autoencoder import PyramidTokenizer
from lavit.tokens import Picture
from lavit.workspace import Workspace


class FewShot:
    """A run's frozen language model with the words of its pyramid.

    Every prompt has the same ``examples`` training pictures, of as many things, as the first ``read`` of their words.

    Raises:
        ValueError: fewer training pictures than examples, or words that the language model has not.
    """

    def __init__(self, work: Workspace):
        config, e = work.experiment.evaluation.in_context, work.experiment
        self.work, self.config, self.batch, self.seed = work, config, e.evaluation.batch, e.seed
        text = work.text_tokenizer()
        self.contexts, self.text, self.ids = Contexts(text), text, work.word_list().ids
        check_word_ids(self.ids, len(text))
        self.model = frozen_llm(e.pretrain.last().model, len(text), e.seed)

    def words(self, codes: Tensor) -> Tensor:
        """(n,) int64 ids of the first words of a picture's codes."""
        return self.ids[codes[: self.config.read]]

    @functools.cached_property
    def captioned(self) -> Document:
        """Examples of pictures and their captions."""
        pictures, codes = self.work.pictures("captions", "train"), self.work.codes("captions", "train")
        chosen = self._chosen(pictures.distinct())
        parts = [self.contexts.example((self.words(codes.codes(n)),), pictures.captions[n]) for n in chosen]
        return [*self.contexts.begin("Say what the words are about."), *(span for part in parts for span in part)]

    @functools.cached_property
    def asked(self) -> Document:
        """Examples of pictures with a question and its answer."""
        shards, codes = self.work.shards("vqa", "train"), self.work.codes("vqa", "train")
        parts = []
        for n in self._chosen(list(range(len(shards)))):
            questions = shards.describe(n)[1]["questions"]
            one = questions[n % len(questions)]
            given = (self.words(codes.codes(n)), f"\n{one['question']}")
            parts.append(self.contexts.example(given, one["answers"][0]))
        begin = self.contexts.begin("Answer the question about the words.")
        return [*begin, *(span for part in parts for span in part)]

    def _chosen(self, numbers: list[int]) -> list[int]:
        if len(numbers) < self.config.examples:
            raise ValueError(
                f"evaluation.in_context.examples is {self.config.examples} and there are {len(numbers)} pictures to "
                "choose from; lower it"
            )
        order = torch.randperm(len(numbers), generator=generator_for(self.seed)).tolist()
        return [numbers[i] for i in order[: self.config.examples]]

    def caption(self, pictures: list[Picture], plan: TextPlan, seeds: list[int]) -> list[str]:
        """What the words of pictures are about, one line each."""
        return self.write_texts(self.caption_prompts(pictures), plan, seeds)

    def answer(self, pictures: list[Picture], questions: list[str], plan: TextPlan, seeds: list[int]) -> list[str]:
        """Answers to questions about pictures."""
        return self.write_texts(self.question_prompts(pictures, questions), plan, seeds)

    def caption_scores(self, pictures: list[Picture], captions: list[str]) -> Tensor:
        """(pictures, captions) float32 log-likelihoods of every caption of every picture."""
        ids = self.text_ids(captions)
        return scores_after(self.model, self.caption_prompts(pictures), ids, self.batch)

    def caption_prompts(self, pictures: Sequence[Picture], begin: str = "") -> list[Document]:
        """The examples and the words of pictures, after which a caption is to follow, or go on from a beginning."""
        asked = [self.contexts.ask(self.words(picture.codes)) for picture in pictures]
        more = [self.contexts.said(begin)] if begin else []
        return [[*self.captioned, *one, *more] for one in asked]

    def question_prompts(
        self, pictures: Sequence[Picture | None], questions: Sequence[str], form: str | None = None
    ) -> list[Document]:
        """The examples and questions about the words of pictures, in a ``form`` that has ``{}`` for the question."""
        given = [() if picture is None else (self.words(picture.codes),) for picture in pictures]
        asked = [question_text(question, f"\n{form or '{}'}") for question in questions]
        return [[*self.asked, *self.contexts.ask(*x, question)] for x, question in zip(given, asked, strict=True)]

    def text_scores(self, prompts: list[Document], texts: list[str], mean: bool = True) -> Tensor:
        """(prompts, texts) float32 log-likelihoods of every text, its end included, after every prompt; with ``mean``
        those a token."""
        ids = self.text_ids(texts)
        scores = scores_after(self.model, prompts, ids, self.batch)
        return scores / torch.tensor([len(one) for one in ids]) if mean else scores

    def text_ids(self, texts: Sequence[str]) -> list[Tensor]:
        """Of every text the ids (n,) int64 that follow a prompt, its end included."""
        return [self.contexts.answer(text) for text in texts]

    @torch.no_grad()
    def see(self, images: Sequence[Any]) -> list[Picture]:
        """Pictures that :func:`lavit.data.images.as_image` takes, as the words of the pyramid."""
        encoder = self.work.experiment.tokenizer.model.encoder
        size = max(encoder.image_size, self.pyramid.config.image_size)  # it is scaled down to what either reads
        seen: list[Picture] = []
        for part in batches(list(images), self.batch):
            pixels = torch.stack([to_pixels(as_image(image), size, encoder.fit) for image in part])
            codes = self.pyramid.encode(pixels.to(self.model.head.text.device)).codes.cpu()
            seen += [Picture(its, torch.zeros(len(its), 0)) for its in codes]
        return seen

    def to(self, device: torch.device) -> Self:
        """The same models, moved there."""
        self.model.to(device)
        self.pyramid.to(device)
        return self

    @functools.cached_property
    def pyramid(self) -> PyramidTokenizer:
        """What makes words of pictures."""
        return self.work.pyramid().eval()

    def write_texts(self, prompts: list[Document], plan: TextPlan, seeds: list[int]) -> list[str]:
        """What follows each prompt, up to the end of the line."""
        return texts_after(self.model, prompts, self.contexts.stop, plan, seeds, self.batch, self.contexts.read)


def writer_of(work: Workspace) -> Any:
    """What writes captions and answers in a run: its trained system, or the frozen model that reads its pyramid."""
    return LaVIT.from_run(work, renders=False) if work.experiment.pyramid is None else FewShot(work)
