"""The trained parts together: caption, answer, draw, reconstruct."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.data.documents import Document, DocumentMaker
from lavit.generation import ImagePlan, TextPlan, continuation_likelihood, draw_codes, log_likelihood, write_text
from lavit.model import UnifiedLM
from lavit.renderers.diffusion import DiffusionRenderer
from lavit.tokenizers.codes import pad_codes
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.tokens import Picture, Tokens
from lavit.workspace import Workspace

BATCH = 64


class LaVIT:
    """A trained tokenizer, language model and renderer.

    The text plan limits what is written, the image plan what is drawn. Without a renderer nothing becomes pixels.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: UnifiedLM,
        renderer: DiffusionRenderer | None,
        text,
        row: int,
        read: str = "features",
    ):
        self.tokenizer, self.model, self.renderer, self.text, self.row = tokenizer, model, renderer, text, row
        self.maker = DocumentMaker(model.vocabulary, text, row, read)

    @classmethod
    def from_run(cls, work: Workspace, renders: bool = True) -> LaVIT:
        """The parts that a run trained; what writes text alone needs no renderer, which may not be there yet."""
        renderer = work.renderer() if renders else None
        stage = work.experiment.pretrain
        return cls(work.tokenizer(), work.model(), renderer, work.text_tokenizer(), stage.row, stage.read)

    def look(self, inputs: Tensor) -> list[Picture]:
        """Images (B, 3, S, S) in [0, 1], or their standardized features (B, P, D), as pictures."""
        with torch.no_grad():
            patches = self.tokenizer.patch_features(inputs)
            tokens: Tokens = self.tokenizer.encode_features(patches)
        if not self.model.port.merges:
            rows = zip(self.tokenizer.words(tokens), tokens.features, tokens.keep, strict=True)
            return [Picture(words[real], features[real]) for words, features, real in rows]
        kept = torch.zeros(patches.shape[:2], dtype=torch.bool).scatter_add_(1, tokens.position, tokens.keep)
        rows = zip(self.tokenizer.words(tokens), patches, kept, tokens.keep, strict=True)
        return [Picture(words[real], features, keep) for words, features, keep, real in rows]

    def caption(self, pictures: list[Picture], plan: TextPlan) -> list[str]:
        """A caption each, written greedily."""
        return self._write([self.maker.caption_prompt(p) for p in pictures], plan)

    def answer(self, pictures: list[Picture], questions: list[str], plan: TextPlan) -> list[str]:
        """An answer to each picture's question."""
        pairs = zip(pictures, questions, strict=True)
        return self._write([self.maker.question_prompt(p, q) for p, q in pairs], plan)

    def _write(self, prompts: list[Document], plan: TextPlan) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(prompts), BATCH):
            ids = write_text(self.model, prompts[start : start + BATCH], self.text.eos_token_id, plan)
            texts += [self.text.decode(row, skip_special_tokens=True).strip() for row in ids]
        return texts

    def caption_scores(self, pictures: list[Picture], captions: list[str]) -> Tensor:
        """(pictures, captions) float32 log-likelihoods of every caption of every picture."""
        prompts = [self.maker.caption_prompt(picture) for picture in pictures]
        longest = max(pictures, key=lambda picture: len(picture.codes))
        ids = [self.maker.image_text(longest, caption)[1].ids for caption in captions]
        parts = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
        return torch.cat([continuation_likelihood(self.model, part, ids) for part in parts])

    def draw(self, texts: list[str], plan: ImagePlan, generator: torch.Generator) -> list[Tensor]:
        """Visual words (n,) int64 for each text."""
        codes: list[Tensor] = []
        free = self.maker.draw_prompt(None)
        for start in range(0, len(texts), BATCH):
            prompts = [self.maker.draw_prompt(text) for text in texts[start : start + BATCH]]
            codes += draw_codes(self.model, prompts, free, plan, generator, self.tokenizer.places)
        return codes

    def draw_best(self, texts: list[str], plan: ImagePlan, candidates: int, generator: torch.Generator) -> list[Tensor]:
        """The drawing of ``candidates`` that the model itself captions best with its text.

        LaVIT's protocol draws four and lets CLIP choose; here the other direction of the same model is the judge.
        """
        if candidates == 1:
            return self.draw(texts, plan, generator)
        repeated = [text for text in texts for _ in range(candidates)]
        drawn = self.draw(repeated, plan, generator)
        seen = [
            p for start in range(0, len(drawn), BATCH) for p in self.look(self.features(drawn[start : start + BATCH]))
        ]
        documents = [self.maker.image_text(p, t) for p, t in zip(seen, repeated, strict=True)]
        best = log_likelihood(self.model, documents, self.row).view(-1, candidates).argmax(1).tolist()
        return [drawn[i * candidates + b] for i, b in enumerate(best)]

    @torch.no_grad()
    def features(self, codes: list[Tensor]) -> Tensor:
        """(B, P, D) float32 reconstructed features of visual words."""
        parts = [codes[s : s + BATCH] for s in range(0, len(codes), BATCH)]
        return torch.cat([self.tokenizer.decode(self.tokenizer.lookup(*pad_codes(part))) for part in parts])

    def render(
        self, features: Tensor, seeds: list[int], guidance: float | None = None, steps: int | None = None
    ) -> Tensor:
        """(B, 3, S, S) float32 images in [0, 1] of reconstructed features, each by its own seed."""
        parts = [slice(start, start + BATCH) for start in range(0, len(features), BATCH)]
        return torch.cat([self.renderer.render(features[part], seeds[part], guidance, steps) for part in parts])
