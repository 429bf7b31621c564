"""Captions and answers of a frozen language model that reads pictures as words of its own, after a few examples.

SPAE (arXiv 2306.17842) trains nothing of the language model: what a trained one knows of the form of a caption this one
sees in its prompt. Evaluations of captions and questions use it as they use :class:`lavit.pipeline.LaVIT`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from lavit.arguments import batches
from lavit.data.documents import Document
from lavit.data.order import generator_for
from lavit.generation import TextPlan, continuation_likelihood, write_text
from lavit.generation.in_context import Contexts, check_word_ids, frozen_llm
from lavit.pipeline import LaVIT
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
        prompts = [[*self.captioned, *self.contexts.ask(self.words(picture.codes))] for picture in pictures]
        return self._written(prompts, plan, seeds)

    def answer(self, pictures: list[Picture], questions: list[str], plan: TextPlan, seeds: list[int]) -> list[str]:
        """Answers to questions about pictures."""
        pairs = zip(pictures, questions, strict=True)
        asked = [self.contexts.ask(self.words(picture.codes), f"\n{question}") for picture, question in pairs]
        return self._written([[*self.asked, *one] for one in asked], plan, seeds)

    def caption_scores(self, pictures: list[Picture], captions: list[str]) -> Tensor:
        """(pictures, captions) float32 log-likelihoods of every caption of every picture."""
        prompts = [[*self.captioned, *self.contexts.ask(self.words(picture.codes))] for picture in pictures]
        ids = [self.contexts.answer(caption) for caption in captions]
        return torch.cat([continuation_likelihood(self.model, part, ids) for part in batches(prompts, self.batch)])

    def _written(self, prompts: list[Document], plan: TextPlan, seeds: list[int]) -> list[str]:
        out: list[str] = []
        for part, its in zip(batches(prompts, self.batch), batches(seeds, self.batch), strict=True):
            out += [self.contexts.read(ids) for ids in write_text(self.model, part, self.contexts.stop, plan, its)]
        return out


def writer_of(work: Workspace) -> Any:
    """What writes captions and answers in a run: its trained system, or the frozen model that reads its pyramid."""
    return LaVIT.from_run(work, renders=False) if work.experiment.pyramid is None else FewShot(work)
