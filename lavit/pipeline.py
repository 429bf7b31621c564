"""A trained system to use: captions, answers, drawings, reconstructions, tokens.

```python
from lavit.pipeline import LaVIT

lavit = LaVIT.from_pretrained("release")
lavit.caption("cat.png")
lavit.answer("cat.png", "what colour is it?")
lavit.draw("a red apple", seed=1).save("apple.png")
```
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from lavit.data.documents import Document, DocumentMaker
from lavit.data.images import SUFFIXES, as_image
from lavit.data.order import seed_for
from lavit.generation import (
    ImagePlan,
    TextPlan,
    continuation_likelihood,
    draw_codes,
    log_likelihood,
    write_interleaved,
    write_text,
)
from lavit.release import GenerationConfig, LanguageConfig, Parts, read_release, write_release
from lavit.tokenizers.codes import pad_codes
from lavit.tokenizers.encoders import to_pixels
from lavit.tokens import Picture, Tokens
from lavit.workspace import Workspace

BATCH = 64


class VisualTokens(NamedTuple):
    """A picture's tokens, in raster order.

    Attributes:
        words: (n,) int64 visual words, as the language model counts them; None where words say places and a budget
            kept patches too far apart for that. Such tokens can be decoded, but no language model can read them.
        codes: (n,) int64 entries of the codebook.
        places: (n,) int64 the patches they came from, of a grid of ``grid`` × ``grid``, row by row.
        grid: patches a side.
    """

    words: Tensor | None
    codes: Tensor
    places: Tensor
    grid: int


class Refused(ValueError):
    """A picture that the policy does not let out."""


class LaVIT:
    """A trained tokenizer, language model and renderer.

    What is called an image below is a path, a PIL image, an array or a tensor (:func:`lavit.data.images.as_image`).
    Given one, a method returns one result; given a list, a list, in batches. Pictures that are to be understood enter
    as continuous features, those in the prompt of a drawing as ids (LaVIT, arXiv 2309.04669, section 3.2).

    ``policy`` is off by default: a function that is given each picture before it leaves, with the text that it was
    drawn from ("" without one), and says why it must not ("" if it may). What it refuses raises :class:`Refused`.
    """

    def __init__(self, parts: Parts, policy: Callable[[Image.Image, str], str] | None = None):
        self.parts, self.policy = parts, policy
        self.tokenizer, self.model, self.renderer = parts.tokenizer, parts.model, parts.renderer
        self.text, self.row, self.plans = parts.text, parts.language.row, parts.generation
        self.maker = DocumentMaker(self.model.vocabulary, self.text, self.row, parts.language.read)

    # ---------------------------------------------------------------------------------------------- opening, saving

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        bits: int | None = None,
        offload: bool = False,
        verify: bool = True,
    ) -> LaVIT:
        """The system of a release folder.

        Args:
            folder: what :meth:`save_pretrained` wrote.
            device: by default a GPU if there is one.
            dtype: of the language model and the U-Net; by default bfloat16 on a GPU and float32 elsewhere. The
                tokenizer stays in float32: which patches are kept would change.
            bits: 8 or 4 for the matrices of the language model's blocks (needs bitsandbytes); not with ``offload``.
            offload: keep the language model's blocks in the CPU's memory and move each layer to the GPU in its turn.
            verify: compare every file with the digest that the release has of it.

        Raises:
            ValueError: no release there, files that are missing or altered (named), an unknown dtype, or a device that
                is not there.
        """
        device = _device(device)
        return cls(read_release(Path(folder), verify, device, _dtype(dtype, device), bits, offload))

    @classmethod
    def from_run(cls, work: Workspace, renders: bool = True) -> LaVIT:
        """The parts that a run trained; what writes text alone needs no renderer, which may not be there yet."""
        stage, cfg = work.experiment.pretrain, work.experiment.evaluation
        language = LanguageConfig(stage.row, stage.read, stage.model.port)
        plans = GenerationConfig(cfg.text, cfg.answer, cfg.image, cfg.candidates)
        renderer = work.renderer() if renders else None
        return cls(Parts(work.tokenizer(), work.model(), renderer, work.text_tokenizer(), language, plans))

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | str | None = None, card: str = "") -> None:
        """Write a release folder, whole or not at all; ``dtype`` is that of matrices on disk, ``card`` its README.md.

        Raises:
            ValueError: the folder holds something already, or cannot be written; a system that was opened in few bits
                or offloaded.
        """
        if self.parts.changed:
            raise ValueError(f"a system opened {self.parts.changed} cannot be saved; open it without, and save that")
        dtype = _dtype(dtype, torch.device("cpu")) if dtype else None
        write_release(Path(folder), self.parts, card or CARD, dtype)

    @property
    def device(self) -> torch.device:
        return self.model.head.new.device  # the blocks may be elsewhere

    # -------------------------------------------------------------------------------------------------- to the user

    def caption(self, images: Any, plan: TextPlan | None = None, seed: int | Sequence[int] = 0) -> Any:
        """What is in an image, as text; a list for a list. The ``seed`` counts where the plan draws words by lot."""
        several, alone = _several(images)
        prompts = [self.maker.prompt([picture], "text") for picture in self.see(several)]
        return _one(self._write(prompts, plan or self.plans.caption, seed), alone)

    def answer(
        self,
        images: Any,
        questions: str | Sequence[str],
        plan: TextPlan | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Any:
        """The answer to a question about an image; a list for lists of equal length.

        Raises:
            ValueError: an empty question, or more or fewer questions than images.
        """
        several, alone = _several(images)
        asked = [questions] if isinstance(questions, str) else list(questions)
        if len(asked) != len(several):
            raise ValueError(f"{len(several)} images and {len(asked)} questions; give one question an image")
        if not all(question.strip() for question in asked):
            raise ValueError("a question is empty; ask something")
        pairs = zip(self.see(several), asked, strict=True)
        prompts = [self.maker.question_prompt(picture, question) for picture, question in pairs]
        return _one(self._write(prompts, plan or self.plans.answer, seed), alone)

    def draw(
        self,
        texts: Any = None,
        images: Any = None,
        seed: int | Sequence[int] = 0,
        plan: ImagePlan | None = None,
        candidates: int | None = None,
        guidance: float | None = None,
        steps: int | None = None,
    ) -> Any:
        """Draw from text, from images, or from both; a list of drawings for a list of texts.

        Args:
            texts: a text, or a list of them. A tuple is one prompt of several parts, texts and images in any order;
                a string in it that ends like a picture's file, as in "cat.png", is one.
            images: an image or a list of them that the text follows; for a list of texts a list with one such entry
                (or None) for each.
            seed: one seed gives one drawing, whatever is drawn beside it; or a list of them, one a drawing.
            plan: how the language model samples visual words.
            candidates: drawings of each text among which the model chooses the one that it captions best with it.
            guidance: of the pixel decoder; 1 is none.
            steps: of the pixel decoder.

        Raises:
            ValueError: an empty prompt, one that is too long, candidates, steps or seeds out of range, or a system
                that has no pixel decoder.
            Refused: the policy keeps a picture back.
        """
        candidates = self.plans.candidates if candidates is None else candidates
        if candidates < 1:
            raise ValueError(f"candidates is {candidates}; draw at least 1")
        self._check_painting(steps, guidance)
        prompts, alone = self._drawing_prompts(texts, images)
        seeds = _seeds(seed, len(prompts))
        words = self.draw_best(prompts, plan or self.plans.image, candidates, seeds)
        said = [_text_of(prompt) for prompt in prompts]
        return _one(self.paint(words, seeds, said, guidance, steps), alone)

    def write(
        self,
        prompt: Any,
        seed: int = 0,
        pictures: int = 2,
        text_plan: TextPlan | None = None,
        image_plan: ImagePlan | None = None,
    ) -> list[str | Image.Image]:
        """Go on with a prompt, a text or a tuple of texts and images, with text and at most so many pictures in it.

        Text is written as captions are, without beams, unless ``text_plan`` says otherwise.

        Raises:
            ValueError: an empty prompt, one that is too long, no pictures, or a system that has no pixel decoder.
            Refused: the policy, which is told the prompt and what was written before a picture, keeps it back.
        """
        self._check_painting(None)
        if pictures < 1:
            raise ValueError(f"pictures is {pictures}; give at least 1, or ask for a caption or an answer")
        ((parts,), _), (seed,) = self._drawing_prompts(prompt, None), _seeds(seed, 1)
        start, free = self.maker.prompt(list(parts), "text"), self.maker.prompt([], "image")
        end, places = self.text.eos_token_id, self.tokenizer.places
        plans = (text_plan or dataclasses.replace(self.plans.caption, beams=1), image_plan or self.plans.image)
        (spans,) = write_interleaved(self.model, [start], free, *plans, [seed], end, places, pictures)
        out: list[str | Image.Image] = []
        said = _text_of(parts)
        for number, span in enumerate(spans):
            if span.modality == "text":
                out.append(self.text.decode(span.ids, skip_special_tokens=True).strip())
                said = f"{said} {out[-1]}"
            else:
                words = self.model.vocabulary.to_codes(span.ids[1:-1])
                out += self.paint([words], [seed_for(seed, number)], [said])
        return [piece for piece in out if piece != ""]

    def reconstruct(
        self,
        images: Any,
        tokens: int | None = None,
        seed: int | Sequence[int] = 0,
        guidance: float | None = None,
        steps: int | None = None,
    ) -> Any:
        """An image as its tokens remember it, without the language model; ``tokens`` sets how many, from 1 on."""
        several, alone = _several(images)
        seeds = _seeds(seed, len(several))
        # Straight from the tokens: words may be unable to say where so few of them come from.
        features = torch.cat([self.tokenizer.decode(found) for found in self._encode(several, tokens)])
        return _one(self._let_out(self.render(features, seeds, guidance, steps), [""] * len(several)), alone)

    def tokens(self, images: Any, tokens: int | None = None) -> Any:
        """An image's tokens (:class:`VisualTokens`), as many as its content asks for or as ``tokens`` says.

        Any budget from 1 to all patches will do, but not every one can be said in words.
        """
        several, alone = _several(images)
        return _one(self._tokens(several, tokens), alone)

    def paint(
        self,
        words: list[Tensor],
        seeds: Sequence[int],
        texts: Sequence[str],
        guidance: float | None = None,
        steps: int | None = None,
    ) -> list[Image.Image]:
        """Pictures of visual words, each (n,) int64; ``texts`` is what the policy is told of them."""
        return self._let_out(self.render(self.features(words), seeds, guidance, steps), texts)

    # ------------------------------------------------------------------------------------------- to the evaluations

    def see(self, images: list[Any]) -> list[Picture]:
        """Images as the language model is shown them; what is one already stays."""
        found = [image if isinstance(image, Picture) else None for image in images]
        unseen = [number for number, picture in enumerate(found) if picture is None]
        for start in range(0, len(unseen), BATCH):
            part = unseen[start : start + BATCH]
            for number, picture in zip(part, self.look(self._pixels([images[n] for n in part])), strict=True):
                found[number] = picture
        return found

    @torch.no_grad()
    def look(self, inputs: Tensor) -> list[Picture]:
        """Images (B, 3, S, S) in [0, 1], or their standardized features (B, P, D), as pictures."""
        patches = self.tokenizer.patch_features(inputs.to(self.device))
        tokens = self.tokenizer.encode_features(patches)
        words, keep = self.tokenizer.words(tokens).cpu(), tokens.keep.cpu()
        if not self.model.port.merges:
            rows = zip(words, tokens.features.cpu(), keep, strict=True)
            return [Picture(codes[real], features[real]) for codes, features, real in rows]
        kept = torch.zeros(patches.shape[:2], dtype=torch.bool).scatter_add_(1, tokens.position.cpu(), keep)
        rows = zip(words, patches.cpu(), kept, keep, strict=True)
        return [Picture(codes[real], features, its) for codes, features, its, real in rows]

    def caption_scores(self, pictures: list[Picture], captions: list[str]) -> Tensor:
        """(pictures, captions) float32 log-likelihoods of every caption of every picture."""
        prompts = [self.maker.prompt([picture], "text") for picture in pictures]
        longest = max(pictures, key=lambda picture: len(picture.codes))
        ids = [self.maker.image_text(longest, caption)[1].ids for caption in captions]
        parts = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
        return torch.cat([continuation_likelihood(self.model, part, ids) for part in parts])

    def draw_words(self, prompts: list[Any], plan: ImagePlan, seeds: Sequence[int]) -> list[Tensor]:
        """Visual words (n,) int64 for each prompt, a text or a tuple of texts and pictures."""
        codes: list[Tensor] = []
        free = self.maker.prompt([], "image")
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            opened = self._opened([_as_tuple(prompt) for prompt in prompts[part]])
            documents = [self.maker.prompt(list(parts), "image") for parts in opened]
            codes += draw_codes(self.model, documents, free, plan, list(seeds[part]), self.tokenizer.places)
        return codes

    def draw_best(self, prompts: list[Any], plan: ImagePlan, candidates: int, seeds: Sequence[int]) -> list[Tensor]:
        """The drawing of ``candidates`` that the model itself captions best with its text.

        LaVIT's protocol draws four and lets CLIP choose; here the other direction of the same model is the judge. A
        prompt without text has one candidate.
        """
        if candidates == 1:
            return self.draw_words(prompts, plan, seeds)
        counts = [candidates if _text_of(prompt) else 1 for prompt in prompts]
        repeated = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        several = [seed_for(seed, i) for seed, count in zip(seeds, counts, strict=True) for i in range(count)]
        drawn = self.draw_words(repeated, plan, several)
        seen = [p for s in range(0, len(drawn), BATCH) for p in self.look(self.features(drawn[s : s + BATCH]))]
        documents = [self.maker.image_text(p, _text_of(t)) for p, t in zip(seen, repeated, strict=True)]
        parts = log_likelihood(self.model, documents, self.row).split(counts)
        return [words[int(part.argmax())] for words, part in zip(_split(drawn, counts), parts, strict=True)]

    @torch.no_grad()
    def features(self, codes: list[Tensor]) -> Tensor:
        """(B, P, D) float32 reconstructed features of visual words."""
        parts = [pad_codes(codes[s : s + BATCH]) for s in range(0, len(codes), BATCH)]
        found = [self.tokenizer.lookup(*(part.to(self.device) for part in both)) for both in parts]
        return torch.cat([self.tokenizer.decode(tokens) for tokens in found])

    def render(
        self, features: Tensor, seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> Tensor:
        """(B, 3, S, S) float32 images in [0, 1], on the CPU, of reconstructed features.

        Raises:
            ValueError: a system without a pixel decoder, or settings that the decoder does not know.
        """
        self._check_painting(steps, guidance)
        starts = range(0, len(features), BATCH)
        parts = [(features[s : s + BATCH], list(seeds[s : s + BATCH])) for s in starts]
        return torch.cat([self.renderer.render(*part, guidance=guidance, steps=steps).cpu() for part in parts])

    # ----------------------------------------------------------------------------------------------------- privately

    def _write(self, prompts: list[Document], plan: TextPlan, seed: int | Sequence[int]) -> list[str]:
        texts: list[str] = []
        seeds = _seeds(seed, len(prompts))
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            ids = write_text(self.model, prompts[part], self.text.eos_token_id, plan, seeds[part])
            texts += [self.text.decode(row, skip_special_tokens=True).strip() for row in ids]
        return texts

    def _check_painting(self, steps: int | None, guidance: float | None = None) -> None:
        if self.renderer is None:
            raise ValueError("this system has no pixel decoder; it cannot make pictures")
        most = self.renderer.config.timesteps
        if steps is not None and not 1 <= steps <= most:
            raise ValueError(f"steps is {steps}; give 1 to {most}")
        if guidance is not None and not math.isfinite(guidance):
            raise ValueError(f"guidance is {guidance}; give a number, 1 for none")

    def _let_out(self, pixels: Tensor, texts: Sequence[str]) -> list[Image.Image]:
        """Pixels (B, 3, S, S) in [0, 1] as the pictures that the policy lets out."""
        levels = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
        pictures = [Image.fromarray(picture) for picture in levels]
        for picture, text in zip(pictures, texts, strict=True) if self.policy else ():
            if reason := self.policy(picture, text):
                raise Refused(f"the picture of '{text}' is kept back: {reason}")
        return pictures

    def _pixels(self, images: list[Any]) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1]."""
        config = self.tokenizer.config.encoder
        opened = [as_image(image, f"number {number}") for number, image in enumerate(images)]
        return torch.stack([to_pixels(image, config.image_size, config.fit) for image in opened])

    def _encode(self, images: list[Any], count: int | None) -> Iterator[Tokens]:
        """Tokens of images, batch by batch."""
        for start in range(0, len(images), BATCH):
            pixels = self._pixels(images[start : start + BATCH]).to(self.device)
            yield self.tokenizer.encode(pixels, tokens=count)

    def _tokens(self, images: list[Any], count: int | None) -> list[VisualTokens]:
        out: list[VisualTokens] = []
        for tokens in self._encode(images, count):
            said = self.tokenizer.sayable(tokens)
            words = self.tokenizer.words(tokens._replace(keep=tokens.keep & said[:, None]))
            rows = zip(words.cpu(), *(x.cpu() for x in (tokens.codes, tokens.position, tokens.keep)), said, strict=True)
            grid = self.tokenizer.config.encoder.grid
            out += [VisualTokens(w[real] if can else None, c[real], p[real], grid) for w, c, p, real, can in rows]
        return out

    def _opened(self, prompts: list[tuple[Any, ...]]) -> list[tuple[str | Picture, ...]]:
        """Prompts with their images as pictures."""
        seen = iter(self.see([part for prompt in prompts for part in prompt if not _is_text(part)]))
        return [tuple(part if _is_text(part) else next(seen) for part in prompt) for prompt in prompts]

    def _drawing_prompts(self, texts: Any, images: Any) -> tuple[list[tuple[Any, ...]], bool]:
        """One tuple of texts and pictures a drawing, and whether a single one was asked for."""
        several, alone = _several(texts)
        shown = [images] if alone else [None] * len(several) if images is None else list(images)
        if len(shown) != len(several):
            raise ValueError(f"{len(several)} texts and {len(shown)} entries of images; give one entry a text")
        prompts = []
        for text, its in zip(several, shown, strict=True):
            named = [] if its is None else _several(its)[0]
            before = [Path(image) if isinstance(image, str) else image for image in named]
            after = text if isinstance(text, tuple) else () if text is None else (text,)
            if isinstance(text, str) and not _is_text(text):
                raise ValueError(f"'{text}' stands where a text is expected; give it as images, or in a tuple")
            if not any(not isinstance(part, str) or part.strip() for part in (*before, *after)):
                raise ValueError("the prompt is empty; say what to draw, or give an image")
            prompts.append((*before, *after))
        return self._opened(prompts), alone


CARD = "# A LaVIT system\n\nOpen it with `LaVIT.from_pretrained(FOLDER)`.\n"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _device(device: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # the latter from a build without CUDA
        raise ValueError(f"device {device} cannot be used: {str(error).splitlines()[0]}; 'cpu' always can") from None
    return found


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype {dtype} is unknown; choose {', '.join(DTYPES)}")
    return found


def _several(value: Any) -> tuple[list[Any], bool]:
    """A list of what was given, and whether it was a single one."""
    if isinstance(value, list) or isinstance(value, Tensor) and value.dim() == 4:
        return list(value), False
    return [value], True


def _one(values: list[Any], alone: bool) -> Any:
    return values[0] if alone else values


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} pictures; give one seed, or one a picture")
    for number in seeds:
        if not 0 <= number < 2**63:
            raise ValueError(f"seed is {number}; give 0 or more, below 2 ** 63")
    return seeds


def _as_tuple(prompt: Any) -> tuple[Any, ...]:
    return prompt if isinstance(prompt, tuple) and not isinstance(prompt, Picture) else (prompt,)


def _is_text(part: Any) -> bool:
    """Whether a part of a prompt is a text and no image, which may be named by its file."""
    return isinstance(part, str) and not part.lower().endswith(SUFFIXES)


def _text_of(prompt: Any) -> str:
    return " ".join(part for part in _as_tuple(prompt) if isinstance(part, str))


def _split(values: list[Any], counts: list[int]) -> list[list[Any]]:
    rest = iter(values)
    return [[next(rest) for _ in range(count)] for count in counts]
