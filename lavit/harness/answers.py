"""Requests of lmms-eval, answered by a system. They are met by what they have, so that nothing here needs lmms-eval."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from lavit.arguments import as_count, batches, device_of_rank
from lavit.data.documents import QUESTION, Document
from lavit.data.order import seed_for
from lavit.data.packing import document_length
from lavit.generation import TextPlan
from lavit.harness.requests import (
    CAPTION_WORDS,
    asks_for_caption,
    cut,
    only_picture,
    question_of,
    stops_of,
    text_plan,
)
from lavit.pipeline import LaVIT
from lavit.system import BATCH

log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """One text that is to be written: what is said, how, about which picture, and by which lot."""

    context: str
    kwargs: Mapping[str, Any]
    picture: Callable[[], Image.Image]
    seed: int


class Answers:
    """A release that answers requests of lmms-eval. ``task_dict`` has the documents by task, split and number.

    Args:
        pretrained: the folder of a release.
        device, dtype, bits: see :meth:`lavit.pipeline.LaVIT.from_pretrained`. With several processes, each takes the
            GPU of its rank.
        batch_size: pictures and texts that are worked on at a time.
        question: what is asked, with ``{}`` where the question goes.
        caption_words: beginnings of words, joined by |, which make a context that is no question ask for a caption.
            An empty context always does.
        instructions: "drop" leaves out lines that only say what form an answer is to have, "keep" asks them too.
        images: "one" refuses a document with several pictures, "first" takes the first.
        seed: of what tasks want drawn by lot.
        max_batch_size: lmms-eval passes it on; 0 or as much as ``batch_size``.

    Raises:
        ValueError: no release there, an argument of another name, or a value that cannot be.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        bits: int | None = None,
        batch_size: int | str = 1,
        question: str = QUESTION,
        caption_words: str = CAPTION_WORDS,
        instructions: str = "drop",
        images: str = "one",
        seed: int = 0,
        max_batch_size: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            known = "pretrained, dtype, bits, question, caption_words, instructions, images, seed"
            raise ValueError(
                f"model_args has {', '.join(sorted(unknown))}, which LaVIT does not know; it knows {known}"
            )
        if pretrained is None:
            raise ValueError("model_args names no release; give pretrained=FOLDER, one that save_pretrained wrote")
        question = str(question)
        if question.count("{}") != 1:
            raise ValueError(f"model_args: question is {question!r}; write {{}} once, where the question goes")
        for name, value, choices in (
            ("instructions", instructions, ("drop", "keep")),
            ("images", images, ("one", "first")),
        ):
            if value not in choices:
                raise ValueError(f"model_args: {name} is {value!r}; choose {' or '.join(choices)}")
        self.question, self.caption_words = question, str(caption_words)
        self.keep, self.first, self.seed = instructions == "keep", images == "first", as_count("seed", seed, 0)
        batch = BATCH if str(batch_size).startswith("auto") else str(batch_size)
        batch = as_count("batch_size", int(batch) if str(batch).isdecimal() else batch)
        self.system = LaVIT.from_pretrained(str(pretrained), chosen_device(device), dtype, bits, batch=batch)
        self.task_dict: dict[str, Any] = {}

    # ---------------------------------------------------------------------------------------------- what is asked

    def document(self, task: str, split: str, number: Any) -> Any:
        return self.task_dict[task][split][number]

    def picture(self, visuals: Callable[[Any], Any] | None, task: str, split: str, number: Any) -> Image.Image:
        """The picture of a document, as the task's function finds it."""
        shown = visuals(self.document(task, split, number)) if visuals else None
        return only_picture(shown, f"{task}, document {number}", self.first)

    def prompts(self, contexts: Sequence[str], pictures: Sequence[Image.Image]) -> list[Document]:
        """Prompts of captions or of questions about pictures."""
        seen = self.system.see(list(pictures))
        return [
            self.system.caption_prompts([picture])[0]
            if asks_for_caption(context, self.caption_words)
            else self.system.question_prompts([picture], [question_of(context, self.keep)], self.question)[0]
            for context, picture in zip(contexts, seen, strict=True)
        ]

    # -------------------------------------------------------------------------------------------------- generation

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What is written for requests of (context, generation_kwargs, doc_to_visual, doc_id, task, split)."""
        asked, times = [], Counter()
        for context, kwargs, visuals, number, task, split in (request.args for request in requests):
            seed = self._seed(task, number, 0, times[task, number])
            times[task, number] += 1  # a request that is repeated draws anew
            asked.append(Asked(context, kwargs, partial(self.picture, visuals, task, split, number), seed))
        return self.write(asked)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """What is written in each round of (context, kwargs, doc_to_visual, doc_to_text, doc_id, task, split).

        ``doc_to_text`` says after each round what comes next: (visuals, context, whether this is the end, all rounds so
        far, what it wants to be told). Rounds without visuals are about the picture of the one before. What was said
        before is not shown to the model unless the context repeats it.
        """
        said: list[list[str]] = [[] for _ in requests]
        told: list[Any] = [None] * len(requests)
        opened = [(r.args[0], partial(self.picture, r.args[2], r.args[5], r.args[6], r.args[4])) for r in requests]
        going, turn = list(range(len(requests))), 0
        while going:
            asked = []
            for n in going:
                _, kwargs, _, _, number, task, _ = requests[n].args
                asked.append(Asked(opened[n][0], kwargs, opened[n][1], self._seed(task, number, turn)))
            for n, text in zip(going, self.write(asked), strict=True):
                said[n].append(text)
            turn, left = turn + 1, []
            for n in going:
                _, _, _, doc_to_text, number, task, split = requests[n].args
                shown, context, end, rounds, told[n] = doc_to_text(
                    self.document(task, split, number),
                    previous_output=list(said[n]),
                    round_idx=turn,
                    previous_round_info=told[n],
                )
                said[n] = list(rounds)
                if not end:
                    left.append(n)
                    picture = opened[n][1]
                    if shown is not None and len(shown):
                        name = f"{task}, document {number}, round {turn}"
                        picture = partial(only_picture, shown, name, self.first)
                    opened[n] = context, picture
            going = left
        return said

    def write(self, asked: Sequence[Asked]) -> list[str]:
        """A text for each, those of one plan together."""
        texts = [""] * len(asked)
        groups: dict[Any, list[int]] = defaultdict(list)
        for n, one in enumerate(asked):
            plans = self.system.plans
            default = plans.caption if asks_for_caption(one.context, self.caption_words) else plans.answer
            plan = text_plan(one.kwargs, default)
            groups[dataclasses.astuple(plan), stops_of(one.kwargs)].append(n)
        for (settings, stops), numbers in self._shown(groups):
            prompts = self.prompts([asked[n].context for n in numbers], [asked[n].picture() for n in numbers])
            plan = self.fitting(TextPlan(*settings), prompts)
            written = self.system.write_texts(prompts, plan, [asked[n].seed for n in numbers])
            for n, text in zip(numbers, written, strict=True):
                texts[n] = cut(text, stops)
        return texts

    def fitting(self, plan: TextPlan, prompts: Sequence[Document]) -> TextPlan:
        """The plan with no more tokens than the model reads after the prompts; tasks ask for a thousand and more."""
        room = self.system.model.blocks.config.max_position_embeddings - max(map(document_length, prompts))
        if not 0 < room < plan.max_tokens:
            return plan
        return dataclasses.replace(plan, max_tokens=room, min_tokens=min(plan.min_tokens, room))

    # -------------------------------------------------------------------------------------------------- likelihoods

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of (context, text, doc_to_visual, doc_id, task, split): the mean loss a token, and whether greedy search
        writes just this text.

        lmms-eval takes the *least* of a question's choices, as its models give a loss; the end of the text counts as
        a token. A blank before the text goes: answers are tokens of their own after the prompt.
        """
        texts: list[str] = []
        of_prompt: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for n, request in enumerate(requests):
            if len(request.args) != 6:
                raise ValueError(
                    f"{request.task_name} asks how likely a text is without its picture, for acc_mutual_info, which "
                    "lmms-eval takes of log-likelihoods while acc wants losses; leave that metric out"
                )
            context, text, visuals, number, task, split = request.args
            if not isinstance(text, str):
                text = text(self.document(task, split, number)) if callable(text) else text
            texts.append(str(text).lstrip())
            of_prompt[context, visuals, number, task, split].append(n)
        groups: dict[Any, list[tuple[Any, ...]]] = defaultdict(list)  # prompts by the texts that may follow them
        for prompt, numbers in of_prompt.items():
            groups[tuple(dict.fromkeys(texts[n] for n in numbers))].append(prompt)
        found: dict[tuple[Any, ...], tuple[float, bool]] = {}
        for choices, prompts in self._shown(groups):
            pictures = [self.picture(visuals, task, split, n) for _, visuals, n, task, split in prompts]
            documents = self.prompts([prompt[0] for prompt in prompts], pictures)
            losses = -self.system.text_scores(documents, list(choices))
            plan = TextPlan(max_tokens=max(len(self.system.maker.continuation(choice)) for choice in choices))
            greedy = self.system.write_texts(documents, plan, [0] * len(documents))
            for prompt, row, likeliest in zip(prompts, losses.tolist(), greedy, strict=True):
                for choice, loss in zip(choices, row, strict=True):
                    found[prompt, choice] = loss, choice.strip() == likeliest
        return [found[prompt, texts[n]] for n, prompt in sorted((n, p) for p, ns in of_prompt.items() for n in ns)]

    def _seed(self, task: str, number: Any, *more: int) -> int:
        return seed_for(self.seed, *f"{task}/{number}".encode(), *more)

    def _shown(self, groups: Mapping[Any, Sequence[Any]]) -> Iterable[tuple[Any, Sequence[Any]]]:
        """Batches of groups, each with the group's key, beside a bar on the first rank."""
        parts = [(key, part) for key, values in groups.items() for part in batches(values, self.system.batch)]
        return tqdm(parts, desc="LaVIT", unit="batch", disable=int(os.environ.get("RANK", 0)) != 0)


def chosen_device(device: str | None) -> str | torch.device | None:
    """The device that was asked for, or of several processes on GPUs the one of this rank."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several and torch.cuda.is_available() and str(device or "cuda").startswith("cuda"):
        return device_of_rank()
    return device or None
