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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from PIL import Image
from torch import Tensor

from lavit.arguments import (
    as_count,
    as_device,
    as_drawing_prompts,
    as_dtype,
    as_list,
    as_plan,
    as_seeds,
    like_given,
    text_of,
)
from lavit.data.audio import as_audio
from lavit.data.order import seed_for
from lavit.generation import ImagePlan, TextPlan, write_interleaved
from lavit.painter import BATCH, Painting
from lavit.release import SHARD, Parts, chosen_folder, read_release, write_release
from lavit.system import System
from lavit.vocabulary import SILENT

CARD = "# A LaVIT system\n\nOpen it with `LaVIT.from_pretrained(FOLDER)`.\n"


Policy = Callable[[Image.Image, str], str | None]


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


class LaVIT(System):
    """A trained tokenizer, language model and renderer.

    What is called an image below is a path, a PIL image, an array or a tensor (:func:`lavit.data.images.as_image`).
    Given one, a method returns one result; given a list, a list, worked on in batches of ``batch``. Pictures that are
    to be understood enter as continuous features, those in the prompt of a drawing as ids (LaVIT, arXiv 2309.04669,
    section 3.2). Methods that make pictures take the settings of :class:`lavit.painter.Painting` too.

    ``policy`` is off by default: a function that is given each picture before it leaves, with the text that it was
    drawn from ("" without one), and says why it must not ("" or None if it may). What it refuses raises
    :class:`Refused`.
    """

    def __init__(self, parts: Parts, policy: Policy | None = None, batch: int = BATCH):
        super().__init__(parts, batch)
        if policy is not None and not callable(policy):
            raise ValueError(f"policy is a {type(policy).__name__}; give a function of a picture and its text")
        self.policy = policy

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        bits: int | None = None,
        offload: bool = False,
        verify: bool = True,
        batch: int = BATCH,
        policy: Policy | None = None,
    ) -> LaVIT:
        """The system of a release folder.

        Args:
            folder: what :meth:`save_pretrained` wrote; by default $LAVIT_MODEL, else what comes with the package.
            device: by default a GPU if there is one.
            dtype: of the language model and the U-Net; by default bfloat16 on a GPU and float32 elsewhere. The
                tokenizer stays in float32: which patches are kept would change.
            bits: 8 or 4 for the matrices of the language model's blocks (needs bitsandbytes); not with ``offload``.
            offload: keep the language model's blocks in the CPU's memory and move each layer to the GPU in its turn.
            verify: compare every file with the digest that the release has of it.
            batch: the most images, texts or drawings at a time; fewer need less memory.
            policy: see the class.

        Raises:
            ValueError: no release there, files that are missing or altered (named), an unknown dtype, or a device that
                is not there.
        """
        device, batch = as_device(device), as_count("batch", batch)
        dtype = as_dtype(dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32))
        return cls(read_release(chosen_folder(folder), verify, device, dtype, bits, offload), policy, batch)

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | str | None = None, card: str = "", shard: str = SHARD
    ) -> None:
        """Write a release folder, whole or not at all.

        ``dtype`` is that of matrices on disk, ``card`` its README.md, by default that of the release which was opened,
        ``shard`` the largest a file of weights may be.

        Raises:
            ValueError: the folder holds something already, or cannot be written; a system that was opened in few bits
                or offloaded.
        """
        if self.parts.changed:
            raise ValueError(f"a system opened {self.parts.changed} cannot be saved; open it without, and save that")
        said = card or self.parts.card or CARD
        write_release(Path(folder), self.parts, said, as_dtype(dtype) if dtype else None, shard)

    def caption(self, images: Any, plan: TextPlan | None = None, seed: int | Sequence[int] = 0) -> Any:
        """What is in an image, as text; a list for a list. The ``seed`` counts where the plan draws words by lot."""
        plan = as_plan(plan, self.plans.caption)
        several, alone = as_list(images)
        seeds = as_seeds(seed, len(several))
        return like_given(self.write_texts(self.caption_prompts(self.see(several)), plan, seeds), alone)

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
        plan = as_plan(plan, self.plans.answer)
        several, alone = as_list(images)
        asked = list(questions) if isinstance(questions, list | tuple) else [questions]
        if len(asked) != len(several):
            raise ValueError(f"{len(several)} images and {len(asked)} questions; give one question an image")
        if strange := [question for question in asked if not isinstance(question, str)]:
            raise ValueError(f"a question is {strange[0]!r}; ask in words")
        if not all(question.strip() for question in asked):
            raise ValueError("a question is empty; ask something")
        seeds = as_seeds(seed, len(several))
        return like_given(self.write_texts(self.question_prompts(self.see(several), asked), plan, seeds), alone)

    def draw(
        self,
        texts: Any = None,
        images: Any = None,
        seed: int | Sequence[int] = 0,
        plan: ImagePlan | None = None,
        candidates: int | None = None,
        **painting: Unpack[Painting],
    ) -> Any:
        """Draw from text, from images, or from both; a list of drawings for a list of texts.

        Args:
            texts: a text, or a list of them. A tuple is one prompt of several parts, texts and images in any order;
                a string in it that ends like a picture's file, as in "cat.png", is one.
            images: an image or a list of them that the text follows; for a list of texts a list with one such entry
                (or None) for each.
            seed: one seed gives one drawing, whatever is drawn beside it, up to rounding by a level of a pixel; or a
                list of them, one a drawing.
            plan: how the language model samples visual words.
            candidates: drawings of each text among which the model chooses the one that it captions best with it.
            painting: guidance, steps, sampler and size of the pixel decoder.

        Raises:
            ValueError: an empty prompt, one that is too long, candidates, seeds or settings of the pixel decoder out
                of range, or a system that has none.
            Refused: the policy keeps a picture back.
        """
        candidates = as_count("candidates", self.plans.candidates if candidates is None else candidates)
        self.check_painting(painting)
        plan = as_plan(plan, self.plans.image)
        named, alone = as_drawing_prompts(texts, images)
        seeds = as_seeds(seed, len(named))
        prompts = self.opened(named)
        words = self.draw_best(prompts, plan, candidates, seeds)
        return like_given(self.paint(words, seeds, [text_of(prompt) for prompt in prompts], **painting), alone)

    def write(
        self,
        prompt: Any,
        seed: int = 0,
        pictures: int = 2,
        text_plan: TextPlan | None = None,
        image_plan: ImagePlan | None = None,
        **painting: Unpack[Painting],
    ) -> list[str | Image.Image]:
        """Go on with a prompt, a text or a tuple of texts and images, with text and at most so many pictures in it.

        Text is written as captions are, without beams, unless ``text_plan`` says otherwise.

        Raises:
            ValueError: an empty prompt, one that is too long, no pictures, or a system that has no pixel decoder.
            Refused: the policy, which is told the prompt and what was written before a picture, keeps it back.
        """
        self.check_painting(painting)
        pictures = as_count("pictures", pictures)
        (named, alone), (seed,) = as_drawing_prompts(prompt, None), as_seeds(seed, 1)
        if not alone:
            raise ValueError("prompt is a list; write goes on with one, a text or a tuple of texts and images")
        (parts,) = self.opened(named)
        start, free = self.maker.prompt(list(parts), "text"), self.maker.prompt([], "image")
        end, places = self.text.eos_token_id, self.tokenizer.places
        plans = (
            as_plan(text_plan, dataclasses.replace(self.plans.caption, beams=1)),
            as_plan(image_plan, self.plans.image),
        )
        (spans,) = write_interleaved(self.model, [start], free, *plans, [seed], end, places, pictures)
        out: list[str | Image.Image] = []
        said = text_of(parts)
        for number, span in enumerate(spans):
            if span.modality == "text":
                out.append(self.text.decode(span.ids, skip_special_tokens=True).strip())
                said = f"{said} {out[-1]}"
            else:
                words = self.model.vocabulary.to_codes(span.ids[1:-1])
                out += self.paint([words], [seed_for(seed, number)], [said], **painting)
        return [piece for piece in out if piece != ""]

    def reconstruct(
        self,
        images: Any,
        tokens: int | None = None,
        seed: int | Sequence[int] = 0,
        **painting: Unpack[Painting],
    ) -> Any:
        """An image as its tokens remember it, without the language model; ``tokens`` sets how many, from 1 on."""
        several, alone = as_list(images)
        self.check_painting(painting)
        seeds = as_seeds(seed, len(several))
        # Straight from the tokens: words may be unable to say where so few of them come from.
        features = [self.tokenizer.decode(found) for found in self.encode(several, tokens)]
        pixels = self.render(torch.cat(features or [self.no_features()]), seeds, **painting)
        return like_given(self._let_out(pixels, [""] * len(several)), alone)

    def tokens(self, images: Any, tokens: int | None = None) -> Any:
        """An image's tokens (:class:`VisualTokens`), as many as its content asks for or as ``tokens`` says.

        Any budget from 1 to all patches will do, but not every one can be said in words.
        """
        several, alone = as_list(images)
        out: list[VisualTokens] = []
        grid = self.tokenizer.config.encoder.grid
        for found in self.encode(several, tokens):
            said = self.tokenizer.sayable(found)
            words = self.tokenizer.words(found._replace(keep=found.keep & said[:, None])).cpu()
            rows = zip(words, *(x.cpu() for x in (found.codes, found.position, found.keep)), said, strict=True)
            out += [VisualTokens(w[real] if can else None, c[real], p[real], grid) for w, c, p, real, can in rows]
        return like_given(out, alone)

    def transcribe(
        self, sounds: Any, rate: int | None = None, plan: TextPlan | None = None, seed: int | Sequence[int] = 0
    ) -> Any:
        """What is said in a sound, as text; a list for a list.

        A sound is a path, a file's bytes, or samples with their ``rate`` (:func:`lavit.data.audio.as_audio`).

        Raises:
            ValueError: a sound that cannot be read, or a system that has learned no speech.
        """
        plan = as_plan(plan, self.plans.transcript)
        several, alone = as_list(sounds)
        seeds = as_seeds(seed, len(several))
        heard = self.listen([as_audio(sound, f"number {number}", rate) for number, sound in enumerate(several)])
        return like_given(self.write_texts([self.maker.heard(codes) for codes in heard], plan, seeds), alone)

    def speak(self, texts: Any, plan: ImagePlan | None = None, seed: int | Sequence[int] = 0) -> Any:
        """A text said aloud: (n,) float32 samples in [−1, 1] at 16,000 a second; a list for a list.

        Raises:
            ValueError: an empty text, or a system that has learned no speech or has no vocoder.
        """
        plan = as_plan(plan, self.plans.speech)
        several, alone = as_list(texts)
        if strange := [text for text in several if not isinstance(text, str) or not text.strip()]:
            raise ValueError(f"a text to be said is {strange[0]!r}; give words")
        if self.parts.vocoder is None:
            raise ValueError(SILENT if self.parts.speech is None else "this system has no vocoder; it cannot speak")
        seeds = as_seeds(seed, len(several))
        return like_given(self.parts.vocoder.sounds(self.say_codes(several, plan, seeds), seeds), alone)

    def paint(
        self,
        words: list[Tensor],
        seeds: Sequence[int],
        texts: Sequence[str],
        **painting: Unpack[Painting],
    ) -> list[Image.Image]:
        """Pictures of visual words, each (n,) int64; ``texts`` is what the policy is told of them."""
        return self._let_out(self.render(self.features(words), seeds, **painting), texts)

    def _let_out(self, pixels: Tensor, texts: Sequence[str]) -> list[Image.Image]:
        """Pixels (B, 3, S, S) in [0, 1] as the pictures that the policy lets out."""
        levels = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
        pictures = [Image.fromarray(picture) for picture in levels]
        for picture, text in zip(pictures, texts, strict=True) if self.policy else ():
            if reason := self.policy(picture, text):
                raise Refused(f"the picture of '{text}' is kept back: {reason}")
        return pictures
