"""A tokenizer, a language model and a renderer at work together, batch by batch.

:class:`lavit.pipeline.LaVIT` makes of it what users call; evaluations take its steps one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from lavit.arguments import as_count, as_tuple, batches, in_parts, is_text, text_of
from lavit.data.documents import QUESTION, Document, DocumentMaker
from lavit.data.images import as_image
from lavit.data.order import seed_for
from lavit.data.packing import document_length
from lavit.generation import ImagePlan, TextPlan, continuation_likelihood, draw_codes, log_likelihood, write_text
from lavit.model import UnifiedLM
from lavit.painter import BATCH, Painter, Painting, check_trains
from lavit.release import GenerationConfig, LanguageConfig, Parts
from lavit.tokenizers.encoders import to_pixels
from lavit.tokens import Picture, Tokens
from lavit.vocabulary import SILENT, UNDERSTANDS
from lavit.workspace import Workspace


class System(Painter):
    """The parts of a trained system, which work on ``batch`` images, texts or drawings at a time."""

    def __init__(self, parts: Parts, batch: int = BATCH):
        super().__init__(parts.tokenizer, parts.renderer, batch)
        self.parts, self.model = parts, parts.model
        self.text, self.row, self.plans = parts.text, parts.language.row, parts.generation
        self.maker = DocumentMaker(self.model.vocabulary, self.text, self.row, parts.language.read)

    @classmethod
    def from_run(cls, work: Workspace, renders: bool = True) -> Self:
        """The parts that a run trained; what writes text alone needs no renderer, which may not be there yet.

        A system that only understands pictures has none.

        Raises:
            ValueError: a run whose language model is frozen and reads words of a pyramid.
        """
        check_trains(work.experiment)
        stage, cfg = work.experiment.pretrain, work.experiment.evaluation
        language = LanguageConfig.of(stage.row, stage.read, stage.last().model)
        plans = GenerationConfig(cfg.text, cfg.answer, cfg.image, cfg.candidates, cfg.transcript, cfg.speech)
        renderer = work.renderer() if renders and stage.last().model.port != "unmerged" else None
        parts = Parts(work.tokenizer(), work.model(), renderer, work.text_tokenizer(), language, plans)
        if work.experiment.tokenizer.speech is not None:
            parts.speech = work.speech_tokenizer()
            parts.vocoder = work.vocoder() if work.has_vocoder else None
        return cls(parts, batch=cfg.batch)

    @property
    def device(self) -> torch.device:
        return self.model.head.text.device  # the blocks may be elsewhere

    def to(self, device: torch.device) -> Self:
        """The same system, moved there."""
        parts = self.parts
        for part in (parts.tokenizer, parts.model, parts.renderer, parts.speech, parts.vocoder):
            if part is not None:
                part.to(device)
        return self

    # ---------------------------------------------------------------------------------------------- from images

    def pixels(self, images: Sequence[Any], numbers: Sequence[int]) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1] of what :func:`lavit.data.images.as_image` takes.

        ``numbers`` are what images that are no files are called in an error.
        """
        config = self.tokenizer.config.encoder
        opened = [as_image(image, f"number {number}") for image, number in zip(images, numbers, strict=True)]
        return torch.stack([to_pixels(image, config.image_size, config.fit) for image in opened])

    def see(self, images: list[Any]) -> list[Picture]:
        """Images as the language model is shown them; what is one already stays."""
        found = [image if isinstance(image, Picture) else None for image in images]
        for part in batches([number for number, picture in enumerate(found) if picture is None], self.batch):
            for number, picture in zip(part, self.look(self.pixels([images[n] for n in part], part)), strict=True):
                found[number] = picture
        return found

    def opened(self, prompts: list[tuple[Any, ...]]) -> list[tuple[str | Picture, ...]]:
        """Prompts with their images as pictures."""
        seen = iter(self.see([part for prompt in prompts for part in prompt if not is_text(part)]))
        return [tuple(part if is_text(part) else next(seen) for part in prompt) for prompt in prompts]

    @torch.no_grad()
    def look(self, inputs: Tensor) -> list[Picture]:
        """Images (B, 3, S, S) in [0, 1], or their standardized features (B, P, D), as pictures."""
        patches = self.tokenizer.patch_features(inputs.to(self.device))
        tokens = self.tokenizer.encode_features(patches)
        words, keep = self.tokenizer.words(tokens).cpu(), tokens.keep.cpu()
        if not self.model.port.reads_patches:
            rows = zip(words, tokens.features.cpu(), keep, strict=True)
            return [Picture(codes[real], features[real]) for codes, features, real in rows]
        kept = torch.zeros(patches.shape[:2], dtype=torch.bool).scatter_add_(1, tokens.position.cpu(), keep)
        rows = zip(words, patches.cpu(), kept, keep, strict=True)
        return [Picture(codes[real], features, its) for codes, features, its, real in rows]

    def encode(self, images: list[Any], count: int | None = None) -> Iterator[Tokens]:
        """Tokens of images, batch by batch; ``count`` of each, or as many as its content asks for."""
        if count is not None:
            count = as_count("tokens", count, 1, self.tokenizer.config.encoder.patches)
        for part in batches(range(len(images)), self.batch):
            pixels = self.pixels([images[n] for n in part], part)
            yield self.tokenizer.encode(pixels.to(self.device), tokens=count)

    # ------------------------------------------------------------------------------------------------- to texts

    def caption_prompts(self, pictures: Sequence[Picture], begin: str = "") -> list[Document]:
        """Pictures, after which a caption is to follow, or go on from where it ``begin``s."""
        return [self.maker.prompt([picture, begin] if begin else [picture], "text") for picture in pictures]

    def question_prompts(
        self, pictures: Sequence[Picture | None], questions: Sequence[str], form: str | None = None
    ) -> list[Document]:
        """Questions about pictures, or about nothing, in a ``form`` that has ``{}`` where the question goes."""
        pairs = zip(pictures, questions, strict=True)
        return [self.maker.question_prompt(picture, question, form or QUESTION) for picture, question in pairs]

    def text_scores(self, prompts: list[Document], texts: list[str], mean: bool = True) -> Tensor:
        """(prompts, texts) float32 log-likelihoods of every text, its end included, after every prompt; with ``mean``
        those a token."""
        ids = self.text_ids(texts)
        scores = scores_after(self.model, prompts, ids, self.batch)
        return scores / torch.tensor([len(one) for one in ids]) if mean else scores

    def text_ids(self, texts: Sequence[str]) -> list[Tensor]:
        """Of every text the ids (n,) int64 that follow a prompt, its end included."""
        return [self.maker.continuation(text) for text in texts]

    def write_texts(self, prompts: list[Document], plan: TextPlan, seeds: list[int]) -> list[str]:
        """What follows each prompt, as ``plan`` says; a seed for each counts where it draws by lot."""
        return texts_after(self.model, prompts, self.text.eos_token_id, plan, seeds, self.batch, self._read)

    def _read(self, ids: list[int]) -> str:
        return self.text.decode(ids, skip_special_tokens=True).strip()

    def caption_scores(self, pictures: list[Picture], captions: list[str]) -> Tensor:
        """(pictures, captions) float32 log-likelihoods of every caption of every picture."""
        prompts = [self.maker.prompt([picture], "text") for picture in pictures]
        longest = max(pictures, key=lambda picture: len(picture.codes))
        ids = [self.maker.image_text(longest, caption)[1].ids for caption in captions]
        return torch.cat([continuation_likelihood(self.model, part, ids) for part in batches(prompts, self.batch)])

    # --------------------------------------------------------------------------------------------------- speech

    def listen(self, sounds: Sequence[Tensor]) -> list[Tensor]:
        """Codes (n,) int64 of sounds (m,) float32 at 16,000 samples a second, on the CPU.

        Raises:
            ValueError: a system without a speech tokenizer.
        """
        if self.parts.speech is None:
            raise ValueError(SILENT)
        out: list[Tensor] = []
        for part in batches(list(sounds), self.batch):
            tokens = self.parts.speech.encode(part)
            out += [codes[keep].cpu() for codes, keep in zip(tokens.codes, tokens.keep, strict=True)]
        return out

    def transcript_scores(self, codes: list[Tensor], texts: list[str]) -> Tensor:
        """(clips, texts) float32 log-likelihoods of every text after the codes of every clip."""
        ids = [self.maker.audio_text(codes[0], text)[1].ids for text in texts]
        return scores_after(self.model, [self.maker.heard(one) for one in codes], ids, self.batch)

    def say_codes(self, texts: list[str], plan: ImagePlan, seeds: Sequence[int]) -> list[Tensor]:
        """Codes of speech (n,) int64 for each text."""
        codes: list[Tensor] = []
        free = self.maker.speech_prompt(None)
        for part, its in zip(batches(texts, self.batch), batches(seeds, self.batch), strict=True):
            prompts = [self.maker.speech_prompt(text) for text in part]
            codes += draw_codes(self.model, prompts, free, plan, list(its), modality="audio")
        return codes

    # ---------------------------------------------------------------------------------------------- to pictures

    def draw_words(self, prompts: list[Any], plan: ImagePlan, seeds: Sequence[int]) -> list[Tensor]:
        """Visual words (n,) int64 for each prompt, a text or a tuple of texts and pictures."""
        codes: list[Tensor] = []
        free = self.maker.prompt([], "image")
        for part, its in zip(batches(prompts, self.batch), batches(seeds, self.batch), strict=True):
            opened = self.opened([as_tuple(prompt) for prompt in part])
            documents = [self.maker.prompt(list(parts), "image") for parts in opened]
            codes += draw_codes(self.model, documents, free, plan, list(its), self.tokenizer.places)
        return codes

    def draw_best(self, prompts: list[Any], plan: ImagePlan, candidates: int, seeds: Sequence[int]) -> list[Tensor]:
        """The drawing of ``candidates`` that the model itself captions best with its text.

        LaVIT's protocol draws four and lets CLIP choose; here the other direction of the same model is the judge. A
        prompt without text has one candidate.
        """
        if candidates == 1:
            return self.draw_words(prompts, plan, seeds)
        counts = [candidates if text_of(prompt) else 1 for prompt in prompts]
        repeated = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        several = [seed_for(seed, i) for seed, count in zip(seeds, counts, strict=True) for i in range(count)]
        drawn = self.draw_words(repeated, plan, several)
        seen = [picture for part in batches(drawn, self.batch) for picture in self.look(self.features(part))]
        documents = [self.maker.image_text(p, text_of(t)) for p, t in zip(seen, repeated, strict=True)]
        parts = log_likelihood(self.model, documents, self.row).split(counts)
        return [words[int(part.argmax())] for words, part in zip(in_parts(drawn, counts), parts, strict=True)]

    def check_painting(self, painting: Painting) -> Painting:
        if not self.model.vocabulary.words:
            raise ValueError(UNDERSTANDS)
        return super().check_painting(painting)


def texts_after(
    model: Any,
    prompts: list[Document],
    stop: int,
    plan: TextPlan,
    seeds: list[int],
    batch: int,
    read: Callable[[list[int]], str],
) -> list[str]:
    """What a model writes after each prompt until ``stop``, as ``read`` makes it of ids; ``batch`` at a time."""
    texts = [""] * len(prompts)
    for part in alike_in_length(prompts, batch):
        ids = write_text(model, [prompts[n] for n in part], stop, plan, [seeds[n] for n in part])
        for number, row in zip(part, ids, strict=True):
            texts[number] = read(row)
    return texts


def scores_after(model: UnifiedLM, prompts: list[Document], texts: list[Tensor], size: int) -> Tensor:
    """(prompts, texts) float32 log-likelihoods of texts (n,) int64 after prompts, ``size`` of these at a time."""
    scores = torch.empty(len(prompts), len(texts))
    for part in alike_in_length(prompts, size):
        scores[part] = continuation_likelihood(model, [prompts[n] for n in part], texts)
    return scores


def alike_in_length(prompts: Sequence[Document], size: int) -> list[list[int]]:
    """Numbers of the prompts in parts of at most ``size``, the longest of each at most twice as long as its shortest.

    What is padded costs as much as what is read.
    """
    lengths = [document_length(prompt) for prompt in prompts]
    parts: list[list[int]] = []
    for number in sorted(range(len(prompts)), key=lengths.__getitem__):
        if not parts or len(parts[-1]) == size or lengths[number] > 2 * lengths[parts[-1][0]]:
            parts.append([])
        parts[-1].append(number)
    return parts
